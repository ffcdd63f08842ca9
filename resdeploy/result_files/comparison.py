"""The result of `resdeploy compare` and its file format."""

from __future__ import annotations

from dataclasses import dataclass, field

from resdeploy.bundle.manifest import Encoding, ExportWarning
from resdeploy.result_files.provenance import Environment
from resdeploy.statistics import Verdict

SCHEMA = "resdeploy.comparison/2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The result of a comparison of two bundles or two benchmarks."""

    verdict: Verdict
    first: str
    """The bundle or file that the second one is compared with."""
    second: str
    max_drop: float
    """The largest accuracy drop that passes, in percentage points."""
    max_slowdown: float
    """The largest slowdown that passes, in percent."""
    accuracy: tuple[AccuracyChange, ...] = ()
    unreadable: int = 0
    """Number of images in the folder that could not be decoded."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Number of other pictures in the folder, by the reason why they are not read."""
    latency: tuple[LatencyChange, ...] = ()
    layers: tuple[LayerChange, ...] = ()
    exports: tuple[ExportChange, ...] = ()
    missing: tuple[str, ...] = ()
    """Artifacts or contenders that only the first bundle or file has."""
    added: tuple[str, ...] = ()
    """Artifacts or contenders that only the second bundle or file has."""
    notices: tuple[str, ...] = ()
    """Reasons of the verdict that are not measurements."""
    identical: bool = False
    """True if the bundles give the same answers by their hashes, so that nothing was measured."""
    warnings: tuple[ExportWarning, ...] = ()
    """Doubts of the exports about the bundles, each with the bundle's name."""
    environment: Environment
    schema: str = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyChange:
    """The change of an artifact's accuracy from the first bundle to the second.

    Accuracies are in percent, drops in percentage points.
    """

    artifact: str
    backend: str
    images: int
    truth: str
    """The source of the true classes: `labels`, or `pytorch` for PyTorch's predicted classes."""
    first: float
    """Top-1 accuracy of the first bundle."""
    second: float
    lost: int
    """The number of images that only the first bundle classifies correctly."""
    gained: int
    """The number of images that only the second bundle classifies correctly."""
    drop: float
    """Drop from `first` to `second`, in percentage points; negative if accuracy rose."""
    drop_low: float
    """One-sided lower 95 % confidence bound of the drop; `drop_high` is the upper bound. Both are 0
    for FP32 graphs of the same weights and pre-processing of which no prediction differs."""
    drop_high: float
    different: int
    """The number of images whose logits differ in any bit; 0 makes the drop exactly 0."""
    images_to_decide: int | None
    """The estimated number of images for a conclusive verdict, also if there were more; None if no
    number is enough, or if none is needed, because both bounds are 0."""
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyChange:
    """The change of a contender's latency; slowdowns are in percent of the first time."""

    contender: str
    graph: str
    batch: int
    threads: int
    first_ms: float
    """Median time of one call in the first bundle or file."""
    second_ms: float
    slowdown: float
    slowdown_low: float
    """Lower bound of the two-sided interval; `slowdown_high` is the upper bound."""
    slowdown_high: float
    confidence: float
    """The confidence of the interval, from 0 to 1."""
    samples: int
    """The number of starts, or of rounds in the shorter benchmark."""
    samples_to_decide: int | None
    """The estimated number for a conclusive verdict, also if there were more; None if a longer
    measurement would not decide."""
    seconds: float | None
    """The time of the measurement; None if it was not recorded."""
    relative_to: str | None
    """The contender whose times both are divided by; None for absolute times."""
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ExportChange:
    """A difference between the exports that may explain the others."""

    name: str
    first: str
    """The value of the first bundle."""
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChange:
    """The layers of one INT8 graph whose precision differs between the bundles."""

    encoding: Encoding
    calibrators: tuple[str, str]
    to_float: tuple[str, ...]
    """The layers that only the second bundle keeps in float."""
    to_int8: tuple[str, ...]
    """The layers that only the first bundle keeps in float."""
