"""deploy/kubernetes, held against the published schemas and against the gateway, the chat and the images it runs.

No cluster is needed, and none is shown: not that the images pull, nor that a network plug-in enforces the policies.
What the chart vllm-stack makes of its values is written here as its templates have it (read November 2026).
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import yaml

from gateway import settings
from gateway.cli import main
from gateway.protocol.dialects import PATHS
from gateway.serving.app import create_app, read_config
from tests.deploy.script import ROOT, run_script
from ui import settings as chat_settings

HERE = ROOT / "deploy" / "kubernetes"
VALUES: dict[str, Any] = yaml.safe_load((HERE / "production-stack-values.yaml").read_text(encoding="utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
FOREIGN = {"ServiceMonitor"}  # kinds of an operator, which the schemas of Kubernetes do not know


def documents(folder: str) -> Iterator[dict[str, Any]]:
    """What a kustomization is made of, bases first."""
    listed = yaml.safe_load((HERE / folder / "kustomization.yaml").read_text(encoding="utf-8"))
    for name in listed["resources"]:
        if name.startswith("../"):
            yield from documents(name.removeprefix("../"))
        else:
            yield from yaml.safe_load_all((HERE / folder / name).read_text(encoding="utf-8"))


SECRET: dict[str, Any] = yaml.safe_load((HERE / "secrets.example.yaml").read_text(encoding="utf-8"))
ALL = [*documents("public"), SECRET]
OURS = ("gateway", "chat")


def found(kind: str, name: str) -> dict[str, Any]:
    return next(one for one in ALL if one["kind"] == kind and one["metadata"]["name"] == name)


def pod(name: str) -> dict[str, Any]:
    result: dict[str, Any] = found("Deployment", name)["spec"]["template"]
    return result


def container(name: str) -> dict[str, Any]:
    (only,) = pod(name)["spec"]["containers"]
    return dict(only)


def environment(name: str) -> dict[str, str]:
    """Variables and their values; a secret's is its key in the Secret."""
    return {
        one["name"]: one["value"] if "value" in one else f"secret:{one['valueFrom']['secretKeyRef']['key']}"
        for one in container(name)["env"]
    }


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A label selector, as far as it is used here."""
    for one in selector.get("matchExpressions", ()):
        assert one["operator"] == "In"
        if labels.get(one["key"]) not in one["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


@pytest.mark.parametrize("one", ALL, ids=lambda one: f"{one['kind']}/{one['metadata']['name']}")
def test_it_is_what_kubernetes_takes_by_its_published_schemas(one: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    if one["kind"] in FOREIGN:
        with pytest.raises(validate.SchemaNotFoundError):
            validate.validate(one, validate.latest_version(), strict=True)
    else:
        validate.validate(one, validate.latest_version(), strict=True)


@pytest.mark.parametrize("folder", ["base", "public"])
def test_kustomize_builds_it(folder: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not here; the files are checked one by one all the same")
    done = subprocess.run(
        [kubectl, "kustomize", HERE / folder],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/dev/null"},  # it asks no cluster
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = {(one["kind"], one["metadata"]["name"]) for one in yaml.safe_load_all(done.stdout)}
    assert built == {(one["kind"], one["metadata"]["name"]) for one in documents(folder)}


def test_the_environment_is_made_of_settings_that_exist_with_values_that_they_take() -> None:
    told = environment("gateway")
    known = {f"{settings.PREFIX}{name.upper()}" for name in settings.DESCRIPTIONS}
    assert set(told) <= known
    assert settings.read(told).host == "0.0.0.0"
    told = environment("chat")
    known = {chat_settings.variable(name) for name in chat_settings.Settings.__dataclass_fields__}
    assert set(told) <= known | {"CHAINLIT_AUTH_SECRET"}
    assert chat_settings.read(told).login


@pytest.mark.parametrize("name", OURS)
def test_secrets_come_from_the_secret_and_the_example_names_every_one(name: str) -> None:
    for variable, value in environment(name).items():
        secret = re.search(r"(KEY|PASSWORD|SECRET|DATABASE_URL|LIMITS_URL)$", variable)
        assert value.startswith("secret:") == bool(secret), variable


def test_the_example_of_the_secret_holds_what_is_asked_for_and_nothing_secret() -> None:
    asked = {v.removeprefix("secret:") for name in OURS for v in environment(name).values() if v.startswith("secret:")}
    given = SECRET["stringData"]
    assert set(given) == asked | {VALUES["servingEngineSpec"]["vllmApiKey"]["secretKey"]}
    assert all(not value or ":PASSWORD@" in value for value in given.values())
    assert VALUES["servingEngineSpec"]["vllmApiKey"]["secretName"] == SECRET["metadata"]["name"]


def test_the_gateways_command_is_one_that_tempera_parses() -> None:
    program, *words = container("gateway")["command"] + container("gateway").get("args", [])
    assert program == "tempera"
    command: click.Command = main
    with command.make_context("tempera", list(words), resilient_parsing=False) as context:
        name, command, rest = main.resolve_command(context, words)
        assert command is not None and name == "serve"
        command.make_context(name, list(rest), parent=context).close()


@pytest.mark.parametrize("name", OURS)
def test_image_and_command_are_those_of_compose_and_the_dockerfile(name: str) -> None:
    one = container(name)
    assert one["image"] == COMPOSE[name]["image"]
    stage = DOCKERFILE.split(f" AS {name}\n")[1].split("FROM ")[0]
    (command,) = re.findall(r"^CMD (\[.*\])$", stage, re.MULTILINE)
    assert one["command"][: len(json.loads(command))] == json.loads(command)
    for variable in ("TEMPERA_HOST", "TEMPERA_DIALECT", "TEMPERA_GATEWAY_URL", "TEMPERA_UI_HOST", "TEMPERA_UI_PORT"):
        assert environment(name).get(variable) == COMPOSE[name]["environment"].get(variable)
    listed = yaml.safe_load((HERE / "public" / "kustomization.yaml").read_text(encoding="utf-8"))["images"]
    assert one["image"].split(":")[0] in {image["name"] for image in listed}


@pytest.mark.parametrize(("name", "port"), [("gateway", 8001), ("chat", 8002)])
def test_ports_match_from_the_ingress_to_the_process(name: str, port: int) -> None:
    told = environment(name)
    listens = settings.read(told).port if name == "gateway" else chat_settings.read(told).port
    assert listens == port
    assert container(name)["ports"] == [{"name": "http", "containerPort": port}]
    service = found("Service", name)["spec"]
    assert service["ports"] == [{"name": "http", "port": port, "targetPort": "http"}]
    assert selects({"matchLabels": service["selector"]}, pod(name)["metadata"]["labels"])
    assert re.search(rf"^EXPOSE {port}$", DOCKERFILE, re.MULTILINE)
    probes = [container(name)[f"{which}Probe"]["httpGet"] for which in ("startup", "liveness", "readiness")]
    assert [probe["port"] for probe in probes] == ["http"] * 3


def test_the_ingress_opens_what_clients_need_and_no_route_without_a_key() -> None:
    api, chat = found("Ingress", "tempera")["spec"]["rules"]
    paths = {one["path"]: one["pathType"] for one in api["http"]["paths"]}
    open_to_all = ("/metrics", "/healthz", "/health", "/readyz")

    def reached(route: str) -> bool:
        return any(route == path or (kind == "Prefix" and route.startswith(f"{path}/")) for path, kind in paths.items())

    assert all(reached(route) for route in (*PATHS, "/v1/models", "/v1/presets", "/v1/feedback", "/docs"))
    assert not any(reached(route) for route in open_to_all)
    services = {one["backend"]["service"]["name"] for rule in (api, chat) for one in rule["http"]["paths"]}
    assert services == set(OURS)


async def test_probes_ask_routes_that_the_gateway_has(tmp_path: Path) -> None:
    told = {"TEMPERA_UPSTREAM": "http://127.0.0.1:9", "TEMPERA_DATA_DIR": str(tmp_path)}
    front = create_app(settings.read(told), read_config(ROOT / "presets.yaml"))
    probes = {which: container("gateway")[f"{which}Probe"]["httpGet"]["path"] for which in ("liveness", "readiness")}
    transport = httpx.ASGITransport(front)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        replies = {which: (await client.get(path)).status_code for which, path in probes.items()}
    front.state.log.close()
    assert probes == {"liveness": "/healthz", "readiness": "/readyz"}
    assert replies == {"liveness": 200, "readiness": 503}, "alive, and there is no engine"


@pytest.mark.parametrize("name", OURS)
def test_a_pod_gets_the_time_to_stop_that_it_was_promised(name: str) -> None:
    spec = pod(name)["spec"]
    before = container(name)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = settings.read(environment(name)).shutdown_timeout if name == "gateway" else 15
    assert spec["terminationGracePeriodSeconds"] >= before + drain + 15, "15 s to write the log"


@pytest.mark.parametrize("name", OURS)
def test_a_pod_is_nobody_special_and_writes_to_its_volumes_alone(name: str) -> None:
    spec, one = pod(name)["spec"], container(name)
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert user is not None
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert [security["runAsUser"], security["runAsGroup"], security["fsGroup"]] == [int(user[1])] * 3
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False  # else a Service named tempera sets TEMPERA_PORT
    mounted = {mount["name"]: mount for mount in one["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in spec["volumes"]}
    writable = {mount["mountPath"] for mount in mounted.values() if not mount.get("readOnly")}
    assert writable == {environment(name)["TEMPERA_DATA_DIR"], "/tmp"}
    (data,) = [volume for volume in spec["volumes"] if volume["name"] == "data"]
    assert data["emptyDir"]["sizeLimit"].endswith("Gi")
    assert "cpu" not in one["resources"]["limits"]


def test_presets_and_keys_are_where_the_settings_say() -> None:
    told = environment("gateway")
    mounts = {mount["name"]: mount["mountPath"] for mount in container("gateway")["volumeMounts"]}
    sources = {volume["name"]: volume for volume in pod("gateway")["spec"]["volumes"]}
    assert told["TEMPERA_PRESETS"] == f"{mounts['presets']}/presets.yaml"
    assert told["TEMPERA_KEYS"] == f"{mounts['keys']}/keys.yaml"
    presets, keys = sources["presets"]["configMap"]["name"], sources["keys"]["secret"]["secretName"]
    assert f"create configmap {presets} --from-file=presets.yaml" in PAGE
    assert f"create secret generic {keys} --from-file=keys.yaml" in PAGE


def test_presets_are_read_and_seen_to_change_the_way_a_volume_presents_them(tmp_path: Path) -> None:
    # The kubelet lays files into a new directory, and swaps the link `..data` that all names go through.
    for version in ("..1", "..2"):
        (tmp_path / version).mkdir()
        shutil.copy(ROOT / "presets.yaml", tmp_path / version / "presets.yaml")
    (tmp_path / "..2" / "presets.yaml").open("a").write("# changed\n")
    (tmp_path / "..data").symlink_to("..1")
    path = tmp_path / "presets.yaml"
    path.symlink_to("..data/presets.yaml")
    before, seen = read_config(path).revision, path.stat()
    (tmp_path / "new").symlink_to("..2")
    (tmp_path / "new").rename(tmp_path / "..data")
    assert read_config(path).revision != before
    assert path.stat().st_size != seen.st_size  # what the reload looks at follows the link


def test_replicas_have_what_they_must_share() -> None:
    scaler = found("HorizontalPodAutoscaler", "gateway")["spec"]
    target = scaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "gateway")
    assert "replicas" not in found("Deployment", "gateway")["spec"], "two owners of one number"
    assert scaler["minReplicas"] >= 2
    assert {"TEMPERA_DATABASE_URL", "TEMPERA_SECRET"} <= set(environment("gateway"))
    assert found("Deployment", "chat")["spec"]["replicas"] >= 2
    assert {"TEMPERA_UI_DATABASE_URL", "CHAINLIT_AUTH_SECRET"} <= set(environment("chat"))
    service = found("Service", "chat")
    assert service["spec"]["sessionAffinity"] == "ClientIP"
    assert service["metadata"]["annotations"]["traefik.ingress.kubernetes.io/service.sticky.cookie"] == "true"


@pytest.mark.parametrize("name", OURS)
def test_a_disruption_takes_one_pod_at_a_time(name: str) -> None:
    budget = found("PodDisruptionBudget", name)["spec"]
    assert budget["maxUnavailable"] == 1
    assert selects(budget["selector"], pod(name)["metadata"]["labels"])


ENGINE_LABELS: dict[str, str] = VALUES["servingEngineSpec"]["labels"]
ROUTER_LABELS: dict[str, str] = VALUES["routerSpec"]["labels"]
PODS = {
    "gateway": pod("gateway")["metadata"]["labels"],
    "chat": pod("chat")["metadata"]["labels"],
    "router": ROUTER_LABELS,
    "engine": ENGINE_LABELS,
    "stranger": {"app.kubernetes.io/name": "stranger"},
}
LISTENS: dict[str, int | str] = {"gateway": "http", "chat": "http", "router": 8000, "engine": 8000, "stranger": 80}


def admitted(target: str, source: str) -> bool:
    """Whether the policies let a pod of this namespace reach another: closed once one selects it, opened by any."""
    policies = [one["spec"] for one in ALL if one["kind"] == "NetworkPolicy"]
    mine = [one for one in policies if selects(one["podSelector"], PODS[target])]
    for rule in (rule for policy in mine for rule in policy.get("ingress", ())):
        from_here = "from" not in rule or any(selects(peer["podSelector"], PODS[source]) for peer in rule["from"])
        if from_here and any(port["port"] == LISTENS[target] for port in rule["ports"]):
            return True
    return not mine


def test_only_the_gateway_reaches_the_router_and_only_the_router_the_engines() -> None:
    sources = {target: {source for source in PODS if admitted(target, source)} for target in PODS}
    everybody = set(PODS)
    assert sources == {
        "gateway": everybody,
        "chat": everybody,
        "router": {"gateway"},
        "engine": {"router"},
        "stranger": set(),
    }
    assert not ENGINE_LABELS.items() & ROUTER_LABELS.items()


def test_the_gateway_asks_the_service_that_the_chart_makes() -> None:
    router = VALUES["routerSpec"]
    (release,) = set(re.findall(r"helm upgrade --install (\S+) vllm/vllm-stack", PAGE))
    assert environment("gateway")["TEMPERA_UPSTREAM"] == f"http://{release}-router-service:{router['servicePort']}"
    assert router["containerPort"] == LISTENS["router"]
    assert VALUES["servingEngineSpec"]["containerPort"] == LISTENS["engine"]
    assert router["serviceType"] == "ClusterIP"
    assert (router["routingLogic"], router["sessionKey"]) == ("session", "x-session-id")


def test_the_engines_are_started_as_in_compose(tmp_path: Path) -> None:
    (model,) = VALUES["servingEngineSpec"]["modelSpec"]
    (_, _, *words), environ = run_script(tmp_path, "serve", "default")
    config = model["vllmConfig"]
    here = [f"--max-model-len={config['maxModelLen']}", f"--gpu-memory-utilization={config['gpuMemoryUtilization']}"]
    here += config["extraArgs"]
    assert model["modelURL"] == words[0]
    there = {f"{name} {value}".strip() for name, value in options(words[1:])}
    different = {one.replace("=", " ", 1) for one in here} ^ there
    assert different == {"--shutdown-timeout 25", "--shutdown-timeout 60"}, "the chart's pods have 30 s"
    assert f"{model['repository']}:{model['tag']}" == COMPOSE["vllm"]["image"]
    assert all(environ[one["name"]] == one["value"] for one in model["env"])


def options(words: list[str]) -> Iterator[tuple[str, str]]:
    """`--a 1 --b` as (--a, 1), (--b, '')."""
    for part in re.split(r" (?=--)", shlex.join(words)):
        name, _, value = part.partition(" ")
        yield name, value
