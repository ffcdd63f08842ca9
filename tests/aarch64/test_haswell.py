"""An emulated x86 CPU without VNNI, on which int8-cpu must be bit-exact, too."""

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
FALSE_VNNI = HASWELL.replace("fma", "fma avx512_vnni")


def verify(bundle: Bundle, root: Path, cpuinfo: str) -> subprocess.CompletedProcess[str]:
    """Verify int8-cpu on a Haswell with this /proc/cpuinfo, which QEMU does not emulate."""
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


def test_int8_is_bit_exact_with_vnni(digits_bundle: Bundle, tmp_path: Path) -> None:
    done = verify(digits_bundle, tmp_path, HASWELL)
    assert done.returncode == 0, done.stderr
    (line,) = [r for r in json.loads(done.stdout)["results"] if r["encoding"] == "cpu"]
    assert (line["rule"], line["different"], line["verdict"]) == ("bit-exact", 0, "reproduced")


def test_saturating_kernels_fail_the_check(digits_bundle: Bundle, tmp_path: Path) -> None:
    """Resdeploy trusts a false VNNI flag and uses the fast kernels, which saturate here."""
    done = verify(digits_bundle, tmp_path, FALSE_VNNI)
    assert done.returncode == 1, done.stderr
    (line,) = [r for r in json.loads(done.stdout)["results"] if r["encoding"] == "cpu"]
    assert line["different"] > 0
    assert line["verdict"] == "fail"
