"""The manifests for Kubernetes: the server's options and the paths of its probes exist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from resdeploy.cli.serve import serve

FOLDER = Path(__file__).resolve().parents[2] / "deploy"
MANIFEST = FOLDER / "kubernetes.yaml"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
WITHOUT_TLS, WITH_TLS = "port: http", "port: http, scheme: HTTPS"


def container(text: str) -> dict[str, Any]:
    yaml: Any = pytest.importorskip("yaml")
    (pods,) = [item for item in yaml.safe_load_all(text) if item["kind"] == "Deployment"]
    (found,) = pods["spec"]["template"]["spec"]["containers"]
    return dict(found)


def predictor(text: str) -> dict[str, Any]:
    yaml: Any = pytest.importorskip("yaml")
    spec = yaml.safe_load(text)["spec"]["predictor"]
    (found,) = spec["containers"]
    assert found["name"] == "kserve-container"  # KServe's InferenceServiceContainerName
    return dict(found)


@pytest.mark.parametrize(("name", "find"), [("kubernetes", container), ("kserve", predictor)])
def test_the_server_accepts_its_arguments(name: str, find: Callable[[str], dict[str, Any]]) -> None:
    """The image's entry point is resdeploy: test_docker.py."""
    found = find((FOLDER / f"{name}.yaml").read_text())
    command, *arguments = found["args"]
    assert command == serve.name
    options = serve.make_context("serve", arguments, parent=click.Context(serve)).params
    ports = {port["containerPort"] for port in found["ports"]}
    assert ports == {options["port"], options["grpc_port"]} - {None}
    assert found["securityContext"]["readOnlyRootFilesystem"]
    for probe in PROBES[-2:]:
        assert found[probe]["httpGet"]["path"] in ("/v2/health/ready", "/v2/health/live")


def test_the_documented_change_for_tls_makes_every_probe_use_https() -> None:
    text = MANIFEST.read_text()
    comment = " ".join(
        line.strip(" #") for line in text.splitlines() if line.strip().startswith("#")
    )
    assert f"replace `{WITHOUT_TLS}` by `{WITH_TLS}`" in comment
    changed = container(text.replace(WITHOUT_TLS + "}", WITH_TLS + "}"))
    for probe in PROBES:
        assert changed[probe]["httpGet"]["scheme"] == "HTTPS"
        assert "scheme" not in container(text)[probe]["httpGet"]
