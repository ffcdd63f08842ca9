"""Scorings of folders, tar files and tables: predictions, errors, accuracy."""

from __future__ import annotations

import dataclasses
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resdeploy.bundle.bundle import Bundle
from resdeploy.errors import DataError, MissingDependencyError, OutputError
from resdeploy.progress import Advance
from resdeploy.runtime.file_predictions import FilePredictions, predict_files
from resdeploy.runtime.model import load
from resdeploy.runtime.scoring.engines import RayOptions
from resdeploy.runtime.scoring.result_files import TableFormat
from resdeploy.runtime.scoring.rows import PictureRow
from resdeploy.runtime.scoring.score import ScoringOptions, score_sources
from resdeploy.runtime.scoring.scorer import Scorer
from resdeploy.runtime.scoring.table_source import ColumnNames
from tests.runtime.scoring.helpers import (
    CPU,
    options,
    result_rows,
    write_parquet,
    write_tar,
)
from tests.samples import encoded

pytest.importorskip("pyarrow")


def test_predictions_are_those_of_predict(tiny_bundle: Bundle, photos: Path) -> None:
    files: list[FilePredictions] = []
    with load(tiny_bundle.path, "onnxruntime-cpu", threads=1) as model:
        predict_files(model, [photos], [files.append], top=3)
    report = score_sources(tiny_bundle.path, ["photos"], "out", options(top=3))
    rows = result_rows(Path("out"))
    assert [row["path"] for row in rows] == [
        f"photos/{file.path.relative_to(photos)}" for file in files
    ]
    for row, file in zip(rows, files):
        assert row["index"] == [found.index for found in file.predictions]
        assert row["label"] == [found.label for found in file.predictions]
        assert row["probability"] == [np.float32(found.probability) for found in file.predictions]
    assert report.engines == {f"{files[0].artifact} on {files[0].backend}": 24}


def test_logits_are_those_of_the_engine(tiny_bundle: Bundle, photos: Path) -> None:
    score_sources(tiny_bundle.path, ["photos/red"], "out", options(logits=True, top=1, batch=8))
    with load(tiny_bundle.path, "onnxruntime-cpu", threads=1) as model:
        inputs = np.stack([model.preprocess(path) for path in sorted(photos.glob("red/*"))])
        expected = model.run(inputs)
    assert [row["logits"] for row in result_rows(Path("out"))] == expected.tolist()


def test_all_sources_and_formats_have_the_same_answers(tiny_bundle: Bundle, photos: Path) -> None:
    paths = sorted(photos.rglob("*.png"))
    contents = [path.read_bytes() for path in paths]
    labels = [path.parent.name for path in paths]
    Path("t.csv").write_text("path\n" + "".join(f"{path}\n" for path in paths))
    write_tar(Path("t.tar"), {str(path.relative_to(photos)): path.read_bytes() for path in paths})
    columns = {"image": [{"bytes": content, "path": None} for content in contents], "label": labels}
    write_parquet(Path("t.parquet"), columns, group=10)
    answers = []
    for number, source in enumerate(["photos", "t.csv", "t.tar", "t.parquet", "photos"]):
        kind = TableFormat.PARQUET if number < 4 else TableFormat.JSONL
        job = options(shard=7, format=kind, logits=True)
        report = score_sources(tiny_bundle.path, [source], f"out{number}", job)
        rows = result_rows(Path(f"out{number}"))
        answers.append([(row["index"], row["probability"], row["logits"]) for row in rows])
        assert (report.accuracy is None) == (source == "t.csv")
        if report.accuracy is not None:
            assert [row["true_label"] for row in rows] == labels
    assert answers[0] == answers[1] == answers[2] == answers[3] == answers[4]


def test_accuracy_is_that_of_the_rows(tiny_bundle: Bundle, photos: Path, colours: None) -> None:
    (photos / "blue" / "003.png").rename(photos / "red" / "blue.png")
    (photos / "blue" / "004.png").rename(photos / "red" / "blue too.png")
    (photos / "blue" / "005.png").write_bytes(b"broken")
    report = score_sources(tiny_bundle.path, ["photos"], "out", ScoringOptions(shard=5))
    assert report.accuracy is not None
    assert (report.accuracy.rows, report.failed) == (23, 1)
    assert report.accuracy.percent == pytest.approx(100 * 21 / 23)
    assert report.accuracy.confusion == ((0, 0, 5), (1, 1, 8), (2, 0, 2), (2, 2, 8))
    assert report.labels == ("blue", "green", "red")
    rows = result_rows(Path("out"))
    correct = sum(row["label"] is not None and row["label"][0] == row["true_label"] for row in rows)
    assert correct == 21


