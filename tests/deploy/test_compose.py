"""docker-compose.yml, and the script that starts vLLM, held against their own rules. No container engine is needed.

Not shown here: that the images build (`test_images` runs what is in their Dockerfile) and that vLLM takes the flags
(`test_vllm`).
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.deploy.script import MODES, ROOT, SCRIPT, option, run_script

COMPOSE = ROOT / "docker-compose.yml"
LOCKS = ROOT / "deploy" / "locks"
PROFILES = (*MODES, "cpu")
MANY = "scale"
GATEWAYS = ("gateway", "gateway-cpu", "gateway-1", "gateway-2")
OURS = (*GATEWAYS, "chat", "chat-1", "chat-2", "router")
# Images of others, whose exact tags were seen in use when they were chosen.
OTHERS = {"postgres": "postgres:18.6-trixie", "valkey": "valkey/valkey:8.1.4", "balancer": "haproxy:3.2.19-alpine"}
SECRET = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET)$")

FILE: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = FILE["services"]


def active(profile: str) -> dict[str, Any]:
    """What Compose starts with one profile: the services that name it, and those that name none."""
    return {name: service for name, service in SERVICES.items() if profile in service.get("profiles", [profile])}


def known_as(name: str, network: str) -> set[str]:
    """The names under which other containers in a network find a service; none when it is not in that network."""
    networks = SERVICES[name]["networks"]
    if network not in networks:
        return set()
    aliases = (networks[network] or {}).get("aliases", []) if isinstance(networks, dict) else []
    return {name, *aliases}


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_it_is_a_compose_file_by_the_published_schema() -> None:
    tool = Path(sys.executable).with_name("check-jsonschema")
    if not tool.exists():
        pytest.skip("check-jsonschema is not installed")
    done = subprocess.run(
        [tool, "--builtin-schema", "vendor.compose-spec", COMPOSE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_only_gateway_and_chat_publish_a_port_and_only_on_this_machine_unless_told_otherwise() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if service.get("ports")}
    host = "${TEMPERA_PUBLISH:-127.0.0.1}"
    gateway, chat = f"{host}:8001:8001", f"{host}:8002:8002"
    balancer = [gateway, chat]
    assert published == {"gateway": [gateway], "gateway-cpu": [gateway], "chat": [chat], "balancer": balancer}
    assert not any(service.get("network_mode") for service in SERVICES.values())


def test_the_engine_is_reached_by_the_gateway_alone_and_reaches_nothing() -> None:
    assert FILE["networks"]["engine"]["internal"] is True
    inside = {name for name in SERVICES if known_as(name, "engine")}
    engines = {name for name in SERVICES if name.startswith("vllm")}
    assert inside == engines | {"gateway", "router"}
    assert all(list(SERVICES[name]["networks"]) == ["engine"] for name in engines)
    # Without a way out it must not try to fetch anything: a container of its own does that before.
    assert all(SERVICES[name]["environment"]["HF_HUB_OFFLINE"] == "1" for name in engines)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_one_gateway_one_chat_and_one_engine(profile: str) -> None:
    services = active(profile)
    gateways = [name for name in services if "gateway" in known_as(name, "front")]
    engines = [name for name in services if "engine" in known_as(name, "engine")]
    assert len(gateways) == 1
    assert len(engines) == (profile in MODES)
    gateway = services[gateways[0]]["environment"]
    assert gateway.get("TEMPERA_UPSTREAM") == ("http://engine:8000" if engines else None)
    assert services["chat"]["environment"]["TEMPERA_GATEWAY_URL"] == "http://gateway:8001"
    for name, service in services.items():
        for other, condition in service.get("depends_on", {}).items():
            assert other in services or condition.get("required") is False, f"{name} waits for {other}"


def test_every_service_belongs_to_a_profile() -> None:
    # One without would start in every profile; and a profile that is not documented would be one nobody finds.
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == set()
    profiles = {profile for service in SERVICES.values() for profile in service["profiles"]}
    assert profiles == {*PROFILES, MANY}


def test_with_many_nothing_but_the_balancer_is_reached_and_only_gateways_reach_the_router() -> None:
    services = active(MANY)
    assert {name for name in services if known_as(name, "routed")} == {"router", "gateway-1", "gateway-2"}
    assert {name for name in services if known_as(name, "kept")} == {"postgres", "valkey", "gateway-1", "gateway-2"}
    assert FILE["networks"]["routed"]["internal"] is FILE["networks"]["kept"]["internal"] is True
    # The router's routes for adding engines ask for no key.
    assert not services["router"].get("ports")
    assert set(services["router"]["networks"]) == {"engine", "routed"}
    engines = [name for name in services if known_as(name, "engine") and name != "router"]
    wired = services["router"]["command"]
    urls = wired[wired.index("--worker-urls") + 1 :][: len(engines)]
    assert sorted(urls) == sorted(f"http://{name}:8000" for name in engines)
    assert len({str(services[name]["deploy"]) for name in engines}) == len(engines)  # a GPU each


def test_many_gateways_share_what_they_must_and_nothing_else() -> None:
    one, two = (SERVICES[name]["environment"] for name in ("gateway-1", "gateway-2"))
    assert {name for name in one if one[name] != two[name]} == {"TEMPERA_DATA_DIR"}
    shared = ("SECRET", "DATABASE_URL", "LIMITS_URL", "KEYS", "UPSTREAM")
    assert all(one[f"TEMPERA_{name}"] for name in shared)
    addresses = [one[f"TEMPERA_{name}"] for name in ("DATABASE_URL", "LIMITS_URL", "UPSTREAM")]
    assert [urlsplit(address).hostname for address in addresses] == ["postgres", "valkey", "router"]
    for name in ("chat-1", "chat-2"):
        assert SERVICES[name]["environment"]["TEMPERA_GATEWAY_URL"] == "http://balancer:8001"
        assert SERVICES[name]["volumes"] == SERVICES["chat"]["volumes"]  # one history, one secret


def test_services_of_many_wait_only_for_services_that_are_there() -> None:
    services = active(MANY)
    for name, service in services.items():
        for other, condition in service.get("depends_on", {}).items():
            assert other in services or condition.get("required") is False, f"{name} waits for {other}"
            assert condition["condition"] != "service_healthy" or "healthcheck" in services[other]


def test_secrets_come_from_the_environment_and_the_example_names_every_one() -> None:
    asked = set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text(encoding="utf-8")))
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable):
                assert value is None or re.match(r"^\$\{\w+(:\?[^}]*)?\}$", value), f"{name}: {variable}"
                asked |= set(re.findall(r"\$\{(\w+)\}", value or ""))
    example = dict(
        line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if re.match(r"^\w+=", line)
    )
    assert {name for name in example if SECRET.search(name)} == asked
    assert not any(value for name, value in example.items() if SECRET.search(name))
    assert example["COMPOSE_PROFILES"] == "default"


def test_images_are_pinned_to_what_the_locks_and_the_project_say() -> None:
    vllm = re.search(r"^vllm==(\S+)", (LOCKS / "vllm.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert vllm is not None
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for name, service in SERVICES.items():
        engine = f"vllm/vllm-openai:v{vllm[1]}"
        ours = f"tempera-{service['build']['target']}:{version}" if name in OURS else None
        assert service["image"] == (ours or OTHERS.get(name) or engine), name
    assert re.search(
        r"^ARG PYTHON_IMAGE=python:3\.\d+\.\d+-slim-\w+$",
        (ROOT / "deploy" / "docker" / "Dockerfile").read_text(encoding="utf-8"),
        re.MULTILINE,
    )


def test_what_runs_for_long_is_watched_restarted_and_given_time_to_end(tmp_path: Path) -> None:
    for name, service in SERVICES.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name.startswith("weights"):
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name
        if name in OURS:
            assert service["cap_drop"] == ["ALL"], name
            assert service["read_only"] is True, name
    for name in GATEWAYS:
        service = SERVICES[name]
        assert seconds(service["stop_grace_period"]) > int(service["environment"]["TEMPERA_SHUTDOWN_TIMEOUT"])
    argv, _ = run_script(tmp_path, "serve", "default")
    for name in (name for name in SERVICES if name.startswith("vllm")):
        assert seconds(SERVICES[name]["stop_grace_period"]) > int(option(argv, "--shutdown-timeout"))
        assert SERVICES[name]["healthcheck"]["start_period"] == "900s"
    # An engine is stopped after the gateway whose streams it feeds: Compose stops in the reverse order of depends_on.
    alone = {name for name in SERVICES if name[:4] == "vllm" and MANY not in SERVICES[name]["profiles"]}
    assert set(SERVICES["gateway"]["depends_on"]) == alone
    assert set(SERVICES["router"]["depends_on"]) == {"vllm-1", "vllm-2"}
    assert set(SERVICES["gateway-1"]["depends_on"]) == {"router", "postgres", "valkey"}
    assert {"gateway-1", "gateway-2"} < set(SERVICES["balancer"]["depends_on"])


def test_the_gateway_names_no_setting_that_does_not_exist() -> None:
    from gateway.settings import DESCRIPTIONS

    for name in GATEWAYS:
        for variable in SERVICES[name]["environment"]:
            assert variable.removeprefix("TEMPERA_").lower() in DESCRIPTIONS, variable


def test_what_is_mounted_from_here_is_in_a_fresh_clone() -> None:
    # Docker makes a folder, owned by root, of a source that does not exist.
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in FILE["volumes"] or (ROOT / source).exists(), f"{name}: {source}"


@pytest.mark.parametrize("profile", MODES)
def test_each_engine_serves_what_was_fetched_for_it(profile: str, tmp_path: Path) -> None:
    services = active(profile)
    (engine,) = (service for name, service in services.items() if name.startswith("vllm"))
    (weights,) = (service for name, service in services.items() if name.startswith("weights"))
    assert engine["entrypoint"] == weights["entrypoint"]
    assert engine["command"] == ["serve", profile]
    serving, _ = run_script(tmp_path, *engine["command"])
    fetching, _ = run_script(tmp_path, *weights["command"])
    assert serving[:2] == ["vllm", "serve"]
    assert fetching == ["hf", "download", serving[2]]
    assert f"{SCRIPT.relative_to(ROOT).as_posix()}:{engine['entrypoint'][1]}:ro" in engine["volumes"][0]
    (waits,) = engine["depends_on"].values()
    assert waits == {"condition": "service_completed_successfully"}


def test_the_modes_differ_in_what_they_are_for(tmp_path: Path) -> None:
    lengths = {mode: option(run_script(tmp_path, "serve", mode)[0], "--max-model-len") for mode in MODES}
    assert lengths == {"default": "32768", "long-context": "131072", "small-gpu": "8192"}
    plain, environment = run_script(tmp_path, "serve", "default")
    assert plain[2] == "Qwen/Qwen2.5-7B-Instruct"
    assert option(plain, "--served-model-name") == "qwen2.5-7b-instruct"
    assert option(plain, "--generation-config") == "vllm"
    assert environment["VLLM_MAX_N_SEQUENCES"] == "16"
    assert environment["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] == "75"
    small, _ = run_script(tmp_path, "serve", "small-gpu")
    assert small[2].endswith("-AWQ")
    assert option(small, "--served-model-name").endswith("-awq")  # other weights, other answers: the log must say so
    long, _ = run_script(tmp_path, "serve", "long-context")
    assert json.loads(option(long, "--hf-overrides"))["max_position_embeddings"] == 131072
    changed, _ = run_script(tmp_path, "serve", "long-context", "--max-model-len", "65536")
    assert option(changed, "--max-model-len") == "65536"


@pytest.mark.parametrize("arguments", [[], ["serve"], ["serve", "huge"], ["sell", "default"]])
def test_the_script_says_how_it_is_used(arguments: list[str]) -> None:
    done = subprocess.run(["sh", SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_the_script_can_be_executed() -> None:
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.parametrize("lock", sorted(LOCKS.glob("container-*.txt")), ids=lambda path: path.stem)
def test_containers_hold_the_versions_that_the_tests_ran_with(lock: Path) -> None:
    def pins(path: Path) -> set[str]:
        return set(re.findall(r"^([\w.-]+==\S+)", path.read_text(encoding="utf-8"), re.MULTILINE))

    tools = {"setuptools"}  # builds one old source distribution; nothing of it remains
    assert not {pin for pin in pins(lock) - pins(LOCKS / "dev.txt") if pin.split("==")[0] not in tools}


@pytest.mark.parametrize(
    "lock", ["vllm.txt", "vllm-router.txt", "container-build.txt", "container-chat.txt", "container-gateway.txt"]
)
def test_every_locked_package_has_a_hash_and_no_host_is_named(lock: str) -> None:
    text = (LOCKS / lock).read_text(encoding="utf-8")
    assert "://" not in text
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)
