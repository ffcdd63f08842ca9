"""The examples of docs/scoring.md for Daft, Spark and PyArrow, as they stand there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.runtime.scoring.score import score_sources
from resdeploy.runtime.scoring.scorer import Scorer
from tests.docs.pages import DOCS, tokens
from tests.samples import write_images

pytest.importorskip("pyarrow")
EXAMPLES = [t.content for t in tokens(DOCS / "scoring.md") if t.info == "python"]


def example(word: str, folder: Path) -> str:
    """Return the example that has a word, with another folder in place of /shared."""
    (found,) = (text for text in EXAMPLES if word in text)
    return str(found).replace("/shared", str(folder))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with pictures in each of blue, green and red."""
    write_images(tmp_path / "photos", 8, seed=2)
    return tmp_path / "photos"


@pytest.fixture
def names(tiny_bundle: Bundle, photos: Path, tmp_path: Path) -> dict[str, Any]:
    """Put a bundle and pictures where the examples expect them; return the names they have."""
    (tmp_path / "r34.bundle").symlink_to(tiny_bundle.path)
    for path in photos.rglob("*.png"):
        path.rename(path.with_suffix(".jpg"))
    shutil.copy(photos / "red" / "000.jpg", tmp_path / "a.jpg")
    shutil.copy(photos / "red" / "001.jpg", tmp_path / "b.jpg")
    scope: dict[str, Any] = {}
    exec(example("resdeploy.Scorer(", tmp_path), scope)
    return scope


def expected(scorer: Scorer, photos: Path) -> dict[str, str]:
    """Return the label of each picture."""
    paths = sorted(str(path) for path in photos.rglob("*.jpg"))
    return {path: found[0] for path, found in zip(paths, scorer({"path": paths})["label"])}


def test_daft(names: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    daft = pytest.importorskip("daft")
    exec(example("import daft", tmp_path), names)
    made = daft.read_parquet("labels/*.parquet").to_pydict()
    labels = {
        path.removeprefix("file://"): label for path, label in zip(made["path"], made["label"])
    }
    assert labels == expected(names["scorer"], photos)


def test_spark(names: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    """A fake of Spark takes the function, which is then called as `mapInPandas` does."""
    pandas = pytest.importorskip("pandas")
    spark = MagicMock()
    names["spark"] = spark
    exec(example("spark.read", tmp_path), names)
    frames = spark.read.format.return_value.load.return_value.select.return_value
    function, schema = frames.mapInPandas.call_args[0]
    assert schema == "path string, label string, error string"
    paths = sorted(photos.rglob("*.jpg"))
    tables = [
        pandas.DataFrame({"path": list(map(str, part)), "content": [p.read_bytes() for p in part]})
        for part in (paths[:10], paths[10:])
    ]
    made = pandas.concat(list(function(iter(tables))))
    assert dict(zip(made["path"], made["label"])) == expected(names["scorer"], photos)
    assert made["error"].isna().all()


def test_pyarrow(tiny_bundle: Bundle, photos: Path) -> None:
    score_sources(tiny_bundle.path, ["photos"], "predictions")
    scope: dict[str, Any] = {}
    exec(example("from pyarrow import dataset", Path()), scope)
    assert scope["table"].num_rows == 24
