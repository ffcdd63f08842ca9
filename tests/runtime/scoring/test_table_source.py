"""Rows of CSV and Parquet files, with names and with contents of pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from resdeploy.errors import DataError, ImageError
from resdeploy.runtime.scoring.table_source import ColumnNames
from tests.runtime.scoring.helpers import listed, names, write_parquet

pa = pytest.importorskip("pyarrow")


def places(*sources: object, **others: Any) -> list[str]:
    return [row.place for part in listed(*sources, **others)[0] for row in part.rows]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_paths_are_relative_to_the_table(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    found = ["red/a.png", "/photos/b, c.png", "file:///photos/d.png", "s3://bucket/e.png"]
    if kind == "csv":
        text = 'note,Path,label\nx,red/a.png,red\nx,"/photos/b, c.png",\n'
        text += "x,file:///photos/d.png,red\nx,s3://bucket/e.png,blue\n"
        (folder / "t.csv").write_text(text)
    else:
        labels = ["red", None, "red", "blue"]
        write_parquet(folder / "t.parquet", {"note": [1] * 4, "Path": found, "label": labels})
    parts, summary = listed(folder / f"t.{kind}")
    assert names(parts) == found
    assert places(folder / f"t.{kind}") == [f"{folder}/red/a.png", *found[1:]]
    assert [row.label for row in parts[0].rows] == ["red", None, "red", "blue"]
    assert summary.labels == {"red", "blue"}
    assert parts[0].is_remote
    assert parts[0].rows[2].read() == Path("/photos/d.png")


def test_a_table_in_the_working_folder_and_in_a_store(store: str) -> None:
    import fsspec

    Path("t.csv").write_text("url\nred/a.png\n")
    assert places("t.csv") == ["red/a.png"]
    fsspec.filesystem("memory").pipe_file("/bucket/tables/t.csv", b"url\nred/a.png\n")
    assert places(f"{store}/tables/t.csv") == [f"{store}/tables/red/a.png"]


def test_columns_that_the_user_names() -> None:
    Path("t.csv").write_text("path,shelf,taken\na.png,b.png,red\n")
    columns = ColumnNames(picture="shelf", label="taken")
    parts, summary = listed("t.csv", columns=columns)
    assert names(parts) == ["b.png"]
    assert summary.labels == {"red"}
    with pytest.raises(DataError) as raised:
        listed("t.csv", columns=ColumnNames(picture="none"))
    assert str(raised.value) == ("t.csv has no column 'none'; its columns are path, shelf, taken")
    with pytest.raises(DataError) as raised:
        listed("t.csv", columns=ColumnNames(label="none"))
    assert "--label-column" in str(raised.value.hint)


def test_a_table_without_a_usual_column_names_its_columns() -> None:
    Path("t.csv").write_text("shelf,box\n1,2\n")
    with pytest.raises(DataError, match="its columns are shelf, box") as raised:
        listed("t.csv")
    assert "--column" in str(raised.value.hint)
    write_parquet(Path("t.parquet"), {"path": [1.5, 2.5]})
    with pytest.raises(DataError, match=r"the column of pictures in t\.parquet has the type doubl"):
        listed("t.parquet")


@pytest.mark.parametrize(
    "url", ["zip://a.png::https://host/x.zip", "ftp://host/a.png", "github://org:repo@/a.png",
            "simplecache::s3://bucket/a.png", "reference://a"],
)  # fmt: skip
def test_a_table_cannot_name_addresses_of_other_kinds(url: str) -> None:
    Path("t.csv").write_text(f"url\na.png\n{url}\n")
    if url.startswith("simplecache::"):  # no address: the name of a file
        assert places("t.csv") == ["a.png", url]
        return
    with pytest.raises(DataError, match=r"row 2 of t\.csv has an address of the kind") as raised:
        listed("t.csv")
    assert "s3" in str(raised.value.hint)


def test_a_row_without_a_name_is_an_error_of_this_row() -> None:
    Path("t.csv").write_text('path,label\na.png,1\n"",2\n')
    write_parquet(Path("t.parquet"), {"path": ["a.png", None], "label": ["1", "2"]})
    for name in ("t.csv", "t.parquet"):
        parts, summary = listed(name)
        assert names(parts) == ["a.png", f"{name}#1"]
        assert summary.labels == {"1", "2"}
        with pytest.raises(ImageError, match=f"{name}#1 names no picture"):
            parts[0].rows[1].read()


def test_a_part_for_a_worker_has_absolute_paths(tmp_path: Path) -> None:
    Path("t.csv").write_text('path\na.png\n""\ns3://b/c.png\nfile:///d.png\n')
    write_parquet(Path("t.parquet"), {"bytes": [b"1"]})
    parts, _ = listed("t.csv", "t.parquet")
    sent = [part.absolute() for part in parts]
    assert [row.place for row in sent[0].rows] == [
        f"{tmp_path}/a.png", "", "s3://b/c.png", "/d.png",
    ]  # fmt: skip
    assert names(sent) == names(parts)
    assert sent[1].slice is not None
    assert sent[1].slice.place == f"{tmp_path}/t.parquet"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00path", os.urandom(5000), b"PAR1" * 20])
def test_a_table_that_cannot_be_read(kind: str, content: bytes) -> None:
    Path(f"t.{kind}").write_bytes(content)
    with pytest.raises(DataError) as raised:
        listed(f"t.{kind}")
    assert raised.value.hint


def test_a_table_that_is_damaged_within() -> None:
    write_parquet(Path("t.parquet"), {"path": [f"{n}.png" for n in range(5000)]}, group=1000)
    data = bytearray(Path("t.parquet").read_bytes())
    data[200:3000] = bytes(2800)
    Path("t.parquet").write_bytes(data)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        listed("t.parquet")
    Path("t.csv").write_text("path,label\na.png,1\nb.png\n")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        listed("t.csv")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_without_rows_are_an_error_if_there_is_nothing_else(kind: str) -> None:
    Path("t.csv").write_text("path\n")
    write_parquet(Path("t.parquet"), {"path": pa.array([], pa.string())})
    with pytest.raises(DataError, match="the tables have no rows"):
        listed(f"t.{kind}")
    Path("other.csv").write_text("path\na.png\n")
    assert places(f"t.{kind}", "other.csv") == ["a.png"]


def test_a_long_csv_file_is_read_in_blocks() -> None:
    count = 40_000  # several blocks of 1 MiB
    Path("t.csv").write_text(
        "path,text\n" + "".join(f'{n}.png,"{"x" * 60}"\n' for n in range(count))
    )
    parts, summary = listed("t.csv", size=15_000)
    assert [part.count for part in parts] == [15_000, 15_000, 10_000]
    assert names(parts) == [f"{n}.png" for n in range(count)]
    assert summary.rows == count


@pytest.mark.parametrize("kind", ["binary", "large"])
def test_contents_in_groups_are_read_in_slices(kind: str) -> None:
    contents = [b"%d" % n for n in range(25)]
    array = pa.array(contents, pa.large_binary() if kind == "large" else pa.binary())
    columns = {
        "bytes": array,
        "path": [f"{n}.jpg" for n in range(25)],
        "label": ["a", "b"] * 12 + [None],
    }
    write_parquet(Path("t.parquet"), columns, group=10)
    parts, summary = listed("t.parquet", size=4)
    assert [part.count for part in parts] == [4, 4, 2, 4, 4, 2, 4, 1]
    rows = [row for part in parts if part.slice for row in part.slice.rows()]
    assert [row.read() for row in rows] == contents
    assert [row.path for row in rows] == [f"{n}.jpg" for n in range(25)]
    assert [row.label for row in rows] == ["a", "b"] * 12 + [None]
    assert (summary.rows, summary.labels) == (25, {"a", "b"})
    slices = [part.slice for part in parts if part.slice]
    assert len({place.identity for place in slices}) == len(slices)


def test_more_contents_than_are_in_memory_at_a_time() -> None:
    contents = [b"%d" % n for n in range(200)]
    write_parquet(Path("t.parquet"), {"bytes": contents})
    parts, _ = listed("t.parquet", size=90)
    rows = [row for part in parts if part.slice for row in part.slice.rows()]
    assert [row.content for row in rows] == contents
    assert [row.path for row in rows] == [f"t.parquet#{n}" for n in range(200)]


def test_images_of_hugging_face() -> None:
    pictures = [
        {"bytes": b"1", "path": "a.jpg"},
        {"bytes": b"2", "path": None},
        {"bytes": None, "path": "c.jpg"},
        None,
    ]
    columns = {"image": pa.array(pictures), "label": pa.array([2, 0, 1, None], pa.int64())}
    write_parquet(Path("t.parquet"), columns)
    parts, summary = listed("t.parquet")
    assert parts[0].slice is not None
    rows = list(parts[0].slice.rows())
    assert [row.path for row in rows] == ["a.jpg", "t.parquet#1", "c.jpg", "t.parquet#3"]
    assert [row.label for row in rows] == ["2", "0", "1", None]
    assert [row.read() for row in rows[:2]] == [b"1", b"2"]
    assert summary.labels == {"0", "1", "2"}
    for row in rows[2:]:
        with pytest.raises(ImageError, match=f"{row.path} has no content"):
            row.read()


def test_identifiers_are_names_also_zero() -> None:
    write_parquet(Path("t.parquet"), {"id": [0, 1, 2], "bytes": [b"0", b"1", b"2"]})
    assert names(listed("t.parquet")[0]) == ["0", "1", "2"]


def test_paths_as_categories() -> None:
    array = pa.array(["a.png", "b.png", "a.png"]).dictionary_encode()
    write_parquet(Path("t.parquet"), {"path": array, "label": array})
    parts, summary = listed("t.parquet")
    assert names(parts) == ["a.png", "b.png", "a.png"]
    assert summary.labels == {"a.png", "b.png"}


def test_a_slice_of_a_table_that_was_removed_is_an_error() -> None:
    write_parquet(Path("t.parquet"), {"bytes": [b"1"]})
    parts, _ = listed("t.parquet")
    Path("t.parquet").unlink()
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as Parquet: No such file"):
        names(parts)
