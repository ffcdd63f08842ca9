"""Mixed precision: the cheapest layers that, back in float, make the INT8 graph good enough."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from resdeploy.bundle import Float32Array
from resdeploy.calibration.ledger import Ledger, draw
from resdeploy.calibration.record import Handback
from resdeploy.errors import CalibrationError
from resdeploy.export.calibrate import Calibration
from resdeploy.export.handback import Layer, conv_share, layers_of
from resdeploy.export.recipe import Recipe
from resdeploy.export.source import Source
from resdeploy.export.switches import BATCH, Site, SwitchedGraph
from resdeploy.preprocessing import UInt8Array
from resdeploy.progress import Progress
from resdeploy.statistics import agreement_percent

RANKING_SHARE = 1 / 32  # of the gate's images; every layer is tried on them
# The gate needs many images, each of which takes as long as it has pixels.
MOST_GATE_IMAGES, FEWEST_GATE_IMAGES = 2048, 256
PIXELS = MOST_GATE_IMAGES * 32 * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What an INT8 graph must hold to, and how long may be searched for it."""

    min_agreement: float | None = None
    """Percent of the images that keep FP32's class."""
    max_drop: float | None = None
    """Points of accuracy; where no labels are known, of images whose class changes."""
    seconds: float = 600.0
    """For both encodings together."""

    @property
    def open(self) -> bool:
        """Whether nothing is asked for."""
        return self.min_agreement is None and self.max_drop is None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateImages:
    """Images that decide, none of which calibrated, was scored on, or is golden."""

    images: UInt8Array
    classes: npt.NDArray[np.int64] | None
    digests: tuple[str, ...]


def mix(
    model: ir.Model,
    source: Source,
    calibration: Calibration,
    gate: Gate,
    *,
    seed: int,
    golden_digests: Collection[str],
    progress: Progress,
) -> Calibration:
    """Hand layers of both encodings back to float until `gate` holds; each has half of the time.

    Raises:
        CalibrationError: no image is left to decide on, or the time is too short.
    """
    used = {*golden_digests, *calibration.digests, *calibration.selection_digests}
    held_out = gate_images(source, seed, used)
    recipes, handbacks = {}, []
    for encoding, recipe in calibration.recipes.items():
        recipes[encoding], handback = search(
            model, recipe, gate, held_out,
            seconds=gate.seconds / len(calibration.recipes), progress=progress,
        )  # fmt: skip
        handbacks.append(handback)
    return replace(
        calibration,
        recipes=recipes,
        handbacks=tuple(handbacks),
        selection_digests=(*calibration.selection_digests, *held_out.digests),
    )


