"""The Dockerfiles: what they use exists, and the image for CPUs serves as a user without rights."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import click
import pytest
from PIL import Image

from resdeploy.bundle.bundle import Bundle
from resdeploy.cli.serve import serve
from tests.deploy.image import IMAGE, ROOT, podman

FILES = sorted((ROOT / "deploy/docker").glob("*.Dockerfile"))
MOST_BYTES = 350e6  # of the image for CPUs, unpacked: a requirement
ADDRESS = "http://127.0.0.1:8000"  # of the image: the container has the network of the host
# All that a careful user forbids; not even /tmp can be written.
OPTIONS = (
    "--network=host", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all",
    "--security-opt=no-new-privileges", "--ulimit=nofile=1024", "--ulimit=nproc=512",
)  # fmt: skip


def read_steps(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, each with its continued lines in one."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in whole if line]
    return [(name, " ".join(text.split())) for name, text in steps]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dockerfile_starts_the_server_as_a_user_without_rights(path: Path) -> None:
    steps = read_steps(path)
    last = dict(steps)
    program, command, *arguments = json.loads(last["ENTRYPOINT"]) + json.loads(last["CMD"])
    options = serve.make_context("serve", arguments, parent=click.Context(serve)).params
    assert (program, command, options["host"]) == ("resdeploy", serve.name, "0.0.0.0")
    assert last["EXPOSE"] == str(options["port"])
    assert f"{ADDRESS}/v2/health/ready" in last["HEALTHCHECK"]
    names = [name for name, _ in steps]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])  # Kubernetes compares numbers
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])
    bases = [text.partition(" AS ") for name, text in steps if name == "FROM"]
    stages = {stage for *_, stage in bases}
    assert all(base in stages or re.search(r":(?!latest)", base) for base, *_ in bases)
    sources = [shlex.split(text)[:-1] for name, text in steps if name == "COPY"]
    assert sources == [["."], ["--from=build", "/opt/resdeploy"]]
    assert "build" in stages
    assert ("This image has not been built yet." in path.read_text()) == (path.stem != "cpu")


def test_context_has_the_sources_of_the_wheel_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    stages = {link.name for link in (ROOT / "resdeploy").iterdir() if link.is_symlink()}
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line[0] == "!"} == stages | {
        "resdeploy", "pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE",
    }  # fmt: skip


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Start the image as it is, and return the container's name when it is healthy."""
    if "RESDEPLOY_IMAGE_IS_BUILT" not in os.environ:  # it may be one of older sources
        pytest.skip("the container is not tested: make container")
    bundle: Bundle = request.getfixturevalue("tiny_bundle")
    volume = f"--volume={bundle.path}:/bundles/model.bundle:ro"
    name = podman("run", "--detach", *OPTIONS, volume, IMAGE).stdout.strip()
    try:
        while podman("healthcheck", "run", name, check=False).returncode:
            state = inspect("container", name)["State"]
            assert state["Running"], podman("logs", name).stdout
            time.sleep(0.5)
        yield name
    finally:
        podman("rm", "--force", name)


def inspect(kind: str, name: str) -> Any:
    return json.loads(podman(kind, "inspect", name).stdout)[0]


def test_image_is_small(server: str) -> None:
    assert inspect("image", IMAGE)["Size"] < MOST_BYTES


def test_image_serves_without_rights_and_without_writing(server: str, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "red.png")
    request = Request(f"{ADDRESS}/v1/classify", (tmp_path / "red.png").read_bytes())
    with urlopen(request) as answer:
        (found,) = json.load(answer)["results"]
        assert len(found["predictions"]) == 3
    process = inspect("container", server)["State"]["Pid"]
    status = dict(re.findall(r"(\w+):\t(\w+)", Path(f"/proc/{process}/status").read_text()))
    assert (status["Uid"], int(status["CapEff"], 16), status["NoNewPrivs"]) == ("10001", 0, "1")
    assert podman("exec", server, "touch", "/tmp/file", check=False).returncode != 0
    podman("stop", "--time=45", server)
    assert inspect("container", server)["State"]["ExitCode"] == 0
