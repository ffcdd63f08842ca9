"""Scores of candidates: the FP32 network's predictions and the inputs of its batch norms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from resdeploy.errors import DataError, ImageError
from resdeploy.export.norm_inputs import NormInput, record_norm_inputs
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Preprocessing, UInt8Array, image_digest
from resdeploy.images.skipped import SkippedImages, reason_of
from resdeploy.progress import Progress
from resdeploy.statistics import FloatArray, IntArray
from resdeploy.train.model.resnet import Classifier, ResNet

BLOCK = 16  # images that are scored together, and that the bootstrap draws together
MOMENT_IMAGES = 512  # images on which batch norms are observed: their sums need much memory

# Candidates scale the logits differently. Each one's log loss is taken at the temperature that is
# best for it, so that the scale does not count: Guo et al. 2017, arXiv:1706.04599, section 4.2.
TEMPERATURES = np.geomspace(0.5, 8, 17)


@dataclass(frozen=True, slots=True)
class Block:
    """Behaviour of the network on some images."""

    digest: str
    """Digest of the pixels."""
    predicted: IntArray
    losses: FloatArray
    """Log loss at each temperature, float (images, temperatures), in nats; NaN without labels."""
    norms: Sequence[NormInput]
    """Sums at each batch norm with statistics."""


@dataclass(slots=True, eq=False)
class CandidateScore:
    """Behaviour of the network with one candidate on the first images."""

    preprocessing: Preprocessing
    geometry: Preprocessing
    """The settings that change pixels; the others have their defaults."""
    blocks: list[Block] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(len(block.predicted) for block in self.blocks)

    @property
    def predicted(self) -> IntArray:
        """Return the predicted class of each image."""
        return np.concatenate([block.predicted for block in self.blocks])

    def losses(self, images: int) -> FloatArray:
        """Return the log loss of each of the first `images` images, at the best temperature."""
        losses = np.concatenate([block.losses for block in self.blocks])[:images]
        return np.asarray(losses[:, losses.mean(0).argmin()])

    def has_pixels_of(self, other: CandidateScore) -> bool:
        """Return True if both differ only in a geometry that gave the same pixels."""
        return _graph_settings(self.preprocessing) == _graph_settings(other.preprocessing) and all(
            first.digest == second.digest for first, second in zip(self.blocks, other.blocks)
        )


class Scorer:
    """Scorer of any number of candidates on the same images in the same order."""

    def __init__(
        self,
        network: ResNet,
        files: Sequence[Path],
        images: int,
        progress: Progress,
        classes: Mapping[Path, int] | None = None,
    ) -> None:
        self.files = list(files)
        """Files without those that could not be decoded so far."""
        self.scores: dict[Preprocessing, CandidateScore] = {}
        self._network = network
        self._images = images
        self._progress = progress
        self._classes = classes
        self._skipped = SkippedImages()
        self._known: dict[tuple[object, ...], Block] = {}

    @property
    def images(self) -> int:
        """Number of images that every candidate can be scored on."""
        return min(self._images, len(self.files))

    def extend(self, candidates: Iterable[Preprocessing], images: int) -> None:
        """Score candidates on the first `images` images; each picture is decoded once per geometry.

        Raises:
            DataError: None of the images can be decoded.
        """
        groups = defaultdict[Preprocessing, list[CandidateScore]](list)
        for candidate in candidates:
            geometry = _geometry(candidate)
            score = self.scores.setdefault(candidate, CandidateScore(candidate, geometry))
            groups[geometry].append(score)
        blocks = -(-images // BLOCK)
        missing = sum(blocks - len(score.blocks) for group in groups.values() for score in group)
        what = f"{len(self.scores)} candidates"
        with self._progress(what, missing * BLOCK) as advance:
            for geometry, group in groups.items():
                for index in range(min(len(score.blocks) for score in group), blocks):
                    pixels = self._load(geometry, index * BLOCK, min(images, (index + 1) * BLOCK))
                    for score in group:
                        if len(score.blocks) == index and len(pixels):
                            score.blocks.append(self._run(score.preprocessing, pixels, index))
                            advance(BLOCK)

    def _load(self, geometry: Preprocessing, start: int, stop: int) -> UInt8Array:
        pixels = list[UInt8Array]()
        while (position := start + len(pixels)) < min(stop, len(self.files)):
            path = self.files[position]
            try:
                pixels.append(load_image(path, geometry))
            except ImageError as error:
                # The first candidate finds it, so that no other one was scored on it.
                self._skipped.add(path, reason_of(error, path))
                del self.files[position]
                if not self.files:
                    raise DataError(f"none of the images can be decoded: {error}") from error
        return np.stack(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8)

    def _run(self, candidate: Preprocessing, pixels: UInt8Array, index: int) -> Block:
        digest = image_digest(pixels)
        key = (index, digest, *_graph_settings(candidate))
        if key not in self._known:
            inputs, logits = record_norm_inputs(Classifier(self._network, candidate), pixels)
            norms = tuple(inputs.values()) if index < MOMENT_IMAGES // BLOCK else ()
            losses = self._losses(logits, index * BLOCK)
            self._known[key] = Block(digest, logits.argmax(axis=1), losses, norms)
        return self._known[key]

    def _losses(self, logits: FloatArray, start: int) -> FloatArray:
        """Return the log loss of images from number `start` on, at each temperature."""
        if self._classes is None:
            return np.full((len(logits), len(TEMPERATURES)), np.nan)
        files = self.files[start : start + len(logits)]
        scaled = logits[:, None, :] / TEMPERATURES[:, None]
        scaled = scaled - scaled.max(axis=2, keepdims=True)
        labels = np.array([self._classes[path] for path in files])[:, None, None]
        chosen = np.take_along_axis(scaled, labels, axis=2)[:, :, 0]
        return np.asarray(np.log(np.exp(scaled).sum(axis=2)) - chosen)


def _geometry(candidate: Preprocessing) -> Preprocessing:
    """Return the candidate with the default settings of the graph, which do not change pixels."""
    plain = Preprocessing(image_size=candidate.image_size)
    names = ("channels", "value_range", "mean", "std")
    return replace(candidate, **{name: getattr(plain, name) for name in names})


def _graph_settings(candidate: Preprocessing) -> tuple[object, ...]:
    return candidate.channels, candidate.value_range, candidate.mean, candidate.std
