import math
import zlib

import numpy as np
import pytest

from gateway.evaluation.diversity import (
    dispersion,
    distinct,
    greedy_agreement,
    pair_agreement,
    redundancy,
    self_bleu,
    self_repetition,
    short_share,
    surface_vectors,
    vendi,
)


def test_distinct_by_hand():
    # en: "a b a b" has bigrams ab ba ab, "a b" has ab: 2 different of 4
    assert distinct(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    # zh: 天天 好 -> 天天 天好; 天好 -> 天好: 2 different of 3
    assert distinct(["天天好", "天好"], 2) == pytest.approx(2 / 3)
    assert distinct(["a", "b"], 2) is None


def test_distinct_looks_at_the_first_64_tokens_only():
    long = " ".join(f"w{i}" for i in range(64))
    assert distinct([long + " w1 w2" * 50], 2) == 1.0


def test_self_bleu_by_hand():
    assert self_bleu(["the cat sat on the mat"] * 2, "en") == pytest.approx(1.0)
    assert self_bleu(["一二三四五六", "甲乙丙丁戊己"], "zh") == pytest.approx(0.0, abs=0.1)
    # "a b c d e" against "a b c d f": 4/5 unigrams, 3/4, 2/3, 1/2 and no brevity penalty, both ways round
    by_hand = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu(["a b c d e", "a b c d f"], "en") == pytest.approx(by_hand, abs=1e-6)
    assert self_bleu(["甲乙丙丁戊", "甲乙丙丁己"], "zh") == pytest.approx(by_hand, abs=1e-6)
    assert self_bleu(["only one"], "en") is None


def test_chinese_near_duplicates_are_seen():
    pair = ["今天的天气非常好我们去公园散步", "今天的天气非常好我们去河边散步"]
    assert self_bleu(pair, "zh") > 0.5
    assert self_bleu(pair, "en") == pytest.approx(0.0, abs=0.01)  # the trap: 13a sees one long word


def test_redundancy_is_what_zlib_says():
    a, b = "the cat sat on the mat today", "rain fell over the old harbour"
    size = {text: len(zlib.compress(text.encode(), 9)) - 8 for text in (a, b, f"{a}\n{b}")}
    assert redundancy([a, b]) == pytest.approx(1 - size[f"{a}\n{b}"] / (size[a] + size[b]))


@pytest.mark.parametrize(
    "text",
    [
        "Every morning the baker opens her shop before the street lamps go out.",
        "清晨的巷子里只有卖豆浆的老人，他的吆喝声比鸟叫还早。",
    ],
)
def test_redundancy_of_eight_identical_samples(text):
    assert 0.6 < redundancy([text] * 8) <= 1 - 1 / 8
    assert redundancy(["", ""]) is None


def test_self_repetition_by_hand():
    # documents 1 and 2 share "a b c d" and "b c d e": each sees 2 other holders; document 3 shares nothing
    documents = ["a b c d e", "a b c d e", "v w x y z"]
    assert self_repetition(documents) == pytest.approx([math.log(3), math.log(3), 0.0])
    assert self_repetition(["一二三四", "一二三四", "一二三四"]) == pytest.approx([math.log(3)] * 3)


def test_short_share():
    assert short_share(["one two", "w " * 40]) == 0.5


def test_surface_dispersion_by_hand():
    # "abcd" has 3-grams abc, bcd; "abce" has abc, bce: cosine 1/2
    assert dispersion(surface_vectors(["abcd", "abce"])) == pytest.approx(0.5)
    # 甲乙丙丁 / 甲乙丙戊: the same in Chinese
    assert dispersion(surface_vectors(["甲乙丙丁", "甲乙丙戊"])) == pytest.approx(0.5)
    assert dispersion(surface_vectors(["same", "same", "same"])) == pytest.approx(0.0)
    assert dispersion(surface_vectors(["one"])) is None


def test_vendi_by_hand():
    assert vendi(np.eye(4)) == pytest.approx(4.0)
    assert vendi(np.ones((3, 2))) == pytest.approx(1.0)
    # cosine 1/2: eigenvalues of [[1, .5], [.5, 1]] / 2 are 3/4 and 1/4
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert vendi(surface_vectors(["abcd", "abce"])) == pytest.approx(expected)


def test_empty_samples_are_alike_and_unlike_words():
    assert dispersion(surface_vectors(["", ""])) == pytest.approx(0.0)
    assert dispersion(surface_vectors(["", "words"])) == pytest.approx(1.0)


def test_agreement_by_hand():
    # a a a b: (3*2 + 1*0) / (4*3)
    assert pair_agreement(["a", "a", "a", "b"]) == pytest.approx(0.5)
    assert pair_agreement(["a"]) is None
    assert greedy_agreement(["a", "b", "a"], "a") == pytest.approx(2 / 3)
    assert greedy_agreement([], "a") is None
