"""Trying mixtures of INT8 and float on images that nothing else was chosen on."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.bundle.calibration_record import FloatLayers
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding
from resdeploy.calibration.image_set import CalibrationImages, draw
from resdeploy.errors import CalibrationError
from resdeploy.export.graph.layers import Layer, conv_share, nodes_of
from resdeploy.export.graph.qdq import Weights, integer_weights
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.result import MixtureEvaluation
from resdeploy.export.quantization.simulate import batch_size, open_graph, rounded, sites_of
from resdeploy.export.source import Source
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.statistics import agreement_percent

# How many times its noise with everything quantised must an image's two best logits be apart, that
# no other mixture is expected to swap them?
REACH = 4.0
RANKING_SHARE = 1 / 32  # of the gate's images; every layer is tried on them
# The gate needs many images, each of which takes as long as it has pixels.
MOST_GATE_IMAGES, FEWEST_GATE_IMAGES = 5120, 256
PIXELS = MOST_GATE_IMAGES * 32 * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyTarget:
    """What an INT8 graph must hold to, and how long may be searched for it."""

    min_agreement: float | None = None
    """Percent of the images that keep FP32's class."""
    max_drop: float | None = None
    """Points of accuracy; where no labels are known, of images whose class changes."""
    seconds: float = 600.0
    """For both encodings together."""

    @property
    def is_set(self) -> bool:
        """True if there is a limit to hold."""
        return self.min_agreement is not None or self.max_drop is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutImages:
    """Images that decide, none of which calibrated, was scored on, or is golden."""

    images: UInt8Array
    classes: npt.NDArray[np.int64] | None
    digests: tuple[str, ...]


