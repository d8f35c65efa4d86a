"""Numbers as people write them, in Arabic digits: 七天 and seven days both contain 7.

Knows Chinese numerals, English number words and thousands separators. Does NOT know units, currencies, arithmetic or
dates' order.
"""

from __future__ import annotations

import re

from gateway.evaluation.tokens import normal

_DIGITS = {char: value for value, char in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_GROUPS = {"万": 10**4, "亿": 10**8}
_ZH = re.compile(f"[{''.join([*_DIGITS, *_UNITS, *_GROUPS])}]+")

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_EN = {word: value for value, word in enumerate([*_SMALL.split(), "eighteen", "nineteen"])}
_EN |= {w: 10 * (i + 2) for i, w in enumerate(_TENS.split())}
_SCALES = {"hundred": 100, "thousand": 1000}
_WORD = "|".join(sorted([*_EN, *_SCALES], key=len, reverse=True))
_EN_RUN = re.compile(rf"\b(?:{_WORD})(?:[\s-]+(?:and\s+)?(?:{_WORD}))*\b")
_SEPARATOR = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LIST_MARK = re.compile(r"^[ \t]*(?:\d+[.)、](?!\d)|[(]\d+[)])", re.MULTILINE)


def chinese_number(numeral: str) -> int:
    """The value of a run of Chinese numeral characters: 三十五 -> 35, 一千二百 -> 1200, 二〇二五 -> 2025."""
    if not any(char in _UNITS or char in _GROUPS for char in numeral):
        return int("".join(str(_DIGITS[char]) for char in numeral))
    total = section = digit = 0
    for char in numeral:
        if char in _DIGITS:
            digit = _DIGITS[char]
        elif char in _UNITS:
            section += (digit or 1) * _UNITS[char]
            digit = 0
        else:
            total = (total + section + digit or 1) * _GROUPS[char]
            section = digit = 0
    return total + section + digit


def english_number(run: str) -> int:
    """The value of a run of English number words: "two hundred and five" -> 205."""
    total = section = 0
    for word in re.findall(rf"{_WORD}", run):
        if word == "thousand":
            total, section = total + (section or 1) * 1000, 0
        elif word == "hundred":
            section = (section or 1) * 100
        else:
            section += _EN[word]
    return total + section


def digits(text: str) -> str:
    """The normalised text with every numeral in digits: what facts are looked up in. 一 in 一些 becomes 1 too, on both
    sides alike."""
    plain = _SEPARATOR.sub("", normal(text))
    plain = _EN_RUN.sub(lambda match: str(english_number(match[0])), plain)
    return _ZH.sub(lambda match: str(chinese_number(match[0])), plain)


def mentions(text: str, phrase: str) -> bool:
    """Whether `phrase` stands in `text`, numerals and case aside; a number or a Latin word only as a whole one (7 is
    not in 17)."""
    wanted = digits(phrase).strip()
    start = _edge(wanted[:1], r"(?<![0-9.])", r"(?<![a-z])")
    end = _edge(wanted[-1:], r"(?![0-9]|\.[0-9])", r"(?![a-z])")
    return re.search(start + re.escape(wanted) + end, digits(text)) is not None


def _edge(char: str, number: str, letter: str) -> str:
    """The guard beside a phrase that begins or ends with `char`."""
    return number if char.isdigit() else letter if char.isascii() and char.isalpha() else ""


def stated_numbers(text: str) -> set[str]:
    """The numbers a text commits to, in digits: written in digits, or in words of ten and more (一个, 千万别, "one of"
    state nothing)."""
    plain = _SEPARATOR.sub("", _LIST_MARK.sub("", normal(text)))  # "2." before a step is no statement
    found = {_trim(number) for number in _NUMBER.findall(plain)}
    spelled = [chinese_number(match) for match in _ZH.findall(plain) if _states(match)]
    spelled += [english_number(match) for match in _EN_RUN.findall(plain)]
    return found | {str(value) for value in spelled if value >= 10}


def _states(numeral: str) -> bool:
    units = any(char in _UNITS or char in _GROUPS for char in numeral)
    figures = any(char in _DIGITS for char in numeral)
    return numeral != "万一" and figures and (units or len(numeral) >= 4)  # 三五个 is no number, 二〇二五 is


def all_numbers(text: str) -> set[str]:
    """Every number in a text, single numerals included: what stated numbers may come from."""
    return {_trim(number) for number in _NUMBER.findall(digits(text))} | stated_numbers(text)


def _trim(number: str) -> str:
    return number.lstrip("0").rstrip(".") or "0" if "." not in number else number.rstrip("0").rstrip(".")
