"""The command `resdeploy score`: its arguments, its text, its document and its page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import MANIFEST
from resdeploy.cli import main
from tests.results import read_document
from tests.runtime.scoring.helpers import result_rows

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("colours")


@pytest.fixture(autouse=True)
def _folder(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    """Put the bundle, and the pictures with two errors and a broken file, into this folder."""
    (tmp_path / "b.bundle").symlink_to(tiny_bundle.path)
    (photos / "blue" / "003.png").rename(photos / "red" / "blue.png")
    (photos / "blue" / "004.png").rename(photos / "green" / "blue.png")
    (photos / "red" / "000.png").write_bytes(b"broken")
    (photos / "red" / "notes.txt").touch()


def score(*arguments: object, code: int | None = None) -> Result:
    result = CliRunner().invoke(main, ["score", *map(str, arguments)])
    assert code is None or result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_text_of_a_result() -> None:
    result = score("b.bundle", "photos", "-o", "out", "--shard", 10, code=1)
    first, *lines = result.stdout.splitlines()
    assert first.startswith("23 rows of 24 classified by fp32 on colours in ")
    assert lines == [
        "result: 3 files in out",
        "1 file skipped: hidden, or no picture",
        "1 row could not be classified, with the reason in the column error; the first: "
        "photos/red/000.png",
        "top-1 accuracy 91.30 % (95 % interval 73.20 to 97.58 %) on 23 rows with a true class; it "
        "is too high if the network has learned some of these pictures",
        "  true class green, predicted class blue: 1 row",
        "  true class red, predicted class blue: 1 row",
    ]


def test_text_of_a_resumed_result_without_classes() -> None:
    for path in Path("photos/red").iterdir():
        if path.suffix == ".png" and path.stat().st_size > 10:
            shutil.copy(path, path.name)
    Path("t.csv").write_text("path\n" + "".join(f"{n:03}.png\n" for n in range(1, 8)))
    assert "top-1" not in score("b.bundle", "t.csv", "-o", "out", "--shard", 3, code=0).stdout
    Path("out/part-000001.parquet").unlink()
    result = score("b.bundle", "t.csv", "-o", "out", "--shard", 3, "--resume", code=0)
    assert result.stdout.splitlines()[1:] == [
        "result: 3 files in out", "an earlier run had completed 2 files of them",
    ]  # fmt: skip


def test_document_of_a_result() -> None:
    document = read_document(
        score("b.bundle", "photos", "-o", "out", "--format", "jsonl", "--json", code=1).stdout
    )
    assert document["schema"] == "resdeploy.scoring/1"
    assert (document["rows"], document["failed"], document["skipped"]) == (24, 1, 1)
    assert document["first_failed"] == "photos/red/000.png"
    assert document["engines"] == {"fp32 on colours": 23}  # without the row that failed
    assert document["accuracy"]["confusion"] == [
        [0, 0, 6], [1, 0, 1], [1, 1, 8], [2, 0, 1], [2, 2, 7],
    ]  # fmt: skip
    assert document["labels"] == ["blue", "green", "red"]
    assert len(result_rows(Path("out"))) == 24


@pytest.mark.parametrize("name", ["_job.json", "_journal/000000.json"])
def test_records_have_a_schema(name: str) -> None:
    score("b.bundle", "photos", "-o", "out", code=1)
    assert read_document(Path("out", name).read_text())["schema"].startswith("resdeploy.scoring-")


def test_page_of_a_result() -> None:
    pytest.importorskip("jinja2")
    score("b.bundle", "photos", "-o", "out", "--report", "r.html", code=1)
    page = Path("r.html").read_text().replace("\u00a0", " ")
    assert "23 rows of 24 classified by fp32 on colours" in page
    assert "Top-1 accuracy 91.30 %" in page
    assert "rows classified by" not in page  # the only engine has them all
    assert "1, because they are hidden or no pictures" in page
    assert "red/000.png" in page
    assert "confusion" in page.lower()
    refused = score("b.bundle", "photos", "-o", "out2", "--report", "r.html", code=1)
    assert "r.html exists already" in refused.stderr
    assert not Path("out2").exists()
    score("b.bundle", "photos", "-o", "out2", "--report", "r.html", "--force", code=1)


def test_text_document_and_page_have_the_warnings_of_the_graphs_that_ran() -> None:
    pytest.importorskip("jinja2")
    path = Path("b.bundle", MANIFEST)
    manifest = json.loads(path.read_text())
    Path("doubtful.bundle").mkdir()
    for file in Path("b.bundle").iterdir():
        Path("doubtful.bundle", file.name).symlink_to(file.resolve())
    manifest["warnings"] = [
        {"message": f"{name} is doubtful: it deviates", "hint": "verify it", "artifacts": artifacts}
        for name, artifacts in (("all", []), ("fp32", ["fp32"]), ("int8", ["int8"]))
    ]
    Path("doubtful.bundle", MANIFEST).unlink()
    Path("doubtful.bundle", MANIFEST).write_text(json.dumps(manifest))
    command = ("doubtful.bundle", "photos", "--report", "r.html", "--force", "-o")
    assert score(*command, "out", code=1).stdout.splitlines()[:3] == [
        "warning: all is doubtful: it deviates", "warning: fp32 is doubtful: it deviates",
        "  figures and remedies: doubtful.bundle/report.html",
    ]  # fmt: skip
    page = Path("r.html").read_text()
    assert "all is doubtful" in page
    assert "int8 is doubtful" not in page
    assert page.count("Remedy: verify it.") == 1
    document = read_document(score(*command, "out2", "--json", code=1).stdout)
    found = [warning["message"] for warning in document["warnings"]]
    assert found == ["all is doubtful: it deviates", "fp32 is doubtful: it deviates"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--workers", 2), "only --engine ray has actors: leave --workers out"),
        (("--worker-cpus", 2), "only --engine ray has actors: leave --worker-cpus out"),
        (("--ray-address", "auto"), "only --engine ray has actors: leave --ray-address out"),
        (("--engine", "ray", "--threads", 2), "an actor of Ray has as many threads as"),
        (("--force",), "--force replaces the page of --report, which is not given"),
        (("--shard", 0), "Invalid value for '--shard'"),
        (("--top", "some"), "Invalid value for '--top'"),
        (("--format", "xlsx"), "Invalid value for '--format'"),
        (("--engine", "spark"), "Invalid value for '--engine'"),
    ],
)
def test_wrong_options(arguments: tuple[object, ...], reason: str) -> None:
    result = score("b.bundle", "photos", "-o", "out", *arguments, code=2)
    assert reason in " ".join(result.stderr.split())
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("b.bundle", "none", "-o", "out"), "error: none cannot be read: No such file"),
        (("none", "photos", "-o", "out"), "error: none does not exist"),
        (("photos", "b.bundle", "-o", "out"), "hint: the bundle comes first: "),
        (("b.bundle", "odd://x/y", "-o", "out"), "error: odd://x/y cannot be used: Protocol not"),
        (("b.bundle", "photos", "-o", "odd://x"), "error: odd://x cannot be used: Protocol not"),
        (("b.bundle", "photos", "-o", "photos"), "error: photos has files, but no _job.json"),
        (("b.bundle", "photos", "-o", "out", "--on-error", "stop"), "error: stopped at the first"),
        (("b.bundle", "photos", "-o", "out", "--label-column", "x"), None),
    ],
)
def test_errors_have_one_line_and_a_hint(arguments: tuple[object, ...], reason: str | None) -> None:
    result = score(*arguments, code=1)
    if reason is not None:
        assert reason in result.stderr
        assert "hint: " in result.stderr


def test_a_job_without_sources() -> None:
    assert "Missing argument" in score("b.bundle", "-o", "out", code=2).stderr
    assert "Missing option" in score("b.bundle", "photos", code=2).stderr
