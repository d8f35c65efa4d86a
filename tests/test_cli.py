"""The `tempera` command: exit codes (0 done, 1 the answer is no, 2 wrong usage), every mistake of a file at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.cli.running import _degenerate
from tests.policy.made import file_of, preset

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to run in, and no settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("PRESETS", "UPSTREAM", "DIALECT", "PORT", "HOST", "DATA_DIR", "KEYS", "API_KEY", "OPERATOR_KEY"):
        monkeypatch.delenv(f"TEMPERA_{name}", raising=False)
    return tmp_path


def tempera(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- check


def test_the_shipped_file_is_right() -> None:
    result = tempera("check", ROOT / "presets.yaml")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "6 presets, revision " in result.stdout
    assert "No problems" in result.stdout


def test_every_mistake_at_once_with_file_line_and_key(elsewhere: Path) -> None:
    file = write(
        elsewhere / "p.yaml",
        """\
default: chta
presets:
  chat:
    title: {en: Chat}
    hint: {en: x, zh: y}
    parameters:
      temperature: {default: 3, min: 0, max: 2}
      top_q: 1
      top_p: {min: 0.9, max: 0.1}
      min_p: {pin: 0.1, default: 0.2}
      min_p: 0.1
    system_prompt: missing.md
  chat: {}
""",
    )
    result = tempera("check", file)
    assert (result.exit_code, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    for line, key in [
        (1, "default"),
        (4, "presets.chat.title"),
        (7, "presets.chat.parameters.temperature.default"),
        (8, "presets.chat.parameters.top_q"),
        (9, "presets.chat.parameters.top_p.min"),
        (10, "presets.chat.parameters.min_p"),
        (11, "presets.chat.parameters.min_p"),
        (13, "presets.chat"),
    ]:
        assert any(said.startswith(f"{file}:line {line}: {key}: ") for said in lines), f"{key}\n{result.stderr}"


@pytest.mark.parametrize("text", [b"", b"presets: [", b"\xff\xfe", b"a: \x07", b"a: &a [*a]", b"- 1\n- 2", b"[" * 5000])
def test_hardly_a_file(text: bytes, elsewhere: Path) -> None:
    result = tempera("check", write(elsewhere / "p.yaml", text))
    assert result.exit_code == 1
    assert "p.yaml" in result.stderr


def test_prompts_are_read_from_beside_the_file_and_from_nowhere_else(elsewhere: Path) -> None:
    inside = elsewhere / "inside"
    (inside / "prompts").mkdir(parents=True)
    write(inside / "prompts" / "a.md", "Be kind.")
    write(elsewhere / "secret.md", "secret")
    (inside / "link.md").symlink_to(elsewhere / "secret.md")

    def check(prompt: str) -> Result:
        return tempera("check", write(inside / "p.yaml", file_of({"a": preset(system_prompt=prompt)})))

    assert check("prompts/a.md").exit_code == 0
    for outside in ("../secret.md", str(elsewhere / "secret.md"), "link.md", "prompts", "no.md", "\0", "a" * 300):
        result = check(outside)
        assert (result.exit_code, "presets.a.system_prompt" in result.stderr) == (1, True)
        assert "secret\n" not in result.output


def test_the_schema_is_json_schema() -> None:
    result = tempera("check", ROOT / "presets.yaml", "--schema")
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load((ROOT / "presets.yaml").read_text(encoding="utf-8")), schema)


# --- presets


def test_the_table_fits_a_terminal_and_its_columns_stand_below_each_other() -> None:
    result = tempera("presets", "--presets", ROOT / "presets.yaml")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    rows = [line for line in lines[: lines.index("")] if not line.startswith("  ")]
    text = " ".join(result.stdout.split())

    def width(text: str) -> int:
        return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)

    assert len(rows) == 8
    assert max(width(line) for line in lines[: lines.index("")]) <= 80
    assert rows[2].startswith("balanced*")
    assert "customer-service" in rows[3]
    assert "0.3 (0.1..0.5)" in rows[3]
    assert "max_tokens 512 (..2048)" in rows[3]
    assert text.count("repetition_penalty 1.1 above 1") == 2
    starts = {width(re.split(r"[0-9]\.[0-9] \(", row)[0]) for row in rows[2:]}
    assert len(starts) == 1


def test_the_file_in_force(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag, the variable, ./presets.yaml, the one that ships."""
    names = {}
    for name in ("flag", "variable", "here"):
        names[name] = write(elsewhere / f"{name}.yaml", file_of({name: preset()}))
    assert "balanced" in tempera("presets").stdout
    write(elsewhere / "presets.yaml", file_of({"here": preset()}))
    assert tempera("presets").stdout.splitlines()[2].startswith("here*")
    monkeypatch.setenv("TEMPERA_PRESETS", str(names["variable"]))
    assert tempera("presets").stdout.splitlines()[2].startswith("variable*")
    assert tempera("presets", "--presets", names["flag"]).stdout.splitlines()[2].startswith("flag*")


