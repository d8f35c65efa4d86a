"""RFC 9651 structured fields, as far as the reply headers need them: dictionaries of items and of inner lists.

Numbers with more than three decimals or more than 15 digits have no place in the RFC's grammar and are written as
strings. Writing only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def item(value: object) -> str:
    """One bare item: 0.5, 512, "0.12345"; anything that is no number becomes a string of printable ASCII."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _string(str(value))
    if isinstance(value, int):
        return str(value) if abs(value) < 10**15 else _string(str(value))
    text = repr(value)
    whole, _, decimals = text.partition(".")
    plain = decimals.isdigit() and len(decimals) <= 3 and len(whole.lstrip("-")) <= 12
    return text if plain else _string(text)


def dictionary(members: Mapping[str, object]) -> str:
    """`temperature=0.5, top_k=20`."""
    return ", ".join(f"{key}={item(value)}" for key, value in members.items())


def adjustments(members: Iterable[tuple[str, object, object, str]]) -> str:
    """(name.

    Asked, used, by) as `temperature=(1.4 0.5);by=bound`; a value that was not used at all is left out of the
    list.
    """
    return ", ".join(
        f"{name}=({item(asked)}{'' if used is None else ' ' + item(used)});by={by}" for name, asked, used, by in members
    )


def _string(text: str) -> str:
    safe = "".join(char if " " <= char <= "~" else "?" for char in text)
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"') + '"'
