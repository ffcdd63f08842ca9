"""Locks of files and folders, which tell that their owner lives.

The kernel releases such a lock when its process ends in any way, so no crash leaves one. Source:
flock(2). The exclusive lock of a folder is not available on NFS, whose locks need write access.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_handles: set[int] = set()


def take_lock(path: Path, *, wait: bool = False) -> int:
    """Lock an existing file or folder, and return a handle for `release_lock`.

    Args:
        path: File or folder; links are not followed.
        wait: True to wait while another process holds the lock.

    Raises:
        BlockingIOError: Another process holds the lock.
        OSError: `path` does not exist, or not any more, or its file system has no locks.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW  # a FIFO would block
    handle = os.open(path, flags)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if not os.path.samestat(os.lstat(path), os.fstat(handle)):
            raise FileNotFoundError(path)  # another process has replaced it meanwhile
    except BaseException:
        os.close(handle)
        raise
    _handles.add(handle)
    return handle


def is_locked(path: Path) -> bool:
    """Return True if a process holds the lock of a file or folder."""
    try:
        release_lock(take_lock(path))
    except BlockingIOError:
        return True
    except OSError:  # it is gone, or there are no locks
        return False
    return False


def release_lock(handle: int) -> None:
    """Release a lock that this process holds."""
    if handle in _handles:
        _handles.remove(handle)
        os.close(handle)


def _close_in_child() -> None:
    # A child process inherits the open files, and would keep the locks of a parent that was killed.
    for handle in [*_handles]:
        release_lock(handle)


os.register_at_fork(after_in_child=_close_in_child)
