"""The image for CPUs, built by podman as Docker would, on a base from debootstrap.

`make container` builds it into the user's cache and tests it. This needs root, podman with runc,
debootstrap, and a network, but no registry of images.
"""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cache import CACHE

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy/docker/cpu.Dockerfile"
BASE, IMAGE = "docker.io/library/debian:trixie-slim", "resdeploy:cpu"
TOOLS = ("podman", "runc", "debootstrap")
STORE = CACHE / "images"
# runc and these managers work in containers and virtual machines without systemd, too.
PODMAN = ("podman", f"--root={STORE}", f"--runroot={STORE}/run", "--runtime=runc",
          "--cgroup-manager=cgroupfs", "--events-backend=none")  # fmt: skip
# Debian's image lacks these folders, and its apt keeps no caches:
# https://github.com/debuerreotype/debuerreotype, .slimify-excludes and minimizing-config.
NOT_SLIM = ("doc", "groff", "info", "linda", "lintian", "locale", "man")
APT = """
Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache ""; Acquire::Languages "none";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };
"""


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run podman with its own store of images."""
    command = [*PODMAN, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=check)


def import_base(work: Path) -> None:
    """Make a base like Debian's image with debootstrap, from the mirror that apt uses here."""
    sites = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
    mirror = subprocess.run(sites, capture_output=True, check=True, text=True).stdout.split()[0]
    suite = BASE.partition(":")[2].removesuffix("-slim")
    root = work / "root"
    subprocess.run(["debootstrap", "--variant=minbase", suite, str(root), mirror], check=True)
    (root / "etc/apt/apt.conf.d/docker-clean").write_text(APT)
    excluded = "".join(f"path-exclude=/usr/share/{name}/*\n" for name in NOT_SLIM)
    (root / "etc/dpkg/dpkg.cfg.d/docker-slim").write_text(excluded)
    leftovers = [root / "usr/share" / name for name in NOT_SLIM]
    leftovers += [root / "var/cache/apt/archives", *root.glob("var/lib/apt/lists/*")]
    for path in (*leftovers, *root.glob("var/cache/apt/*.bin")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    subprocess.run(["tar", "-C", str(root), "-cf", str(work / "base.tar"), "."], check=True)
    podman("import", "--quiet", str(work / "base.tar"), BASE)


def build() -> None:
    """Build the image, in about a minute once there is a base; nothing else stays in the store."""
    STORE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        if podman("image", "exists", BASE, check=False).returncode:
            import_base(Path(folder))
        # pip trusts the host's certificates during the build; the image has neither file.
        certificates = Path(folder, "certificates.pem")
        shutil.copy(ssl.get_default_verify_paths().cafile, certificates)
        Path(folder, "pip.conf").write_text("[global]\ncert = /run/certificates.pem\n")
        podman(
            "build", "--isolation=chroot", "--network=host", "--format=docker", "--pull=never",
            f"--volume={certificates}:/run/certificates.pem:ro",
            f"--volume={folder}/pip.conf:/etc/pip.conf:ro", "--tag", IMAGE, f"--file={DOCKERFILE}",
            str(ROOT),
        )  # fmt: skip
    podman("image", "prune", "--force")


if __name__ == "__main__":
    if os.getuid() or not all(map(shutil.which, TOOLS)):
        sys.exit(f"error: this needs root\nhint: as root, install {', '.join(TOOLS)}")
    build()
