"""The token counts of a row, in whatever protocol the engine told them."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from gateway.log.row import Row

Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class Usage(msgspec.Struct):
    """Token counts, as the protocols spell them; what an engine says in any other way counts as nothing."""

    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    input_tokens: Tokens = 0
    output_tokens: Tokens = 0

    @property
    def prompt(self) -> int:
        return self.prompt_tokens or self.input_tokens

    @property
    def completion(self) -> int:
        return self.completion_tokens or self.output_tokens


_usage: Final = msgspec.json.Decoder(Usage)
_NO_USAGE: Final = Usage()


def read_usage(row: Row) -> Usage:
    """The token counts of a row; zeros when the engine told none that can be read."""
    if row.usage is None:
        return _NO_USAGE
    try:
        return _usage.decode(row.usage)
    except msgspec.MsgspecError:
        return _NO_USAGE
