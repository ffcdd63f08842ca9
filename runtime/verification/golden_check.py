"""The check that needs no data set: the bundle's own images against PyTorch's own logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resdeploy.bundle.golden import Float32Array, Golden
from resdeploy.bundle.manifest import Artifact, Precision
from resdeploy.results.verification import Rule
from resdeploy.runtime.backends.base import Backend
from resdeploy.runtime.backends.onnxruntime import cpu as onnxruntime_cpu
from resdeploy.statistics import agreement_percent, sqnr_db

# What engines may differ by: other orders of summation reach 100 dB and more in FP32; tensor
# cores round FP32 inputs to TF32's 10 bits (about 65 dB) and may sum FP16 in FP16 (about 50 dB).
FLOAT_FLOOR_DB = {Precision.FP32: 60.0, Precision.FP16: 40.0}
# Below this INT8 is ruined, not merely rounded: nearly one answer in ten is another. Calibration on
# unlike images does that.
INT8_FLOOR_DB = 12.0
# Above it INT8 is held against what export measured for the very same file: engines differ in how
# they round at the edges, which moves a few values by one step. The median of a few images strays
# further from that of all.
INT8_MARGIN_DB = 3.0
FEW_IMAGES_MARGIN_DB = 6.0
BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCheck:
    """What came of it."""

    images: int
    agreement: float
    sqnr_db: float
    floor_db: float
    rule: Rule
    different: int
    """Images with another logit than at the export, where the rule is bit_exact; else 0."""

    @property
    def passed(self) -> bool:
        """Whether the rule is kept."""
        return self.sqnr_db >= self.floor_db and not self.different  # false for NaN

    @property
    def figures(self) -> str:
        """What came of it, and what was expected."""
        if self.different:
            return f"{self.different} of {self.images} images differ from the logits of the export"
        return f"{self.sqnr_db:.1f} dB, at least {self.floor_db:.1f} expected"


def floor_db(artifact: Artifact, margin: float = INT8_MARGIN_DB) -> float:
    """The least median SQNR with which `artifact` counts as giving the same answers."""
    if artifact.precision is Precision.INT8:
        return max(INT8_FLOOR_DB, artifact.parity.sqnr_db - margin)
    return FLOAT_FLOOR_DB[artifact.precision]


def run_batches(backend: Backend, images: np.ndarray, batch: int = BATCH) -> Float32Array:
    """Logits (N, K) of any number of images (N, H, W, 3), a few at a time."""
    parts = [backend.run(images[start : start + batch]) for start in range(0, len(images), batch)]
    return np.concatenate(parts)


def check_golden(
    backend: Backend,
    artifact: Artifact,
    golden: Golden,
    *,
    images: int | None = None,
    batch: int = BATCH,
) -> GoldenCheck:
    """Run the first `images` golden images (all for None), `batch` at a time, and compare logits.

    Those of `int8-cpu` on a CPU must be the export's own, to the last bit, where the bundle holds
    them: other rounding means other kernels than those that were verified.
    """
    reference = golden.logits[:images]
    few = len(reference) < len(golden.logits)
    logits = run_batches(backend, golden.images[:images], batch)
    bit_exact = (
        golden.bit_exact.get(artifact.name) if backend.name == onnxruntime_cpu.NAME else None
    )
    return GoldenCheck(
        images=len(reference),
        agreement=agreement_percent(reference, logits),
        sqnr_db=float(np.median(sqnr_db(reference, logits))),
        floor_db=floor_db(artifact, FEW_IMAGES_MARGIN_DB if few else INT8_MARGIN_DB),
        rule=Rule.SQNR if bit_exact is None else Rule.BIT_EXACT,
        different=0 if bit_exact is None else different_rows(bit_exact[:images], logits),
    )


def different_rows(ours: Float32Array, theirs: Float32Array) -> int:
    """Rows of logits (N, K) that differ in any bit."""
    return int(np.any(ours.view(np.uint32) != theirs.view(np.uint32), axis=1).sum())
