"""What may serve: backends that were opened here and give PyTorch's answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Golden
from resdeploy.bundle.manifest import Artifact
from resdeploy.errors import BackendError, OutputError
from resdeploy.runtime.backends.base import Backend, OpenOptions
from resdeploy.runtime.backends.onnxruntime import cpu as onnxruntime_cpu
from resdeploy.runtime.backends.registry import Candidate, candidates
from resdeploy.runtime.verification.golden_check import GoldenCheck, check_golden

logger = logging.getLogger(__name__)

# Enough to notice an engine that computes nonsense, few enough not to be felt at start-up.
GOLDEN_IMAGES_AT_LOAD = 8
# Where every bit of every logit must be right, other kernels do not get past the first.
EXACT_IMAGES_AT_LOAD = 2


def verified_backends(
    bundle: Bundle, backend: str, precision: str, opening: OpenOptions
) -> Iterator[tuple[Candidate, Backend]]:
    """Open what can run here and was asked for, the fastest first, each when it is its turn.

    What fails, or gives other answers than PyTorch, is logged and left out. Whoever takes a backend
    closes it.

    Raises:
        BackendError: nothing that was asked for can run here.
        BundleError: the bundle is damaged.
    """
    golden = bundle.golden()
    for candidate in candidates(bundle, backend, precision):
        if opened := open_verified(bundle, candidate, golden, opening):
            yield candidate, opened


def check_at_load(backend: Backend, artifact: Artifact, golden: Golden) -> GoldenCheck:
    """A quick one.

    One image at a time: who predicts one by one would else need the most memory for this.
    """
    bit_exact = backend.name == onnxruntime_cpu.NAME and artifact.name in golden.bit_exact
    images = EXACT_IMAGES_AT_LOAD if bit_exact else GOLDEN_IMAGES_AT_LOAD
    return check_golden(backend, artifact, golden, images=images, batch=1)


def open_verified(
    bundle: Bundle, candidate: Candidate, golden: Golden, opening: OpenOptions
) -> Backend | None:
    """Open one backend; None, and a warning, where it fails or gives other answers than PyTorch.

    Raises:
        BundleError: the bundle is damaged.
    """
    engine, artifact = candidate.engine.name, candidate.artifact
    opened: Backend | None = None
    try:
        opened = candidate.open(bundle, opening)
        check = check_at_load(opened, artifact, golden)
    except (BackendError, OutputError) as error:
        logger.warning("%s cannot run %s: %s", engine, artifact.name, error)
        if opened is not None:
            opened.close()
        return None
    if check.passed:
        return opened
    opened.close()
    logger.warning(
        "%s gives other answers than PyTorch with %s (%s)", engine, artifact.name, check.figures
    )
    return None
