"""The words of an experiment's result, in English and Chinese: for the page and the command line. Knows no numbers."""

from __future__ import annotations

from typing import Final, Literal

Language = Literal["en", "zh"]

_TEXTS: Final[dict[str, tuple[str, str]]] = {
    "title": ("Experiment", "实验"),
    "on_preset": ("on the preset", "预设"),
    "days": ("{days:.1f} days", "已进行 {days:.1f} 天"),
    "draft": ("draft", "草稿"),
    "running": ("running", "进行中"),
    "stopped": ("stopped", "已停止"),
    "ship": ("Ship {variant}", "采用 {variant}"),
    "keep": ("Keep {variant}", "保留 {variant}"),
    "no difference": ("No difference", "没有差别"),
    "not yet": ("Not yet", "还不能下结论"),
    "invalid: sample ratio": ("Invalid: sample ratio", "无效：样本比例异常"),
    "ratio": (
        "The units are not split as the weights say, so the assignment is broken and no effect is shown.",
        "各组的人数与设定的比例不符，说明分组出了问题，因此不显示任何效果。",
    ),
    "few_votes": (
        "Every arm needs at least 20 units with a thumb up and 20 without before anything can be said.",
        "每组至少需要 20 个好评用户和 20 个非好评用户，之后才能下结论。",
    ),
    "too_early": (
        "The difference is there, but the experiment is younger than its minimum number of days.",
        "差别已经出现，但实验还没有达到规定的最短天数。",
    ),
    "undecided": ("The evidence does not decide yet.", "现有证据还不足以判断。"),
    "worse": ("Nothing is better than the control.", "没有哪一组比对照组更好。"),
    "better": ("Better than the control, and no guardrail shows harm.", "优于对照组，且护栏指标均无恶化。"),
    "equivalent": ("Any difference is too small to matter.", "即使有差别，也小到可以忽略。"),
    "guardrail": ("Better liked, but a guardrail shows harm: {what}.", "更受欢迎，但护栏指标恶化：{what}。"),
    "hurt": ("A guardrail shows harm: {what}.", "护栏指标恶化：{what}。"),
    "arms": ("Arms", "各组"),
    "variant": ("Variant", "变体"),
    "weight": ("Weight", "权重"),
    "units": ("Units", "单元"),
    "exchanges": ("Exchanges", "对话数"),
    "voters": ("Units that voted", "投票单元"),
    "votes": ("Votes", "票数"),
    "mean": ("Thumbs up", "好评率"),
    "control": ("control", "对照"),
    "difference": ("Difference in thumbs up", "好评率之差"),
    "against": ("{variant} against {control}", "{variant} 对比 {control}"),
    "axis": ("units that voted", "投票单元数"),
    "e": ("Evidence (e-value)", "证据（e 值）"),
    "p": ("p, valid at any look", "p 值（随时查看均有效）"),
    "crossed": ("Line first crossed", "首次越线"),
    "exact_e": ("Exact e-value, by pairs", "成对精确 e 值"),
    "adaptive_e": ("Evidence that the arms differ (e-value)", "各组有差别的证据（e 值）"),
    "ratio_check": ("Sample-ratio check (e-value, alarm at 1000)", "样本比例检查（e 值，达到 1000 报警）"),
    "ratio_ok": ("as declared", "与设定一致"),
    "needed": (
        "To see a difference of {detect:.0%}, each arm needs about {voters} voting units; {missing} are missing"
        "{assigned}.",
        "要看出 {detect:.0%} 的差别，每组约需 {voters} 个投票单元，还差 {missing} 个{assigned}。",
    ),
    "assigned": (" (about {units} more units in all)", "（合计约还需 {units} 个单元）"),
    "guardrails": ("Guardrails", "护栏指标"),
    "change": ("Change", "变化"),
    "tolerance": ("Tolerated", "容许"),
    "harm": ("harm", "恶化"),
    "fine": ("no harm shown", "未见恶化"),
    "feedback_rate": ("Units that vote", "投票率"),
    "regenerate_rate": ("Regenerated answers", "重新生成率"),
    "errors": ("Errors", "错误率"),
    "tokens": ("Tokens per answer", "每次回答的 token 数"),
    "latency": ("Time to first token", "首 token 时间"),
    "moved": (
        "{moved} units were seen in two arms; they count in the first.",
        "{moved} 个单元出现在两组中，按首次所在组计算。",
    ),
    "none": ("No exchange of this experiment is in the log yet.", "日志中还没有这个实验的对话。"),
    "note": (
        "The band is a 95% interval that stays valid however often you look. One value per unit, the mean of its "
        "votes; of the votes on one answer the last within 24 hours counts.",
        "阴影是 95% 区间，无论何时查看、查看多少次都有效。每个单元只算一个值，即其各次投票的平均；"
        "同一条回答以 24 小时内的最后一票为准。",
    ),
}


def text(key: str, language: Language, **values: object) -> str:
    """The words for a key, with values filled in."""
    return _TEXTS[key][language == "zh"].format(**values)


def verdict(said: str, language: Language) -> str:
    """A verdict of `Result.verdict` in a language."""
    first, _, variant = said.partition(" ")
    return text(first, language, variant=variant) if first in ("ship", "keep") else text(said, language)


def reason(said: str, language: Language) -> str:
    """A reason of `Result.reasons` in a language."""
    kind, colon, what = said.partition(": ")
    if not colon:
        return text(kind, language)
    name, _, variant = what.partition(" ")
    return text(kind, language, what=f"{text(name, language)} {variant}")


def choose_language(accept: str) -> Language:
    """The language that an Accept-Language header prefers; English where it names neither."""
    best, chosen = 0.0, "en"
    for part in accept.lower().split(","):
        name, _, quality = part.strip().partition(";q=")
        try:
            weight = float(quality or 1)
        except ValueError:
            weight = 0.0
        if name[:2] in ("en", "zh") and weight > best:
            best, chosen = weight, name[:2]
    return "zh" if chosen == "zh" else "en"
