"""What a row keeps of an exchange: every protocol, what is cut, what is left out, and no secret anywhere."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.log.digest import REDACTED, Redact, digest, kept
from gateway.log.exchange import RawExchange
from gateway.log.reading import read_messages
from gateway.log.row import COLUMNS
from tests.log.made import CHAT, REPLY, assigned, exchange, plan


def sse(*events: Any, name: bool = False) -> list[bytes]:
    """A stream, cut into two at an unhandy place."""
    head = b"event: %s\n" if name else b""
    whole = b"".join(
        (head % event["type"].encode() if name else b"") + b"data: " + msgspec.json.encode(event) + b"\n\n"
        for event in events
    )
    return [whole[:37], whole[37:] + b"data: [DONE]\n\n"]


CHUNK = {"id": "chatcmpl-9", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "温"}}]}
LAST = CHUNK | {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
USAGE = {"id": "chatcmpl-9", "choices": [], "usage": {"completion_tokens": 3}}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "Once."}]}],
    "usage": {"output_tokens": 2},
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "content": [{"type": "text", "text": "Once."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 2},
}


@pytest.mark.parametrize(
    ("protocol", "request_", "reply", "messages", "expected"),
    [
        ("chat", CHAT, REPLY, CHAT["messages"], ("chatcmpl-7", "Once.", "stop", 2)),
        ("chat", CHAT, sse(CHUNK, CHUNK, LAST, USAGE), CHAT["messages"], ("chatcmpl-9", "温温", "length", 3)),
        (
            "completions",
            {"prompt": "Hello"},
            {
                "id": "cmpl-1",
                "choices": [{"text": "Once.", "finish_reason": "stop"}],
                "usage": {"completion_tokens": 2},
            },
            [{"role": "user", "content": "Hello"}],
            ("cmpl-1", "Once.", "stop", 2),
        ),
        (
            "responses",
            {"instructions": "Be brief.", "input": "Hello"},
            RESPONSE,
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
            ("resp_1", "Once.", "completed", 2),
        ),
        (
            "messages",
            {"system": "Be brief.", "messages": [{"role": "user", "content": "Hello"}]},
            MESSAGE,
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
            ("msg_1", "Once.", "end_turn", 2),
        ),
    ],
)
def test_every_protocol_is_read(
    protocol: str, request_: Any, reply: Any, messages: Any, expected: tuple[str, str, str, int]
) -> None:
    row = digest(exchange(protocol=protocol, request=request_, reply=reply, stream=isinstance(reply, list)))
    assert msgspec.json.decode(row.messages or "") == messages
    usage = msgspec.json.decode(row.usage or "{}")
    tokens = usage.get("completion_tokens") or usage.get("output_tokens")
    assert (row.response_id, row.text, row.finish_reason, tokens) == expected
    assert not row.truncated


def test_the_columns_are_the_documented_ones() -> None:
    named = """id response_id time protocol preset revision experiment variant unit unit_kind asked effective
        adjustments messages text finish_reason usage ttft_ms duration_ms outcome key truncated request_id"""
    assert list(COLUMNS) == named.split()


def test_the_plan_is_on_record() -> None:
    given = assigned("warmer", "b", "ann")
    row = digest(exchange(plan=plan(assignment=given), ttft=0.0123456, duration=1.5, request_id="mine", key="bob"))
    assert (row.preset, row.revision, row.experiment, row.variant) == ("creative", "0123456789ab", "warmer", "b")
    assert (row.unit, row.unit_kind, row.key, row.request_id) == (given.unit, "user", "bob", "mine")
    assert (row.ttft_ms, row.duration_ms) == (12.346, 1500.0)
    assert row.asked == '{"temperature":1.4}'
    assert row.effective == '{"temperature":1.2,"top_p":0.9}'
    assert row.adjustments == '[{"name":"temperature","asked":1.4,"used":1.2,"by":"bound"}]'


def test_short_messages_keep_the_client_s_bytes() -> None:
    said = b'[ {"role":"user", "content":"hi", "n":123456789012345678901234567890, "x":1.50} ]'
    assert read_messages(b'{"model":"m","messages":' + said + b"}") == (said, False)


def messages(request: Any, limit: int) -> list[Any]:
    body = msgspec.json.encode(request)
    kept = read_messages(body, limit)
    if "messages" in request:  # found by the relay or by the log: it is the same
        assert read_messages(body, limit, msgspec.json.decode(body, type=dict[str, msgspec.Raw])["messages"]) == kept
    text, truncated = kept
    assert truncated
    found: list[Any] = msgspec.json.decode(text or b"[]")
    return found


def contents(request: Any, limit: int) -> list[str]:
    return [message.get("content") for message in messages(request, limit)]


def test_long_messages_keep_their_beginning() -> None:
    row = digest(exchange(request={"messages": [{"role": "user", "content": "x" * 100_000}]}))
    assert row.truncated
    assert msgspec.json.decode(row.messages or "") == [{"role": "user", "content": "x" * 16_384}]
    several = {"messages": [{"role": "user", "content": c * 3000} for c in "abc"]}
    # The newest one; those before it are on record with their own exchanges.
    assert contents(several, 2000) == ["a" * 256, None, "c" * 2000]
    several["messages"].append({"role": "user", "content": "d" * 900})
    first, omitted, *newest = messages(several, 2000)
    assert (first["content"], omitted) == (
        "a" * 256,
        {"omitted_bytes": len(msgspec.json.encode(several["messages"][1])) + 1},
    )
    assert [set(message["content"]) for message in newest] == [{"c"}, {"d"}]
    assert len(newest[0]["content"]) + 900 <= 2000
    assert contents({"prompt": "温" * 3000}, 1000) == ["温" * 333]
    many = {"messages": [{"role": "user", "content": "y" * 3000}] * 400}
    assert len(str(messages(many, 4096))) < 4096 + 400
    image = {"messages": [{"role": "user", "content": [{"type": "text", "text": "See"}, {"url": "z" * 90_000}]}]}
    assert contents(image, 1000)[0][0] == {"type": "text", "text": "See"}  # type: ignore[index]
    assert len(str(contents(image, 1000))) < 1100
    assert len(str(contents({"prompt": [7] * 50_000}, 1000))) < 2000


def test_a_long_reply_keeps_its_beginning() -> None:
    long = REPLY | {"choices": [{"message": {"content": "温" * 20_000}, "finish_reason": "stop"}]}
    row = digest(exchange(reply=long))
    assert (row.text, row.truncated, row.finish_reason) == ("温" * 5461, True, "stop")
    body = msgspec.json.encode(long)
    cut = digest(exchange(reply=[body[:9000], body[-300:]], cut=True))
    assert cut.text is not None
    assert cut.text.startswith("温" * 2900)
    assert (cut.response_id, cut.finish_reason, cut.truncated) == ("chatcmpl-7", "stop", True)
    assert msgspec.json.decode(cut.usage or "") == REPLY["usage"]
    stream = b"".join(sse(*[CHUNK] * 100, LAST, USAGE))
    held = digest(exchange(reply=[stream[:5000], stream[-500:]], cut=True, stream=True))
    assert (held.finish_reason, held.truncated) == ("length", True)
    assert set(held.text or "") == {"温"}


@given(st.binary(max_size=200), st.lists(st.binary(max_size=100), max_size=3), st.booleans(), st.booleans())
def test_any_bytes_make_a_row(request: bytes, reply: list[bytes], stream: bool, cut: bool) -> None:
    row = digest(exchange(request=request, reply=reply, stream=stream, cut=cut))
    msgspec.msgpack.encode(row)


# Privacy

CANARY = "sk-canary-0123456789"
SECRET = "the tea is in the blue tin"


def test_parameters_mode_keeps_no_content() -> None:
    said = {"messages": [{"role": "user", "content": SECRET}], "user": "ann@example.org"}
    reply = REPLY | {"choices": [{"message": {"content": SECRET}, "finish_reason": "stop"}]}
    row = digest(exchange(plan=plan(log="parameters"), request=said, reply=reply))
    assert (row.messages, row.text, row.finish_reason, row.preset) == (None, None, "stop", "creative")
    assert SECRET not in str(row)
    assert SECRET in str(digest(exchange(request=said, reply=reply)))
    assert "ann@example.org" not in str(digest(exchange(request=said, reply=reply)))


def test_a_refused_request_keeps_no_content() -> None:
    """Nobody knows which preset it was for, so nobody knows its log mode."""
    row = digest(exchange(plan=None, request={"messages": [{"role": "user", "content": SECRET}]}, outcome="rejected"))
    assert SECRET not in str(row)
    assert (row.outcome, row.preset, row.asked) == ("rejected", None, None)


def everywhere(canary: str) -> RawExchange:
    return exchange(
        key=canary,
        request_id=canary,
        request={"messages": [{"role": "user", "content": f"my key is {canary}, keep it"}]},
        reply=REPLY | {"id": canary, "choices": [{"message": {"content": canary}, "finish_reason": canary}]},
        plan=plan(preset=canary),
    )


def test_keys_are_in_no_row() -> None:
    assert CANARY in str(digest(everywhere(CANARY)))
    for redact in (Redact([CANARY, ""]), Redact([], r"sk-[a-z]+-[0-9]{10}")):
        row = digest(everywhere(CANARY), redact)
        assert CANARY not in str(row)
        assert row.text == REDACTED
        assert row.messages == b'[{"role":"user","content":"my key is %b, keep it"}]' % REDACTED.encode()


def test_a_secret_in_another_language() -> None:
    said = {"messages": [{"role": "user", "content": "密码是：芝麻开门。"}]}
    row = digest(exchange(request=said), Redact(["芝麻开门"]))
    assert row.messages == f'[{{"role":"user","content":"密码是：{REDACTED}。"}}]'.encode()


def test_a_share_of_the_exchanges_but_every_one_of_an_experiment() -> None:
    plain = [exchange() for _ in range(4000)]
    assert abs(sum(kept(made, 0.25) for made in plain) / 4000 - 0.25) < 0.03
    assert [kept(made, 1.0) for made in plain[:3]] == [True] * 3
    assert not any(kept(made, 0.0) for made in plain)
    assert kept(exchange(plan=plan(assignment=assigned("warmer", "b", "ann"))), 0.0)
