"""JSON from outside: what was written is read, anything else is named."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy import documents
from resdeploy.documents import jsonable, parse, read_json
from resdeploy.errors import DocumentError


class Colour(str, Enum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Inner:
    share: float


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
)


def test_what_was_written_is_read() -> None:
    assert parse(Outer, json.loads(json.dumps(jsonable(WHOLE)))) == WHOLE


def test_older_and_newer_documents_are_read() -> None:
    document = jsonable(WHOLE)
    del document["later"], document["many"]
    assert parse(Outer, {**document, "of_a_later_version": 1}) == WHOLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name is 3, not str"),
        ({"count": 1.5}, "count is 1.5, not int"),
        ({"count": True}, "count is True, not int"),
        ({"flag": 1}, "flag is 1, not bool"),
        ({"colour": "blue"}, "colour is 'blue', not one of red"),
        ({"colour": []}, r"colour is \[\]"),
        ({"inner": None}, "inner is not an object"),
        ({"inner": {}}, "inner has no share"),
        ({"inner": {"share": float("nan")}}, "share is not finite"),
        ({"inner": {"share": 10**400}}, "share is not finite"),
        ({"rows": {}}, "rows is not a list"),
        ({"rows": [{"share": "much"}]}, "share is 'much', not float"),
        ({"pair": [1]}, "pair has 1 entries, not 2"),
        ({"by_name": {"b": []}}, r"by_name.b is \[\], not float"),
        ({"by_name": []}, "by_name is not an object"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        parse(Outer, {**jsonable(WHOLE), **change})


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match="the document has no count"):
        parse(Outer, {"name": "x"})
    with pytest.raises(TypeError, match="the document is not an object"):
        parse(Outer, [])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*jsonable(WHOLE)]), json_values))
def test_nothing_else_is_raised(change: dict[str, Any]) -> None:
    with contextlib.suppress(TypeError, ValueError):
        parse(Outer, {**jsonable(WHOLE), **change})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"9" * 5000, "is not JSON"),
    ],
)
def test_what_is_not_json_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DocumentError, match=message):
        read_json(tmp_path / "x.json")


def test_a_file_must_exist_and_be_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DocumentError, match="No such file"):
        read_json(tmp_path / "x.json")
    monkeypatch.setattr(documents, "MAX_BYTES", 3)
    (tmp_path / "x.json").write_text("[1, 2, 3]")
    with pytest.raises(DocumentError, match="larger than"):
        read_json(tmp_path / "x.json")
