"""Scorings that are stopped and resumed: each row exactly once."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import write_manifest
from resdeploy.errors import DataError, OutputError
from resdeploy.file_locks import release_lock, take_lock
from resdeploy.runtime.scoring import score
from resdeploy.runtime.scoring.result_files import TableFormat
from resdeploy.runtime.scoring.score import ScoringOptions, score_sources
from resdeploy.runtime.scoring.scorer import ScorerOptions
from resdeploy.runtime.scoring.sources import list_parts
from resdeploy.runtime.scoring.storage import OutputFolder
from resdeploy.runtime.scoring.table_source import ColumnNames
from tests.runtime.scoring.helpers import result_rows

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("colours")

OPTIONS = ScoringOptions(shard=5)
RESUME = dataclasses.replace(OPTIONS, resume=True)


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """Return a copy of the bundle that a test may change."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "b.bundle"))


@pytest.fixture
def done(bundle: Path, photos: Path) -> dict[str, bytes]:
    """Return the files of a complete result in the folder `out`, by name."""
    score_sources(bundle, ["photos"], "out", OPTIONS)
    return contents()


def contents() -> dict[str, bytes]:
    """Return the files in the folder `out`, by name, without the time of an access."""
    paths = (path for path in Path("out").rglob("*") if path.is_file())
    return {str(path.relative_to("out")): path.read_bytes() for path in paths}


def test_a_result_has_a_file_and_a_record_for_each_part(done: dict[str, bytes]) -> None:
    assert sorted(done) == [
        "_job.json",
        *(f"_journal/{n:06}.json" for n in range(5)),
        *(f"part-{n:06}.parquet" for n in range(5)),
    ]
    rows = result_rows(Path("out"))
    expected = sorted(str(path) for path in Path("photos").rglob("*.png"))
    assert [row["path"] for row in rows] == expected
    assert [row["label"][0] for row in rows] == [Path(path).parent.name for path in expected]
    assert json.loads(done["_journal/000004.json"])["rows"] == 4


def test_the_folder_is_a_data_set_of_arrow(done: dict[str, bytes]) -> None:
    from pyarrow import dataset

    assert dataset.dataset("out", format="parquet").count_rows() == 24


@pytest.mark.parametrize(
    "lost",
    [
        ("part-000002.parquet",), ("_journal/000002.json",),
        ("part-000000.parquet", "_journal/000000.json", "_journal/000004.json"),
        tuple(f"_journal/{n:06}.json" for n in range(5)),
    ],
)  # fmt: skip
def test_what_is_missing_is_scored_again(
    lost: tuple[str, ...], done: dict[str, bytes], bundle: Path
) -> None:
    for name in lost:
        Path("out", name).unlink()
    report = score_sources(bundle, ["photos"], "out", RESUME)
    assert contents() == done
    assert report.resumed_parts == 5 - len({re.findall("[0-9]{6}", name)[0] for name in lost})
    assert (report.rows, report.failed, report.parts) == (24, 0, 5)
    assert report.accuracy is not None
    assert (report.accuracy.rows, report.accuracy.percent) == (24, 100)


def test_a_part_that_was_cut_off_is_scored_again(done: dict[str, bytes], bundle: Path) -> None:
    part = Path("out/part-000001.parquet")
    part.write_bytes(part.read_bytes()[:-1])
    assert score_sources(bundle, ["photos"], "out", RESUME).resumed_parts == 4
    assert contents() == done


def test_a_complete_result_is_not_scored_again(done: dict[str, bytes], bundle: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in Path("out").glob("part-*")}
    report = score_sources(bundle, ["photos"], "out", RESUME)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert (report.resumed_parts, report.rows_per_second) == (5, None)
    assert report.rows == 24


