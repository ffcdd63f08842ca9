"""The benchmark of decoding, in small: it counts what changes, and asks a real bundle."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks import decoding
from resdeploy.bundle.bundle import Bundle
from tests.resdeploy.images.test_preprocessing import photograph


def test_files_are_compared_and_the_answers_too(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for number, size in enumerate([(400, 300), (30, 30)]):
        photograph(*size).save(tmp_path / f"{number}.jpg", quality=90)
    (tmp_path / "notes.txt").touch()
    arguments = [tmp_path, "--bundle", tiny_bundle.path, "--output", tmp_path / "out.json"]
    done = CliRunner().invoke(decoding.main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out.json").read_bytes())
    assert [row["changed"] for row in found["changes"]] == [1, 1, 0, 0]
    assert 0 < found["changes"][0]["worst"] < 1
    assert found["answers"]["pictures"] == 2
    big = found["times"][-1]
    # Which is shorter, only a machine that does nothing else can say.
    assert min(big["reduced_ms"], big["whole_ms"]) > 0
    assert "of 2 pictures the same class" in done.output
