"""All files that a manifest lists are checked, whether a command uses them or not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from resdeploy.bundle import file_check
from resdeploy.bundle.bundle import REPORT, SIGNATURE, Bundle, open_bundle
from resdeploy.bundle.file_check import check_files
from resdeploy.bundle.manifest import MANIFEST
from resdeploy.errors import BundleError
from resdeploy.report.report import report
from resdeploy.runtime.verification.verify import verify


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle")


def hidden(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def grown(file: Path) -> None:
    os.truncate(file, 1 << 40)


def as_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def as_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def as_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (Path.unlink, "No such file or directory"),
    (hidden, "its sha256 is another"),
    (grown, "it has 1,099,511,627,776 bytes, not "),
    (as_fifo, "it is not a regular file"),
    (as_device, "it is not a regular file"),
    (as_folder, "Is a directory"),
    (as_loop, "Too many levels of symbolic links"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_fault_of_any_file_is_named(
    copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copy / REPORT)
    with pytest.raises(BundleError, match=f"{REPORT}: {message}"):
        check_files(open_bundle(copy))


@pytest.mark.parametrize("damage", [as_fifo, as_device, as_folder, as_loop])
@pytest.mark.parametrize("name", [MANIFEST, "labels.txt", "golden.npz", "fp32.onnx"])
def test_only_regular_files_are_read(copy: Path, damage: Callable[[Path], None], name: str) -> None:
    damage(copy / name)
    with pytest.raises(BundleError, match=f"{name}"):
        open_bundle(copy).read(name)


def test_all_faults_are_in_one_sentence(copy: Path) -> None:
    names = open_bundle(copy).files
    for name in names:
        (copy / name).unlink()
    with pytest.raises(BundleError, match=f"(?m); {len(names) - file_check.SHOWN} more$"):
        check_files(open_bundle(copy))


def test_a_warning_says_that_not_all_files_were_looked_at(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "other").touch()
    bundle = open_bundle(copy)
    (warning,) = check_files(bundle)
    assert "looked at" not in warning.message
    monkeypatch.setattr(file_check, "MAX_ENTRIES", 5)
    for number in range(20):
        (copy / f"other-{number}").touch()
    assert "(only 5 files were looked at)" in check_files(bundle)[0].message


def test_an_unused_file_that_was_replaced_fails_verify_and_report(copy: Path) -> None:
    (copy / "fp16.onnx").unlink()
    hidden(copy / REPORT)
    message = "fp16.onnx: No such file or directory; report.html: its sha256 is another"
    with pytest.raises(BundleError, match=message):
        verify(open_bundle(copy), precision="fp32")
    with pytest.raises(BundleError, match=message):
        report([str(copy)], output=None, markdown=True)


def test_files_that_the_manifest_does_not_list_are_named(copy: Path) -> None:
    (copy / SIGNATURE).touch()
    assert check_files(open_bundle(copy)) == ()
    (copy / "a\x1b[2J").mkdir()
    (warning,) = check_files(open_bundle(copy))
    assert warning.message == ("the bundle holds files that manifest.json does not list: a\\x1b[2J")
    text = report([str(copy)], output=None, markdown=True).markdown
    assert "manifest.json does not list" in text
    assert "\x1b" not in text