def draw_held_out_images(source: Source, seed: int, excluded: Collection[str]) -> HeldOutImages:
    """Draw validation images, and others only where they are too few: a net knows its own.

    Raises:
        CalibrationError: no image is left.
    """
    size = source.preprocessing.image_size
    wanted = int(np.clip(PIXELS // size**2, FEWEST_GATE_IMAGES, MOST_GATE_IMAGES))
    ledger = CalibrationImages(source.preprocessing, wanted=wanted, excluded=excluded)
    paths = [
        path
        for pool in (source.pools.golden, source.pools.calibration)
        for path in draw(pool, seed)
    ]
    try:
        images = np.concatenate(list(ledger.add(paths, batch_size(size))))
    except CalibrationError as error:
        raise CalibrationError(
            "no image is left to judge mixtures of INT8 and float on",
            "add more images than calibrate, best a folder val/ beside train/",
        ) from error
    classes = source.classes_of(ledger.paths)
    return HeldOutImages(
        images=images,
        classes=None if classes is None else np.array(classes),
        digests=tuple(ledger.digests),
    )


@dataclass(slots=True)
class MixedPrecisionEvaluator:
    """Tries mixtures, nothing twice, and watches the clock."""

    model: ir.Model
    recipe: QuantizationRecipe
    held_out: HeldOutImages
    gate: AccuracyTarget
    deadline: float
    clock: Callable[[], float]
    advance: Callable[[int], None]
    tried: list[MixtureEvaluation] = field(default_factory=list)
    """In the order of their evaluation."""
    known: dict[frozenset[str], MixtureEvaluation] = field(default_factory=dict)
    """By the nodes in float."""
    reference: Float32Array | None = None
    within_reach: npt.NDArray[np.intp] | None = None
    """The images whose class another mixture could change: the others need not run again."""
    slowest: float = 0.0
    """Seconds that a batch took."""
    weights: Weights = field(init=False)

    def __post_init__(self) -> None:
        self.weights = integer_weights(self.model, self.recipe.encoding)

    def evaluate(self, layers: Sequence[Layer]) -> MixtureEvaluation | None:
        """How the graph does with `layers` in float; None where there is no time to find out."""
        nodes = nodes_of(layers)
        if nodes not in self.known:
            logits = self._logits(nodes)
            if logits is None:
                return None
            self.advance(1)
            self.known[nodes] = self._judge(layers, logits)
            self.tried.append(self.known[nodes])
        return self.known[nodes]

    def evaluate_first(self) -> MixtureEvaluation:
        """The same with nothing handed back.

        Raises:
            CalibrationError: there is no time even for that.
        """
        outcome = self.evaluate(())
        if outcome is None:
            raise CalibrationError(
                f"the time is too short to try the INT8 graph on {len(self.held_out.images)} "
                "images",
                "allow more with --search-seconds",
            )
        return outcome

    def handback(
        self,
        before: MixtureEvaluation,
        chosen: MixtureEvaluation,
        *,
        seconds: float,
        out_of_time: bool,
    ) -> FloatLayers:
        """What is recorded of it."""
        count, share = conv_share(self.model, chosen.nodes)
        return FloatLayers(
            encoding=self.recipe.encoding,
            layers=chosen.layers,
            convolutions=count,
            conv_share_percent=100 * share,
            agreement=chosen.agreement,
            drop=chosen.drop,
            agreement_before=before.agreement,
            images=chosen.images,
            evaluations=len(self.tried),
            seconds=seconds,
            out_of_time=out_of_time,
        )

    def rank(self, layers: Sequence[Layer]) -> list[Layer]:
        """Layers by the noise they make alone, per cost; those not reached in time come last."""
        images = self.held_out.images[: math.ceil(RANKING_SHARE * len(self.held_out.images))]
        everything = sites_of(self.model, self.recipe)
        merit: dict[str, float] = {}
        everyone = self._float_logits()
        reference = None if everyone is None else everyone[: len(images)]
        for layer in layers:
            without = replace(self.recipe, in_float=self.recipe.in_float | layer.nodes)
            its = everything - sites_of(self.model, without)
            alone = rounded(self.model, self.recipe, its, self.weights)
            logits = self._run(images, alone, Encoding.FLOAT)
            if reference is None or logits is None:
                break
            noise = np.square(logits - reference).sum(axis=1)
            signal = np.maximum(np.square(reference).sum(axis=1), 1e-30)
            # The median: in a mean, an odd image or two would decide.
            merit[layer.name] = float(np.median(noise / signal)) / layer.cost
            self.advance(1)
        return sorted(layers, key=lambda layer: -merit.get(layer.name, -1.0))

    def _float_logits(self) -> Float32Array | None:
        """FP32's, of all images; None where there is no time for them."""
        if self.reference is None:
            self.reference = self._run(self.held_out.images, self.model, Encoding.FLOAT)
        return self.reference

    def _logits(self, nodes: frozenset[str]) -> Float32Array | None:
        """Of all images, with `nodes` in float; FP32's for those out of reach."""
        images = self.held_out.images
        reference = self._float_logits()
        if reference is None:
            return None
        mixture = replace(self.recipe, in_float=self.recipe.in_float | nodes)
        graph = mixture.apply(self.model, weights=self.weights)
        if self.within_reach is None:
            logits = self._run(images, graph, self.recipe.encoding)
            if logits is not None:
                self.within_reach = within_reach(reference, logits)
            return logits
        again = self._run(images[self.within_reach], graph, self.recipe.encoding)
        if again is None:
            return None
        logits = reference.copy()
        logits[self.within_reach] = again
        return logits

    def _run(self, images: UInt8Array, graph: ir.Model, encoding: Encoding) -> Float32Array | None:
        """Logits; None where there is no time for all of them."""
        logits = []
        size = batch_size(images.shape[1])
        with closing(open_graph(graph, encoding)) as backend:
            for start in range(0, len(images), size):
                began = self.clock()
                if began + self.slowest > self.deadline:
                    return None
                logits.append(backend.run(images[start : start + size]))
                self.slowest = max(self.slowest, self.clock() - began)
        return np.concatenate(logits)

    def _judge(self, layers: Sequence[Layer], logits: Float32Array) -> MixtureEvaluation:
        assert self.reference is not None
        classes, gate = self.held_out.classes, self.gate
        agreement = agreement_percent(self.reference, logits)
        drop = 100 - agreement  # where the classes are not known: it cannot be more
        if classes is not None:
            both = (self.reference, logits)
            right = [100 * float(np.mean(one.argmax(axis=1) == classes)) for one in both]
            drop = right[0] - right[1]
        return MixtureEvaluation(
            encoding=self.recipe.encoding,
            layers=tuple(layer.name for layer in layers),
            nodes=nodes_of(layers),
            agreement=agreement,
            drop=drop,
            images=len(logits),
            holds=(gate.min_agreement is None or agreement >= gate.min_agreement)
            and (gate.max_drop is None or drop <= gate.max_drop),
        )


def within_reach(reference: Float32Array, noisy: Float32Array) -> npt.NDArray[np.intp]:
    """Which images might change their class under noise like this: positions, at least one.

    Two logits come closer by at most sqrt(2) times the length of the noise (Cauchy and Schwarz).

    Args:
        reference: Logits of FP32 (N, K), K > 1.
        noisy: Logits with everything quantised (N, K).
    """
    best = np.sort(reference, axis=1)[:, -2:]
    length = np.linalg.norm(noisy - reference, axis=1)
    bridged = REACH * np.sqrt(2) * np.maximum(length, np.median(length))
    apart = best[:, 1] - best[:, 0]
    close = np.flatnonzero(apart <= bridged)
    return close if len(close) else np.argmin(apart - bridged, keepdims=True)