def test_classes_of_a_column(tiny_bundle: Bundle, photos: Path, colours: None) -> None:
    text = "path,label,shelf\nphotos/red/000.png,Red,2\nphotos/blue/000.png,,1\n"
    Path("t.csv").write_text(text)
    by_label = score_sources(tiny_bundle.path, ["t.csv"], "by label").accuracy
    assert by_label is not None
    assert (by_label.rows, by_label.percent) == (1, 100)
    shelf = ScoringOptions(columns=ColumnNames(label="shelf"))
    by_number = score_sources(tiny_bundle.path, ["t.csv"], "by number", shelf).accuracy
    assert by_number is not None
    assert by_number.confusion == ((1, 0, 1), (2, 2, 1))

    Path("t.csv").write_text(text.replace("Red", "dog"))
    report = score_sources(tiny_bundle.path, ["t.csv"], "unknown")
    assert report.accuracy is None
    assert "true_label" not in result_rows(Path("unknown"))[0]
    named = ScoringOptions(columns=ColumnNames(label="label"))
    with pytest.raises(DataError, match="dog"):
        score_sources(tiny_bundle.path, ["t.csv"], "named", named)
    assert not Path("named").exists()


def broken_files(good: bytes, folder: Path) -> dict[str, Callable[[Path], object]]:
    """Return functions that write a file which cannot be classified, and the word in its reason."""
    huge = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    return {
        "empty": lambda path: path.write_bytes(b""),
        "complete": lambda path: path.write_bytes(good[: len(good) // 2]),
        "pixels": lambda path: path.write_bytes(huge),
        "HTML": lambda path: path.write_bytes(b"<!DOCTYPE html><p>404"),
        "LFS": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "No such file": lambda path: path.symlink_to(folder / "nowhere.png"),
        "links": lambda path: path.symlink_to(path),
        "regular": lambda path: os.mkfifo(path),
        "JPEG": lambda path: path.write_bytes(encoded(Image.new("RGB", (9, 9)), "GIF")),
        "cannot be": lambda path: path.write_bytes(random.Random(path.name).randbytes(500)),
    }


def test_broken_files_are_rows_and_change_no_other(
    tiny_bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    good = [path.read_bytes() for path in sorted(photos.rglob("*.png"))]
    kinds = list(broken_files(good[0], tmp_path).items())
    clean, mixed = tmp_path / "clean", tmp_path / "mixed"
    clean.mkdir()
    mixed.mkdir()
    words: dict[str, str] = {}
    for number in range(300):
        name = f"{number:03}.png"
        if number % 5 == 2:
            words[name], write = kinds[number // 5 % len(kinds)]
            write(mixed / name)
        else:
            (mixed / name).write_bytes(good[number % 24])
            (clean / name).write_bytes(good[number % 24])
    job = options(logits=True, shard=70)
    expected = score_sources(tiny_bundle.path, ["clean"], "out1", job)
    assert (expected.rows, expected.failed) == (240, 0)
    report = score_sources(tiny_bundle.path, ["mixed"], "out2", job)
    assert (report.rows, report.failed, report.first_failed) == (300, 60, "mixed/002.png")
    rows = {Path(row["path"]).name: row for row in result_rows(Path("out2"))}
    assert len(rows) == 300
    for name, word in words.items():
        assert word in rows[name]["error"], name
        assert rows[name]["label"] is rows[name]["logits"] is None
    for row in result_rows(Path("out1")):
        found = rows[Path(row["path"]).name]
        assert found["error"] is None
        assert [found[n] for n in ("logits", "index")] == [row[n] for n in ("logits", "index")]


def test_a_name_that_is_not_utf8(tiny_bundle: Bundle, photos: Path, colours: None) -> None:
    os.rename(photos / "red" / "000.png", os.fsencode(photos / "red") + b"/\xe9.png")
    for kind in TableFormat:
        out = kind.value
        report = score_sources(tiny_bundle.path, ["photos"], out, ScoringOptions(format=kind))
        assert report.failed == 0
        assert "photos/red/\\xe9.png" in [row["path"] for row in result_rows(Path(out))]


@pytest.fixture
def names(photos: Path) -> list[str]:
    """Return the paths of the pictures, which are those of the table `t.csv`, too."""
    paths = sorted(str(path) for path in photos.rglob("*.png"))
    Path("t.csv").write_text("path\n" + "".join(f"{path}\n" for path in paths))
    return paths


@pytest.mark.parametrize("source", ["t.csv", "photos"])
def test_stop_at_the_first_error_and_resume(
    source: str, tiny_bundle: Bundle, names: list[str], colours: None
) -> None:
    broken = Path(names[13])
    content = broken.read_bytes()
    broken.write_bytes(b"")
    job = ScoringOptions(shard=5, stop_on_error=True)
    with pytest.raises(DataError) as raised:
        score_sources(tiny_bundle.path, [source], "out", job)
    assert "green/005.png is empty" in str(raised.value)
    assert "--resume --on-error record" in str(raised.value.hint)
    assert len(result_rows(Path("out"))) == 10
    resume = dataclasses.replace(job, resume=True)
    with pytest.raises(DataError, match="stopped at the first picture"):
        score_sources(tiny_bundle.path, [source], "out", resume)
    if source == "photos":
        record = dataclasses.replace(resume, stop_on_error=False)
        report = score_sources(tiny_bundle.path, [source], "out", record)
        assert (report.resumed_parts, report.failed) == (2, 1)
    else:  # a table has the names of its pictures, and does not tell whether their files changed
        broken.write_bytes(content)
        report = score_sources(tiny_bundle.path, [source], "out", resume)
        assert (report.resumed_parts, report.failed) == (2, 0)
    assert [Path(row["path"]).name for row in result_rows(Path("out"))] == [
        Path(name).name for name in names
    ]


def test_a_folder_with_a_mended_file_is_another_source(
    tiny_bundle: Bundle, names: list[str], colours: None
) -> None:
    broken = Path(names[13])
    content = broken.read_bytes()
    broken.write_bytes(b"")
    job = ScoringOptions(shard=5, stop_on_error=True)
    with pytest.raises(DataError):
        score_sources(tiny_bundle.path, ["photos"], "out", job)
    broken.write_bytes(content)
    with pytest.raises(OutputError, match="the sources have changed"):
        resume = dataclasses.replace(job, resume=True)
        score_sources(tiny_bundle.path, ["photos"], "out", resume)


class Stages:
    """A progress that counts."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}
        """Total and finished items of each stage."""

    @contextmanager
    def __call__(self, what: str, total: int) -> Iterator[Advance]:
        counts = self.counts[what] = [total, 0]

        def advance(done: int) -> None:
            counts[1] += done

        yield advance


def test_stopping_does_not_wait_for_the_end_of_the_part(
    tiny_bundle: Bundle, names: list[str], colours: None
) -> None:
    Path("t.csv").write_text("path\nnone.png\n" + "".join(f"{name}\n" for name in names * 20))
    stages = Stages()
    with pytest.raises(DataError):
        job = ScoringOptions(stop_on_error=True)
        score_sources(tiny_bundle.path, ["t.csv"], "out", job, stages)
    assert stages.counts["score"][0] == 481
    assert stages.counts["score"][1] < 100


def test_progress_counts_the_rows_of_this_run(
    tiny_bundle: Bundle, photos: Path, colours: None
) -> None:
    stages = Stages()
    score_sources(tiny_bundle.path, ["photos"], "out", ScoringOptions(shard=5), stages)
    assert stages.counts == {"list": [0, 24], "score": [24, 24]}
    Path("out/_journal/000001.json").unlink()
    stages = Stages()
    job = ScoringOptions(shard=5, resume=True)
    score_sources(tiny_bundle.path, ["photos"], "out", job, stages)
    assert stages.counts == {"list": [0, 24], "score": [5, 5]}


def test_an_engine_is_chosen_once(tiny_bundle: Bundle, photos: Path) -> None:
    """A later run uses that of the first, although another one would be faster now."""
    score_sources(tiny_bundle.path, ["photos"], "out", options(shard=9))
    job = Path("out/_job.json")
    assert '"backend": "onnxruntime-cpu"' in job.read_text()
    precision = Scorer(tiny_bundle.path, CPU).model.artifact.precision.value
    assert f'"precision": "{precision}"' in job.read_text()


@pytest.mark.parametrize(("package", "changes"), [("pyarrow", {}), ("ray", {"ray": RayOptions()})])
def test_a_missing_package_is_an_error_before_anything_is_scored(
    package: str,
    changes: dict[str, Any],
    tiny_bundle: Bundle,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (package, f"{package}.parquet", f"{package}.data"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=f"this needs {package}"):
        score_sources(tiny_bundle.path, ["photos"], "out", ScoringOptions(**changes))
    assert not Path("out").exists()
    csv = ScoringOptions(format=TableFormat.CSV)
    assert score_sources(tiny_bundle.path, ["photos"], "csv", csv).rows == 24


def test_few_rows_are_read_ahead(tiny_bundle: Bundle, photos: Path, colours: None) -> None:
    taken = 0

    def rows() -> Any:
        nonlocal taken
        name = str(photos / "red" / "000.png")
        for row in repeat(PictureRow(path=name, place=name), 500):
            taken += 1
            yield row
            assert taken <= len(decoded) + 200

    decoded: list[str] = []
    scorer = Scorer(tiny_bundle.path)
    run = scorer.model.backend.run

    class Counting:
        name = "counting"

        def run(self, images: Any) -> Any:
            decoded.extend("x" * len(images))
            return run(images)

        def close(self) -> None:
            pass

    scorer.model.backend = Counting()
    scores = scorer.score(rows())
    assert len(scores.paths) == taken == len(decoded) == 500


def test_pictures_that_are_not_read_are_named_once(
    tiny_bundle: Bundle, photos: Path, colours: None, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "blue" / "old.tif").write_bytes(b"II*\0")
    report = score_sources(tiny_bundle.path, [str(photos)], "out")
    assert report.skipped == 1
    assert [r.getMessage() for r in caplog.records if "passed over" in r.getMessage()] == [
        f"{photos}: passed over 1 file (.tif 1); to use them, convert pictures to JPEG or PNG, and "
        "unpack archives"
    ]
