import pytest

from gateway.evaluation.degeneration import foreign_script, loops, repetition, scripts, signs, wrong_language

GOOD_EN = "The ferry leaves at noon, and the captain says the sea will be calm all the way to the island."
GOOD_ZH = "渡船中午出发，船长说一路到岛上风平浪静，带上一件外套就够了，傍晚之前可以回到码头附近的老街吃饭。"


def test_repetition_by_hand():
    # a b c d a b c d: 4-grams abcd bcda cdab dabc abcd: 4 different of 5
    assert repetition(list("abcdabcd")) == pytest.approx(1 / 5)
    assert repetition(list("abcd")) == 0.0
    assert repetition(list("ab")) == 0.0
    # 天天向上天天向上 。: 天天向上 天向上天 向上天天 上天天向 天天向上 天向上。: 5 different of 6
    assert repetition(list("天天向上天天向上。")) == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["x"] + ["a", "b"] * 15, True),  # period 2, 15 times, 30 tokens
        (["a", "b"] * 14, False),  # 28 tokens: too short a span
        ([f"w{i}" for i in range(50)] * 3, True),  # period 50, three times
        ([f"w{i}" for i in range(51)] * 3, False),  # period 51
        ([f"w{i}" for i in range(50)] * 2, False),  # only twice
        (["a"] * 30, True),
        (["a", "b"] * 20 + ["end"], False),  # it recovered
    ],
)
def test_loops(items, expected):
    assert loops(items) is expected


@pytest.mark.parametrize(
    ("text", "lang", "expected"),
    [
        (GOOD_EN, "en", False),
        (GOOD_ZH, "zh", False),
        (GOOD_ZH + "Python", "zh", False),  # Latin names are at home in Chinese
        (GOOD_EN + " Привет", "en", True),
        (GOOD_EN + " 你好朋友", "en", True),
        (GOOD_ZH + "はい", "zh", True),
        ("x = 0.5 µm with α and β", "en", False),  # formulas
        ("fine \ufffd", "en", True),
        ("１２３", "en", False),
    ],
)
def test_foreign_script(text, lang, expected):
    assert foreign_script(text, lang) is expected


@pytest.mark.parametrize(
    ("text", "lang", "expected"),
    [
        (GOOD_EN, "zh", True),
        (GOOD_ZH, "en", True),
        (GOOD_ZH, "zh", False),
        ("Sure, here.", "zh", False),  # below 30 characters nothing is judged
        (
            "代码如下：\n```python\nprint('a line of English words')\n```\n运行它就能看到结果，它会把那句话打印出来。",
            "zh",
            False,
        ),
    ],
)
def test_wrong_language(text, lang, expected):
    assert wrong_language(text, lang) is expected


def test_json_and_code_have_no_language_but_still_no_foreign_script():
    reply = '{"category": "物流", "urgent": true, "order": "A20871"}'
    assert signs(reply, "zh").language
    assert not signs(reply, None).degenerate
    assert signs(reply + "Привет", None).script


def test_script_shares_by_hand():
    assert scripts("ab中文") == {"latin": 0.5, "han": 0.5}
    assert scripts("123 !?") == {}


def test_each_sign_on_its_own():
    assert not signs(GOOD_EN, "en", finish="stop", tail_rate=0.02).degenerate
    assert signs("", "en").empty
    assert signs("   \n", "zh").degenerate
    assert signs(GOOD_EN, "en", tail_rate=0.021).tail
    assert signs("很好 " * 30, "zh").loop
    assert signs("很好 " * 30, "zh").repetitive
    assert signs(GOOD_ZH, "en").language


def test_truncation_is_told_but_is_not_degeneration():
    found = signs(GOOD_EN, "en", finish="length")
    assert found.truncated
    assert not found.degenerate
