"""The golden check: it compares a backend's logits with the golden logits in the bundle.

It shows that this machine computes what the export computed. It does not judge the accuracy of the
graph: the limit for an INT8 graph follows the SQNR that the export measured for the same graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resdeploy.bundle.golden import Float32Array, Golden
from resdeploy.bundle.manifest import Artifact, Precision
from resdeploy.result_files.verification import Rule
from resdeploy.runtime.backends.base import Backend
from resdeploy.runtime.backends.onnxruntime import cpu as onnxruntime_cpu
from resdeploy.statistics import agreement_percent, sqnr_db

# Correct engines differ: another order of summation gives 100 dB and more in FP32; tensor cores
# round FP32 inputs to TF32's 10 bits (about 65 dB) and may sum FP16 in FP16 (about 50 dB).
FLOAT_FLOOR_DB = {Precision.FP32: 60.0, Precision.FP16: 40.0}
# A network that amplifies rounding errors, such as a deep one with random weights, has less in FP16
# on any engine; its limit is this much below the SQNR of the export, where sums are in FP32.
FP16_MARGIN_DB = 20.0
FP16_FLOOR_DB = 20.0
# Logits that have nothing to do with the reference have about 0 dB. More than this is inaccuracy,
# which the bundle's warnings name, and no fault of the graph.
INT8_FLOOR_DB = 3.0
# INT8 may be this much worse than the SQNR that the export measured for the same file: engines
# round differently, which changes a few values by one step. The median of a few images differs
# more from the median of all images.
INT8_MARGIN_DB = 3.0
FEW_IMAGES_MARGIN_DB = 6.0
BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCheck:
    """The result of a golden check."""

    images: int
    agreement: float
    """Images with the predicted class of the golden logits, in percent."""
    sqnr_db: float
    """Median signal-to-quantisation-noise ratio of the images, in dB."""
    floor_db: float
    """Limit of the SQNR, in dB: see the function `floor_db`."""
    rule: Rule
    different: int
    """Number of images whose logits are not bit-exact; 0 if the rule does not require it."""

    @property
    def passed(self) -> bool:
        # Equal bits have the SQNR of the export. On a few images its median may be below the limit,
        # which belongs to all of them.
        if self.rule is Rule.BIT_EXACT:
            return not self.different
        return self.sqnr_db >= self.floor_db  # false for NaN

    @property
    def figures(self) -> str:
        """Return the measured and the expected figures as text."""
        if self.different:
            return f"{self.different} of {self.images} images differ from the logits of the export"
        return f"{self.sqnr_db:.1f} dB, limit {self.floor_db:.1f} dB"


def floor_db(artifact: Artifact, margin: float = INT8_MARGIN_DB) -> float:
    """Return the smallest median SQNR, in dB, with which `artifact` passes the golden check.

    It is absolute for FP32, and for FP16 unless the export measured little more. For INT8 it is the
    SQNR that the export measured for the same graph, less `margin`, and at least `INT8_FLOOR_DB`.
    """
    measured = artifact.parity.sqnr_db
    if artifact.precision is Precision.INT8:
        return max(INT8_FLOOR_DB, measured - margin)
    if artifact.precision is Precision.FP16:
        lower = max(FP16_FLOOR_DB, measured - FP16_MARGIN_DB)
        return min(FLOAT_FLOOR_DB[Precision.FP16], lower)
    return FLOAT_FLOOR_DB[artifact.precision]


def run_batches(backend: Backend, images: np.ndarray, batch: int = BATCH) -> Float32Array:
    """Return the logits (N, K) of any number of images (N, H, W, 3), run in batches."""
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
    """Compare a backend's logits of the first `images` golden images (None: all) with the bundle's.

    ONNX Runtime's logits of `int8-cpu` on a CPU must be bit-exact with those of the export, if the
    bundle holds them: other logits mean other kernels than the verified ones.
    """
    reference = golden.logits[:images]
    few = len(reference) < len(golden.logits)
    logits = run_batches(backend, golden.images[:images], batch)
    bit_exact = expected_bits(backend.name, artifact, golden)
    return GoldenCheck(
        images=len(reference),
        agreement=agreement_percent(reference, logits),
        sqnr_db=float(np.median(sqnr_db(reference, logits))),
        floor_db=floor_db(artifact, FEW_IMAGES_MARGIN_DB if few else INT8_MARGIN_DB),
        rule=Rule.SQNR if bit_exact is None else Rule.BIT_EXACT,
        different=0 if bit_exact is None else different_rows(bit_exact[:images], logits),
    )


def expected_bits(engine: str, artifact: Artifact, golden: Golden) -> Float32Array | None:
    """Return the logits (N, K) that an engine must give bit for bit; None if it need not."""
    return golden.bit_exact.get(artifact.name) if engine == onnxruntime_cpu.NAME else None


def different_rows(first: Float32Array, second: Float32Array) -> int:
    """Count the rows of logits (N, K) that differ in any bit."""
    return int(np.any(first.view(np.uint32) != second.view(np.uint32), axis=1).sum())
