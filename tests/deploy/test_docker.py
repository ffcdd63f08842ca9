"""The Dockerfiles: what they use and start exists, and the image for CPUs serves without rights."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import click
import pytest
from PIL import Image

from resdeploy.bundle.bundle import Bundle
from resdeploy.cli.serve import serve
from tests.deploy import image

FILES = sorted((image.ROOT / "deploy/docker").glob("*.Dockerfile"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
MOST_BYTES = 350e6  # of the image for CPUs, unpacked: a requirement
Steps = list[tuple[str, str]]


def words(steps: Steps, name: str) -> list[str]:
    """Return the words of the last instruction of this name, which is in the form of JSON."""
    (*_, text) = [text for found, text in steps if found == name]
    found: list[str] = json.loads(text[text.index("[") :])
    return found


@every_file
def test_container_starts_the_server_as_a_user_without_rights(path: Path) -> None:
    steps = image.read_dockerfile(path)
    program, command, *arguments = words(steps, "ENTRYPOINT") + words(steps, "CMD")
    assert (program, command) == ("resdeploy", serve.name)
    options = serve.make_context("serve", arguments, parent=click.Context(serve)).params
    assert options["host"] == "0.0.0.0"
    assert dict(steps)["EXPOSE"] == str(options["port"])
    assert f"http://127.0.0.1:{options['port']}/v2/health/ready" in words(steps, "HEALTHCHECK")[-1]
    names = [name for name, _ in steps]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", dict(steps)["USER"])  # Kubernetes compares numbers
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])


@every_file
def test_steps_use_what_exists(path: Path) -> None:
    steps = image.read_dockerfile(path)
    bases = [text.partition(" AS ") for name, text in steps if name == "FROM"]
    labels = {label for *_, label in bases}
    assert all(base in labels or re.search(r":[\w.-]*\d|:trixie", base) for base, *_ in bases)
    copies = [shlex.split(text) for name, text in steps if name == "COPY"]
    assert all(source == "." or f"{option}" in {f"--from={label}" for label in labels}
               for option, source, *_ in ([None, *copy][-3:] for copy in copies))  # fmt: skip
    assert ("This image has not been built yet." in path.read_text()) == (path.stem != "cpu")


def test_context_has_the_sources_of_the_wheel_and_no_more() -> None:
    files = set(image.context_files())
    links = [Path(name) for name in files if (image.ROOT / name).is_symlink()]
    assert {str(link) for link in links} == {f"resdeploy/{link.name}" for link in links}
    tops = {name.split("/")[0] for name in files}
    assert tops == {link.name for link in links} | {
        "resdeploy", "pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE",
    }  # fmt: skip


@pytest.fixture(scope="module")
def container() -> image.Stage:
    if os.getuid() or not image.folder().is_dir():
        pytest.skip("the container is not tested: it is built by `make container`, as root")
    return image.run_steps(image.folder())


def test_image_is_small(container: image.Stage) -> None:
    done = subprocess.run(["du", "-sk", container.root], capture_output=True, check=True, text=True)
    assert int(done.stdout.split()[0]) * 1024 < MOST_BYTES


def test_image_serves_without_rights_and_without_writing(
    container: image.Stage, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    steps = image.read_dockerfile(image.DOCKERFILE)
    port = 20_000 + os.getpid() % 10_000  # the chroot shares the host's network
    program = [*words(steps, "ENTRYPOINT"), *words(steps, "CMD"), f"--port={port}"]
    # As `docker run --read-only` does: only /dev/shm is in memory, not even /tmp.
    place = '"$1/bundles/model.bundle"'
    setup = f"mkdir -p {place}; mount --bind {tiny_bundle.path} {place}; {image.READ_ONLY}"
    command = container.command(program, setup, "/dev/shm", {})
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            health = words(steps, "HEALTHCHECK")[-1].replace(":8000/", f":{port}/")
            while subprocess.run(
                [sys.executable, "-c", health], stderr=subprocess.DEVNULL, check=False
            ).returncode:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.2)
            Image.new("RGB", (64, 48), "red").save(tmp_path / "red.png")
            picture = (tmp_path / "red.png").read_bytes()
            with urlopen(Request(f"http://127.0.0.1:{port}/v1/classify", picture)) as answer:
                assert len(json.load(answer)["predictions"]) == 3
            (server,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            status = dict(re.findall(r"(\w+):\t(\S+)", Path(f"/proc/{server}/status").read_text()))
            assert (status["Uid"], int(status["CapEff"], 16), status["NoNewPrivs"]) == (
                "10001",
                0,
                "1",
            )
            os.kill(int(server), signal.SIGTERM)  # the server is process 1, as in a container
            assert process.wait() == 0
        finally:
            process.kill()
