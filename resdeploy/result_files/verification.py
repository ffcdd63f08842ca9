"""The file format of `resdeploy verify`: the results of each artifact on each backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from resdeploy.bundle.manifest import (
    Encoding,
    ExportWarning,
    GoldenRecord,
    Precision,
    graph_name,
)
from resdeploy.result_files.provenance import Environment
from resdeploy.statistics import Verdict

SCHEMA = "resdeploy.verification/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactResult:
    """The result of one artifact on one backend; accuracies are None without labelled images."""

    backend: str
    precision: Precision
    encoding: Encoding
    verdict: Verdict
    top1: float | None = None
    """Top-1 accuracy in percent."""
    baseline_top1: float | None = None
    """Top-1 accuracy of the bundle's FP32 graph on the same images, in percent."""
    drop: float | None = None
    """Accuracy drop against the baseline, in percentage points; negative if accuracy rose."""
    drop_upper95: float | None = None
    """One-sided upper 95 % confidence bound of the drop; `drop_lower95` is the lower bound."""
    drop_lower95: float | None = None
    mcnemar_p: float | None = None
    """p-value of McNemar's exact two-sided test that both accuracies are equal."""
    images_to_decide: int | None = None
    """Estimated number of labelled images that decide whether the drop is at most `decided_drop`,
    if predictions change as often as on these images, or without labels as at the export; None if
    no number is enough."""
    agreement: float
    """Images with the same predicted class as the bundle's FP32 graph, in percent. That graph, and
    every graph without labelled images, is compared with the golden logits."""
    sqnr_db: float
    """Median SQNR of the logits of these images, against the same graph or the golden logits, in
    dB."""
    golden_sqnr_db: float
    """Median SQNR of the golden images' logits, in dB."""
    golden_limit_db: float
    """Smallest `golden_sqnr_db` that passes the golden check, in dB; for INT8, it follows the SQNR
    that the export measured for the same graph."""
    rule: Rule
    """The rule of the golden check."""
    different: int
    """Number of golden images whose logits are not bit-exact; 0 if the rule does not require it."""
    confusion: tuple[tuple[int, int, int], ...] = ()
    """Non-zero entries of the confusion matrix: true class, predicted class, number of images."""

    @property
    def is_emulated(self) -> bool:
        """True if a CPU computes a graph for TensorRT or a DLA, which CPUs use for nothing else."""
        on_cpu = self.backend == "onnxruntime-cpu"
        return on_cpu and self.encoding in (Encoding.TENSORRT, Encoding.DLA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The result of `resdeploy verify`."""

    verdict: Verdict
    images: int
    unreadable: int
    used_before: int
    """Number of images that were already used to calibrate the INT8 graphs or to select their float
    layers; they make the INT8 accuracies too optimistic."""
    max_drop: float | None
    """Allowed accuracy drop, in percentage points; None without labelled images."""
    decided_drop: float
    """Accuracy drop that `images_to_decide` refers to, in percentage points."""
    golden: GoldenRecord
    warnings: tuple[ExportWarning, ...]
    """Doubts of the export about the selected graphs, without those that the results answer."""
    answered: tuple[ExportWarning, ...] = ()
    """Doubts of the export that the accuracy on labelled images answers."""
    results: tuple[ArtifactResult, ...]
    labels: tuple[str, ...]
    passed_over: dict[str, int] = field(default_factory=dict)
    """Number of other pictures in the folder, by the reason why they are not read."""
    signer: str | None = None
    """Signer whose signature of the bundle was verified; None if none was asked for."""
    environment: Environment
    """The bundle, the software and the machine."""
    schema: str = SCHEMA


def accurate_graphs(results: Sequence[ArtifactResult]) -> set[str]:
    """Return the names of the graphs whose accuracy passed on labelled images, on each backend."""
    names = {graph_name(line.precision, line.encoding) for line in results}
    others = [line for line in results if line.verdict is not Verdict.PASS]
    return names - {graph_name(line.precision, line.encoding) for line in others}


class Rule(str, Enum):
    """The rule of a golden check."""

    BIT_EXACT = "bit-exact"
    """Logits must equal those of the export. Every CPU can meet this rule: sums of integers do not
    depend on their order, and all CPUs round alike."""
    SQNR = "sqnr"
    """The SQNR of the logits against the golden logits must reach the limit of the artifact."""
