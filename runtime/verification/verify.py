"""Verification of a bundle on this machine, with its golden images or a labelled folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.file_check import check_files
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Precision
from resdeploy.bundle.quality import export_figures, open_warnings, relevant_warnings
from resdeploy.images.class_folders import LabelledImages, match_labels, read_validation
from resdeploy.images.folder import read_batches
from resdeploy.images.preprocessing import image_digest
from resdeploy.label_check import refuse_wrong_labels
from resdeploy.progress import Progress, silent
from resdeploy.result_files.provenance import Environment, shown_path
from resdeploy.result_files.verification import ArtifactResult, Verification, accurate_graphs
from resdeploy.runtime.backends.base import AUTO, Backend, OpenOptions
from resdeploy.runtime.backends.registry import Candidate, candidates
from resdeploy.runtime.verification.golden_check import GoldenCheck, check_golden, run_batches
from resdeploy.statistics import (
    IntArray,
    Verdict,
    agreement_percent,
    compare_accuracy,
    images_for_verdict,
    sqnr_db,
    worst_verdict,
)

BATCH = 32
DEFAULT_MAX_DROP = 1.0


def verify(
    bundle: Bundle,
    *,
    data: Path | None = None,
    backend: str = AUTO,
    precision: str = AUTO,
    max_drop: float = DEFAULT_MAX_DROP,
    threads: int | None = None,
    progress: Progress = silent,
) -> Verification:
    """Check every selected artifact on every backend that can run it here.

    Each must pass the golden check, and is then REPRODUCED. With `data`, a folder of labelled
    images or one that contains such a folder `val`, its top-1 accuracy is compared with FP32, too:
    it may be `max_drop` percentage points lower. Without `data`, `max_drop` only determines how
    many images would decide. `backend` and `precision` select as in `candidates`.

    Raises:
        ValueError: `max_drop` is not between 0 and 100.
        BackendError: No selected backend can run here.
        BundleError: The bundle is damaged.
        DataError: The folder does not match the classes of the model, holds no images, or its
            labels do not fit the predictions of the bundle's FP32 graph.
    """
    if not 0 <= max_drop <= 100:  # false for NaN, too
        raise ValueError(f"the largest accuracy drop is {max_drop}; 0 to 100 points are allowed")
    order = list(Precision)
    selected = sorted(
        candidates(bundle, backend, precision), key=lambda c: order.index(c.artifact.precision)
    )
    options = OpenOptions(threads=threads, progress=progress)
    unlisted = check_files(bundle)
    if data is None:
        results, images = _verify_golden(bundle, selected, max_drop, options)
        unreadable = used = 0
        passed_over: Mapping[str, int] = {}
    else:
        found = read_validation(data, bundle.held_out)
        files = match_labels(found, bundle.labels(), owner=str(bundle.path))
        results, images, used = _verify_data(bundle, selected, files, data, max_drop, options)
        unreadable = len(files.files) - images
        passed_over = files.passed_over
    doubts = relevant_warnings(bundle.manifest, [c.artifact.name for c in selected])
    still = open_warnings(bundle.manifest, doubts, accurate_graphs(results))
    return Verification(
        verdict=_overall(results),
        images=images,
        unreadable=unreadable,
        passed_over=dict(passed_over),
        used_before=used,
        max_drop=None if data is None else max_drop,
        decided_drop=max_drop,
        golden=bundle.manifest.golden,
        warnings=(*unlisted, *still),
        answered=tuple(doubt for doubt in doubts if doubt not in still),
        results=tuple(results),
        labels=bundle.labels(),
        signer=bundle.signer,
        environment=Environment.collect(
            bundle=shown_path(bundle.path),
            model=bundle.manifest.model["name"],
            image_size=bundle.manifest.preprocessing.image_size,
        ),
    )


def _overall(results: Sequence[ArtifactResult]) -> Verdict:
    """Return the worst verdict, without the baseline's REPRODUCED if others were judged."""
    verdicts = [result.verdict for result in results]
    judged = [verdict for verdict in verdicts if verdict is not Verdict.REPRODUCED]
    return worst_verdict(judged or verdicts)


def _verify_golden(
    bundle: Bundle, selected: Iterable[Candidate], max_drop: float, options: OpenOptions
) -> tuple[list[ArtifactResult], int]:
    """Return the results and the number of golden images."""
    golden = bundle.golden()
    results = []
    for candidate in selected:
        with closing(candidate.open(bundle, options)) as opened:
            check = check_golden(opened, candidate.artifact, golden)
        # Without labels, as many predictions are expected to become right as wrong.
        changed = (1 - export_figures(candidate.artifact)[0].agreement / 100) / 2
        needed = images_for_verdict(changed, changed, max_drop)
        results.append(replace(_golden_result(candidate, check), images_to_decide=needed))
    return results, len(golden.images)


