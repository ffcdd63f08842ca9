"""An emulated x86 CPU without VNNI, on which int8-cpu must be bit-exact, too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resdeploy.bundle.bundle import Bundle
from tests.aarch64.conftest import PLAIN_SESSION, plain_session_files
from tests.aarch64.userland import QEMU_X86
from tests.int8_kernels import LAYERS, ONNX_RUNTIME, run_kernels


@pytest.fixture(autouse=True)
def _needs_qemu() -> None:
    if shutil.which(QEMU_X86) is None:
        pytest.skip(f"Haswell is not tested: {QEMU_X86} is not installed: "
                    "apt-get install qemu-user-static")  # fmt: skip


def run_on_haswell(program: str, files: list[str]) -> None:
    subprocess.run(
        [QEMU_X86, "-cpu", "Haswell", sys.executable, "-c", program, *files],
        env={**os.environ, "OPENBLAS_CORETYPE": "Haswell"}, check=True, timeout=1200,
    )  # fmt: skip


def test_kernels_add_the_pairs_of_the_rule(tmp_path: Path) -> None:
    results = run_kernels(tmp_path, lambda files: run_on_haswell(ONNX_RUNTIME, [*files, "exact"]))
    results.check_rule()
    assert results.inexact("plain", "pairs") == list(LAYERS)
    assert results.inexact("exact", "pairs") == results.inexact("exact", "largest") == []


def test_a_plain_session_of_tritons_graph_gives_the_golden_bits(
    digits_bundle: Bundle, tmp_path: Path
) -> None:
    run_on_haswell(PLAIN_SESSION, plain_session_files(digits_bundle, tmp_path))
    logits = np.load(tmp_path / "logits.npy")
    np.testing.assert_array_equal(logits, digits_bundle.golden().bit_exact["int8-cpu"][:8])
