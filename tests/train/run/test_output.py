"""Tests of the checks of the place of a run."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resdeploy.errors import OutputError
from resdeploy.filesystem import write_file
from resdeploy.train.distributed import Process
from resdeploy.train.run.output import check_new_run, check_space, locked_run
from resdeploy.train.run.record import STATE_JSON


def test_a_new_folder_is_not_created_by_the_check(tmp_path: Path) -> None:
    check_new_run(tmp_path / "a" / "b", force=False)
    check_new_run(Path("relative"), force=False)
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_path_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Not a directory"):
        check_new_run(tmp_path / "file" / "run", force=False)


def test_a_read_only_disk_is_an_error(tmp_path: Path) -> None:
    """Check with a read-only mount, because permissions do not bind the superuser."""
    (tmp_path / "run").mkdir()
    check_new_run(tmp_path / "run", force=True)
    code = (
        "from pathlib import Path; from resdeploy.train.run.output import check_new_run;"
        "check_new_run(Path('run'), force=True)"
    )
    mount = f"mount --bind -o ro {tmp_path} {tmp_path} && cd {tmp_path}"
    python = f'{sys.executable} -c "{code}"'
    answer = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", f"{mount} && {python}"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    if "unshare" in answer.stderr or "mount:" in answer.stderr:
        pytest.skip("this machine does not allow to mount in a namespace")
    assert "cannot write run: Read-only file system" in answer.stderr


def test_a_run_that_was_killed_when_it_began_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".{STATE_JSON}.tmp-0123456789abcdef").touch()
    check_new_run(tmp_path / "run", force=True)
    assert os.listdir(tmp_path / "run") == []


MAIN = Process(0, 1, torch.device("cpu"))


def test_a_run_that_was_written_since_the_check_is_kept(tmp_path: Path) -> None:
    with locked_run(tmp_path / "run", MAIN, force=False):
        (tmp_path / "run" / STATE_JSON).touch()
    message = "another training has written .* meanwhile"
    with pytest.raises(OutputError, match=message), locked_run(tmp_path / "run", MAIN, force=False):
        pytest.fail("it must not start")


def test_an_unused_run_folder_is_removed(tmp_path: Path) -> None:
    with pytest.raises(OutputError), locked_run(tmp_path / "run", MAIN, force=False):
        check_space(tmp_path / "run", 1 << 60)
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked_run(tmp_path / "run", MAIN, force=True):
        write_file(tmp_path / "run" / "file", b"x")
    assert "nothing keeps another training out of it: No locks available" in caplog.text
    assert os.listdir(tmp_path / "run") == ["file"]


def test_too_little_free_space_is_an_error(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path / "run", free // 2)
    with pytest.raises(OutputError, match=r"needs \d+ MB .* MB are free") as caught:
        check_space(tmp_path / "run", 2 * free)
    assert "free some space" in str(caught.value.hint)


def test_files_that_will_be_replaced_count_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").write_bytes(bytes(1000))
    usage = shutil.disk_usage(tmp_path)._replace(free=500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check_space(tmp_path, 1500, [tmp_path / "old", tmp_path / "missing"])
    with pytest.raises(OutputError):
        check_space(tmp_path, 1501, [tmp_path / "old", tmp_path / "missing"])
