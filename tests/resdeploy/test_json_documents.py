"""Documents survive a round trip, and an error names the place of a wrong value."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy import json_documents
from resdeploy.errors import DocumentError
from resdeploy.json_documents import decode, jsonable, parse, read_json, write_document


class Colour(str, Enum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True, kw_only=True)
class Inner:
    share: float

    def __post_init__(self) -> None:
        if self.share < 0:
            raise ValueError(f"a share of {self.share} is below 0")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    count: int
    colour: Colour
    inner: Inner
    maybe: Inner | None
    rows: tuple[Inner, ...]
    pair: tuple[int, str]
    by_name: dict[str, float]
    anything: Any
    flag: bool
    background: Colour | None
    palette: dict[str, tuple[Colour, ...]]
    painted: tuple[int, Colour]
    later: int = 7
    many: tuple[str, ...] = field(default_factory=tuple)


WHOLE = Outer(
    name="x",
    count=3,
    colour=Colour.RED,
    inner=Inner(share=0.5),
    maybe=None,
    rows=(Inner(share=1.0),),
    pair=(1, "a"),
    by_name={"b": 2.0},
    anything=[1, {"c": None}],
    flag=True,
    background=None,
    palette={"sky": (Colour.RED,)},
    painted=(7, Colour.GREEN),
)


def test_round_trip() -> None:
    assert parse(Outer, jsonable(WHOLE)) == WHOLE
    assert decode(Outer, json.dumps(jsonable(WHOLE)).encode()) == WHOLE


def test_paths_that_are_not_utf_8_survive(tmp_path: Path) -> None:
    text = os.fsdecode("照片".encode("gbk"))
    write_document(tmp_path / "a.json", {"path": Path(text)})
    assert read_json(tmp_path / "a.json") == {"path": text}
    assert decode(dict[str, str], (tmp_path / "a.json").read_bytes()) == {"path": text}
    assert r"\udcd5\udcd5" in (tmp_path / "a.json").read_text()


def test_reads_documents_of_older_and_newer_versions() -> None:
    document = jsonable(WHOLE)
    del document["later"], document["many"]
    assert parse(Outer, {**document, "of_a_later_version": 1}) == WHOLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name is an integer, not a string"),
        ({"count": 1.5}, "count is a number, not an integer"),
        ({"count": True}, "count is a boolean, not an integer"),
        ({"flag": 1}, "flag is an integer, not a boolean"),
        ({"colour": "blue"}, "colour is 'blue', not one of red, green"),
        ({"colour": []}, "colour is a list, not a string"),
        ({"background": "blue"}, "background is 'blue', not one of red, green"),
        ({"palette": {"sky": ["red", "blue"]}}, r"palette\[...\]\[1\] is 'blue', not one of red"),
        ({"painted": [7, "blue"]}, r"painted\[1\] is 'blue', not one of red, green"),
        ({"inner": None}, "inner is null, not an object"),
        ({"inner": {}}, "inner has no share"),
        ({"inner": {"share": float("nan")}}, "inner.share is nan, not a finite number"),
        ({"inner": {"share": 10**400}}, "inner.share: Number out of range"),
        ({"inner": {"share": -1}}, "inner: a share of -1.0 is below 0"),
        ({"rows": {}}, "rows is an object, not a list"),
        ({"rows": [{"share": 1}, {"share": "x"}]}, r"rows\[1\].share is a string, not a number"),
        ({"rows": [{"share": float("inf")}]}, r"rows\[0\].share is inf, not a finite number"),
        ({"maybe": 3}, "maybe is an integer, not an object or null"),
        ({"pair": [1]}, "pair has 1 entries, not 2"),
        ({"by_name": {"b": []}}, r"by_name\[...\] is a list, not a number"),
        ({"by_name": []}, "by_name is a list, not an object"),
    ],
)
def test_an_error_names_place_value_and_what_is_allowed(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parse(Outer, {**jsonable(WHOLE), **change})
    if not re.search("finite|range", message):  # JSON has no such numbers
        with pytest.raises(ValueError, match=rf"^r\.{message}"):
            parse(Outer, json.loads(json.dumps({**jsonable(WHOLE), **change})), "r")


def test_an_error_names_the_document_itself() -> None:
    with pytest.raises(ValueError, match="the document has no count"):
        parse(Outer, {"name": "x"})
    with pytest.raises(ValueError, match="the document is a list, not an object"):
        parse(Outer, [])
    with pytest.raises(ValueError, match="calibration is null, not an object"):
        parse(Outer, None, "calibration")
    with pytest.raises(ValueError, match="the document is null, not an object"):
        decode(Outer, b"null")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*jsonable(WHOLE)]), json_values))
def test_only_a_value_error_is_raised(change: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError):
        parse(Outer, {**jsonable(WHOLE), **change})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!doctype html>", "is an HTML page"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"9" * 5000, "is not JSON"),
        (b'{"share": NaN}', "is not JSON"),
        (b'{"share": -Infinity}', "is not JSON"),
        (b'{"share": 1e999}', "is not JSON"),
        (b'{"share": 1, "share": 2}', "the key 'share' is there twice"),
        (b'["\\ud800"]', "lone surrogate"),
        (b'{"\\udfff": 1}', "lone surrogate"),
        ('["\ud800"]'.encode("utf-8", "surrogatepass"), "is not JSON"),
        (b"[" * 65 + b"]" * 65, "nested too deeply"),
        (b"[" + b"[]," * 300_000 + b"[]]", "more than 500,000 values"),
        ("[\u0661]".encode(), "is not JSON"),
        (b"[9223372036854775808000]", "the number 9223372036854775808000, which is too large"),
    ],
)
def test_rejects_a_file_that_is_not_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DocumentError, match=message):
        read_json(tmp_path / "x.json")


def test_rejects_a_missing_file_and_a_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DocumentError, match="No such file"):
        read_json(tmp_path / "x.json")
    monkeypatch.setattr(json_documents, "MAX_BYTES", 3)
    (tmp_path / "x.json").write_text("[1, 2, 3]")
    with pytest.raises(DocumentError, match="larger than"):
        read_json(tmp_path / "x.json")