@pytest.mark.parametrize("moment", range(6))
def test_a_run_that_was_killed_between_two_files(
    moment: int, bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop before the file or the record with this number is written."""
    write, written = OutputFolder.write, 0

    def stopping(folder: Any, file: str, data: bytes) -> None:
        nonlocal written
        if written == moment:
            raise KeyboardInterrupt
        written += 1
        write(folder, file, data)

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            score_sources(bundle, ["photos"], "out", OPTIONS)
    report = score_sources(bundle, ["photos"], "out", RESUME)
    assert report.resumed_parts == max(moment - 1, 0) // 2
    paths = [row["path"] for row in result_rows(Path("out"))]
    assert paths == sorted(str(path) for path in Path("photos").rglob("*.png"))


def test_temporary_files_of_a_killed_run_are_removed(bundle: Path, photos: Path) -> None:
    Path("out").mkdir()
    Path("out/._job.json.tmp-0123456789abcdef").write_bytes(b"half")
    assert score_sources(bundle, ["photos"], "out", RESUME).rows == 24
    before = contents()
    for name in ("part-000001.parquet", "_journal/000001.json"):
        path = Path("out", name)
        path.rename(path.with_name(f".{path.name}.tmp-0123456789abcdef"))
    assert score_sources(bundle, ["photos"], "out", RESUME).resumed_parts == 4
    assert contents() == before


def change_bundle(bundle: Path) -> None:
    from resdeploy.bundle.bundle import open_bundle

    manifest = open_bundle(bundle).manifest
    write_manifest(bundle, dataclasses.replace(manifest, model={**manifest.model, "name": "other"}))


def touch(bundle: Path) -> None:
    os.utime("photos/red/004.png", ns=(1, 1))


def add(bundle: Path) -> None:
    shutil.copy("photos/red/004.png", "photos/red/1.png")


def remove(bundle: Path) -> None:
    Path("photos/green/000.png").unlink()


def rename(bundle: Path) -> None:
    Path("photos/green/000.png").rename("photos/green/0000.png")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_bundle, "the bundle has changed"), (touch, "the sources have changed"),
        (add, "the sources have changed"), (remove, "the sources have changed"),
        (rename, "the sources have changed"),
    ],
)  # fmt: skip
def test_a_changed_bundle_or_source_is_refused(
    change: Callable[[Path], None], reason: str, done: dict[str, bytes], bundle: Path
) -> None:
    Path("out/_journal/000002.json").unlink()
    before = contents()
    change(bundle)
    with pytest.raises(OutputError) as raised:
        score_sources(bundle, ["photos"], "out", RESUME)
    assert str(raised.value) == f"out cannot be resumed: {reason}"
    assert contents() == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shard": 6}, "--shard was 5 and is 6"),
        ({"shard": 20}, "--shard was 5 and is 20"),
        ({"format": TableFormat.CSV}, "--format was parquet and is csv"),
        ({"scorer": ScorerOptions(top=2)}, "--top was 5 and is 2"),
        ({"scorer": ScorerOptions(logits=True)}, "--logits was False and is True"),
        ({"scorer": ScorerOptions(batch=3)}, "--batch was None and is 3"),
        ({"scorer": ScorerOptions(backend="colours")}, "--backend was auto and is colours"),
        ({"scorer": ScorerOptions(precision="fp32")}, "--precision was auto and is fp32"),
    ],
)
def test_a_changed_option_is_refused(
    changes: dict[str, Any], reason: str, done: dict[str, bytes], bundle: Path
) -> None:
    with pytest.raises(OutputError) as raised:
        score_sources(bundle, ["photos"], "out", dataclasses.replace(RESUME, **changes))
    assert str(raised.value) == f"out cannot be resumed: {reason}"
    assert contents() == done


def test_other_columns_of_a_table_are_refused(bundle: Path, photos: Path) -> None:
    Path("t.csv").write_text("path,label,class\nphotos/red/000.png,red,blue\n")
    score_sources(bundle, ["t.csv"], "out")
    with pytest.raises(OutputError, match="cannot be resumed"):
        columns = ColumnNames(label="class")
        score_sources(bundle, ["t.csv"], "out", ScoringOptions(columns=columns, resume=True))


def test_without_resume_a_result_is_kept(done: dict[str, bytes], bundle: Path) -> None:
    with pytest.raises(OutputError, match="has the result of a scoring already") as raised:
        score_sources(bundle, ["photos"], "out", OPTIONS)
    assert "--resume" in str(raised.value.hint)
    assert contents() == done


@pytest.mark.parametrize("options", [OPTIONS, RESUME])
@pytest.mark.parametrize("folder", ["photos", "photos/red"])
def test_a_folder_with_other_files_or_folders_is_refused(
    options: ScoringOptions, folder: str, bundle: Path, photos: Path
) -> None:
    before = len(list(Path("photos").rglob("*")))
    with pytest.raises(OutputError, match=rf"{folder} has files, but no _job\.json"):
        score_sources(bundle, ["photos"], folder, options)
    assert len(list(Path("photos").rglob("*"))) == before


@pytest.mark.parametrize("name", ["_job.json", "_journal/000001.json"])
@pytest.mark.parametrize("text", ["", "{}", '{"schema": "resdeploy.scoring-job/9"}', "[" * 9999])
def test_a_damaged_record_is_an_error(
    name: str, text: str, done: dict[str, bytes], bundle: Path
) -> None:
    Path("out", name).write_text(text)
    with pytest.raises(OutputError, match=rf"out/{name} is damaged") as raised:
        score_sources(bundle, ["photos"], "out", RESUME)
    assert raised.value.hint


def test_two_runs_do_not_write_one_result(bundle: Path, photos: Path) -> None:
    Path("out").mkdir()
    lock = take_lock(Path("out"))
    try:
        with pytest.raises(OutputError, match="another run scores into out"):
            score_sources(bundle, ["photos"], "out", OPTIONS)
    finally:
        release_lock(lock)
    assert contents() == {}
    score_sources(bundle, ["photos"], "out", OPTIONS)
    release_lock(take_lock(Path("out")))  # the lock of a run ends with it


def test_a_source_that_changes_while_it_is_scored(
    bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def changing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            shutil.copy("photos/red/004.png", "photos/red/1.png")
        return list_parts(*arguments)

    monkeypatch.setattr(score, "list_parts", changing)
    with pytest.raises(DataError, match="the sources have changed while they were scored"):
        score_sources(bundle, ["photos"], "out", OPTIONS)
    with pytest.raises(OutputError, match="the sources have changed"):
        score_sources(bundle, ["photos"], "out", RESUME)


def test_an_output_that_cannot_be_a_folder(bundle: Path, photos: Path) -> None:
    Path("file").touch()
    for name in ("file", "file/out"):
        with pytest.raises(OutputError, match=f"{name} cannot be created"):
            score_sources(bundle, ["photos"], name, OPTIONS)


def test_a_result_in_a_store_is_resumed(
    bundle: Path, photos: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    output = f"{store}/results/may"
    report = score_sources(bundle, ["photos"], output, OPTIONS)
    assert (report.parts, report.rows) == (5, 24)
    files = {name: memory.cat_file(name) for name in memory.find("/bucket")}
    assert sorted(files)[:2] == [
        "/bucket/results/may/_job.json", "/bucket/results/may/_journal/000000.json",
    ]  # fmt: skip
    memory.rm_file("/bucket/results/may/part-000003.parquet")
    memory.rm_file("/bucket/results/may/_journal/000001.json")
    with pytest.raises(OutputError, match="has the result of a scoring already"):
        score_sources(bundle, ["photos"], output, OPTIONS)
    assert score_sources(bundle, ["photos"], output, RESUME).resumed_parts == 3
    assert {name: memory.cat_file(name) for name in memory.find("/bucket")} == files
