"""Settings: every variable read, bounded, documented, and no secret in a message."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from gateway.settings import DESCRIPTIONS, BadSettings, Settings, read, secret_of

DOCS = Path(__file__).parents[1] / "docs" / "operations.md"


def test_nothing_set() -> None:
    found = read({})
    assert found == Settings()
    assert (found.host, found.port, found.upstream, found.max_body) == ("127.0.0.1", 8001, None, 16 * 1024 * 1024)
    assert read({"TEMPERA_PORT": "", "TEMPERA_UPSTREAM": ""}) == found, "empty is not set"


def test_everything_set() -> None:
    environment = {
        "TEMPERA_UPSTREAM": "http://engine:8000/v1",
        "TEMPERA_DIALECT": "llama.cpp",
        "TEMPERA_PRESETS": "/etc/presets.yaml",
        "TEMPERA_DATA_DIR": "/var/lib/tempera",
        "TEMPERA_PORT": "0",
        "TEMPERA_MAX_BODY": "1024",
        "TEMPERA_SHUTDOWN_TIMEOUT": "1.5",
        "TEMPERA_UPSTREAM_API_KEY": "12345",
        "OTHER": "x",
    }
    found = read(environment)
    assert (found.upstream, found.dialect, found.port) == ("http://engine:8000/v1", "llama.cpp", 0)
    assert (found.presets, found.data_dir) == (Path("/etc/presets.yaml"), Path("/var/lib/tempera"))
    assert (found.max_body, found.shutdown_timeout, found.upstream_api_key) == (1024, 1.5, "12345")
    assert environment["TEMPERA_PORT"] == "0"


def test_where_traces_go_has_a_name_that_is_everybodys() -> None:
    common = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    assert read({}).otlp_endpoint is None
    assert read(common).otlp_endpoint == "http://collector:4318"
    assert read(common | {"TEMPERA_OTLP_ENDPOINT": "http://own:4318"}).otlp_endpoint == "http://own:4318"


def test_flags_win_unless_they_are_not_given() -> None:
    environment = {"TEMPERA_PORT": "9000", "TEMPERA_HOST": "::1"}
    found = read(environment, port=0, host=None, presets=Path("p.yaml"))
    assert (found.port, found.host, found.presets) == (0, "::1", Path("p.yaml"))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PORT", "http", "[0, 65535]"),
        ("PORT", "80.5", "[0, 65535]"),
        ("PORT", "65536", "[0, 65535]"),
        ("PORT", "-1", "[0, 65535]"),
        ("UI_PORT", "x", "[0, 65535]"),
        ("LOG_LEVEL", "loud", "debug or info or warning or error"),
        ("LOG_FORMAT", "xml", "text or json"),
        ("MAX_BODY", "0", "whole number"),
        ("MAX_BODY", "16MB", "whole number"),
        ("MAX_REPLY", "-5", "whole number"),
        ("SHUTDOWN_TIMEOUT", "soon", "a number in [0, 86400]"),
        ("SHUTDOWN_TIMEOUT", "nan", "a number in [0, 86400]"),
        ("SHUTDOWN_TIMEOUT", "inf", "a number in [0, 86400]"),
        ("SHUTDOWN_TIMEOUT", "1e999", "a number in [0, 86400]"),
        ("LOG_RETENTION_DAYS", "-1", "a number in [0, 36500]"),
        ("DIALECT", "vLLM", "vllm or llama.cpp"),
        ("DIALECT", "openai", "vllm or llama.cpp"),
    ],
)
def test_a_wrong_value_is_told_with_name_range_and_value(name: str, value: str, words: str) -> None:
    with pytest.raises(BadSettings) as caught:
        read({f"TEMPERA_{name}": value})
    assert all(word in str(caught.value) for word in (f"TEMPERA_{name}", words, repr(value)))


@pytest.mark.parametrize("name", ["API_KEY", "OPERATOR_KEY"])
def test_a_short_key_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(BadSettings) as caught:
        read({f"TEMPERA_{name}": "hunter2"})
    assert f"TEMPERA_{name}" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Settings().port = 1  # type: ignore[misc]


def test_every_setting_is_described_and_documented_with_its_default() -> None:
    names = [field.name for field in msgspec.structs.fields(Settings)]
    assert sorted(DESCRIPTIONS) == sorted(names)
    text = DOCS.read_text(encoding="utf-8")
    table = text[text.index("| `TEMPERA_") :].partition("\n\n")[0]  # a second table is the chat's own
    rows = re.findall(r"^\| `TEMPERA_([A-Z_]+)` \| (?:`(.*?)`)? ?\| (.*) \|$", table, re.MULTILINE)
    defaults = Settings()
    expected = {name: "" if getattr(defaults, name) is None else str(getattr(defaults, name)) for name in names}
    assert {name.lower(): (default, text) for name, default, text in rows} == {
        name: (expected[name], DESCRIPTIONS[name]) for name in names
    }


def test_a_secret_by_the_name_of_its_variable() -> None:
    assert secret_of("MY_KEY", {"MY_KEY": "x"}) == "x"
    assert secret_of("MY_KEY", {"MY_KEY": ""}) is None
    assert secret_of("MY_KEY", {}) is None
