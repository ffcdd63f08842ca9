"""Results are written completely or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import signal
import socket
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resdeploy import filesystem
from resdeploy.errors import DataError, OutputError
from resdeploy.filesystem import (
    cache_folder,
    check_file,
    new_directory,
    open_regular,
    read_limited,
    refuse_existing,
    refuse_existing_file,
    sha256,
    sha256_file,
    write_file,
)


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every flush to the disk fail as if the disk were full."""

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


@given(st.binary(max_size=5000))
def test_digest_agrees_with_hashlib(data: bytes) -> None:
    assert sha256(data) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_digest_of_a_file_equals_the_digest_of_its_content(tmp_path: Path, size: int) -> None:
    data = b"x" * size
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("path", ["fifo", "link to fifo", "folder", "socket", "/dev/zero"])
def test_opens_regular_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("link to fifo").symlink_to("fifo")
    Path("folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        open_files = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError):
            open_regular(Path(path))
        assert len(os.listdir("/proc/self/fd")) == open_files
        with pytest.raises(DataError, match="cannot be read"):
            read_limited(Path(path), 10, DataError, "hint")


def test_writes_a_new_folder_and_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


def test_a_file_has_ordinary_permissions(tmp_path: Path) -> None:
    write_file(tmp_path / "ours", b"")
    (tmp_path / "ordinary").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "ordinary")]
    assert modes[0] == modes[1]


@pytest.mark.usefixtures("no_sync")
def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="No space left") as caught:
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    assert caught.value.hint


