"""x86 without VNNI, emulated: the same bits, which its fast kernels would not give."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resdeploy.bundle.bundle import Bundle
from tests.aarch64.userland import QEMU_X86

HASWELL = "processor\t: 0\nmodel name\t: Haswell\nflags\t\t: fpu sse4_2 avx avx2 fma\n\n"
LIAR = HASWELL.replace("fma", "fma avx512_vnni")


def verify(bundle: Bundle, root: Path, cpuinfo: str) -> subprocess.CompletedProcess[str]:
    """Check int8-cpu on a Haswell; /proc/cpuinfo is what a user-mode QEMU does not emulate."""
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(cpuinfo)
    return subprocess.run(
        [
            QEMU_X86, "-L", str(root), "-cpu", "Haswell", sys.executable, "-m", "resdeploy",
            "verify", str(bundle.path), "--precision", "int8", "--json",
        ],
        env={**os.environ, "OPENBLAS_CORETYPE": "Haswell"},
        capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _needs_qemu() -> None:
    if shutil.which(QEMU_X86) is None:
        pytest.skip(f"Haswell is not tested: {QEMU_X86} is not installed: "
                    "apt-get install qemu-user-static")  # fmt: skip


def test_int8_gives_the_bits_of_vnni(digits_bundle: Bundle, tmp_path: Path) -> None:
    done = verify(digits_bundle, tmp_path, HASWELL)
    assert done.returncode == 0, done.stderr
    (line,) = [r for r in json.loads(done.stdout)["results"] if r["encoding"] == "cpu"]
    assert (line["rule"], line["different"], line["verdict"]) == ("bit-exact", 0, "pass")


def test_its_fast_kernels_would_give_others(digits_bundle: Bundle, tmp_path: Path) -> None:
    """The check above could not fail, were there VNNI behind it or nothing that saturates."""
    done = verify(digits_bundle, tmp_path, LIAR)
    assert done.returncode == 1, done.stderr
    (line,) = [r for r in json.loads(done.stdout)["results"] if r["encoding"] == "cpu"]
    assert line["different"] > 0
    assert line["verdict"] == "fail"
