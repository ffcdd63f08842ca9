"""A container image without Docker: the steps of a Dockerfile, run in a chroot on Debian's base.

`python -m tests.deploy.image` builds deploy/docker/cpu.Dockerfile into the user's cache; tests only
use the result. It needs root, debootstrap and a network, and changes nothing on the host. The
instructions are those of https://docs.docker.com/reference/dockerfile/ that the file uses.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from tests.cache import CACHE

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy/docker/cpu.Dockerfile"
PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as Docker sets it
# What Debian's slim images lack: https://github.com/debuerreotype/debuerreotype, .slimify-excludes.
NOT_SLIM = ("doc", "groff", "info", "linda", "lintian", "locale", "man")
# A chroot shares the host's network. Its certificates stand in a folder that no step keeps.
CERTIFICATES = {name: os.environ[name] for name in ("PIP_CERT",) if name in os.environ}
# `$1` is the root; the last line starts the program. Only the folders of `$WRITABLE` are in memory.
ENTER = """
mount --bind "$1" "$1" && mount -t proc proc "$1/proc"
for name in null zero random urandom; do
  touch "$1/dev/$name"; mount --bind "/dev/$name" "$1/dev/$name"
done
for folder in $WRITABLE; do mount -t tmpfs tmpfs "$1$folder"; done
eval "$SETUP"
exec chroot "$@"
"""
NETWORK = """cp -L /etc/resolv.conf $CERTIFICATES "$1/run"
touch "$1/etc/resolv.conf"; mount --bind "$1/run/resolv.conf" "$1/etc/resolv.conf" """
READ_ONLY = 'mount -o remount,bind,ro "$1"'
WITHOUT_RIGHTS = ("--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all")


@dataclass(slots=True)
class Stage:
    """A stage: its root folder, and the settings that later steps and containers use."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATHS})
    settings: dict[str, str] = field(default_factory=dict)

    def command(
        self, program: Sequence[str], setup: str, writable: str, variables: Mapping[str, str]
    ) -> list[str]:
        """Return a command that runs a program in this stage, as its user."""
        if user := self.settings.get("USER"):
            owner, group = user.split(":")
            program = ["setpriv", "--reuid", owner, "--regid", group, *WITHOUT_RIGHTS, *program]
        inner = [f"{key}={value}" for key, value in {**self.environment, **variables}.items()]
        outer = [
            f"SETUP={setup}",
            f"WRITABLE={writable}",
            f"CERTIFICATES={' '.join(CERTIFICATES.values())}",
        ]
        return [
            "env", *outer, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc",
            ENTER, "enter", str(self.root), "env", "-i", *inner, *program,
        ]  # fmt: skip


def read_dockerfile(path: Path) -> list[tuple[str, str]]:
    """Return the instructions and their arguments, each with its continued lines in one."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in whole if line.strip()]
    return [(name, " ".join(text.split())) for name, text in steps]


def context_files() -> list[str]:
    """Return the files that .dockerignore leaves to `COPY .`, relative to the root."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    names = [line[1:] for line in lines if line.startswith("!")]
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z", "--", *names]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return sorted(filter(None, listed.split("\0")))


def folder() -> Path:
    """Return the folder of the image; its name has a hash of the steps and of the sources."""
    digest = hashlib.sha256(DOCKERFILE.read_bytes() + Path(__file__).read_bytes())
    for name in context_files():
        digest.update(
            name.encode() + (b"" if (ROOT / name).is_dir() else (ROOT / name).read_bytes())
        )
    return CACHE / f"container-{digest.hexdigest()[:12]}"


def run_steps(target: Path, work: Path | None = None) -> Stage:
    """Run the steps below `work` and leave the image in `target`; without `work`, read them."""
    stages: dict[str, Stage] = {}
    stage = Stage(target)
    for number, (name, text) in enumerate(read_dockerfile(DOCKERFILE)):
        if name == "FROM":
            base, _, label = text.partition(" AS ")
            parent = stages.get(base, Stage(target))
            stage = Stage(target, dict(parent.environment), dict(parent.settings))
            stages[label] = stage
            if work:
                stage.root = work / f"{number}"
                _debian(base, stage.root) if base not in stages else _clone(parent.root, stage.root)
        elif name == "ENV":
            for key, _, value in (word.partition("=") for word in shlex.split(text)):
                stage.environment[key] = Template(value).substitute(stage.environment)
        elif name == "RUN" and work:
            inside = {"DEBIAN_FRONTEND": "noninteractive"}
            inside |= {key: f"/run/{Path(value).name}" for key, value in CERTIFICATES.items()}
            step = stage.command(["sh", "-c", text], NETWORK, "/run /tmp", inside)
            subprocess.run(step, check=True)
        elif name == "COPY" and work:
            *options, source, destination = shlex.split(text)
            if options:
                source = f"{stages[options[0].removeprefix('--from=')].root}{source}"
                _clone(Path(source), Path(f"{stage.root}{destination}"))
            else:
                _copy_context(Path(f"{stage.root}{destination}"))
        else:
            stage.settings[name] = text
    if work:
        stage.root.rename(target)
    return stage


def _debian(base: str, root: Path) -> None:
    (suite,) = re.findall(r"^debian:(\w+)-slim$", base)
    sites = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
    found = subprocess.run(sites, capture_output=True, check=True, text=True).stdout.split()
    subprocess.run(["debootstrap", "--variant=minbase", suite, str(root), found[0]], check=True)
    excluded = "".join(f"path-exclude=/usr/share/{name}/*\n" for name in NOT_SLIM)
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(excluded)
    for name in NOT_SLIM:
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    for file in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")):
        file.unlink()


def _clone(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-aT", str(source), str(target)], check=True)


def _copy_context(target: Path) -> None:
    target.mkdir()
    pack = ["tar", "--create", "--null", "--files-from=-", "--owner=0", "--group=0"]
    names = "\0".join(context_files()).encode()
    tar = subprocess.run(pack, cwd=ROOT, input=names, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract", f"--directory={target}"], input=tar, check=True)


if __name__ == "__main__":
    if os.getuid() != 0 or shutil.which("debootstrap") is None:
        print("no container: it needs root and debootstrap; its tests will be skipped")
    elif not folder().is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob("container-*"):  # one takes 300 MB
            shutil.rmtree(old)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".container-") as temporary:
            run_steps(folder(), Path(temporary))
