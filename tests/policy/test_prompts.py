"""The preset's prompt before the client's own, in every protocol's own place, and nothing else touched."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.protocol.dialects import Protocol
from tests.policy.made import config_of, header, planned, sent

OURS = "Be kind.\n“温”"
CONFIG = config_of({"p": {"system_prompt": "p.md"}, "bare": {}}, {"p.md": OURS + "\n"})
USER = {"role": "user", "content": "Hi"}
BLOCK = {"type": "text", "text": "Mine."}


def system(content: Any, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("protocol", "own", "field", "merged"),
    [
        ("chat", {"messages": [USER]}, "messages", [system(OURS), USER]),
        ("chat", {"messages": [system("Mine."), USER]}, "messages", [system(OURS + "\n\nMine."), USER]),
        ("chat", {"messages": [system("", "developer"), USER]}, "messages", [system(OURS, "developer"), USER]),
        ("chat", {"messages": [system([BLOCK])]}, "messages", [system([{"type": "text", "text": OURS}, BLOCK])]),
        (
            "chat",
            {"messages": [system("Mine.") | {"name": "boss"}, USER]},
            "messages",
            [system(OURS + "\n\nMine.") | {"name": "boss"}, USER],
        ),
        ("chat", {"messages": [USER, system("Late.")]}, "messages", [system(OURS), USER, system("Late.")]),
        ("chat", {"messages": []}, "messages", []),  # the engine's to refuse
        ("chat", {"messages": "Hi"}, "messages", "Hi"),
        (
            "batch",
            {"messages": [[USER], [system("Mine."), USER]]},
            "messages",
            [[system(OURS), USER], [system(OURS + "\n\nMine."), USER]],
        ),
        ("batch", {"messages": "Hi"}, "messages", "Hi"),
        ("responses", {"input": "Hi"}, "instructions", OURS),
        ("responses", {"input": "Hi", "instructions": None}, "instructions", OURS),
        ("responses", {"input": "Hi", "instructions": "Mine."}, "instructions", OURS + "\n\nMine."),
        ("messages", {}, "system", OURS),
        ("messages", {"system": "Mine."}, "system", OURS + "\n\nMine."),
        ("messages", {"system": [BLOCK]}, "system", [{"type": "text", "text": OURS}, BLOCK]),
        ("completions", {"prompt": "Hi"}, "prompt", "Hi"),
    ],
)
def test_merging(protocol: Protocol, own: dict[str, Any], field: str, merged: Any) -> None:
    with_prompt = sent(planned({"model": "p", **own}, CONFIG, protocol=protocol))
    without = sent(planned({"model": "bare", **own}, CONFIG, protocol=protocol))
    assert with_prompt[field] == merged
    assert {k: v for k, v in with_prompt.items() if k != field} == {k: v for k, v in without.items() if k != field}


def test_later_messages_keep_their_bytes() -> None:
    later = '{"role" : "user", "content":"\\u4f60\\u597d", "x": 1.10, "y": 123456789012345678901234567890 }'
    body = f'{{"model":"p","messages":[{{"role":"system","content":"Mine."}}, {later}]}}'.encode()
    assert later.encode() in planned(body, CONFIG).body
    assert later.encode() in planned(f'{{"model":"p","messages":[{later}]}}'.encode(), CONFIG).body


def test_the_prompt_is_part_of_the_revision_and_not_of_the_headers() -> None:
    other = config_of({"p": {"system_prompt": "p.md"}, "bare": {}}, {"p.md": "Be curt."})
    assert header(planned({}, CONFIG), "x-tempera-revision") != header(planned({}, other), "x-tempera-revision")
    assert all(value.isascii() and b"kind" not in value for _, value in planned({}, CONFIG).headers)


def test_an_arm_of_an_experiment_may_speak_differently() -> None:
    arms = {"a": {}, "b": {"system_prompt": "b.md"}}
    config = config_of(
        {"p": {"system_prompt": "a.md"}},
        {"a.md": "A", "b.md": "B"},
        experiments={"e": {"preset": "p", "state": "running", "variants": arms}},
    )
    said = set()
    for user in range(40):
        made = planned({"user": f"u{user}"}, config)
        assert made.assignment is not None
        said.add((made.assignment.variant, sent(made)["messages"][0]["content"]))
    assert said == {("a", "A"), ("b", "B")}, "an arm without words of its own keeps the preset's"
