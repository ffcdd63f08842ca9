"""The function that workers of Ray, Daft and Spark map over their tables."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdeploy.bundle.bundle import Bundle
from resdeploy.runtime.model import load
from resdeploy.runtime.scoring.scorer import Scorer, ScorerOptions
from tests.runtime.scoring.helpers import CPU


@pytest.fixture(scope="module")
def scorer(tiny_bundle: Bundle) -> Scorer:
    return Scorer(tiny_bundle.path, replace(CPU, top=2, logits=True))


def test_paths_and_contents_have_the_same_predictions(
    scorer: Scorer, tiny_bundle: Bundle, image_data: Path
) -> None:
    paths = [str(path) for path in sorted((image_data / "val").rglob("*.png"))]
    contents = [Path(path).read_bytes() for path in paths]
    by_path = scorer({"path": paths, "year": list(range(len(paths)))})
    assert list(by_path) == [
        "path", "year", "label", "index", "probability", "logits", "error", "engine",
    ]  # fmt: skip
    assert (by_path["path"], by_path["year"]) == (paths, list(range(24)))
    by_content = scorer({"bytes": contents})
    assert list(by_content) == ["label", "index", "probability", "logits", "error", "engine"]
    assert by_content["logits"] == by_path["logits"]
    with load(tiny_bundle.path, "onnxruntime-cpu", threads=1) as model:
        for path, labels, indices, values in zip(
            paths, by_path["label"], by_path["index"], by_path["probability"]
        ):
            found = model.predict(path, top=2)
            assert labels == [p.label for p in found]
            assert indices == [p.index for p in found]
            assert np.float32(values) == pytest.approx([p.probability for p in found], rel=1e-6)


def test_rows_that_cannot_be_scored_have_a_reason(scorer: Scorer, image_data: Path) -> None:
    good = image_data / "val" / "red" / "000.png"
    result = scorer({"path": ["none.png", str(good), "a\0b.png", "x" * 5000, "", "."]})
    assert [error is None for error in result["error"]] == [False, True, *[False] * 4]
    assert "none.png cannot be read: No such file" in result["error"][0]
    assert result["label"][0] is None
    assert result["logits"][1] is not None


def test_contents_that_are_missing_or_no_bytes(scorer: Scorer, image_data: Path) -> None:
    good = (image_data / "val" / "red" / "000.png").read_bytes()
    contents = [None, good, b"", float("nan"), "text", bytearray(good), memoryview(good)]
    result = scorer({"bytes": contents, "path": [f"{n}.png" for n in range(7)]})
    classified = [error is None for error in result["error"]]
    assert classified == [False, True, False, False, False, True, True]
    assert "0.png has no content" in result["error"][0]
    assert result["logits"][1] == result["logits"][5] == result["logits"][6]
    nameless = scorer({"bytes": [b"", good]})
    assert "row 0 has no content" in nameless["error"][0]


def test_a_batch_without_pictures_is_refused(scorer: Scorer) -> None:
    with pytest.raises(KeyError, match="only image, label"):
        scorer({"image": [], "label": []})
    assert scorer({"path": []})["label"] == []


def test_a_scorer_is_sent_without_its_model(scorer: Scorer, image_data: Path) -> None:
    path = str(image_data / "val" / "red" / "000.png")
    first = scorer({"path": [path]})
    data = pickle.dumps(scorer)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy.options == scorer.options
    assert copy({"path": [path]}) == first


def test_equal_logits_are_in_the_order_of_the_outputs(
    tiny_bundle: Bundle, colours: None, tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32), (90, 90, 90)).save(tmp_path / "grey.png")
    result = Scorer(tiny_bundle.path, ScorerOptions())({"path": [str(tmp_path / "grey.png")]})
    assert result["index"] == [[0, 1, 2]]
    assert result["probability"][0] == pytest.approx([1 / 3] * 3)


def test_spark_maps_it_over_frames(scorer: Scorer, image_data: Path) -> None:
    """As `DataFrame.mapInPandas` does: with a function from frames to frames that is pickled."""
    pandas = pytest.importorskip("pandas")

    def score_frames(frames: Iterator[Any]) -> Iterator[Any]:
        for frame in frames:
            result = scorer(frame)
            yield pandas.DataFrame({
                "path": result["path"],
                "label": [found[0] if found else None for found in result["label"]],
                "error": result["error"],
            })  # fmt: skip

    paths = [str(path) for path in sorted((image_data / "val").rglob("*.png"))]
    frames = [
        pandas.DataFrame({"path": paths[:10], "bytes": [Path(p).read_bytes() for p in paths[:10]]}),
        pandas.DataFrame({"path": [*paths[10:], "none.png"]}),
    ]
    made = pandas.concat(list(score_frames(iter(frames))), ignore_index=True)
    assert made["path"].tolist() == [*paths, "none.png"]
    assert made["label"].tolist()[:24] == [found[0] for found in scorer({"path": paths})["label"]]
    assert made["error"].notna().tolist() == [*[False] * 24, True]


def test_daft_maps_it_over_a_table(scorer: Scorer, image_data: Path) -> None:
    daft = pytest.importorskip("daft")
    paths = [str(path) for path in sorted((image_data / "val").rglob("*.png"))]

    @daft.func.batch(return_dtype=daft.DataType.string())  # type: ignore[untyped-decorator]
    def top_label(path: Any) -> list[str | None]:
        result = scorer({"path": path.to_pylist()})
        return [found[0] if found else None for found in result["label"]]

    table = daft.from_pydict({"path": [*paths, "none.png"]})
    found = table.with_column("label", top_label(table["path"])).to_pydict()
    assert found["path"] == [*paths, "none.png"]
    assert found["label"] == [*(row[0] for row in scorer({"path": paths})["label"]), None]
