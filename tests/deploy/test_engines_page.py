"""docs/engines.md against the code: a page that says what is sent must not lag behind it."""

import re

from gateway.policy.params import PARAMS
from gateway.protocol.dialects import LLAMA_CPP, VLLM, Dialect, Protocol
from tests.deploy.script import MODES, ROOT

PAGE = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")


def test_the_table_of_fields_is_what_the_dialects_send() -> None:
    section = PAGE.split("## What we send")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    columns: list[tuple[Dialect, tuple[Protocol, ...]]] = [
        (VLLM, ("chat", "batch", "completions")),
        (VLLM, ("responses",)),
        (VLLM, ("messages",)),
        (LLAMA_CPP, ("chat", "batch", "completions")),
    ]
    assert [row[0] for row in rows[2:]] == list(VLLM.fields["chat"])
    for name, neutral, *spellings in rows[2:]:
        value = PARAMS[name].neutral if name in PARAMS else None
        assert neutral == ("not sent" if value is None else str(value))
        for (dialect, protocols), spelling in zip(columns, spellings, strict=True):
            for protocol in protocols:
                assert dialect.fields[protocol].get(name, "-") == spelling, (dialect.name, protocol)
    assert LLAMA_CPP.fields["messages"] == VLLM.fields["messages"]
    constants = LLAMA_CPP.constants["chat"]
    assert f"`samplers: [{', '.join(constants['samplers'])}]`" in section
    assert set(constants) == {"samplers", "typical_p", "repeat_last_n"}


def test_every_mode_is_explained() -> None:
    for mode in (*MODES, "cpu"):
        assert re.search(rf"^\| `{mode}` \|", PAGE, re.MULTILINE), mode


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).resolve().exists(), target
