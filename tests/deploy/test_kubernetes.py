"""The manifests for Kubernetes: the server's options and the paths of its probes exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from resdeploy.cli.serve import serve

MANIFEST = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes.yaml"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
WITHOUT_TLS, WITH_TLS = "port: http", "port: http, scheme: HTTPS"


def container(text: str) -> dict[str, Any]:
    yaml: Any = pytest.importorskip("yaml")
    (pods,) = [item for item in yaml.safe_load_all(text) if item["kind"] == "Deployment"]
    (found,) = pods["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_the_server_accepts_its_arguments() -> None:
    program, command, *arguments = container(MANIFEST.read_text())["args"]
    assert (program, command) == ("resdeploy", "serve")
    serve.make_context("serve", arguments, parent=click.Context(serve))


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
