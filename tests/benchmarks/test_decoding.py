"""Tests of the decoding benchmark with two files and a small bundle."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks import decoding
from resdeploy.bundle.bundle import Bundle
from tests.resdeploy.images.test_loading import photograph


def test_compares_files_and_outputs(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for number, size in enumerate([(400, 300), (30, 30)]):
        photograph(*size).save(tmp_path / f"{number}.jpg", quality=90)
    (tmp_path / "notes.txt").touch()
    arguments = [tmp_path, "--bundle", tiny_bundle.path, "--output", tmp_path / "out.json"]
    done = CliRunner().invoke(decoding.main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out.json").read_bytes())
    assert [row["changed"] for row in found["changes"]] == [1, 1, 0, 0]
    assert 0 < found["changes"][0]["worst"] < 1
    assert found["outputs"]["pictures"] == 2
    largest = found["times"][-1]
    # On a busy machine, either time may be the shorter one.
    assert min(largest["reduced_ms"], largest["full_ms"]) > 0
    assert "of 2 pictures keep their predicted class" in done.output
