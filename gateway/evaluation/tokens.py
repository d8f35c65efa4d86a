"""One tokeniser for Chinese and English: a token per Han character, a token per word or digit run, a token per
punctuation mark.

Knows text only. Does NOT know languages' sentences, the model's own vocabulary (a count here is not a count of model
tokens), or metrics.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

LENGTH = 64  # lexical diversity looks at the first 64 tokens of a sample, because every n-gram ratio falls with length

_TOKEN = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[㐀-䶿一-鿿豈-﫿]|[^\w\s]")
_FENCE_LINE = re.compile(r"^[ \t]*```[^\n`]*$\n?", re.MULTILINE)
_BLOCK = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)  # a block that a token limit cut off runs to the end


def normal(text: str) -> str:
    """NFKC (full-width forms become plain), lower case."""
    return unicodedata.normalize("NFKC", text).lower()


def tokens(text: str) -> list[str]:
    """The tokens of `text`; the fence lines of code blocks are dropped, the code stays.

    Anything else is skipped: emoji parts, letters of other scripts, letters with accents."""
    return _TOKEN.findall(normal(_FENCE_LINE.sub("", text)))


def words(text: str) -> list[str]:
    """The tokens without punctuation: what a word limit counts (in Chinese, characters)."""
    return [token for token in tokens(text) if token[0].isalnum()]


def head(text: str, length: int = LENGTH) -> str:
    """The normalised text up to the end of its `length`-th token."""
    clean = normal(_FENCE_LINE.sub("", text))
    end = 0
    for count, match in enumerate(_TOKEN.finditer(clean), 1):
        end = match.end()
        if count == length:
            break
    return clean[:end]


def ngrams(items: Sequence[str], k: int) -> list[tuple[str, ...]]:
    """All k-grams, in order; none when there are fewer than k items."""
    return [tuple(items[i : i + k]) for i in range(len(items) - k + 1)]


def code_blocks(text: str) -> list[str]:
    """What stands inside the fenced code blocks."""
    return _BLOCK.findall(text)


def prose(text: str) -> str:
    """The text without its fenced code blocks."""
    return _BLOCK.sub("", text)
