"""What the server says to people, in English and Chinese. The cards of public/elements say their own words."""

from __future__ import annotations

from typing import Final, Literal

Language = Literal["en", "zh"]

WORDS: Final[dict[str, tuple[str, str]]] = {
    "view": ("View", "视图"),
    "view.chat": ("Chat", "对话"),
    "view.chat.about": ("One answer, at your temperature", "按当前温度生成一个回答"),
    "view.compare": ("Compare temperatures", "温度对比"),
    "view.compare.about": ("The same prompt, side by side", "同一个问题，不同温度并排生成"),
    "view.tokens": ("Token probabilities", "词元概率"),
    "view.tokens.about": ("See how sure the model was of every word", "看模型对每个词有多大把握"),
    "tab.basic": ("Basic", "基本"),
    "tab.advanced": ("Advanced", "高级"),
    "fixed": ("{label} (fixed)", "{label}（已固定）"),
    "range": ("{label} ({span})", "{label}（{span}）"),
    "temperature": ("Temperature", "温度"),
    "temperature.about": ("Low = rigorous, high = creative", "低温=严谨，高温=创意"),
    "temperature.hot": (
        "Above {above}, unless you set them: {more}",
        "高于 {above} 时自动设置（除非已指定）：{more}",
    ),
    "max_tokens": ("Longest answer", "最大长度"),
    "max_tokens.about": ("In tokens; 0 = as long as the model wants", "单位：词元；0 = 由模型自行决定"),
    "top_p": ("Nucleus top_p", "核采样 top_p"),
    "top_p.about": ("Only the likeliest words that make up this share", "只保留累计概率达到该比例的词"),
    "top_k": ("Candidates top_k", "候选数 top_k"),
    "top_k.about": ("0 = all", "0 = 不限"),
    "min_p": ("Floor min_p", "概率下限 min_p"),
    "min_p.about": ("Relative to the likeliest word", "相对于最可能的词"),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "repetition_penalty.about": ("1 = none", "1 = 不惩罚"),
    "presence_penalty": ("Presence penalty", "存在惩罚"),
    "presence_penalty.about": ("Holds down words that were used at all", "抑制已经出现过的词"),
    "frequency_penalty": ("Frequency penalty", "频率惩罚"),
    "frequency_penalty.about": ("Holds down words the more they were used", "出现越多，抑制越强"),
    "seed": ("Seed", "随机种子"),
    "seed.hint": ("Empty = random", "留空 = 随机"),
    "seed.bad": ("The seed must be a whole number; it was left out.", "随机种子必须是整数，本次未使用。"),
    "temps": ("Temperatures to compare", "对比的温度"),
    "temps.about": ("Three to five numbers", "三到五个数，用空格或逗号分隔"),
    "temps.bad": (
        "Give three to five temperatures, such as {example}.",
        "请填写三到五个温度，例如 {example}。",
    ),
    "stopped": ("Stopped. What was written is kept.", "已停止，已生成的内容会保留。"),
    "away": (
        "The gateway at {url} does not answer. Start it with `tempera serve`, then try again.",
        "无法连接网关 {url}。请先用 `tempera serve` 启动网关，然后重试。",
    ),
    "engine": (
        "The model is not reachable right now. Please try again in a moment.",
        "模型暂时无法访问，请稍后再试。",
    ),
    "slow": ("The model took too long to answer. Please try again.", "模型响应超时，请重试。"),
    "cut": (
        "The connection to the model broke off; the answer is incomplete. Please try again.",
        "与模型的连接中断，回答不完整，请重试。",
    ),
    "long": (
        "This conversation is longer than the model can read. Start a new chat, or shorten the message.",
        "对话已超出模型能处理的长度。请新建对话，或缩短消息。",
    ),
    "limited": ("Too many requests at the moment. Please wait a little.", "请求过于频繁，请稍等片刻。"),
    "key": ("The gateway does not accept this chat's key.", "网关拒绝了本聊天应用的密钥。"),
    "gone": ("This scenario is no longer there. Please pick another one.", "该场景已不存在，请选择其他场景。"),
    "refused": ("The request was refused: {said}", "请求被拒绝：{said}"),
    "unsaved": ("Your feedback could not be saved. Please try again.", "反馈未能保存，请重试。"),
}


def say(key: str, language: Language, **blanks: object) -> str:
    """One text in one language, its blanks filled in."""
    return WORDS[key][language == "zh"].format(**blanks)


def known(tag: str | None) -> Language:
    """The language we speak for a language tag such as zh-CN or en-GB: Chinese for any zh, else English."""
    return "zh" if (tag or "").lower().startswith("zh") else "en"
