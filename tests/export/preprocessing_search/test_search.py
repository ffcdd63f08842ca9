"""The search finds the pre-processing of rewritten networks, or says that it is undecided.

The first convolution of a fitted network is rewritten, so that another pre-processing gives exactly
the same logits as before.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from resdeploy.cli import main
from resdeploy.cli.preprocess import search_text
from resdeploy.errors import DataError
from resdeploy.export.preprocessing_search import candidates, scoring
from resdeploy.export.preprocessing_search.decision import measure_moments
from resdeploy.export.preprocessing_search.scoring import CandidateScorer
from resdeploy.export.preprocessing_search.search import find_preprocessing
from resdeploy.images.decode import read_rgb
from resdeploy.images.preprocessing import Channels, CropOffset, Preprocessing
from resdeploy.images.preprocessing_choice import resize_for
from resdeploy.images.preprocessing_files import read_preprocessing_file
from resdeploy.images.preprocessing_settings import settings_of
from resdeploy.json_documents import jsonable
from resdeploy.progress import Advance, silent
from resdeploy.result_files.preprocessing_search import PreprocessingSearch
from resdeploy.statistics import Verdict
from resdeploy.train.checkpoint.load import Checkpoint
from resdeploy.train.data.augment import Augmentation, augment
from tests.results import read_document
from tests.samples import (
    CLASSES,
    COLOURS,
    SIZE,
    TINY,
    fit_network,
    make_classifier,
    rename_folders,
)

NARROW = replace(TINY, width=8)
STANDARD = Preprocessing(image_size=SIZE, resize=SIZE)
HALF = replace(STANDARD, mean=(0.5,) * 3, std=(0.5,) * 3)
CAFFE = replace(
    STANDARD,
    channels=Channels.BGR,
    value_range=255,
    mean=(103.939, 116.779, 123.68),
    std=(1.0,) * 3,
)
PLANTED = {"half": HALF, "caffe": CAFFE}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures whose class only their border shows, so that a crop matters."""
    folder = tmp_path_factory.mktemp("search") / "data"
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(32):
            pixels = np.full((SIZE, SIZE, 3), 128.0)
            ring = np.ones((SIZE, SIZE), bool)
            ring[2:-2, 2:-2] = False
            pixels[ring] = colour
            pixels += generator.normal(0, 30, pixels.shape)
            picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            picture.save(folder / name / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _few_crops() -> Iterator[None]:
    """Leave out the crops between, which give the same answers on these pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "FRACTIONS", (1.0, 0.875))
        yield


@pytest.fixture(scope="module")
def state(data: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a network whose pre-processing is `STANDARD`."""
    return fitted(data)


def fitted(data: Path, min_area: float = 1.0) -> dict[str, torch.Tensor]:
    paths = sorted(data.rglob("*.png"))
    crop, generator = Augmentation(flip=False, min_area=min_area), np.random.default_rng(0)
    images = np.stack([augment(path, STANDARD, crop, generator) for path in paths])
    labels = [CLASSES.index(path.parent.name) for path in paths]
    return fit_network(make_classifier(NARROW).network, images, labels).state_dict()


def planted(state: dict[str, torch.Tensor], right: Preprocessing) -> Checkpoint:
    """Return a network that computes with `right` what `state` computes with `STANDARD`."""

    def affine(settings: Preprocessing) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (torch.tensor(x, dtype=torch.float64) for x in (settings.mean, settings.std))
        return mean * (255 // settings.value_range), std * (255 // settings.value_range)

    weight = state["conv1.weight"].double()
    (old_mean, old_std), (mean, std) = affine(STANDARD), affine(right)
    if right.channels is Channels.BGR:
        mean, std = mean.flip(0), std.flip(0)
    # The padding is of zeros after the normalisation, so that the edges differ a little.
    shift = (weight * ((mean - old_mean) / old_std).view(1, 3, 1, 1)).sum((1, 2, 3))
    weight = weight * (std / old_std).view(1, 3, 1, 1)
    changed = {
        "conv1.weight": (weight.flip(1) if right.channels is Channels.BGR else weight).float(),
        "bn1.running_mean": (state["bn1.running_mean"].double() - shift).float(),
    }
    return Checkpoint(
        path=Path("planted.pth"), sha256="", architecture=NARROW, state={**state, **changed}
    )


def search(checkpoint: Checkpoint, data: Path, images: int = 64) -> PreprocessingSearch:
    return find_preprocessing(checkpoint, CLASSES, data, sizes=(SIZE,), images=images)


@pytest.fixture(scope="module")
def found(state: dict[str, torch.Tensor], data: Path) -> dict[str, PreprocessingSearch]:
    return {name: search(planted(state, right), data) for name, right in PLANTED.items()}


def test_every_phase_has_its_round_and_the_right_total(
    state: dict[str, torch.Tensor], data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    phases = list[tuple[str, int]]()

    @contextmanager
    def record(what: str, total: int) -> Iterator[Advance]:
        counts = list[int]()
        yield counts.append
        phases.append((what, total))
        assert sum(counts) <= total
        assert sum(counts) == total or "comparing" in what

    caplog.set_level(logging.INFO, "resdeploy")
    find_preprocessing(
        planted(state, HALF), CLASSES, data, sizes=(SIZE,), images=96, progress=record
    )
    assert "on 96 images each at most" in caplog.text
    assert re.search(r"the search usually takes \d+ (s|min) to \d+ (s|min) here", caplog.text)
    rounds = [what for what, _ in phases if "comparing" not in what]
    assert len(rounds) > 2
    for number, what in enumerate(rounds, start=1):
        known = rf"about \d+ % of the search, round {number}, \d+ candidates? on (64|96) images"
        assert re.fullmatch(known, what)
    shares = [int(what.split()[1]) for what, _ in phases]
    assert shares[0] == 0
    assert shares[-1] == 99  # the last comparison
    assert any(re.search(r"round \d+, comparing the batch norms of", what) for what, _ in phases)


def test_a_picture_is_decoded_once_if_it_can_be_kept(
    state: dict[str, torch.Tensor], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = list[Path]()

    def read(path: Path) -> Image.Image:
        decoded.append(path)
        return read_rgb(path)

    monkeypatch.setattr(scoring, "read_rgb", read)
    monkeypatch.setattr(scoring, "KEPT_BYTES", 4 * SIZE * SIZE * 40)  # room for 40 of 64
    scorer = CandidateScorer(
        planted(state, HALF).network(), sorted(data.rglob("*.png")), 64, silent
    )
    scorer.extend([HALF, replace(HALF, resize=40), replace(HALF, resize=48)], 64)
    assert len(decoded) == 40 + 3 * 24


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_pre_processing_is_found(
    found: dict[str, PreprocessingSearch], name: str
) -> None:
    assert found[name].preprocessing == PLANTED[name]
    assert found[name].verdict is Verdict.PASS


def test_labels_alone_decide_if_no_batch_norm_has_statistics(
    state: dict[str, torch.Tensor], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resdeploy.export.preprocessing_search.norm_comparison.ENOUGH_BLOCKS", 2)
    checkpoint = planted(state, HALF)
    known, changed = checkpoint.state, dict(checkpoint.state)
    for name in [name.removesuffix(".running_var") for name in known if "running_var" in name]:
        # The norm computes the same, but with the statistics of a norm that was never trained.
        scale = known[f"{name}.weight"] / (known[f"{name}.running_var"] + 1e-5).sqrt()
        changed[f"{name}.bias"] = known[f"{name}.bias"] - known[f"{name}.running_mean"] * scale
        changed[f"{name}.weight"] = scale * (1 + 1e-5) ** 0.5
        changed[f"{name}.running_mean"] = torch.zeros_like(scale)
        changed[f"{name}.running_var"] = torch.ones_like(scale)
    result = search(replace(checkpoint, state=changed), data, images=96)
    assert result.candidates[0].preprocessing.mean == HALF.mean


def test_random_crops_leave_the_crop_undecided(data: Path) -> None:
    result = search(planted(fitted(data, 0.3), STANDARD), data, images=96)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.random_crops
    assert STANDARD in [row.preprocessing for row in result.left]
    assert "random crops" in search_text(result)


def test_geometries_with_the_same_pixels_are_named(found: dict[str, PreprocessingSearch]) -> None:
    # The pictures have the size of the input, so that they are neither scaled nor cropped.
    same = found["half"].same_pixels
    assert "0.5/0.5 rgb, 32 px, squash, bilinear" in same
    assert "0.5/0.5 rgb, 32 px, shorter 1, bicubic" in same
    assert not any("0.875" in name for name in same)


def test_the_result_has_the_documented_schema(found: dict[str, PreprocessingSearch]) -> None:
    for result in found.values():
        document = jsonable(result) | {"warnings": []}
        assert read_document(json.dumps(document)) == document


def test_all_candidates_are_compared_with_the_best(found: dict[str, PreprocessingSearch]) -> None:
    best, *others = found["half"].candidates
    assert best.excluded_by is None
    assert best.divergence is not None
    assert best.top1 is not None
    assert len(others) > 14  # every normalisation, and a crop
    for other in others:
        assert other.excluded_by in ("top-1", "batch norms")
        assert other.difference_interval is not None
        low, high = other.difference_interval
        assert low <= (other.difference or 0) <= high


def test_batch_norms_find_it_without_labels(
    state: dict[str, torch.Tensor], data: Path, tmp_path: Path
) -> None:
    for path in data.rglob("*.png"):
        shutil.copy(path, tmp_path / f"{path.parent.name}-{path.name}")
    result = search(planted(state, HALF), tmp_path, images=96)
    assert not result.labelled
    assert result.candidates[0].name == "0.5/0.5 rgb, 32 px, shorter 1, bilinear"
    assert result.candidates[0].top1 is None
    excluded = {row.name for row in result.candidates if row.excluded_by}
    for name in ("ImageNet", "0..1", "0..255", "Caffe"):
        assert f"{name} rgb, 32 px, shorter 1, bilinear" in excluded


@pytest.fixture(scope="module")
def grey(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    """Return grey pictures, on which RGB and BGR are the same, with a network for them."""
    folder = tmp_path_factory.mktemp("grey")
    for path in data.rglob("*.png"):
        (folder / path.parent.name).mkdir(exist_ok=True)
        picture = Image.open(path).getchannel(0)  # the red channel differs between the classes
        picture.save(folder / path.parent.name / path.name)
    return folder, planted(fitted(folder), HALF)


@pytest.fixture(scope="module")
def undecided(grey: tuple[Path, Checkpoint]) -> PreprocessingSearch:
    return search(grey[1], grey[0])


def test_grey_pictures_do_not_tell_rgb_from_bgr(undecided: PreprocessingSearch) -> None:
    result = undecided
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.preprocessing is None
    names = {row.name.split(",")[0] for row in result.left}
    assert {"0.5/0.5 rgb", "0.5/0.5 bgr"} <= names
    assert result.images_to_decide is None
    # Both give the same answers, and the text says so.
    assert result.same_predictions == result.images
    text = search_text(result)
    assert "they predict the same class for 64 of 64, so that any of them may be used" in text
    assert "would decide" not in text
    assert "verdict: undecided: channels (bgr or rgb); all else is found: 0.5/0.5, 32 px" in text
    assert "options of export for the most accurate of these candidates: --mean" in text


def test_what_is_left_is_said_by_its_settings(undecided: PreprocessingSearch) -> None:
    """However many candidates are left, the text has one line for what is open."""
    one = undecided.candidates[0]
    sizes, fractions = (24, 28, 32, 40), (1.0, 0.9, 0.875)
    rows = [
        replace(
            one, preprocessing=replace(HALF, image_size=size, resize=resize_for(size, fraction))
        )
        for size in sizes
        for fraction in fractions
    ]
    text = search_text(replace(undecided, candidates=tuple(rows * 20)))
    assert (
        "verdict: undecided: size (24 px, 28 px, 32 px or 40 px) and crop (shorter 0.875, shorter "
        "0.9 or shorter 1); all else is found: 0.5/0.5, rgb, bilinear\n240 candidates are left"
    ) in text
    assert "225 other candidates not shown; --json lists all" in text
    assert len(text.splitlines()) < 25
    assert max(map(len, text.splitlines())) < 300


def test_candidates_with_other_answers_are_not_equally_good(
    undecided: PreprocessingSearch,
) -> None:
    result = undecided
    other = replace(result, same_predictions=result.images // 2, images=5000)
    assert "may be used" not in search_text(other)
    assert "more images may not help" in search_text(other)
    assert "about 700 images would decide" in search_text(replace(other, images_to_decide=700))


def test_each_augmentation_moves_the_moments_in_its_own_direction(
    state: dict[str, torch.Tensor], data: Path
) -> None:
    files = sorted(data.rglob("*.png"))
    scorer = CandidateScorer(planted(state, HALF).network(), files, 64, silent)
    start = measure_moments(scorer.trained(HALF, 2)).centre
    moved = torch.stack([measure_moments(s).centre - start for s in scorer.augmented(HALF, 2)])
    # Three shifts, a mirror image, a random crop, three of the colours, rotation, and half batches.
    assert len(moved) == 10
    assert int(torch.linalg.matrix_rank(moved / moved.norm(dim=1, keepdim=True), rtol=0.01)) == 10
    again = scorer.augmented(HALF, 2)
    assert [b[0] for s in again for b in s.blocks] == [
        b[0] for s in scorer.augmented(HALF, 2) for b in s.blocks
    ]


def save(checkpoint: Checkpoint, folder: Path) -> list[str]:
    """Write weights and labels; return the arguments of commands that read them."""
    torch.save(checkpoint.state, folder / "net.pth")
    (folder / "labels.txt").write_text("\n".join(CLASSES))
    size = ["--image-size", str(SIZE)]
    return [str(folder / "net.pth"), "--labels", str(folder / "labels.txt"), *size]


def test_the_command_writes_what_export_reads(
    state: dict[str, torch.Tensor], data: Path, tmp_path: Path
) -> None:
    arguments = save(planted(state, HALF), tmp_path)
    file = tmp_path / "found.json"
    options = ["--data", str(data), "--images", "64", "-o", str(file)]
    result = CliRunner().invoke(main, ["preprocess", *arguments, *options])
    assert result.exit_code == 0, result.output
    assert (
        "verdict: found, by top-1 accuracy and the batch norms on 64 images: 0.5/0.5 rgb"
        in result.stdout
    )
    assert "options of export: --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5" in result.stdout
    assert re.search(r"^the search took \d+ s$", result.stdout, re.MULTILINE)
    assert read_preprocessing_file(file) == settings_of(HALF)


def test_export_refuses_an_undecided_pre_processing(
    grey: tuple[Path, Checkpoint], tmp_path: Path
) -> None:
    folder, checkpoint = grey
    arguments = save(checkpoint, tmp_path)
    options = ["--preprocessing", "auto", "--data", str(folder), "-o", str(tmp_path / "x.bundle")]
    result = CliRunner().invoke(main, ["export", *arguments, *options])
    assert result.exit_code == 1
    text = " ".join(result.stderr.split())
    assert "the pre-processing is undecided: channels (bgr or rgb); 2 candidates are left" in text
    assert "with 0.5/0.5, 32 px, shorter 1, bilinear in common" in text
    assert re.search(r"they predict the same class for (\d+) of \1 images", text)
    assert not (tmp_path / "x.bundle").exists()


def test_wrong_labels_are_refused(
    state: dict[str, torch.Tensor], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="not in the order"):
        search(planted(state, HALF), rename_folders(data, tmp_path / "renamed"))


def mix(data: Path, folder: Path, names: tuple[str, ...]) -> Path:
    """Write folders with pictures of all classes, or one folder without sub-folders."""
    for index, path in enumerate(sorted(data.rglob("*.png")) * 4):
        place = folder / names[index % len(names)] if names else folder
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / f"{index}.png")
    return folder


def without_statistics(checkpoint: Checkpoint) -> Checkpoint:
    initial = {"running_mean": 0.0, "running_var": 1.0}
    state = {
        name: torch.full_like(value, initial[end])
        if (end := name.rpartition(".")[2]) in initial
        else value
        for name, value in checkpoint.state.items()
    }
    return replace(checkpoint, state=state)


@pytest.mark.parametrize("has_statistics", [True, False])
def test_the_search_stops_if_accuracy_is_at_chance(
    state: dict[str, torch.Tensor], data: Path, tmp_path: Path, has_statistics: bool
) -> None:
    phases = list[str]()

    @contextmanager
    def record(what: str, total: int) -> Iterator[Advance]:
        phases.append(what)
        yield lambda done: None

    checkpoint = planted(state, HALF)
    if not has_statistics:
        checkpoint = without_statistics(checkpoint)
    folder = mix(data, tmp_path / "mixed", CLASSES)
    with pytest.raises(DataError, match="accuracy cannot decide about the pre-processing") as found:
        find_preprocessing(checkpoint, CLASSES, folder, sizes=(SIZE,), progress=record)
    assert "none of 14 candidates of 32 pixels is better than chance" in str(found.value)
    hint = found.value.hint or ""
    assert "--labels FILE" in hint
    assert ("which the batch norms judge" in hint) is has_statistics
    assert ("the batch norms have no statistics" in hint) is not has_statistics
    assert not any("round 5" in what for what in phases)  # no neighbours


def test_a_search_without_statistics_stops_if_the_images_are_too_few(
    state: dict[str, torch.Tensor], data: Path, tmp_path: Path
) -> None:
    checkpoint = without_statistics(planted(state, HALF))
    with pytest.raises(DataError, match="or the images are too few: none of 14 candidates"):
        search(checkpoint, mix(data, tmp_path / "mixed", CLASSES), images=64)


def test_later_sizes_are_left_on_the_first_look(
    state: dict[str, torch.Tensor],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resdeploy.export.preprocessing_search.search.FIRST_LOOK", 128)
    monkeypatch.setattr("resdeploy.label_check.USELESS_CONFIDENCE", 0.5)
    phases = list[str]()

    @contextmanager
    def record(what: str, total: int) -> Iterator[Advance]:
        phases.append(what)
        yield lambda done: None

    folder = mix(data, tmp_path / "mixed", CLASSES)
    with pytest.raises(DataError, match="of 32, 24 pixels is better than chance"):
        find_preprocessing(planted(state, HALF), CLASSES, folder, sizes=(SIZE, 24), progress=record)
    rounds = [what.rpartition(" candidates ")[2] for what in phases if "comparing" not in what]
    assert rounds == ["on 128 images", "on 256 images", "on 128 images"]


def test_nothing_can_decide_without_labels_and_statistics(
    state: dict[str, torch.Tensor], data: Path, tmp_path: Path
) -> None:
    checkpoint = without_statistics(planted(state, HALF))
    with pytest.raises(DataError, match="nothing can decide about the pre-processing") as found:
        search(checkpoint, mix(data, tmp_path / "flat", ()))
    assert "state the settings of the weights' author" in (found.value.hint or "")


def test_pictures_that_cannot_be_decoded_are_skipped(
    state: dict[str, torch.Tensor], data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    for path in sorted((tmp_path / "data" / "red").iterdir())[:8]:
        path.write_bytes(b"no picture")
    checkpoint = replace(planted(state, HALF), scheme="Hugging Face")
    result = search(checkpoint, tmp_path / "data", images=96)
    assert {row.images for row in result.left} == {88}
    # The candidates have the crop offset that an export of this checkpoint takes.
    assert result.candidates[0].preprocessing == replace(HALF, crop_offset=CropOffset.DOWN)
