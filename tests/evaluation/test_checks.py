import time

import pytest

from gateway.evaluation import sandbox
from gateway.evaluation.checks import (
    CHECK_NAMES,
    Exact,
    Facts,
    InCharacter,
    JsonSchema,
    PythonParses,
    RougeRecall,
    Sound,
    SourceNumbers,
    UnitTests,
    canonical,
    longest_common,
    pass_at,
    quality,
)
from gateway.evaluation.constraints import (
    Answer,
    Bullets,
    Chars,
    Ends,
    EndsWithQuestion,
    Exclude,
    Include,
    JsonOnly,
    Language,
    Lines,
    Matches,
    NoComma,
    Paragraphs,
    Sentences,
    Starts,
    Title,
    Words,
)
from gateway.evaluation.numerals import all_numbers, chinese_number, digits, english_number, mentions, stated_numbers


def score(check, text, lang="en", source=""):
    return check.score(Answer(text=text, lang=lang, source=source, finish="stop"))


SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
ADD = "def add(a, b):\n    return a + b"

SCORES = [
    # lengths and counts, en and zh
    (Words(max=3), "one two three.", 1),
    (Words(max=3), "one two three four", 0),
    (Words(min=4, max=4), "今天很好", 1),
    (Chars(max=5), "今天 很好。", 1),
    (Chars(max=4), "今天 很好。", 0),
    (Sentences(min=2, max=2), "It costs 3.50 now. Buy it!", 1),
    (Sentences(min=2, max=2), "今天下雨。“带伞了吗？”", 1),
    (Sentences(max=1), "一句话，没有句号", 1),
    (Bullets(min=2, max=2), "- one\n- two", 1),
    (Bullets(min=3, max=3), "1. 一\n2、二\n（3）三", 1),
    (Bullets(min=1), "a - b", 0),
    (Bullets(min=1), "1.5 litres", 0),
    (Paragraphs(min=2, max=2), "one\nstill one\n\ntwo", 1),
    (Lines(min=2, max=2), "a\n\nb\n", 1),
    # phrases
    (Include(any=["cat"]), "A Cat sat.", 1),
    (Include(any=["cat"]), "concatenate", 0),
    (Include(any=["像"], times=3), "像猫，像狗", 0),
    (Include(any=["像"], times=2), "像猫，像狗", 1),
    (Exclude(phrases=["免费"]), "需要付费", 1),
    (Exclude(phrases=["免费"]), "完全免费", 0),
    (Exclude(phrases=["免费"]), "", 0),  # silence is no virtue
    (Starts(any=["不能"]), "“不能改签”", 1),
    (Starts(any=["No"]), "**No**, sorry", 1),
    (Ends(any=["雨停了。"]), "……雨停了！", 1),
    (Ends(any=["got off"]), "They got off first.", 0),
    (Matches(pattern="^Sun:", times=2), "Sun: a\nMoon: b\nSun: c", 1),
    # form
    (JsonOnly(), '```json\n{"a": 1}\n```', 1),
    (JsonOnly(), 'Here: {"a": 1}', 0),
    (Language(lang="zh"), "用 Python 写的代码可以运行", 1),
    (Language(lang="zh"), "written in Python 好", 0),
    (Language(lang="en"), "plain words", 1),
    (Title(style="《》"), "《春》\n花开", 1),
    (Title(style="《》"), "《》", 0),
    (Title(style="[[]]"), "[[Spring]]", 1),
    (NoComma(), "no commas here", 1),
    (NoComma(), "一，二", 0),
    (EndsWithQuestion(), "还记得吗？”", 1),
    (EndsWithQuestion(), "Do you? Yes.", 0),
    # content
    (Facts(facts=[["7天", "一周"], ["吊牌"]]), "七天内可退", 0.5),
    (Facts(facts=[["7天"]]), "17天", 0),
    (Facts(facts=[["twelve"]]), "It takes 12 days.", 1),
    (Facts(facts=[["1,500"]]), "about 1500 trees", 1),
    (Exact(any=["三个月"]), "3个月。", 1),
    (Exact(any=["$13"]), "$13.", 1),
    (Exact(any=["$13"]), "It is $13", 0),
    (JsonSchema(schema=SCHEMA), '{"a": 1}', 1),
    (JsonSchema(schema=SCHEMA), '{"a": "1"}', 0),
    (JsonSchema(schema=SCHEMA), "a: 1", 0),
    (RougeRecall(reference="the cat sat on the mat"), "the dog sat on a mat", 4 / 6),
    (RougeRecall(reference="春天来了花开了"), "春天花开", 4 / 7),
    (InCharacter(), "Arr, the sea is mine!", 1),
    (InCharacter(), "As an AI, I cannot sail.", 0),
    (InCharacter(), "", 0),
    (Sound(), "word " * 60, 0),
    (Sound(), "A short and healthy line.", 1),
    (PythonParses(), f"Here:\n```python\n{ADD}\n```", 1),
    (PythonParses(), "```python\ndef add(a, b:\n```", 0),
    (PythonParses(), "", 0),
    (UnitTests(tests="assert add(1, 2) == 3"), ADD, 1),
    (UnitTests(tests="assert add(1, 2) == 4"), ADD, 0),
]


