"""The report's words, in English and in Chinese: metrics, headings, doubts, verdicts. Each language written for itself.

Knows wording only. Does NOT know numbers, HTML or Markdown.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Tongue = Literal["en", "zh"]


class Both(NamedTuple):
    """The same thing said in both languages."""

    en: str
    zh: str

    def say(self, lang: Tongue) -> str:
        return self.en if lang == "en" else self.zh


class Metric(NamedTuple):
    """`percent`: shown as a percentage. `about` says what is counted."""

    name: Both
    about: Both
    percent: bool = False


METRICS: dict[str, Metric] = {
    "quality": Metric(
        Both("Quality", "质量"),
        Both("mean of the objective checks of each case, 0 to 1", "每个用例的客观检查得分的平均，0 到 1"),
    ),
    "diversity": Metric(
        Both("Diversity", "多样性"),
        Both(
            "1 - cross-sample redundancy (zlib): how little the samples of one prompt share",
            "1 − 跨样本冗余度（zlib）：同一提示的各个样本有多不相同",
        ),
    ),
    "agreement": Metric(
        Both("Consistency", "一致性"),
        Both("share of pairs of samples that give the same answer", "两两相比，答案相同的样本对所占比例"),
        True,
    ),
    "degenerate": Metric(
        Both("Degenerate replies", "崩坏的回复"),
        Both(
            "repetition, loops, tail tokens, foreign script, wrong language or nothing at all",
            "重复、循环、尾部词、异文字、语言不对或空回复",
        ),
        True,
    ),
    "rep_4": Metric(
        Both("Repetition", "重复"),
        Both("share of 4-grams within a reply that it has used before", "一条回复内，出现过的四元组所占比例"),
        True,
    ),
    "tail_rate": Metric(
        Both("Tail tokens", "尾部词"),
        Both(
            "share of tokens the model itself gives less than 1 in 10,000", "模型自己给出的概率不到万分之一的词所占比例"
        ),
        True,
    ),
    "entropy": Metric(
        Both("Entropy", "熵"),
        Both(
            "nats per token of the tempered distribution, over the top 20",
            "加温后的分布每个词的熵（奈特），按前 20 个候选",
        ),
    ),
    "surprisal": Metric(
        Both("Surprisal", "意外度"),
        Both("nats per token by the model's own probabilities", "按模型自己的概率，每个词的意外度（奈特）"),
    ),
    "distinct_1": Metric(Both("distinct-1", "distinct-1"), Both("different words / all words", "不同的词 / 全部的词")),
    "distinct_2": Metric(
        Both("distinct-2", "distinct-2"),
        Both("different 2-grams / all, over the samples of a prompt", "不同的二元组 / 全部，按一个提示的所有样本"),
    ),
    "distinct_4": Metric(Both("distinct-4", "distinct-4"), Both("different 4-grams / all", "不同的四元组 / 全部")),
    "self_bleu": Metric(
        Both("self-BLEU", "self-BLEU"),
        Both("BLEU of each sample against each other, 0 to 1; 1 is the same", "样本两两之间的 BLEU，0 到 1；1 为相同"),
    ),
    "redundancy": Metric(
        Both("Redundancy", "冗余度"), Both("what compressing the samples together saves", "合并压缩各样本所节省的比例")
    ),
    "self_repetition": Metric(
        Both("self-repetition-4", "self-repetition-4"),
        Both("canned phrases: ln(1 + 4-grams shared with other replies)", "套话：ln(1 + 与其他回复共有的四元组数)"),
    ),
    "dispersion": Metric(
        Both("Surface dispersion", "表面离散度"),
        Both("mean of 1 - cosine over pairs, on character 3-grams", "两两之间 1 − 余弦的平均，按字符三元组"),
    ),
    "vendi": Metric(Both("Vendi score", "Vendi 值"), Both("effective number of different samples", "等效的不同样本数")),
    "greedy_agreement": Metric(
        Both("Agreement with T=0", "与 T=0 一致"),
        Both("share of samples that say what the greedy one says", "与贪心结果相同的样本所占比例"),
        True,
    ),
    "pass_1": Metric(Both("pass@1", "pass@1"), Both("unit tests passed", "通过单元测试"), True),
    "pass_4": Metric(
        Both("pass@4", "pass@4"), Both("at least one of 4 samples passes", "4 个样本中至少 1 个通过"), True
    ),
    "repetitive": Metric(Both("rep-4 above 0.3", "rep-4 超过 0.3"), Both("share of replies", "占回复的比例"), True),
    "loop": Metric(Both("Ends in a loop", "以循环收尾"), Both("share of replies", "占回复的比例"), True),
    "tail": Metric(Both("Tail tokens above 2%", "尾部词超过 2%"), Both("share of replies", "占回复的比例"), True),
    "script": Metric(Both("Foreign script", "异文字"), Both("share of replies", "占回复的比例"), True),
    "language": Metric(Both("Wrong language", "语言不对"), Both("share of replies", "占回复的比例"), True),
    "empty": Metric(Both("Empty", "空回复"), Both("share of replies", "占回复的比例"), True),
    "truncated": Metric(
        Both("Cut off by the limit", "被长度限制截断"),
        Both("share of replies; not counted as degenerate", "占回复的比例；不计入崩坏"),
        True,
    ),
    "short": Metric(
        Both("Short replies", "过短的回复"),
        Both("below 32 tokens, where the length match does not hold", "不足 32 词，长度对齐不成立"),
        True,
    ),
}
OVERVIEW = ("quality", "diversity", "agreement", "degenerate", "rep_4", "tail_rate")
BY_SCENARIO = ("quality", "diversity", "agreement", "degenerate")

SCENARIOS = {
    "customer-service": Both("Customer service", "客服问答"),
    "summarization": Both("Summarization", "文档摘要"),
    "creative": Both("Creative writing", "创意写作"),
    "coding": Both("Coding", "编程助手"),
    "role-play": Both("Role-play", "角色扮演"),
    "*": Both("All scenarios", "全部场景"),
}

DOUBTS: dict[str, Both] = {
    "toy": Both(
        "Not a quality result: the model has fewer than a billion parameters. The shapes may be looked at, the levels "
        "say nothing about a model that one would use.",
        "这不是质量结论：模型参数不足十亿。曲线的形状可以看看，数值高低不能说明实际会用的模型。",
    ),
    "incomplete": Both(
        "Prompts without samples at every temperature were left out, since temperatures are compared prompt by prompt.",
        "温度之间按同一提示成对比较，因此有温度缺样本的提示没有计入。",
    ),
    "clamped": Both(
        "Some temperatures were not applied as asked; the curves stand at the temperature that was used.",
        "有些温度没有按要求生效；曲线画在实际使用的温度上。",
    ),
    "few_prompts": Both(
        "Below 8 prompts no interval is printed, and below 20 nothing is recommended.",
        "提示不足 8 个时不给区间，不足 20 个时不作推荐。",
    ),
    "cut_short": Both(
        "More than a tenth of the replies were cut off by the sweep's token limit; checks of form and completeness "
        "suffer from that at every temperature alike.",
        "超过一成的回复被本次扫描的长度上限截断；形式和完整性检查在各个温度上都会因此偏低。",
    ),
    "hot": Both(
        "A preset adds parameters above a temperature; from there on its curves show both effects together.",
        "有的预设在高于某一温度时会附加参数；此后的曲线是两种作用的叠加。",
    ),
    "no_logprobs": Both(
        "The engine gave no log-probabilities: tail tokens and entropy are missing.",
        "引擎没有返回对数概率，因此没有尾部词和熵。",
    ),
    "system_prompt": Both(
        "A preset has a system prompt, which a sweep cannot see and did not send.",
        "有的预设带系统提示词；扫描看不到它，也没有发送。",
    ),
    "surface": Both(
        "Dispersion and Vendi were computed on character 3-grams: they measure the surface, not the meaning.",
        "离散度和 Vendi 值按字符三元组计算：衡量的是字面，不是语义。",
    ),
    "diversity_alone": Both("Diversity without quality is noise.", "没有质量的多样性只是噪声。"),
    "checks": Both(
        "Quality is what objective checks can see: facts, form, code that runs. Style and charm they cannot judge.",
        "质量只是客观检查看得见的部分：事实、形式、能运行的代码。文采和趣味不在其内。",
    ),
    "entropy_approximate": Both(
        "Entropy is re-tempered over the top 20 candidates, which underestimates it above T = 1.",
        "熵按前 20 个候选重新加温估算，T 大于 1 时偏低。",
    ),
    "one_model": Both(
        "The numbers hold for this model, these parameters and these prompts. Languages are never pooled.",
        "这些数字只对这个模型、这些参数和这些提示成立。两种语言从不合并计算。",
    ),
}

VERDICTS = {
    "recommend": Both("Recommended", "推荐"),
    "keep_preset": Both("Keep the preset", "保持现有预设"),
    "insufficient_data": Both("Not enough data", "数据不足"),
}

TEXT: dict[str, Both] = {
    "title": Both("What temperature does", "温度的影响"),
    "subtitle": Both("Temperature report", "温度报告"),
    "glance": Both("At a glance", "概览"),
    "from_to": Both("From the coldest to the hottest temperature", "从最低温度到最高温度"),
    "together": Both("All scenarios together", "全部场景合计"),
    "by_scenario": Both("Scenario by scenario", "分场景"),
    "outputs": Both("Read the outputs side by side", "并排阅读输出"),
    "verification": Both("Is the temperature really applied?", "温度真的生效了吗？"),
    "published": Both("Beside what others found", "与已发表的结果对照"),
    "numbers": Both("All numbers", "全部数据"),
    "doubts": Both("What these numbers do not say", "这些数字不能说明什么"),
    "recommended": Both("Recommended range", "推荐范围"),
    "preset_range": Both("preset's range", "预设范围"),
    "preset_default": Both("preset's default", "预设默认值"),
    "recommended_range": Both("recommended range", "推荐范围"),
    "band": Both("95% interval over prompts", "按提示重采样的 95% 区间"),
    "metric": Both("Metric", "指标"),
    "prompts": Both("prompts", "个提示"),
    "samples_each": Both("samples each", "个样本/提示"),
    "n_is": Both("prompts × samples", "提示数 × 样本数"),
    "model": Both("Model", "模型"),
    "parameters": Both("parameters", "参数"),
    "profile": Both("profile", "规模"),
    "revision": Both("presets", "预设版本"),
    "neutral": Both("no preset: other parameters neutral", "无预设：其他参数为中性值"),
    "with": Both("with", "同时使用"),
    "not_recommended": Both("No range is recommended on a toy model.", "玩具模型不作范围推荐。"),
    "not_verified": Both(
        "Not checked with this report. `tempera verify --json` proves it from the engine's own probabilities; give its "
        "output to `report --verification`.",
        "本报告没有附带检验。`tempera verify --json` 用引擎自己的概率来证明；把它的输出交给 `report --verification`。",
    ),
    "asked": Both("asked", "要求"),
    "measured": Both("measured", "实测"),
    "verdict": Both("verdict", "结论"),
    "pass": Both("pass", "通过"),
    "fail": Both("fail", "未通过"),
    "language": Both("Language", "语言"),
    "ours": Both("this sweep", "本次扫描"),
    "novelty": Both(
        "NoveltyBench: different answers among 10 samples, and their utility-weighted number",
        "NoveltyBench：10 个样本中不同答案的个数，及按效用加权后的个数",
    ),
}

LANGUAGES = {"zh": Both("Chinese", "中文"), "en": Both("English", "英文")}


def scenario_name(key: str, title: dict[str, str]) -> Both:
    """A scenario's name: ours, else the preset's title, else the key itself."""
    return SCENARIOS.get(key) or Both(title.get("en", key), title.get("zh", key))
