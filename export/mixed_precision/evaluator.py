"""Evaluation of mixtures of INT8 and float layers on the images of a search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.bundle.calibration_record import FloatLayers
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import Encoding
from resdeploy.changed_predictions import count_changes, expect_changes
from resdeploy.export.graph.float_layers import Layer, conv_share, nodes_of
from resdeploy.export.graph.qdq import Weights
from resdeploy.export.quantization.held_out import HeldOutImages
from resdeploy.export.quantization.recipe import QuantizationRecipe
from resdeploy.export.quantization.result import MixtureEvaluation
from resdeploy.export.quantization.simulate import batch_size, open_graph, round_at, sites_of
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.progress import Advance, Progress

# With fewer held-out images, calibration images tell FP32's margins, too.
MARGINS = 256
# Skip images whose top-2 logit margin exceeds this many times the largest change of the margin that
# the noise with all layers in INT8 can cause.
NOISE_FACTOR = 4.0
RANKING_SHARE = 1 / 32  # of the held-out images; every layer is evaluated on them


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchContext:
    """Inputs that all searches for layers in float share."""

    model: ir.Model
    """FP32 graph."""
    held_out: HeldOutImages
    calibrating: UInt8Array
    """Calibration images (N, H, W, 3), whose margins are those of FP32."""
    seconds: float
    """Time limit of the search; no evaluation starts that would end later."""
    progress: Progress
    clock: Callable[[], float] = time.monotonic


@dataclass(slots=True)
class MixedPrecisionEvaluator:
    """Evaluator of mixtures of one encoding, with a cache; its time starts with its creation."""

    context: SearchContext
    recipe: QuantizationRecipe
    advance: Advance
    evaluations: dict[frozenset[str], MixtureEvaluation] = field(default_factory=dict)
    """Results by the nodes in float, in the order of their evaluation."""
    start: float = field(init=False)
    seconds: float = field(init=False)
    weights: Weights = field(init=False)
    float_logits: Float32Array | None = None
    """FP32's logits (N, K) of all held-out images; None until they are computed."""
    further_logits: Float32Array | None = None
    """FP32's logits of some calibration images; None without them."""
    changeable: npt.NDArray[np.intp] | None = None
    """Positions of the images whose class a mixture could change; None before the first one."""
    slowest: float = 0.0
    """Longest time of a batch, in seconds."""

    def __post_init__(self) -> None:
        self.start, self.seconds = self.context.clock(), self.context.seconds
        self.weights = self.recipe.weights(self.context.model)

    def evaluate(self, layers: Sequence[Layer]) -> MixtureEvaluation | None:
        """Evaluate the graph with `layers` in float; return None if there is no time for it."""
        nodes = nodes_of(layers)
        if nodes not in self.evaluations:
            logits = self._mixture_logits(nodes)
            if logits is None:
                return None
            self.advance(1)
            self.evaluations[nodes] = self._compare(layers, logits)
        return self.evaluations[nodes]

    def evaluate_all_int8(self) -> MixtureEvaluation:
        """Evaluate the graph with all layers in INT8, even if the time is too short for it."""
        seconds, self.seconds = self.seconds, math.inf
        evaluation = self.evaluate(())
        self.seconds = seconds
        assert evaluation is not None
        return evaluation

    def rank(self, layers: Sequence[Layer]) -> list[Layer]:
        """Sort layers by the noise at the logits that each alone causes, divided by its cost.

        Layers that were not measured in time come last.
        """
        count = math.ceil(RANKING_SHARE * len(self.context.held_out.images))
        images = self.context.held_out.images[:count]
        all_sites = sites_of(self.context.model, self.recipe)
        merit: dict[str, float] = {}
        reference = self._reference()
        for layer in layers:
            without = replace(self.recipe, in_float=self.recipe.in_float | layer.nodes)
            sites = all_sites - sites_of(self.context.model, without)
            alone = round_at(self.context.model, self.recipe, sites, self.weights)
            logits = self._run(images, alone, Encoding.FLOAT)
            if reference is None or logits is None:
                break
            noise = np.square(logits - reference[:count]).sum(axis=1)
            signal = np.maximum(np.square(reference[:count]).sum(axis=1), 1e-30)
            # The median, because a few atypical images would dominate a mean.
            merit[layer.name] = float(np.median(noise / signal)) / layer.cost
            self.advance(1)
        return sorted(layers, key=lambda layer: -merit.get(layer.name, -1.0))

    def mixture(self, nodes: frozenset[str]) -> ir.Model:
        """Return the graph with `nodes` in float, as an export would write it."""
        recipe = replace(self.recipe, in_float=self.recipe.in_float | nodes)
        return recipe.apply(self.context.model, weights=self.weights)

    def float_layers(self, chosen: MixtureEvaluation, *, out_of_time: bool) -> FloatLayers:
        """Return the record of the search that chose `chosen`."""
        count, share = conv_share(self.context.model, chosen.nodes)
        return FloatLayers(
            encoding=self.recipe.encoding,
            layers=chosen.layers,
            convolutions=count,
            conv_share_percent=100 * share,
            agreement=chosen.changes.agreement,
            drop=chosen.changes.drop,
            expected_agreement=chosen.expected.agreement,
            agreement_before=self.evaluate_all_int8().changes.agreement,
            images=chosen.changes.images,
            evaluations=len(self.evaluations),
            seconds=self.context.clock() - self.start,
            out_of_time=out_of_time,
        )

    def _reference(self) -> Float32Array | None:
        """Return FP32's logits of all held-out images; None if there is no time for them."""
        if self.float_logits is None:
            images = self.context.held_out.images
            self.float_logits = self._run(images, self.context.model, Encoding.FLOAT)
            more = self.context.calibrating[: max(0, MARGINS - len(images))]
            if len(more):
                self.further_logits = self._run(more, self.context.model, Encoding.FLOAT)
        return self.float_logits

    def _mixture_logits(self, nodes: frozenset[str]) -> Float32Array | None:
        """Compute the logits of all images with `nodes` in float.

        Images whose class cannot change keep FP32's logits.
        """
        images = self.context.held_out.images
        reference = self._reference()
        if reference is None:
            return None
        graph = self.mixture(nodes)
        if self.changeable is None:
            logits = self._run(images, graph, self.recipe.encoding)
            if logits is not None:
                self.changeable = changeable_images(reference, logits)
            return logits
        changed = self._run(images[self.changeable], graph, self.recipe.encoding)
        if changed is None:
            return None
        logits = reference.copy()
        logits[self.changeable] = changed
        return logits

    def _run(self, images: UInt8Array, graph: ir.Model, encoding: Encoding) -> Float32Array | None:
        """Return the logits of `images`; None if there is no time for all of them."""
        logits = []
        size, clock = batch_size(images.shape[1:3]), self.context.clock
        with closing(open_graph(graph, encoding)) as backend:
            for first in range(0, len(images), size):
                began = clock()
                if began + self.slowest > self.start + self.seconds:
                    return None
                logits.append(backend.run(images[first : first + size]))
                self.slowest = max(self.slowest, clock() - began)
        return np.concatenate(logits)

    def _compare(self, layers: Sequence[Layer], logits: Float32Array) -> MixtureEvaluation:
        """Compare the logits (N, K) of a mixture with FP32's."""
        assert self.float_logits is not None
        compared = self.float_logits, logits, self.context.held_out.classes
        return MixtureEvaluation(
            encoding=self.recipe.encoding,
            layers=tuple(layer.name for layer in layers),
            nodes=nodes_of(layers),
            changes=count_changes(*compared),
            expected=expect_changes(*compared, self.further_logits),
        )


def changeable_images(reference: Float32Array, noisy: Float32Array) -> npt.NDArray[np.intp]:
    """Return the positions of the images whose class such noise might change, at least one.

    Noise reduces the difference of two logits by at most sqrt(2) times its norm (Cauchy-Schwarz).
    The logits (N, K), K > 1, are those of FP32 and those with all layers in INT8.
    """
    top2 = np.sort(reference, axis=1)[:, -2:]
    norm = np.linalg.norm(noisy - reference, axis=1)
    largest_change = NOISE_FACTOR * np.sqrt(2) * np.maximum(norm, np.median(norm))
    margin = top2[:, 1] - top2[:, 0]
    close = np.flatnonzero(margin <= largest_change)
    return close if len(close) else np.argmin(margin - largest_change, keepdims=True)