@pytest.mark.parametrize(("check", "text", "expected"), SCORES)
def test_scores(check, text, expected):
    assert score(check, text) == pytest.approx(expected)


def test_every_check_has_an_example():
    shown = {check.__struct_config__.tag for check, _, _ in SCORES} | {"numbers_from_source"}
    assert shown == set(CHECK_NAMES)


def test_staying_in_character_means_staying_in_the_language():
    assert score(InCharacter(), "在下沈青禾，见过各位。", "zh") == 1
    assert score(InCharacter(), "I am Shen.", "zh") == 0
    assert score(InCharacter(), "作为一个 AI 语言模型，我不会使剑。", "zh") == 0


@pytest.mark.parametrize(
    ("reply", "lang", "expected"),
    [
        ("The bridge closes for 11 weeks.", "en", 1),
        ("The bridge closes for 12 weeks.", "en", 0),
        ("The bridge closes for eleven weeks.", "en", 1),
        ("One bridge, two lanes.", "en", 1),  # small number words state nothing
        ("1. Eleven weeks\n2. Route 9", "en", 1),  # list numbers are not statements
        ("封桥十一周。", "zh", 1),
        ("封桥三十周，千万别走错。", "zh", 0),
        ("千万别走错，万一堵车就绕行。", "zh", 1),
        ("", "en", 0),
    ],
)
def test_numbers_come_from_the_source(reply, lang, expected):
    assert score(SourceNumbers(), reply, lang, "Closed for 11 weeks; use Route 9.") == expected


@pytest.mark.parametrize(
    ("numeral", "value"),
    [
        ("三", 3),
        ("十", 10),
        ("十五", 15),
        ("二十", 20),
        ("三百零五", 305),
        ("一千二百", 1200),
        ("两万三千", 23000),
        ("二〇二五", 2025),
        ("一亿", 10**8),
    ],
)
def test_chinese_numerals(numeral, value):
    assert chinese_number(numeral) == value


@pytest.mark.parametrize(
    ("run", "value"),
    [("seven", 7), ("thirty-five", 35), ("two hundred and five", 205), ("eleven thousand", 11000), ("nineteen", 19)],
)
def test_english_numbers(run, value):
    assert english_number(run) == value


def test_numbers_in_running_text():
    assert digits("三月五日，共1,200元") == "3月5日,共1200元"
    assert mentions("costs $5.00", "$5.00")
    assert not mentions("costs 3.6", "6")
    assert stated_numbers("12 of 3.50, twenty-one") == {"12", "3.5", "21"}
    assert {"3", "5", "1200"} <= all_numbers("三月五日，共1,200元")


def test_longest_common_subsequence_by_hand():
    assert longest_common(list("abcbdab"), list("bdcaba")) == 4
    assert longest_common([], ["a"]) == 0


def test_quality_is_the_mean():
    checks = [Words(max=3), Include(any=["cat"])]
    assert quality(checks, Answer(text="one two three", lang="en")) == 0.5


def test_the_same_answer_in_other_words_of_form():
    assert canonical([JsonSchema(schema=SCHEMA)], '{"a": 1}') == canonical(
        [JsonSchema(schema=SCHEMA)], '```json\n{ "a":1 }\n```'
    )
    tests = [UnitTests(tests="assert add")]
    assert canonical(tests, ADD) == canonical(tests, f"```python\n# adds\n{ADD}\n```")
    assert canonical([], "7天。") == canonical([], "七天")


def test_pass_at_by_hand():
    assert pass_at(1, 4, 1) == pytest.approx(0.25)
    assert pass_at(2, 4, 2) == pytest.approx(1 - 1 / 6)  # C(2,2)/C(4,2)
    assert pass_at(4, 4, 1) == 1.0
    assert pass_at(5, 4, 4) is None


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("import sys\nsys.exit(0)", "assert False"),  # leaving early with status 0
        ("import os\nos._exit(0)", "assert False"),
        ("x = 'a' * (1 << 31)", "assert True"),  # memory
        ("open('big', 'w').write('x' * (1 << 22))", "assert True"),  # file size
        ("def f():\n    return f()\nf()", "assert True"),
        ("x = 1", "raise SystemExit(0)"),
    ],
)
def test_code_that_misbehaves_does_not_pass(code, tests):
    assert not sandbox.passes(code, tests)


def test_code_that_never_ends_is_stopped_with_its_children(tmp_path):
    marker = tmp_path / "alive"
    code = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5); open({str(marker)!r}, 'w')"])
while True: time.sleep(0.01)
"""
    assert not sandbox.passes(code, "pass", seconds=0.7)
    time.sleep(1.5)
    assert not marker.exists()


def test_code_sees_neither_our_environment_nor_our_directory(monkeypatch):
    monkeypatch.setenv("SECRET_FOR_TEST", "1")
    assert sandbox.passes("import os", "assert 'SECRET_FOR_TEST' not in os.environ\nassert os.listdir('.') == []")
