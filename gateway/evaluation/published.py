"""Curves that others published about temperature, to hold ours against. Data only, each with its source.

Read from the authors' own files or papers; what a later study found wrong is said with it. Knows nothing of our sweeps.
"""

from __future__ import annotations

import msgspec


class Series(msgspec.Struct, frozen=True):
    name: str
    temperatures: list[float]
    values: list[float]


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """One figure. `note` is what to see in it, in English and in Chinese."""

    key: str
    title: dict[str, str]
    source: str
    unit: str  # "%" or "ln nats"
    series: list[Series]
    note: dict[str, str]


_RENZE_T = [0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]
_GPQA_T = [0, 0.5, 0.7, 1, 1.5, 2, 3]
_TURN_T = [round(0.1 * i, 1) for i in range(1, 16)]

FIGURES = [
    Published(
        key="renze",
        title={"en": "Accuracy, GPT-3.5", "zh": "GPT-3.5 的准确率"},
        source="Renze 2024, chain of thought, 100 questions (1 SE 4.9 points); recomputed from the author's files",
        unit="%",
        series=[Series("GPT-3.5", _RENZE_T, [58, 61, 66, 58, 61, 61, 64, 59, 60, 56, 35, 5])],
        note={
            "en": "Flat up to about 1.3, then a cliff: multiple choice forgives much before it forgives nothing.",
            "zh": "约 1.3 以下基本持平，之后断崖式下跌：选择题能容忍很多，直到什么也容忍不了。",
        },
    ),
    Published(
        key="gpqa",
        title={"en": "GPQA, Mistral-7B, three ways to cut the tail", "zh": "GPQA，Mistral-7B，三种截尾方式"},
        source="Nguyen et al. 2024 (min-p), vLLM; arXiv 2506.13681 finds min-p no better at equal tuning",
        unit="%",
        series=[
            Series("temperature only", _GPQA_T, [28.4, 24.1, 27.2, 22.8, 25.2, 5.8, 0.9]),
            Series("top_p 0.9", _GPQA_T[1:], [31.0, 29.0, 25.0, 24.8, 6.5, 0.5]),
            Series("min_p 0.1", _GPQA_T[1:], [30.1, 29.0, 25.9, 28.1, 26.3, 24.6]),
        ],
        note={
            "en": "What to take from it: without a cut of the tail, 2.0 and above is noise.",
            "zh": "可取的结论只有一条：不截尾时，2.0 及以上就是噪声。",
        },
    ),
    Published(
        key="gsm8k",
        title={"en": "GSM8K with reasoning, Mistral-7B", "zh": "GSM8K（带推理），Mistral-7B"},
        source="Nguyen et al. 2024 (min-p), vLLM",
        unit="%",
        series=[
            Series("temperature only", [0, 0.5, 0.7, 1, 1.5, 2], [38.9, 35.9, 29.6, 17.5, 0.0, 0.0]),
            Series("min_p 0.1", [0.5, 0.7, 1, 1.5, 2, 3], [36.6, 35.2, 30.9, 18.4, 6.2, 0.0]),
        ],
        note={
            "en": "Long reasoning falls much sooner than multiple choice: one bad token spoils the chain.",
            "zh": "长推理比选择题早得多地下滑：错一个词，整条链就断了。",
        },
    ),
    Published(
        key="turn",
        title={"en": "Log entropy by temperature, five models", "zh": "五个模型的对数熵"},
        source="Du et al. 2025 (TURN, ICML), their five test vectors; turning points 0.9, 0.8, 0.8, 0.8, 0.6",
        unit="ln nats",
        series=[],
        note={
            "en": "Concave, then convex: where the curve turns upward, noise takes over. Ours is drawn over theirs.",
            "zh": "先凹后凸：曲线转而上翘处，噪声词开始占上风。我们的曲线画在一起。",
        },
    ),
]

# The paper's regression vectors: mean token entropy in nats at _TURN_T, and the turning point it finds.
TURN_VECTORS: list[tuple[float, list[float]]] = [
    (0.9, [0.0127, 0.0274, 0.0453, 0.0667, 0.0895, 0.1158, 0.1460, 0.1839, 0.2280, 0.2919, 0.4140, 0.7597, 1.9236,
           3.9159, 5.6038]),
    (0.8, [0.0406, 0.0874, 0.1338, 0.1970, 0.2701, 0.3571, 0.4569, 0.5849, 0.7142, 0.9689, 1.4175, 3.1345, 5.9669,
           7.3196, 8.043]),
    (0.8, [0.0291, 0.0613, 0.0998, 0.1456, 0.1977, 0.2612, 0.3365, 0.4345, 0.5499, 0.7701, 1.1662, 2.2944, 4.4524,
           5.8236, 6.7282]),
    (0.8, [0.01330, 0.02996, 0.04819, 0.06695, 0.08918, 0.1149, 0.1394, 0.1682, 0.2126, 0.2678, 0.3350, 0.4492,
           0.8692, 2.03085, 4.3436]),
    (0.6, [0.01463, 0.03266, 0.05334, 0.07400, 0.10800, 0.1431, 0.2138, 0.2882, 0.38662, 0.5223, 0.8053, 1.2666,
           2.7485, 4.6639, 6.2238]),
]  # fmt: skip
TURN_TEMPERATURES = _TURN_T

# NoveltyBench: different answers among 10, and their utility-weighted number.
NOVELTY = [("gpt-4o", 3.88, 3.27), ("Llama-3.1-8B", 6.24, 3.76), ("Llama-3.2-1B", 7.74, 2.81)]
