"""How different the samples of one prompt are, by their words, their surface and (with embeddings) their meaning; how
consistent.

Every function takes the n samples of one prompt at one temperature and returns a number, or None where it is
undefined. Languages are never pooled by callers. Knows nothing of quality: diversity without quality is noise, and
every report says so.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU

from gateway.evaluation.tokens import LENGTH, head, ngrams, normal, tokens

Vectors = NDArray[np.float64]


def distinct(samples: Sequence[str], k: int) -> float | None:
    """Unique k-grams / all k-grams over the samples cut to LENGTH tokens: (0, 1]. Li et al. 2016, length-matched."""
    grams = [gram for sample in samples for gram in ngrams(tokens(sample)[:LENGTH], k)]
    return len(set(grams)) / len(grams) if grams else None


@cache
def _bleu(lang: str) -> BLEU:
    # 13a sees a Chinese sentence as one word: two near-duplicates would score 0
    return BLEU(tokenize="zh" if lang == "zh" else "13a", effective_order=True)


def self_bleu(samples: Sequence[str], lang: str) -> float | None:
    """Mean BLEU-4 of each sample against each other one, in [0, 1]; 1 is "all the same". Zhu et al. 2018; needs two
    samples."""
    heads = [head(sample) for sample in samples]
    scores = [_bleu(lang).sentence_score(a, [b]).score / 100 for a, b in permutations(heads, 2)]
    return sum(scores) / len(scores) if scores else None


def redundancy(samples: Sequence[str]) -> float | None:
    """Share of the compressed samples that compressing them together saves: 1 - (C(all) - o) / sum(C(x) - o).

    C is the zlib level 9 length, o that of nothing. About 0 when independent, towards 1 - 1/n when identical."""
    parts = [head(sample).encode() for sample in samples]
    empty = len(zlib.compress(b"", 9))
    alone = sum(len(zlib.compress(part, 9)) - empty for part in parts if part)
    return 1 - (len(zlib.compress(b"\n".join(parts), 9)) - empty) / alone if alone else None


def self_repetition(documents: Sequence[str], k: int = 4) -> list[float]:
    """Per document ln(1 + sum over its distinct k-grams of the number of other documents with it): canned phrases
    across a scenario.

    Salkar et al. 2022; the mean over documents is the scenario's value."""
    grams = [set(ngrams(tokens(document)[:LENGTH], k)) for document in documents]
    holders = Counter(gram for document in grams for gram in document)
    return [math.log1p(sum(holders[gram] - 1 for gram in document)) for document in grams]


def short_share(samples: Sequence[str]) -> float:
    """Share of samples below half of LENGTH tokens, for which the length match does not hold."""
    return sum(len(tokens(sample)) < LENGTH / 2 for sample in samples) / len(samples)


def surface_vectors(samples: Sequence[str]) -> Vectors:
    """Counts of character 3-grams, a row per sample: the stand-in for embeddings. Never call what comes of it
    semantic."""
    counts = [Counter(text[i : i + 3] for i in range(max(1, len(text) - 2))) for text in map(normal, samples)]
    columns = {gram: i for i, gram in enumerate(sorted(set().union(*counts)))}
    vectors = np.zeros((len(samples), len(columns)))
    for row, count in zip(vectors, counts, strict=True):
        for gram, number in count.items():
            row[columns[gram]] = number
    return vectors


def _cosines(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms == 0, 1, norms)
    return np.clip(unit @ unit.T, -1, 1)


def dispersion(vectors: Vectors) -> float | None:
    """Mean of 1 - cosine over the pairs of rows: 0 when all point one way. Needs two rows."""
    if len(vectors) < 2:
        return None
    upper = np.triu_indices(len(vectors), 1)
    return float(np.mean(1 - _cosines(vectors)[upper]))


def vendi(vectors: Vectors) -> float | None:
    """Effective number of different samples, 1..n: exp of the entropy of the eigenvalues of K/n, K the cosines.
    Friedman & Dieng 2023."""
    if not len(vectors):
        return None
    kernel = _cosines(vectors)
    np.fill_diagonal(kernel, 1.0)
    values = np.linalg.eigvalsh(kernel / len(vectors))
    values = values[values > 1e-12]
    return float(np.exp(-np.sum(values * np.log(values))))


def pair_agreement(answers: Sequence[Hashable]) -> float | None:
    """Share of ordered pairs of different samples that give the same answer: sum n_c (n_c - 1) / (n (n - 1)). Needs
    two."""
    n = len(answers)
    return sum(c * (c - 1) for c in Counter(answers).values()) / (n * (n - 1)) if n > 1 else None


def greedy_agreement(answers: Sequence[Hashable], greedy: Hashable) -> float | None:
    """Share of the answers equal to the one given at temperature 0."""
    return sum(answer == greedy for answer in answers) / len(answers) if answers else None