def test_a_broken_file_has_no_table(elsewhere: Path) -> None:
    for file in (
        write(elsewhere / "p.yaml", "presets: {}"),
        write(elsewhere / "q.yaml", b"\xff"),
        elsewhere / "no.yaml",
    ):
        result = tempera("presets", "--presets", file)
        assert (result.exit_code, file.name in result.stderr) == (1, True)


# --- serve


def test_what_stops_a_start(elsewhere: Path) -> None:
    broken = write(elsewhere / "p.yaml", "presets: {a: {}}")
    good = write(elsewhere / "good.yaml", file_of({"a": preset()}))
    upstream = ("--upstream", "http://127.0.0.1:9", "--data-dir", elsewhere)
    for arguments, words in [
        (("--presets", broken, *upstream), "'title' is missing"),
        (("--presets", elsewhere / "no.yaml", *upstream), "no.yaml"),
        (("--presets", good, "--model", elsewhere / "no.gguf", "--data-dir", elsewhere), "no.gguf"),
    ]:
        result = tempera("serve", "--port", "0", *arguments)
        assert (result.exit_code, words in result.stderr) == (1, True), result.output


def test_an_upstream_that_can_not_be_used_is_said_without_its_secrets(elsewhere: Path) -> None:
    command = [sys.executable, "-m", "gateway.cli", "serve", "--port", "0", "--data-dir", str(elsewhere)]
    command += ["--upstream", "http://user:secret@x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "upstream URL" in done.stderr) == (1, True), done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("nope",),
        ("serve", "--port", "70000"),
        ("serve", "--port", "x"),
        ("serve", "--dialect", "openai"),
        ("serve", "--nope"),
        ("check",),
        ("check", "no-such-file.yaml"),
        ("check", "."),
        ("keys", "new"),
        ("log", "--database-url", "garbage"),
        ("export", "--database-url", "mysql://nowhere/log"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    result = tempera(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr or "Usage: " in result.output


def test_a_wrong_variable_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPERA_PORT", "http")
    for command in (("serve",), ("presets",)):
        result = tempera(*command)
        assert (result.exit_code, "TEMPERA_PORT" in result.stderr) == (2, True)


def test_logged_texts_that_fell_apart() -> None:
    """Mixed Chinese and English is how people write."""
    for sound in (
        "使用 Python 和 pandas 可以处理 CSV 文件，运行 pip install pandas 即可。",
        "The word for hello is 你好 in Chinese, and it is widely used.",
    ):
        assert not _degenerate(sound)
    for broken in ("的 的 的 " * 30, "the cat and " * 30, "Слово за словом и ничего больше.", ""):
        assert _degenerate(broken)


# --- keys


def test_a_new_key_is_shown_once_and_kept_as_a_hash(elsewhere: Path) -> None:
    write(elsewhere / "presets.yaml", file_of({"a": preset(), "b": preset()}))
    made = tempera("keys", "new", "team-1", "--presets", "a, b", "--preset", "a", "--data-dir", "d")
    key = made.stdout.strip()
    assert (made.exit_code, key.startswith("tk-"), len(made.stdout.splitlines())) == (0, True, 1)
    file = elsewhere / "d" / "keys.yaml"
    text = file.read_text(encoding="utf-8")
    assert key not in text
    assert file.stat().st_mode & 0o077 == 0
    [entry] = yaml.safe_load(text)["keys"]
    assert (entry["name"], entry["preset"], entry["presets"]) == ("team-1", "a", ["a", "b"])
    again = tempera("keys", "new", "team-2", "--data-dir", "d").stdout.strip()
    assert again != key
    assert len(yaml.safe_load(file.read_text(encoding="utf-8"))["keys"]) == 2
    for arguments in (("team-1",), ("a b",), ("x", "--presets", "nope"), ("x", "--preset", "nope")):
        result = tempera("keys", "new", *arguments, "--data-dir", "d")
        assert (result.exit_code, result.stdout) == (2, "")
    assert len(yaml.safe_load(file.read_text(encoding="utf-8"))["keys"]) == 2


def test_keys_with_limits_are_listed_and_revoked(elsewhere: Path) -> None:
    write(elsewhere / "presets.yaml", file_of({"a": preset(), "b": preset()}))
    assert "No keys in" in tempera("keys", "list", "--data-dir", "d").stdout
    limits = ("--rpm", "60", "--tpm", "90000", "--concurrency", "4")
    key = tempera("keys", "new", "app", "--presets", "a", "--preset", "a", *limits, "--data-dir", "d").stdout.strip()
    tempera("keys", "new", "free", "--preset", "b", "--data-dir", "d")
    file = elsewhere / "d" / "keys.yaml"
    first, second = yaml.safe_load(file.read_text(encoding="utf-8"))["keys"]
    assert {name: first[name] for name in ("rpm", "tpm", "concurrency")} == {"rpm": 60, "tpm": 90000, "concurrency": 4}
    assert second.keys() == {"name", "hash", "preset"}
    listed = tempera("keys", "list", "--data-dir", "d").stdout
    rows = [line.split() for line in listed.splitlines()[1:]]
    assert rows == [["app", "60", "90000", "4", "a*"], ["free", "-", "-", "-", "all,", "b*"]]
    assert key not in listed
    assert first["hash"] not in listed
    gone = tempera("keys", "revoke", "nobody", "--data-dir", "d")
    assert (gone.exit_code, "there are: app, free" in gone.stderr) == (2, True)
    assert tempera("keys", "revoke", "app", "--data-dir", "d").exit_code == 0
    assert [entry["name"] for entry in yaml.safe_load(file.read_text(encoding="utf-8"))["keys"]] == ["free"]
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("option", "value"), [("--rpm", "0"), ("--tpm", "-1"), ("--concurrency", "many")])
def test_a_limit_that_is_none(option: str, value: str, elsewhere: Path) -> None:
    result = tempera("keys", "new", "x", option, value, "--data-dir", "d")
    assert (result.exit_code, option in result.stderr, (elsewhere / "d").exists()) == (2, True, False)


# --- help


def test_help_names_every_command_and_loads_no_server() -> None:
    heavy = ("fastapi", "sqlalchemy", "uvicorn", "numpy", "scipy", "xllamacpp")
    code = (
        "import sys; from gateway.cli import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit: print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in (
        "up",
        "serve",
        "check",
        "presets",
        "verify",
        "sweep",
        "recommend",
        "report",
        "experiments",
        "export",
        "keys",
    ):
        assert f"\n  {command} " in done.stdout


def test_the_version() -> None:
    assert tempera("--version").stdout.startswith("tempera, version 0.")