def _golden_result(candidate: Candidate, check: GoldenCheck) -> ArtifactResult:
    return ArtifactResult(
        backend=candidate.engine.name,
        precision=candidate.artifact.precision,
        encoding=candidate.artifact.encoding,
        verdict=Verdict.REPRODUCED if check.passed else Verdict.FAIL,
        agreement=check.agreement,
        sqnr_db=check.sqnr_db,
        golden_sqnr_db=check.sqnr_db,
        golden_limit_db=check.floor_db,
        rule=check.rule,
        different=check.different,
    )


def _verify_data(
    bundle: Bundle,
    selected: list[Candidate],
    images: LabelledImages[Path],
    data: Path,
    max_drop: float,
    options: OpenOptions,
) -> tuple[list[ArtifactResult], int, int]:
    """Return the results, the number of images, and the number used before for calibration."""
    # The baseline is the bundle's FP32 graph, which the export compared with PyTorch.
    baseline = candidates(bundle, precision=Precision.FP32.value)[0]
    pairs = [baseline, *(candidate for candidate in selected if candidate != baseline)]
    with ExitStack() as stack:
        opened = [
            stack.enter_context(closing(candidate.open(bundle, options))) for candidate in pairs
        ]
        golden = bundle.golden()
        with options.progress("checking the engines", 0):
            checks = [check_golden(b, c.artifact, golden) for b, c in zip(opened, pairs)]
        logits, labels, used = _run_all(bundle, opened, images, options.progress)
    if checks[0].passed:  # else the predictions are wrong, whatever the labels are
        refuse_wrong_labels(labels, logits[0].argmax(axis=1), images.classes, data)
    results = [
        _compare_with_baseline(candidate, check, logits[0], candidate_logits, labels, max_drop)
        for candidate, check, candidate_logits in zip(pairs, checks, logits)
        if candidate in selected
    ]
    return results, len(labels), used


def _run_all(
    bundle: Bundle, opened: list[Backend], images: LabelledImages[Path], progress: Progress
) -> tuple[list[Float32Array], np.ndarray, int]:
    """Decode each image once and run it on every backend.

    Return the logits of each backend, the labels, and the number of images used for calibration.
    """
    calibration = bundle.manifest.calibration or {}
    known = {*calibration.get("image_sha256", ()), *calibration.get("selection_sha256", ())}
    used = 0
    parts: list[list[Float32Array]] = [[] for _ in opened]
    positions: list[int] = []
    with progress("verifying", len(images.files)) as advance:
        preprocessing = bundle.manifest.preprocessing
        for batch in read_batches(images.files, preprocessing, BATCH):
            for backend, part in zip(opened, parts):
                part.append(run_batches(backend, batch.images, BATCH))
            positions.extend(batch.positions)
            used += sum(image_digest(image) in known for image in batch.images)
            advance(len(batch.positions))
    labels = np.asarray(images.labels)[positions]
    return [np.concatenate(part) for part in parts], labels, used


def _compare_with_baseline(
    candidate: Candidate,
    check: GoldenCheck,
    reference: Float32Array,
    logits: Float32Array,
    labels: np.ndarray,
    max_drop: float,
) -> ArtifactResult:
    paired = compare_accuracy(reference, logits, labels)
    # The baseline itself must only pass the golden check: its drop against itself proves nothing.
    is_reference = logits is reference
    verdict = Verdict.REPRODUCED if is_reference else paired.verdict(max_drop)
    golden = _golden_result(candidate, check)
    return replace(
        golden,
        verdict=verdict if check.passed else Verdict.FAIL,
        top1=100 * paired.candidate_correct / paired.images,
        baseline_top1=100 * paired.baseline_correct / paired.images,
        drop=paired.drop,
        drop_upper95=0.0 if is_reference else paired.drop_upper_bound(),
        drop_lower95=0.0 if is_reference else paired.drop_lower_bound(),
        mcnemar_p=paired.mcnemar_p,
        images_to_decide=paired.images_to_decide(max_drop),
        agreement=golden.agreement if is_reference else agreement_percent(reference, logits),
        sqnr_db=golden.sqnr_db if is_reference else float(np.median(sqnr_db(reference, logits))),
        confusion=confusion_counts(labels, logits),
    )


def confusion_counts(labels: IntArray, logits: Float32Array) -> tuple[tuple[int, int, int], ...]:
    """Return the non-zero entries of the confusion matrix of labels (N,) and logits (N, K).

    Each entry is the true class, the predicted class and the number of images.
    """
    pairs, counts = np.unique(
        np.stack([labels, logits.argmax(axis=1)], axis=1), axis=0, return_counts=True
    )
    return tuple(
        (int(true), int(predicted), int(count)) for (true, predicted), count in zip(pairs, counts)
    )
