"""Who may come in: keys by their hash, a file that is read again, and a gateway that never opens by an edit."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from gateway.protocol.errors import Unauthorized
from gateway.serving.access import ANYBODY, Access, is_loopback, key_of
from gateway.serving.app import open_access
from gateway.serving.keyfile import BadKeys, Limits, add_key, read_keys, revoke_key
from gateway.settings import read

CANARY = "tk-canary-canary-canary"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keys.yaml"


def touch(path: Path, text: str) -> None:
    """Write so that a reader notices, however coarse the file system's clock is."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, ns=(at := path.stat().st_mtime_ns + 10**9, at))


def test_without_keys_anybody_and_from_the_first_key_on_nobody_else(file: Path) -> None:
    access = Access(file)
    assert (access.open, access.admit(None), access.admit(b"x")) == (True, ANYBODY, ANYBODY)
    key = add_key(file, "team", "a", ["a", "b"], Limits(rpm=5)).encode()
    access.refresh(at_once=True)
    caller = access.admit(key)
    assert (caller.name, caller.preset, caller.presets, caller.limits) == (
        "team",
        "a",
        frozenset("ab"),
        Limits(rpm=5),
    )
    messages = set()
    for wrong in (None, b"", b"x", key[:-1], key + b"x"):
        with pytest.raises(Unauthorized) as caught:
            access.admit(wrong)
        messages.add(caught.value.message)
    assert len(messages) == 1, "wrong and missing look the same"
    revoke_key(file, "team")
    access.refresh(at_once=True)
    assert not access.open
    with pytest.raises(Unauthorized):
        access.admit(key)
    with pytest.raises(Unauthorized):
        access.admit(None)


def test_limits_change_with_the_file_and_a_broken_one_changes_nothing(file: Path) -> None:
    key = add_key(file, "team", limits=Limits(rpm=5, concurrency=2)).encode()
    access = Access(file)
    entry = yaml.safe_load(file.read_text())["keys"][0]
    for change, limits in [
        ({"rpm": 9}, Limits(rpm=9, concurrency=2)),
        ({"rpm": None, "concurrency": None, "tpm": 7}, Limits(tpm=7)),
        ({"rpm": None, "concurrency": None}, None),
    ]:
        touch(file, yaml.safe_dump({"keys": [entry | change]}))
        access.refresh(at_once=True)
        assert (access.admit(key).limits, access.trouble) == (limits, None)
    wrong = ({"rpm": 0}, {"tpm": "9k"}, {"concurrency": 1.5}, {"x": 1})
    for change in wrong:
        touch(file, yaml.safe_dump({"keys": [entry | change]}))
        access.refresh(at_once=True)
        assert access.admit(key).limits is None
        assert access.trouble is not None
        assert next(iter(change)) in access.trouble
        assert str(file) in access.trouble
        assert entry["hash"] not in access.trouble
    file.unlink()
    access.refresh(at_once=True)
    assert access.admit(key).name == "team"


def test_a_broken_file_stops_a_start_that_would_be_open_and_nothing_else(file: Path) -> None:
    touch(file, f"keys: [{CANARY}")
    with pytest.raises(BadKeys):
        Access(file)
    closed = Access(file, "a-key-of-its-own")
    assert closed.admit(b"a-key-of-its-own").name == "env"
    file.unlink()
    running = Access(file)
    touch(file, "keys: 5")
    running.refresh(at_once=True)
    assert (running.open, running.trouble is not None) == (True, True)


def test_a_file_half_written_is_left_alone(file: Path) -> None:
    key = add_key(file, "team").encode()
    access, whole = Access(file), file.read_text()
    touch(file, "")
    access.refresh()
    assert access.admit(key).name == "team"
    touch(file, whole[:20])
    access.refresh()
    assert (access.admit(key).name, access.trouble) == ("team", None)
    other = add_key(file.with_name("other.yaml"), "other").encode()
    touch(file, file.with_name("other.yaml").read_text())
    access.refresh()
    access.refresh()
    assert access.admit(other).name == "other"


@pytest.mark.parametrize(
    "text", [f"keys:\n- name: a\n  hash: {CANARY}: oops", f"keys:\n- {CANARY}: 1", f"keys: *{CANARY}", "Keys: []", "[]"]
)
def test_a_broken_file_is_not_quoted(file: Path, text: str) -> None:
    touch(file, text.replace("canary-canary-canary", "c" * 43))
    with pytest.raises(BadKeys) as caught:
        Access(file)
    assert "ccc" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_is_named_must_be_there(file: Path) -> None:
    with pytest.raises(ValueError, match="is not there, so anybody"):
        open_access(read({}, keys=file))
    open_access(read({}, keys=file, api_key="a-key-of-its-own"))


def test_changes_at_once_lose_no_key(file: Path) -> None:
    names = [f"team-{n}" for n in range(16)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: add_key(file, name), names))
    assert sorted(key.name for key in read_keys(file)) == sorted(names)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: revoke_key(file, name), names[1:]))
    assert [key.name for key in read_keys(file)] == names[:1]


def test_an_operator(file: Path) -> None:
    Access(file).check_operator(None)
    for access in (Access(file, "key-key-key-key"), Access(file, None, "operator-operator")):
        with pytest.raises(Unauthorized):
            access.check_operator(b"key-key-key-key")
    Access(file, None, "operator-operator").check_operator(b"operator-operator")


def test_entries_of_one_name_are_revoked_together(file: Path) -> None:
    add_key(file, "team")
    add_key(file, "other")
    entries = yaml.safe_load(file.read_text())["keys"]
    touch(file, yaml.safe_dump({"keys": [*entries, entries[0] | {"hash": "0" * 64}]}))
    assert [key.name for key in read_keys(file)] == ["team", "other", "team"]
    revoke_key(file, "team")
    assert [key.name for key in read_keys(file)] == ["other"]
    for name in ("team", ""):
        with pytest.raises(BadKeys, match="no key named"):
            revoke_key(file, name)
    with pytest.raises(BadKeys, match="already"):
        add_key(file, "other")
    for name in ("", "a b", "x" * 65, "ä", "a/b"):
        with pytest.raises(BadKeys):
            add_key(file, name)


OWN = ("127.0.0.1", "::1", "[::1]", "localhost", "127.9.9.9")
OTHERS = ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "")


@pytest.mark.parametrize("host", [*OWN, *OTHERS])
def test_this_machine_only(host: str) -> None:
    assert is_loopback(host) is (host in OWN)


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"authorization": "Bearer a"}, b"a"),
        ({"authorization": "bearer a"}, b"a"),
        ({"authorization": "BEARER  a "}, b"a"),
        ({"x-api-key": "b"}, b"b"),
        ({"authorization": "Bearer a", "x-api-key": "b"}, b"a"),
        ({"authorization": "Bearer "}, None),
        ({}, None),
    ],
)
def test_where_the_key_is(headers: dict[str, str], key: bytes | None) -> None:
    assert key_of(headers) == key
