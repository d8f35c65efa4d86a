import pytest

from gateway.evaluation.tokens import code_blocks, head, ngrams, prose, tokens, words

CASES = [
    ("Don't stop, GPT-4!", ["don't", "stop", ",", "gpt", "-", "4", "!"]),
    ("今天天气好。", ["今", "天", "天", "气", "好", "。"]),
    ("用 Python 写3行代码", ["用", "python", "写", "3", "行", "代", "码"]),
    ("ＡＢＣ１２３，好", ["abc123", ",", "好"]),  # NFKC: full width becomes plain
    ("```python\nx = 1\n```\nok", ["x", "=", "1", "ok"]),
    ("", []),
    ("   \n", []),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_tokens_of_both_languages(text, expected):
    assert tokens(text) == expected


def test_words_leave_punctuation_out_and_head_cuts_after_a_token():
    assert words("你好，world! it's") == ["你", "好", "world", "it's"]
    assert head("One two, three four", 3) == "one two,"
    assert head("春眠不觉晓", 2) == "春眠"
    assert head("short", 64) == "short"


def test_ngrams_are_none_when_the_text_is_shorter():
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []


def test_code_is_told_from_prose_even_when_the_fence_never_closes():
    assert code_blocks("a\n```py\nx\n```\nb\n```\ny\n```") == ["x\n", "y\n"]
    assert code_blocks("```python\ncut off here") == ["cut off here"]
    assert prose("before ```py\nx = 1\n``` after") == "before  after"