def test_a_limit_on_file_sizes_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(OutputError):  # Python ignores SIGXFSZ, so that writing fails instead
            write_file(path, bytes(1 << 17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_rejects_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="taken"):
        write_file(tmp_path / "taken", b"")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/below"):
        write_file(tmp_path / "file" / "below", b"")


def test_a_directory_exists_only_after_the_block(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result"
    with new_directory(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
        assert not target.exists()
    assert (target / "sub" / "file").read_text() == "x"
    assert os.listdir(target.parent) == ["result"]


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_directory(tmp_path / "result") as folder:
        (folder / "file").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_an_interrupted_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "result"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def kill_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted_at(
    step: int, work: Callable[[], None], interrupt: Callable[[], None] = raise_interrupt
) -> bool:
    """Interrupt `work` before line number `step`; return False without interrupt."""
    left = step

    def local(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                interrupt()
        return local

    def begin(frame: FrameType, event: str, argument: object) -> Any:
        return local(frame, event, argument) if frame.f_code.co_filename == ours else None

    ours, before = filesystem.__file__, sys.gettrace()
    sys.settrace(begin)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


# Between `open` and `with`, only the traceback of the interrupt refers to the file and closes it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "result"

    def write() -> None:
        with new_directory(target, force=True, marker="file") as folder:
            write_file(folder / "file", b"new")

    interrupted, step = True, 0
    while interrupted:
        step += 1
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        (target / "file").write_bytes(b"old")
        interrupted = interrupted_at(step, write)
        assert os.listdir(tmp_path) == ["result"], step
        assert os.listdir(target) == ["file"], step
        assert (target / "file").read_bytes() in (b"old", b"new"), step
    assert step > 30  # a plausible number of lines were interrupted
    assert (target / "file").read_bytes() == b"new"


@pytest.fixture(params=["exchange", "two renames"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Replace folders in one step, or as on a file system that cannot exchange two names."""
    way = str(request.param)
    if way != "exchange":
        monkeypatch.setattr(filesystem, "_exchange", lambda first, second: False)
    return way


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a child process, and return its exit code, or the negative signal."""
    if not (child := os.fork()):
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_result(target: Path, content: bytes = b"new") -> None:
    with new_directory(target, force=True, marker="file") as folder:
        write_file(folder / "file", content)
        write_file(folder / "other", content)


def test_a_kill_at_any_moment_loses_nothing_and_the_next_run_tidies_up(
    tmp_path: Path, renames: str
) -> None:
    target = tmp_path / "result"
    killed, step, missing = True, 0, 0
    while killed:
        step += 2 if renames == "exchange" else 1  # the moment between two renames is one line
        shutil.rmtree(target, ignore_errors=True)
        write_result(target, b"old")
        work = partial(interrupted_at, step, partial(write_result, target), kill_process)
        killed = in_child(work) == -signal.SIGKILL
        missing += not target.exists()
        refuse_existing(target, force=True, marker="file")  # the start of the next run
        assert os.listdir(tmp_path) == ["result"], step
        assert len({file.read_bytes() for file in target.iterdir()}) == 1, step
        assert len(os.listdir(target)) == 2, step
        if step % 10 == 0:
            write_result(target, b"next")
            assert {file.read_bytes() for file in target.iterdir()} == {b"next"}
    assert step > 100  # a plausible number of lines were interrupted
    assert (missing > 0) == (renames == "two renames")


def test_a_killed_write_is_tidied_up_by_the_next_one(tmp_path: Path) -> None:
    target = tmp_path / "file[1]"
    write, step = partial(write_file, target, b"new"), 1
    while in_child(partial(interrupted_at, step, write, kill_process)):
        step += 1
        write_file(target, b"old")
        assert os.listdir(tmp_path) == ["file[1]"]
    assert step > 10


def test_what_a_living_process_writes_is_not_tidied_up(tmp_path: Path) -> None:
    target = tmp_path / "result"
    foreign = tmp_path / ".result.tmp-mine"
    foreign.touch()
    with new_directory(target) as folder:
        with pytest.raises(ZeroDivisionError), new_directory(target), new_directory(target):
            assert len(os.listdir(tmp_path)) == 4
            raise ZeroDivisionError
        assert folder.is_dir()
        assert in_child(partial(filesystem.tidy_up, target)) == 0
        assert folder.is_dir()
    assert sorted(os.listdir(tmp_path)) == [".result.tmp-mine", "result"]


def test_a_link_to_a_result_is_replaced_by_the_new_result(tmp_path: Path, renames: str) -> None:
    write_result(tmp_path / "first")
    (tmp_path / "link").symlink_to("first")
    write_result(tmp_path / "link", b"second")
    assert sorted(os.listdir(tmp_path)) == ["first", "link"]
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "first" / "file").read_bytes() == b"new"


def test_rejects_an_existing_directory_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    with pytest.raises(OutputError, match="exists already") as caught:
        refuse_existing(tmp_path / "result", force=False, marker="manifest.json")
    assert "--force" in str(caught.value.hint)
    with pytest.raises(OutputError), new_directory(tmp_path / "result"):
        pytest.fail("the block must not run")


def test_force_replaces_the_whole_directory(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.mkdir()
    (target / "marker").touch()
    (target / "stale").touch()
    with new_directory(target, force=True, marker="marker") as folder:
        (folder / "fresh").touch()
        assert (target / "stale").exists()
    assert os.listdir(target) == ["fresh"]
    assert os.listdir(tmp_path) == ["result"]


def test_force_keeps_the_old_directory_when_the_block_fails(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.mkdir()
    (target / "precious").touch()
    with pytest.raises(RuntimeError), new_directory(target, force=True, marker="precious"):
        raise RuntimeError
    assert os.listdir(target) == ["precious"]


def test_force_does_not_replace_folders_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "file").touch()
    for name in ("photos", "file"):
        with pytest.raises(OutputError, match="was not written by resdeploy"):
            refuse_existing(tmp_path / name, force=True, marker="manifest.json")
    (tmp_path / "empty").mkdir()
    refuse_existing(tmp_path / "empty", force=True, marker="manifest.json")


def test_the_old_directory_is_restored_if_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "_exchange", lambda first, second: False)
    target = tmp_path / "result"
    target.mkdir()
    (target / "marker").touch()
    replace = os.replace

    def fail(source: Path, goal: Path) -> None:
        if ".tmp-" in str(source):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, goal)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError), new_directory(target, force=True, marker="marker"):
        pass
    assert os.listdir(tmp_path) == ["result"]
    assert os.listdir(target) == ["marker"]


def test_hints_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code, hint in ((errno.ENOSPC, "free some space"), (errno.EACCES, "check the permissions")):

        def fail(handle: int, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OutputError) as caught:
            write_file(tmp_path / "file", b"")
        assert hint in str(caught.value.hint)


def test_an_error_of_another_file_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_directory(tmp_path / "out" / "result"):
        (tmp_path / "images" / "cat.jpg").read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="File exists") as caught:
        write_file(tmp_path / "file" / "result", b"")
    assert "a part of it is a file" in str(caught.value.hint)


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder") as caught:
        refuse_existing_file(tmp_path, force=False)
    assert "--force" not in str(caught.value.hint)


@pytest.mark.parametrize(
    ("flags", "reason"), [(0, "Permission denied"), (os.ST_RDONLY, "Read-only file system")]
)
def test_a_place_that_cannot_be_written_is_refused_before_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, reason: str
) -> None:
    refuse_existing(tmp_path / "new" / "result", force=False, marker="x")
    refuse_existing_file(tmp_path / "new" / "result", force=False)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Not a directory"):
        refuse_existing_file(tmp_path / "file" / "result", force=False)
    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=flags))
    with pytest.raises(OutputError, match=reason):
        refuse_existing(tmp_path / "new" / "result", force=True, marker="x")
    with pytest.raises(OutputError, match=reason):
        refuse_existing_file(tmp_path / "result", force=True)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "only a pointer of Git LFS"),
        (b"\n <HTML>", "is an HTML page"),
    ],
)
def test_a_file_that_stands_for_another_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    for read in (
        lambda: read_limited(path, 1000, DataError, "x"),
        lambda: check_file(path, DataError, "x"),
    ):
        with pytest.raises(DataError, match=reason):
            read()


def test_a_directory_created_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with pytest.raises(OutputError, match="exists already"), new_directory(target):
        target.mkdir()
        (target / "of another process").touch()
    assert os.listdir(tmp_path) == ["result"]
    assert os.listdir(target) == ["of another process"]


@pytest.mark.usefixtures("no_sync")
def test_a_full_disk_leaves_no_directory(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="No space left"),
        new_directory(tmp_path / "result") as folder,
    ):
        (folder / "file").write_text("x")
    assert os.listdir(tmp_path) == []


def test_resdeploy_errors_pass_through_unchanged(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="mine"), new_directory(tmp_path / "result"):
        raise OutputError("mine", "hint")


def test_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "resdeploy"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert filesystem.cache_folder() == Path.home() / ".cache" / "resdeploy"
