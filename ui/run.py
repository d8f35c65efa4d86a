"""Starts the chat: lays out Chainlit's app directory in the data directory, then runs Chainlit's own command in it.

Knows Chainlit's files and environment variables, which must be there before it is imported. Nothing is written beside
the code, so this works from an installed wheel and never dirties a working tree.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from importlib import util
from pathlib import Path
from typing import Any, Final

from ui.settings import BadSettings, Settings, read, variable

HERE: Final = Path(__file__).parent
_TEXTS: Final[dict[str, dict[str, str]]] = {
    "en-US": {
        "chat.settings.title": "Parameters",
        "chat.input.placeholder": "Type a message…",
        "chat.input.actions.stop": "Stop",
        "chat.watermark": "Language models make mistakes. Check what matters.",
        "auth.login.title": "Sign in to Tempera",
        "auth.login.form.email.label": "Name",
        "auth.login.form.email.placeholder": "Any name; your chats are kept under it",
        "auth.login.form.email.required": "A name is needed",
        "auth.login.errors.default": "The name or the password is wrong",
        "navigation.header.readme": "About",
    },
    "zh-CN": {
        "chat.settings.title": "参数",
        "chat.input.placeholder": "输入消息…",
        "chat.input.actions.stop": "停止生成",
        "chat.watermark": "大语言模型可能出错，重要信息请自行核实。",
        "chat.messages.feedback.dialog.title": "补充说明（可选）",
        "chat.messages.feedback.dialog.yourFeedback": "哪里好，或者哪里不好？",
        "auth.login.title": "登录 Tempera",
        "auth.login.form.email.label": "名称",
        "auth.login.form.email.placeholder": "任意名称，历史对话按名称保存",
        "auth.login.form.email.required": "请填写名称",
        "auth.login.errors.default": "名称或密码不正确",
        "auth.provider.continue": "使用 {{provider}} 登录",
    },
}


def main(
    host: str | None = None,
    port: int | None = None,
    gateway_url: str | None = None,
    data_dir: str | Path | None = None,
) -> int:
    """Serve the chat until stopped. What is None comes from the environment. Returns 2 when the settings are wrong."""
    try:
        settings = read(host=host, port=port, gateway_url=gateway_url, data_dir=data_dir)
    except BadSettings as error:
        print(error, file=sys.stderr)
        return 2
    lay_out(settings)
    for name in ("host", "port", "gateway_url", "data_dir"):
        os.environ[variable(name)] = str(getattr(settings, name))
    os.environ |= {"CHAINLIT_APP_ROOT": str(settings.home), "CHAINLIT_HOST": settings.host}
    os.environ["CHAINLIT_PORT"] = str(settings.port)
    os.environ.setdefault("CHAINLIT_AUTH_SECRET", _secret(settings.home / "secret"))
    from chainlit.cli import run_chainlit  # reads the environment while it is imported
    from chainlit.config import config

    config.run.headless = True
    run_chainlit(str(HERE / "app.py"))
    return 0


def lay_out(settings: Settings) -> None:
    """Write the app directory anew: configuration, translations, public files. Keeps the history and the secret."""
    root = settings.home
    root.mkdir(parents=True, exist_ok=True)
    for name in ("public", ".chainlit"):
        shutil.rmtree(root / name, ignore_errors=True)
    shutil.copytree(HERE / "root", root, dirs_exist_ok=True)
    theirs = Path(str(util.find_spec("chainlit").origin)).parent / "translations"  # type: ignore[union-attr]
    ours = root / ".chainlit" / "translations"
    ours.mkdir()
    for language, texts in _TEXTS.items():
        translation = json.loads((theirs / f"{language}.json").read_text(encoding="utf-8"))
        for path, text in texts.items():
            _put(translation, path.split("."), text)
        for name in {
            language,
            language[:2],
        }:  # zh.json serves zh-SG, zh-HK and zh-Hans, which would fall back to English
            (ours / f"{name}.json").write_text(json.dumps(translation, ensure_ascii=False), encoding="utf-8")


def _put(tree: dict[str, Any], path: list[str], text: str) -> None:
    for name in path[:-1]:
        tree = tree[name]
    tree[path[-1]] = text


def _secret(path: Path) -> str:
    """What logins are signed with: made once, so that a restart logs nobody out."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(48), encoding="ascii")
    return path.read_text(encoding="ascii")
