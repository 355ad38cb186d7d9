"""deploy/helm: rendered by helm, checked against Kubernetes' own schemas, and saying what the image and compose say."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.load import load_settings, parse_settings
from config.settings import variable_of
from tests.support.servers import ROOT

pytestmark = pytest.mark.served
CHART = ROOT / "deploy" / "helm" / "tollkeeper"
BIN = ROOT / ".venv-tools" / "bin"
IMAGE = "image.repository=registry.example.com/tollkeeper"
ALL = f"{IMAGE},ingress.enabled=true,ingress.tlsSecret=tls,serviceMonitor=true,migrate.secret=owner"


def helm(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(BIN / "helm"), *words], capture_output=True, text=True, check=False)


def rendered(values: str) -> list[dict[str, Any]]:
    done = helm("template", "tk", str(CHART), "--set", values)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def one(values: str, kind: str, name: str = "tk") -> dict[str, Any]:
    (found,) = [row for row in rendered(values) if (row["kind"], row["metadata"]["name"]) == (kind, name)]
    return found


def test_helm_finds_nothing_wrong() -> None:
    done = helm("lint", "--strict", str(CHART), "--set", ALL)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", ["1.30", "1.34", "1.37"])
@pytest.mark.parametrize("values", [IMAGE, ALL, f"{IMAGE},migrate.enabled=false,replicas=1"])
def test_kubernetes_takes_every_object(values: str, version: str, tmp_path: Path) -> None:
    rows = [row for row in rendered(values) if row["kind"] != "ServiceMonitor"]  # the operator's, not Kubernetes' own
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(rows))
    command = [str(BIN / "kubernetes-validate"), "--strict", "-k", version, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows) == (7 if values == ALL else 6 if values == IMAGE else 5)


def test_without_an_image_or_tls_it_says_what_to_do() -> None:
    assert "image.repository: push the image" in helm("template", "tk", str(CHART)).stderr
    assert (
        "never travel without TLS"
        in helm("template", "tk", str(CHART), "--set", f"{IMAGE},ingress.enabled=true").stderr
    )


def test_the_configuration_is_one_that_serves() -> None:
    raw = one(IMAGE, "ConfigMap", "tk-config")["data"]["proxy.toml"]
    environ = {variable_of("redis.url"): "redis://cache", variable_of("listen.workers"): "2"}
    settings = parse_settings(raw.encode(), "proxy.toml", environ)
    container = one(IMAGE, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.listen.port, "admin": settings.listen.admin_port}
    for entry in container["env"]:
        name = entry["name"]
        assert name == "TOLLKEEPER_CONFIG" or hasattr(settings.listen, name.rpartition("__")[2].lower())


def test_the_pod_is_nobody_waits_for_streams_and_is_not_restarted_for_a_store() -> None:
    pod = one(IMAGE, "Deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > load_settings(ROOT / "proxy.toml").listen.drain_seconds
    assert (
        f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
        in (ROOT / "Dockerfile").read_text()
    )
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert (container["livenessProbe"]["httpGet"]["path"], container["readinessProbe"]["httpGet"]["path"]) == (
        "/healthz",
        "/readyz",
    )


def test_operators_pages_are_not_part_of_the_ingress() -> None:
    (rule,) = one(ALL, "Ingress")["spec"]["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"] == {"name": "tk", "port": {"name": "http"}}
    assert [port["targetPort"] for port in one(ALL, "Service")["spec"]["ports"]] == ["http"]
    assert [port["targetPort"] for port in one(ALL, "Service", "tk-admin")["spec"]["ports"]] == ["admin"]
    assert one(ALL, "Service", "tk-admin")["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_the_job_that_migrates_may_have_rights_of_its_own_and_serves_nobody() -> None:
    job = one(ALL, "Job", "tk-migrate")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "owner"}}]
    selector = one(ALL, "Service")["spec"]["selector"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert not selector.items() <= labels.items()


def test_the_chart_has_the_products_version_and_no_secret() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'version = "{chart["appVersion"]}"' in (ROOT / "pyproject.toml").read_text()
    assert "sk-" not in (CHART / "values.yaml").read_text()
