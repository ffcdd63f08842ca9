"""A lock lasts as long as its process, and no child process keeps it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from resdeploy.file_locks import release_lock, take_lock


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_one_owner_at_a_time(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    path.touch() if kind == "file" else path.mkdir()
    lock = take_lock(path)
    with pytest.raises(BlockingIOError):
        take_lock(path)
    release_lock(lock)
    release_lock(lock)  # a second time does nothing
    release_lock(take_lock(path, wait=True))


def test_a_killed_process_releases_its_lock_although_its_child_lives(tmp_path: Path) -> None:
    ready, told = os.pipe()
    parent = os.fork()
    if not parent:
        signal.alarm(60)
        take_lock(tmp_path)
        child = os.fork()
        if child:
            os.write(told, b"%d" % child)
        else:
            signal.alarm(60)  # alarms are not inherited; the child ends with its own
        signal.pause()
    child = int(os.read(ready, 20))
    with pytest.raises(BlockingIOError):
        take_lock(tmp_path)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    os.kill(child, 0)  # it lives
    release_lock(take_lock(tmp_path))
    os.kill(child, signal.SIGKILL)


def test_a_missing_or_linked_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(".")
    for name in ("missing", "link"):
        with pytest.raises(OSError):
            take_lock(tmp_path / name)