def gate_images(source: Source, seed: int, excluded: Collection[str]) -> GateImages:
    """Draw validation images, and others only where they are too few: a net knows its own.

    Raises:
        CalibrationError: no image is left.
    """
    size = source.preprocessing.image_size
    wanted = int(np.clip(PIXELS // size**2, FEWEST_GATE_IMAGES, MOST_GATE_IMAGES))
    ledger = Ledger(source.preprocessing, wanted=wanted, excluded=excluded)
    paths = [
        path
        for pool in (source.pools.golden, source.pools.calibration)
        for path in draw(pool, seed)
    ]
    try:
        images = np.concatenate(list(ledger.admit(paths, BATCH)))
    except CalibrationError as error:
        raise CalibrationError(
            "no image is left to hold --min-agreement and --max-drop against",
            "add more images than calibrate, best a folder val/ beside train/",
        ) from error
    classes = source.classes_of(ledger.paths)
    return GateImages(
        images=images,
        classes=None if classes is None else np.array(classes),
        digests=tuple(ledger.digests),
    )


def search(
    model: ir.Model,
    recipe: Recipe,
    gate: Gate,
    held_out: GateImages,
    *,
    seconds: float,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Recipe, Handback]:
    """Hand layers back to float, those first that buy most per cost, until the gate holds.

    A layer buys the noise that its tensors alone make at the logits. The shortest list of layers
    that holds the gate is found by bisection; then the costliest of them are taken back one by
    one, where the gate holds without. Should the time end first, the best list known does.

    Args:
        model: The FP32 graph.
        recipe: What is quantised so far.
        gate: What must hold.
        held_out: What it must hold on.
        seconds: No evaluation is begun that would end later than this.
        progress: Told of each evaluation.
        clock: Seconds, for tests.

    Returns:
        The recipe that holds the gate, and what it gave up.

    Raises:
        CalibrationError: `seconds` are too few for the first evaluation.
    """
    start = clock()
    layers = [
        layer for layer in layers_of(model, recipe.encoding) if not layer.nodes <= recipe.in_float
    ]
    with SwitchedGraph(model, recipe) as graph, progress("searching", len(layers) + 8) as advance:
        lab = _Laboratory(model, recipe, graph, held_out, gate, start + seconds, clock, advance)
        before = lab.evaluate(())
        if before is None:
            raise CalibrationError(
                f"{seconds:.0f} s are too few to try the INT8 graph on {len(held_out.images)} "
                "images",
                "allow more with --search-seconds, or leave --min-agreement and --max-drop out",
            )
        low, high = -1, 0
        ranked: list[Layer] = []
        if not before.holds:
            ranked = lab.rank(layers)
            low, high = 0, len(ranked)  # all in float holds any gate
        chosen = before if high == 0 else ALL_FLOAT
        while high - low > 1:
            middle = (low + high) // 2
            outcome = lab.evaluate(ranked[:middle])
            if outcome is None:
                break
            if outcome.holds:
                high, chosen = middle, outcome
            else:
                low = middle
        given_back, out_of_time = ranked[:high], high - low > 1
        for layer in sorted(given_back, key=lambda layer: -layer.cost):
            fewer = [other for other in given_back if other != layer]
            outcome = None if out_of_time else lab.evaluate(fewer)
            if outcome is None:
                out_of_time = True
                break
            if outcome.holds:
                given_back, chosen = fewer, outcome
    nodes = frozenset(node for layer in given_back for node in layer.nodes)
    count, share = conv_share(model, nodes)
    return replace(recipe, in_float=recipe.in_float | nodes), Handback(
        encoding=recipe.encoding,
        layers=tuple(layer.name for layer in given_back),
        convolutions=count,
        conv_share_percent=100 * share,
        agreement=chosen.agreement,
        drop=chosen.drop,
        agreement_before=before.agreement,
        images=len(held_out.images),
        evaluations=len(lab.known),
        seconds=clock() - start,
        out_of_time=out_of_time,
    )


@dataclass(frozen=True, slots=True)
class _Outcome:
    agreement: float
    drop: float
    holds: bool


ALL_FLOAT = _Outcome(agreement=100.0, drop=0.0, holds=True)


@dataclass(slots=True)
class _Laboratory:
    """Tries mixtures, nothing twice, and watches the clock."""

    model: ir.Model
    recipe: Recipe
    graph: SwitchedGraph
    held_out: GateImages
    gate: Gate
    deadline: float
    clock: Callable[[], float]
    advance: Callable[[int], None]
    known: dict[frozenset[Site], _Outcome] = field(default_factory=dict)
    reference: Float32Array | None = None
    slowest: float = 0.0
    """Seconds that a batch took."""

    def evaluate(self, layers: Sequence[Layer]) -> _Outcome | None:
        """How the graph does with `layers` in float; None where there is no time to find out."""
        sites = self._quantised(layers)
        if sites not in self.known:
            images = self.held_out.images
            if self.reference is None:
                self.reference = self._run(images, frozenset())
            logits = None if self.reference is None else self._run(images, sites)
            if self.reference is None or logits is None:
                return None
            self.advance(1)
            self.known[sites] = _judge(self.reference, logits, self.held_out.classes, self.gate)
        return self.known[sites]

    def rank(self, layers: Sequence[Layer]) -> list[Layer]:
        """Layers by the noise they make alone, per cost; those not reached in time come last."""
        images = self.held_out.images[: math.ceil(RANKING_SHARE * len(self.held_out.images))]
        everything = self._quantised(())
        merit: dict[str, float] = {}
        reference = self._run(images, frozenset())
        for layer in layers:
            logits = self._run(images, everything - self._quantised([layer]))
            if reference is None or logits is None:
                break
            noise = np.square(logits - reference).sum(axis=1)
            signal = np.maximum(np.square(reference).sum(axis=1), 1e-30)
            # The median: in a mean, an odd image or two would decide.
            merit[layer.name] = float(np.median(noise / signal)) / layer.cost
            self.advance(1)
        return sorted(layers, key=lambda layer: -merit.get(layer.name, -1.0))

    def _quantised(self, layers: Sequence[Layer]) -> frozenset[Site]:
        """The sites that stay quantised when `layers` are float."""
        nodes = self.recipe.in_float.union(*(layer.nodes for layer in layers))
        kept = replace(self.recipe, in_float=nodes)
        readers = {reader for edge in kept.edges(self.model) for reader in edge.readers}
        return frozenset(
            site
            for site in self.graph.sites
            if (site.reader[0] not in nodes if site.weight else site.reader in readers)
        )

    def _run(self, images: UInt8Array, sites: frozenset[Site]) -> Float32Array | None:
        logits = []
        for start in range(0, len(images), BATCH):
            began = self.clock()
            if began + self.slowest > self.deadline:
                return None
            logits.append(self.graph.run(images[start : start + BATCH], sites.__contains__))
            self.slowest = max(self.slowest, self.clock() - began)
        return np.concatenate(logits)


def _judge(
    reference: Float32Array,
    logits: Float32Array,
    classes: npt.NDArray[np.int64] | None,
    gate: Gate,
) -> _Outcome:
    agreement = agreement_percent(reference, logits)
    drop = 100 - agreement  # where the classes are not known: it cannot be more
    if classes is not None:
        right = [100 * float(np.mean(x.argmax(axis=1) == classes)) for x in (reference, logits)]
        drop = right[0] - right[1]
    holds = (gate.min_agreement is None or agreement >= gate.min_agreement) and (
        gate.max_drop is None or drop <= gate.max_drop
    )
    return _Outcome(agreement=agreement, drop=drop, holds=holds)
