"""The engine cache returns only intact engines of this user, and its size is limited."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy import filesystem
from resdeploy.errors import OutputError
from resdeploy.runtime.backends.tensorrt import engine_cache
from resdeploy.runtime.backends.tensorrt.engine_cache import EngineCache, compute_key, prune_engines

PARTS = {"onnx_sha256": "a" * 64, "version": "10.3.0", "options": {"batches": "1,8,32"}}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return EngineCache()


def age(cache: EngineCache, key: str, seconds: float) -> None:
    past = time.time() - seconds
    os.utime(cache.data_path(key), (past, past))


def test_finds_and_loads_a_stored_engine(cache: EngineCache) -> None:
    stored = cache.store(PARTS, b"engine", notes={"convs": 36})
    assert cache.find(PARTS) == stored
    assert cache.load(stored) == b"engine"
    assert stored.notes == {"convs": 36}
    assert stored.key == compute_key(PARTS)


def test_an_empty_cache_has_no_folder(cache: EngineCache) -> None:
    assert cache.find(PARTS) is None
    assert cache.records() == []
    assert cache.prune() == []
    assert not cache.folder.exists()


json_parts = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)


@given(json_parts, json_parts)
def test_keys_differ_with_their_parts(ours: dict[str, object], theirs: dict[str, object]) -> None:
    # 1 and True are equal in Python but differ in JSON, so the JSON texts are compared.
    same = json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)
    assert (compute_key(ours) == compute_key(theirs)) is same
    assert compute_key(dict(reversed(list(ours.items())))) == compute_key(ours)


@pytest.mark.parametrize("change", [{"version": "10.4.0"}, {"options": {"batches": "1,1,1"}}])
def test_other_parts_are_not_found(cache: EngineCache, change: dict[str, object]) -> None:
    cache.store(PARTS, b"engine")
    assert cache.find({**PARTS, **change}) is None


def test_finds_the_newest_record_with_these_parts(cache: EngineCache) -> None:
    parts = {"onnx_sha256": PARTS["onnx_sha256"], "version": "10.3.0"}
    cache.store(PARTS, b"first")
    latest = cache.store({**PARTS, "options": {"batches": "1,1,1"}}, b"second")
    cache.store({**PARTS, "version": "11.0.0"}, b"of another version")
    assert cache.find(parts) == latest


def test_store_replaces_an_engine(cache: EngineCache) -> None:
    cache.store(PARTS, b"old")
    again = cache.store(PARTS, b"new")
    assert cache.load(again) == b"new"
    assert len(cache.records()) == 1


@pytest.mark.parametrize("content", [b"", b"engin", b"Engine", b"engine and more"])
def test_does_not_load_a_changed_engine(
    cache: EngineCache, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    record = cache.store(PARTS, b"engine")
    cache.data_path(record.key).write_bytes(content)
    assert cache.load(record) is None
    assert "is damaged and will be built again" in caplog.text
    assert cache.find(PARTS) is None


def test_a_missing_engine_loads_as_none(cache: EngineCache) -> None:
    record = cache.store(PARTS, b"engine")
    cache.data_path(record.key).unlink()
    assert cache.load(record) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"null", b'{"parts": 3}', b"\xff", b" " * (1 << 17)],
    ids=["empty", "half", "list", "no fields", "null", "wrong type", "no text", "huge"],
)
def test_skips_a_damaged_record(cache: EngineCache, content: bytes) -> None:
    record = cache.store(PARTS, b"engine")
    (cache.folder / f"{record.key}.json").write_bytes(content)
    assert cache.records() == []


def test_skips_a_record_whose_key_does_not_match(cache: EngineCache) -> None:
    record = cache.store(PARTS, b"engine")
    path = cache.folder / f"{record.key}.json"
    document = json.loads(path.read_text())
    document["parts"]["version"] = "11.0.0"
    path.write_text(json.dumps(document))
    assert cache.records() == []


def test_an_interrupted_store_leaves_no_record(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(PARTS, b"old")
    write_file = filesystem.write_file

    def killed(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write_file(path, data)

    monkeypatch.setattr(engine_cache, "write_file", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.store(PARTS, b"new")
    assert cache.find(PARTS) is None


def test_the_folder_is_private(cache: EngineCache) -> None:
    cache.store(PARTS, b"engine")
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_rejects_a_folder_that_others_can_write_to(cache: EngineCache) -> None:
    cache.store(PARTS, b"engine")
    cache.folder.chmod(0o777)
    assert cache.records() == []
    with pytest.raises(OutputError, match="other users can write to") as caught:
        cache.store(PARTS, b"engine")
    assert "chmod" in str(caught.value.hint)


def test_rejects_a_parent_folder_that_all_can_write_to(cache: EngineCache) -> None:
    cache.store(PARTS, b"engine")
    cache.folder.parent.chmod(0o777)
    assert cache.records() == []
    cache.folder.parent.chmod(0o775)  # many systems create folders that a group can write to
    assert len(cache.records()) == 1


def test_loads_from_a_read_only_file_system(
    cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = cache.store(PARTS, b"engine")

    def read_only(*arguments: object, **more: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", read_only)
    assert cache.load(record) == b"engine"
    cache.data_path(record.key).write_bytes(b"other")
    monkeypatch.setattr(Path, "unlink", read_only)
    assert cache.load(record) is None


def test_an_outdated_record_loads_the_newer_engine(cache: EngineCache) -> None:
    before = cache.store(PARTS, b"of one process")
    cache.store(PARTS, b"of another")
    assert cache.load(before) == b"of another"
    assert cache.find(PARTS) is not None


def test_rejects_a_folder_that_cannot_be_created(cache: EngineCache, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="cannot write"):
        cache.store(PARTS, b"engine")


# Pruning


def test_prune_removes_the_least_recently_used(cache: EngineCache) -> None:
    keys = []
    for number in range(4):
        keys.append(cache.store({"number": number}, bytes(100)).key)
        age(cache, keys[-1], 100 - number)
    first = cache.find({"number": 0})
    assert first is not None
    cache.load(first)
    removed = cache.prune(250)
    assert [record.key for record in removed] == [keys[1], keys[2]]
    assert {record.key for record in cache.records()} == {keys[0], keys[3]}


def test_prune_keeps_the_given_key(cache: EngineCache) -> None:
    cache.store({"number": 0}, bytes(100))
    kept = cache.store({"number": 1}, bytes(1000))
    age(cache, kept.key, 1000)
    cache.prune(10, keep=kept.key)
    assert [record.key for record in cache.records()] == [kept.key]


def test_prune_removes_old_abandoned_files(cache: EngineCache) -> None:
    record = cache.store(PARTS, b"engine")
    old, fresh = cache.folder / "old.data", cache.folder / ".fresh.data.tmp-1"
    old.write_bytes(b"half")
    fresh.write_bytes(b"under way")
    os.utime(old, (0, 0))
    os.utime(cache.data_path(record.key), (0, 0))
    cache.prune()
    assert not old.exists()
    assert fresh.exists()
    assert cache.load(record) == b"engine"


def test_prune_reports_what_it_removed(cache: EngineCache) -> None:
    for number in range(3):
        age(cache, cache.store({"number": number}, bytes(100)).key, 100 - number)
    EngineCache("kernels").store(PARTS, bytes(1000))
    report = prune_engines(150)
    assert EngineCache("kernels").records() == []
    assert (report.removed, report.freed_bytes, report.kept, report.bytes) == (2, 200, 1, 100)
    assert report.folder == cache.folder
