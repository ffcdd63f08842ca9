"""Scores of candidates: the FP32 network's predictions and the inputs of its batch norms."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from resdeploy.errors import DataError, ImageError
from resdeploy.export.norm_inputs import NormInput, record_norm_inputs
from resdeploy.export.preprocessing_search.candidates import SMALL_PICTURE
from resdeploy.export.preprocessing_search.duration import SearchDuration
from resdeploy.images.decode import read_rgb
from resdeploy.images.loading import resize_and_crop
from resdeploy.images.preprocessing import Channels, Preprocessing, UInt8Array, image_digest
from resdeploy.images.skipped import SkippedImages, reason_of
from resdeploy.progress import Advance, Progress
from resdeploy.statistics import IntArray
from resdeploy.tables import plural
from resdeploy.train.data.augment import Augmentation, augment
from resdeploy.train.model.resnet import Classifier, ResNet

logger = logging.getLogger(__name__)

BLOCK = 32  # images that are scored together, and that the bootstrap draws together
# On which batch norms are observed with the recorded statistics, which shows wrong normalisations;
# with those of the batches, on all blocks. The sums need 0.4 MB a block and candidate for ResNet-50
# with 32 images, and few candidates are scored on all images.
OBSERVED_BLOCKS = 32
KEPT_BYTES = 512 << 20  # of decoded pictures: the first ones, which are scored most often

FloatArray = npt.NDArray[np.float64]
Change = Callable[[Image.Image, np.random.Generator], Image.Image]
Block = tuple[str, IntArray, Sequence[NormInput]]
"""Digest of the pixels, predicted classes, and sums at each batch norm with statistics."""


@dataclass(slots=True, eq=False)
class CandidateScore:
    """Behaviour of the network with one candidate on the first images."""

    preprocessing: Preprocessing
    blocks: list[Block] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(len(predicted) for _, predicted, _ in self.blocks)

    @property
    def predicted(self) -> IntArray:
        """Return the predicted class of each image."""
        return np.concatenate([predicted for _, predicted, _ in self.blocks])

    def has_pixels_of(self, other: CandidateScore) -> bool:
        """Return True if both differ only in a geometry that gave the same pixels."""
        return self.has_graph_of(other) and all(
            first[0] == second[0] for first, second in zip(self.blocks, other.blocks)
        )

    def has_graph_of(self, other: CandidateScore) -> bool:
        """Return True if both differ at most in their geometry."""
        return _graph_settings(self.preprocessing) == _graph_settings(other.preprocessing)


def has_small_pictures(files: Sequence[Path]) -> bool:
    """Return True if the first pictures are small, as those of CIFAR-10."""
    for path in files:
        with suppress(ImageError):  # the scorer reports it
            return min(read_rgb(path).size) <= SMALL_PICTURE
    return False


class CandidateScorer:
    """Scorer of any number of candidates on the same images in the same order."""

    def __init__(
        self, network: ResNet, files: Sequence[Path], images: int, progress: Progress
    ) -> None:
        self.files = list(files)
        """Files without those that could not be decoded so far."""
        self.scores: dict[Preprocessing, CandidateScore] = {}
        self._trained: dict[Preprocessing, CandidateScore] = {}
        self._network = network
        self._images = images
        self._progress = progress
        self._skipped = SkippedImages()
        self._known: dict[tuple[object, ...], Block] = {}
        self._pictures: dict[Path, Image.Image] = {}
        self._room = KEPT_BYTES
        self._round, self.duration = 0, SearchDuration()
        logger.info(
            "scoring the usual candidates in rounds, on %d images each at most; those that are "
            "clearly worse on few images are left out of later rounds; resdeploy preprocess "
            "--images N with a smaller N is faster and decides less", self.images,
        )  # fmt: skip

    @property
    def images(self) -> int:
        """Number of images that every candidate can be scored on."""
        return min(self._images, len(self.files))

    @contextmanager
    def phase(self, what: str, total: int) -> Iterator[Advance]:
        """Show the progress of a part of the current round, and the finished share of the search.

        Check at each step whether the search takes longer than was announced.
        """
        # Comparisons follow the last candidate.
        share = f"about {min(99, int(100 * self.duration.share))} % of the search"
        with self._progress(f"{share}, round {self._round}, {what}", total) as advance:

            def advance_and_check(done: int) -> None:
                self.duration.check()
                advance(done)

            yield advance_and_check

    def extend(self, candidates: Iterable[Preprocessing], images: int) -> None:
        """Score candidates on the first `images` images, and begin a new round.

        Raises:
            DataError: None of the images can be decoded.
        """
        groups = defaultdict[Preprocessing, list[CandidateScore]](list)
        for candidate in candidates:
            geometry = _geometry(candidate)
            score = self.scores.setdefault(candidate, CandidateScore(candidate))
            groups[geometry].append(score)
        blocks = -(-images // BLOCK)
        # A candidate may have been scored on more images already.
        missing = sum(max(0, blocks - len(s.blocks)) for group in groups.values() for s in group)
        self._round += 1
        what = f"{plural(sum(map(len, groups.values())), 'candidate')} on {images} images"
        with self.phase(what, missing * BLOCK) as advance:
            for geometry, group in groups.items():
                for index in range(min(len(score.blocks) for score in group), blocks):
                    pixels = self._load(geometry, index * BLOCK, min(images, (index + 1) * BLOCK))
                    for score in group:
                        if len(score.blocks) == index and len(pixels):
                            score.blocks.append(self._run(score.preprocessing, pixels, index))
                            advance(BLOCK)
        if self._round == 1 and missing:
            self.duration.announce(self.duration.seconds / (missing * BLOCK) * self.images)

    def trained(self, candidate: Preprocessing, blocks: int) -> CandidateScore:
        """Return the inputs of batch norms that use the statistics of each block of images.

        So did the training. Only the classes that the network predicts need the recorded ones.
        """
        score = self._trained.setdefault(candidate, CandidateScore(candidate))
        for index in range(len(score.blocks), min(blocks, self.images // BLOCK)):
            pixels = self._load(_geometry(candidate), index * BLOCK, (index + 1) * BLOCK)
            score.blocks.append(self._run(candidate, pixels, index, training=True))
        return CandidateScore(candidate, score.blocks[:blocks])

    def augmented(self, candidate: Preprocessing, blocks: int) -> list[CandidateScore]:
        """Return `trained` on images that each usual augmentation changes, and in half batches.

        Borders of shifts are reflected, black, or of the colour that the normalisation makes 0.
        """
        back = -1 if candidate.channels is Channels.BGR else 1
        mean = np.array(candidate.mean[::back]) * (255 // candidate.value_range)
        scores = [CandidateScore(candidate) for _ in range(4 + len(_AUGMENTATIONS))]
        for index in range(blocks):
            pixels = self._load(_geometry(candidate), index * BLOCK, (index + 1) * BLOCK)
            seed = np.random.default_rng
            changed = [_shift(pixels, c, seed(index)) for c in (None, 0, mean.round())]
            changed += [_change(pixels, c, seed(index)) for c in _AUGMENTATIONS]
            for score, images in zip(scores, changed):
                score.blocks.append(self._run(candidate, images, index, training=True))
            for half in np.array_split(pixels, 2):
                scores[-1].blocks.append(self._run(candidate, half, index, training=True))
        return scores

    def cropped(self, candidate: Preprocessing, area: float, blocks: int) -> CandidateScore:
        """Return `trained` on random crops of at least this part of each picture's area."""
        score = CandidateScore(candidate)
        crop = Augmentation(flip=False, min_area=area)
        for start in range(0, min(blocks, self.images // BLOCK) * BLOCK, BLOCK):
            seed = np.random.default_rng(start)
            files = self.files[start : start + BLOCK]
            pixels = [augment(file, _geometry(candidate), crop, seed) for file in files]
            score.blocks.append(self._run(candidate, np.stack(pixels), 0, training=True))
        return score

    def _load(self, geometry: Preprocessing, start: int, stop: int) -> UInt8Array:
        pixels = list[UInt8Array]()
        while (position := start + len(pixels)) < min(stop, len(self.files)):
            path = self.files[position]
            try:
                pixels.append(resize_and_crop(self._decode(path), geometry))
            except ImageError as error:
                # The first candidate finds it, so that no other one was scored on it.
                self._skipped.add(path, reason_of(error, path))
                del self.files[position]
                if not self.files:
                    raise DataError(f"none of the images can be decoded: {error}") from error
        return np.stack(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8)

    def _decode(self, path: Path) -> Image.Image:
        if (picture := self._pictures.get(path)) is None:
            picture = read_rgb(path)
            if (size := 4 * picture.width * picture.height) <= self._room:  # Pillow pads to 4 bytes
                self._pictures[path] = picture
                self._room -= size
        return picture

    def _run(
        self, candidate: Preprocessing, pixels: UInt8Array, index: int, *, training: bool = False
    ) -> Block:
        digest = image_digest(pixels)
        key = (digest, training, *_graph_settings(candidate))
        if key not in self._known:
            classifier = Classifier(self._network, candidate)
            inputs, logits = record_norm_inputs(classifier, pixels, training=training)
            norms = tuple(inputs.values()) if training or index < OBSERVED_BLOCKS else ()
            self._known[key] = digest, logits.argmax(axis=1), norms
        return self._known[key]


def _crop(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Scale a square of 25 to 100 % of the area to the whole picture."""
    size = np.array(picture.size)
    start = generator.uniform(0, 1 - (share := generator.uniform(0.25, 1) ** 0.5), 2) * size
    box = (*start, *np.minimum(start + share * size, size))
    return picture.resize(picture.size, Image.Resampling.BILINEAR, box=box)


# The strengths are usual ones. They hardly matter, because only directions are used.
_AUGMENTATIONS: tuple[Change, ...] = (
    lambda picture, _: ImageOps.mirror(picture),
    _crop,
    lambda picture, random: ImageEnhance.Brightness(picture).enhance(random.uniform(0.6, 1.4)),
    lambda picture, random: ImageEnhance.Contrast(picture).enhance(random.uniform(0.6, 1.4)),
    lambda picture, random: ImageEnhance.Color(picture).enhance(random.uniform(0.6, 1.4)),
    lambda picture, random: picture.rotate(random.uniform(-10, 10), Image.Resampling.BILINEAR),
)


def _change(pixels: UInt8Array, change: Change, generator: np.random.Generator) -> UInt8Array:
    return np.stack([np.asarray(change(Image.fromarray(p), generator)) for p in pixels])


def _shift(
    pixels: UInt8Array, colour: float | FloatArray | None, generator: np.random.Generator
) -> UInt8Array:
    """Shift each image by up to an eighth of its side, as is usual for CIFAR-10 (4 of 32)."""
    count, height, width, _ = pixels.shape
    margin = max(1, min(height, width) // 8)
    border = [(0, 0), (margin, margin), (margin, margin), (0, 0)]
    padded = np.pad(pixels, border, mode="reflect")
    if colour is not None:
        inside = padded[:, margin:-margin, margin:-margin].copy()
        padded[:] = colour
        padded[:, margin:-margin, margin:-margin] = inside
    corners = generator.integers(0, 2 * margin + 1, (count, 2))
    return np.stack([p[y : y + height, x : x + width] for p, (y, x) in zip(padded, corners)])


def _geometry(candidate: Preprocessing) -> Preprocessing:
    """Return the candidate with the default settings of the graph, which do not change pixels."""
    plain = Preprocessing(image_size=candidate.image_size)
    names = ("channels", "value_range", "mean", "std")
    return replace(candidate, **{name: getattr(plain, name) for name in names})


def _graph_settings(candidate: Preprocessing) -> tuple[object, ...]:
    return candidate.channels, candidate.value_range, candidate.mean, candidate.std
