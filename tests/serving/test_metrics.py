"""What is counted of an exchange, by the thread that it belongs to, and that a page belongs to one gateway."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.log.digest import digest
from gateway.serving.app import create_app
from gateway.serving.metrics import Metrics
from gateway.settings import Settings
from tests.log.made import exchange
from tests.policy.made import config_of


def numbers(metrics: Metrics) -> dict[str, float]:
    """The page without process metrics: `name{labels}` to value."""
    lines = (line.rpartition(" ") for line in metrics.page().decode().splitlines() if line.startswith("tempera_"))
    return {name: float(value) for name, _, value in lines}


def test_an_exchange_is_counted_once_everywhere() -> None:
    metrics = Metrics()
    metrics.observe(exchange(status=200, ttft=0.2, duration=1.2, pieces=11, stream=True, overhead=0.0004))
    metrics.observe(exchange(status=200, duration=0.7))
    found = numbers(metrics)
    both = 'preset="creative",protocol="chat"'
    assert found[f'tempera_requests_total{{outcome="ok",{both},status="200"}}'] == 2
    assert found[f"tempera_request_seconds_sum{{{both}}}"] == pytest.approx(1.9)
    assert found[f"tempera_first_token_seconds_count{{{both}}}"] == 1
    assert found[f"tempera_inter_token_seconds_sum{{{both}}}"] == pytest.approx(0.1)
    assert found[f'tempera_inter_token_seconds_bucket{{le="0.075",{both}}}'] == 0
    assert found[f'tempera_inter_token_seconds_bucket{{le="0.15",{both}}}'] == 1
    assert found['tempera_adjustments_total{parameter="temperature",preset="creative",reason="bound"}'] == 2
    assert found['tempera_overhead_seconds_count{protocol="chat"}'] == 2


def test_a_stream_of_one_piece_has_no_time_between_pieces() -> None:
    metrics = Metrics()
    metrics.observe(exchange(status=200, ttft=0.2, duration=1.2, pieces=1, stream=True))
    assert not [name for name in numbers(metrics) if name.startswith("tempera_inter_token_seconds_")]


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}, (5, 2)),
        ({"input_tokens": 9, "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 3}}, (9, 4)),
        ({"prompt_tokens": 5, "completion_tokens": 0}, (5, None)),
        ({"prompt_tokens": -5, "completion_tokens": 2}, (None, None)),
        ({"prompt_tokens": 10**30}, (None, None)),
        ({"prompt_tokens": "many"}, (None, None)),
        ([1, 2], (None, None)),
        (None, (None, None)),
    ],
)
def test_tokens_are_what_the_engine_counted(usage: Any, counted: tuple[int | None, int | None]) -> None:
    metrics, offered = Metrics(), exchange()
    row = msgspec.structs.replace(digest(offered), usage=None if usage is None else msgspec.json.encode(usage).decode())
    metrics.count_tokens(row, offered)
    found = numbers(metrics)
    labels = 'preset="creative",protocol="chat"'
    names = [f'tempera_tokens_total{{kind="{kind}",{labels}}}' for kind in ("prompt", "completion")]
    assert tuple(found.get(name) for name in names) == counted


def test_the_page_can_be_read_while_another_thread_counts() -> None:
    metrics = Metrics()
    offered = exchange()
    row = digest(offered)
    protocols = [exchange(protocol=f"p{number}") for number in range(2000)]
    counting = threading.Thread(target=lambda: [metrics.count_tokens(row, each) for each in protocols])
    counting.start()
    while counting.is_alive():
        metrics.page()
    assert sum(value for name, value in numbers(metrics).items() if 'kind="prompt"' in name) == 5 * 2000


def test_every_gateway_of_a_process_has_a_page_of_its_own(tmp_path: Path) -> None:
    config = config_of()
    fronts = [
        create_app(Settings(upstream="http://127.0.0.1:9", data_dir=tmp_path / name), config) for name in ("a", "b")
    ]
    fronts[0].metrics.observe(exchange(status=200))
    first, second = (numbers(front.metrics) for front in fronts)
    assert any(name.startswith("tempera_requests_total") for name in first)
    assert not any(name.startswith("tempera_requests_total") for name in second)
    for found in (first, second):
        assert found[f'tempera_config_info{{revision="{config.revision}"}}'] == 1
        assert found['tempera_upstream_up{upstream="default"}'] == 0
        assert found["tempera_presets_refused"] == found["tempera_keys_refused"] == 0
        assert found["tempera_limits_store_up"] == found["tempera_log_database_up"] == 1
        assert found["tempera_waiting"] == found["tempera_in_flight"] == found["tempera_draining"] == 0
        assert found['tempera_log_dropped_total{reason="queue_full"}'] == 0
        assert found['tempera_reloads_total{outcome="refused"}'] == 0
    fronts[0].state.trouble = "line 3"
    assert numbers(fronts[0].metrics)["tempera_presets_refused"] == 1
    assert b"process_resident_memory_bytes" in fronts[0].metrics.page()
    for front in fronts:
        front.state.log.close()
