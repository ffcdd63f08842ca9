"""A small aarch64 userland that runs on x86 with QEMU: Debian's Python and the runtime's wheels.

`python -m tests.aarch64.userland` downloads it once into the user's cache; tests only use it. It
changes nothing on the host, and it needs only QEMU.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.boards import cpuinfo
from tests.cache import CACHE, prune

ROOT = Path(__file__).resolve().parents[2]
QEMU = "qemu-aarch64-static"
QEMU_X86 = "qemu-x86_64-static"
TOOLS = ("apt-get", "dpkg-deb")
PYTHON = "3.11"  # of Debian 12
DEBIAN = (
    "libc6", "libgcc-s1", "libstdc++6", "libgomp1", "zlib1g", "libexpat1", "libffi8", "libssl3",
    "libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1", "libcrypt1", "libtirpc3", "libnsl2",
    "libdb5.3", "libreadline8", "libtinfo6", "libncursesw6", "libgssapi-krb5-2", "libkrb5-3",
    "libk5crypto3", "libkrb5support0", "libcom-err2", "libkeyutils1", "python3.11-minimal",
    "libpython3.11-minimal", "python3.11", "libpython3.11-stdlib",
)  # fmt: skip
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in (35, 34, 31, 28, 27, 26, 17)] + [
    "manylinux2014_aarch64"
]
# The arguments of `pip` for each folder of packages; the oldest ONNX Runtime is that of JetPack 6.
SITES: Mapping[str, Sequence[str]] = {
    "runtime": ("click", "msgspec", "numpy", "pillow", "onnxruntime"),
    "onnxruntime-1.23.2": ("--no-deps", "onnxruntime==1.23.2"),
    "rtx": ("--no-deps", "tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu13_libs"),
}
# QEMU 7.2 shows the host's /proc/cpuinfo, but ONNX Runtime looks there for the features of Arm.
CPU = ("cortex-a76", cpuinfo("0xd42", os.cpu_count() or 1))


def folder() -> Path:
    """Return the folder of the userland; its name has a hash of the recipe."""
    names = {package for packages in SITES.values() for package in packages}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line.split("==")[0] in names]
    recipe = json.dumps([DEBIAN, PLATFORMS, dict(SITES), CPU, pins])
    return CACHE / f"aarch64-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def skip_reason() -> str | None:
    """Return the reason why the userland cannot be used here; None if it can."""
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed: apt-get install qemu-user-static"
    if not folder().is_dir():
        return "the userland is missing: make environments"
    return None


def run(
    command: Sequence[str],
    *,
    root: Path,
    sites: Sequence[Path],
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the userland's Python with these arguments and packages, with `root` as its root."""
    return subprocess.run(
        [QEMU, "-L", str(root), "-cpu", CPU[0], str(root / f"usr/bin/python{PYTHON}"), *command],
        # Compiled modules stay beside their sources: an emulated CPU compiles them for seconds.
        env={
            **os.environ, "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPATH": os.pathsep.join(map(str, sites)), **(environment or {}),
        },
        capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip


def build() -> None:
    """Download and unpack the userland if it is missing, and remove old ones."""
    target = folder()
    if target.is_dir():
        target.touch()
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        work = Path(temporary) / "userland"
        _unpack_debian(work / "root", Path(temporary) / "apt")
        (work / "root/proc").mkdir()
        (work / "root/proc/cpuinfo").write_text(CPU[1])
        for name, packages in SITES.items():
            _install(work / name, packages)
        work.rename(target)
    prune("aarch64-*")


def _unpack_debian(root: Path, state: Path) -> None:
    for name in ("lists/partial", "archives/partial", "packages"):
        (state / name).mkdir(parents=True)
    root.mkdir(parents=True)
    (state / "status").touch()
    apt = [
        "apt-get", "-qq", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64",
        "-o", "APT::Sandbox::User=", "-o", f"Dir::State={state}",
        "-o", f"Dir::State::status={state / 'status'}", "-o", f"Dir::Cache={state}",
    ]  # fmt: skip
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *DEBIAN], cwd=state / "packages", check=True)
    for package in sorted((state / "packages").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)


def _install(site: Path, packages: Sequence[str]) -> None:
    platforms = [argument for name in PLATFORMS for argument in ("--platform", name)]
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "-c", str(ROOT / "constraints.txt") if "==" not in packages[-1] else os.devnull,
            "--only-binary=:all:", "--python-version", PYTHON, *platforms,
            "--no-warn-conflicts", "--target", str(site), *packages,
        ],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    if missing := [tool for tool in (QEMU, *TOOLS) if shutil.which(tool) is None]:
        print(f"no aarch64 userland: {', '.join(missing)} missing; its tests will be skipped")
    else:
        build()
        print(folder())
