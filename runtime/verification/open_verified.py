"""Loading of backends that must pass a short golden check before they are used."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.golden import Golden
from resdeploy.bundle.manifest import Artifact
from resdeploy.errors import BackendError, OutputError
from resdeploy.runtime.backends.base import AUTO, Backend, OpenOptions
from resdeploy.runtime.backends.engine_speeds import sort_by_speed
from resdeploy.runtime.backends.registry import Candidate, candidates
from resdeploy.runtime.verification.golden_check import GoldenCheck, check_golden, expected_bits

logger = logging.getLogger(__name__)

# This number reveals an engine that computes nonsense, and hardly delays the start.
GOLDEN_IMAGES_AT_LOAD = 8
# A bit-exact check reveals other kernels already at the first image.
BIT_EXACT_IMAGES_AT_LOAD = 2


def verified_backends(
    bundle: Bundle, backend: str, precision: str, options: OpenOptions
) -> Iterator[tuple[Candidate, Backend]]:
    """Yield the selected backends that pass the golden check, fastest first, opened one by one.

    Backends that fail are logged and skipped. The caller must close those that it gets.

    Raises:
        BackendError: No selected backend can run here, or none gives the bits that `exact` demands.
        BundleError: The bundle is damaged.
    """
    golden = bundle.golden()
    selected = candidates(bundle, backend, precision)
    if options.exact:
        bits = [expected_bits(c.engine.name, c.artifact, golden) for c in selected]
        selected = [c for c, expected in zip(selected, bits) if expected is not None]
        if not selected:
            raise BackendError(
                "only int8-cpu on onnxruntime-cpu gives the bits of the export, if they are known",
                "leave --backend and --precision out, or export the bundle with --int8",
            )
    elif backend == AUTO:
        selected = sort_by_speed(bundle, selected, options)
    for candidate in selected:
        if opened := open_verified(bundle, candidate, golden, options):
            yield candidate, opened


def check_at_load(
    backend: Backend, artifact: Artifact, golden: Golden, *, exact: bool = False
) -> GoldenCheck:
    """Run the golden check on a few images; on all if `exact`.

    The batch size is 1: a larger batch would take more memory than an application that predicts
    one image at a time.
    """
    few = expected_bits(backend.name, artifact, golden) is not None
    images = BIT_EXACT_IMAGES_AT_LOAD if few else GOLDEN_IMAGES_AT_LOAD
    return check_golden(backend, artifact, golden, images=None if exact else images, batch=1)


def open_verified(
    bundle: Bundle, candidate: Candidate, golden: Golden, options: OpenOptions
) -> Backend | None:
    """Open one backend; if it fails or does not pass the golden check, warn and return None."""
    engine, artifact = candidate.engine.name, candidate.artifact
    opened: Backend | None = None
    try:
        opened = candidate.open(bundle, options)
        check = check_at_load(opened, artifact, golden, exact=options.exact)
    except (BackendError, OutputError) as error:
        logger.warning("%s cannot run %s: %s", engine, artifact.name, error)
        if opened is not None:
            opened.close()
        return None
    if check.passed:
        return opened
    opened.close()
    logger.warning(
        "%s does not reproduce PyTorch's logits with %s (%s)", engine, artifact.name, check.figures
    )
    return None
