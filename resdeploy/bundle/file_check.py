"""The check of all files of a bundle, whether a command uses them or not."""

from __future__ import annotations

import os
from itertools import islice

from resdeploy.bundle.bundle import SIGNATURE, Bundle
from resdeploy.bundle.manifest import MANIFEST, ExportWarning
from resdeploy.errors import BundleError, one_line_reason
from resdeploy.filesystem import open_regular, sha256_file
from resdeploy.readable_text import readable

SHOWN = 5  # files in one sentence
# Entries of a folder that are listed, because more take seconds; the warning says so.
MAX_ENTRIES = 10_000


def check_files(bundle: Bundle) -> tuple[ExportWarning, ...]:
    """Check the size, then the sha256 of all listed files; return a warning about other files.

    Raises:
        BundleError: Files are missing or were changed; the message names them.
    """
    faults = [f"{name}: {fault}" for name in bundle.files if (fault := _fault(bundle, name))]
    if faults:
        raise BundleError(
            f"{bundle.path} is not as it was exported: {_first(faults, '; ')}",
            "copy the bundle again, or export it again",
        )
    try:
        with os.scandir(bundle.path) as entries:
            found = {entry.name for entry in islice(entries, MAX_ENTRIES)}
    except OSError as error:  # a folder may allow its files to be opened, but not to be listed
        reason = f"{bundle.path} cannot be listed: {one_line_reason(error)}"
        raise BundleError(reason, "check its permissions") from error
    others = sorted(found - bundle.files.keys() - {MANIFEST, SIGNATURE})
    if not others:
        return ()
    names = _first([f"{readable(name):.60}" for name in others], ", ")
    more = f" (only {MAX_ENTRIES:,} files were looked at)" if len(found) == MAX_ENTRIES else ""
    message = f"the bundle holds files that {MANIFEST} does not list: {names}{more}"
    hint = "resdeploy does not read them; remove them if you do not know them"
    return (ExportWarning(message=message, hint=hint),)


def _first(texts: list[str], separator: str) -> str:
    more = [f"{len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return separator.join(texts[:SHOWN] + more)


def _fault(bundle: Bundle, name: str) -> str | None:
    path, record = bundle.path / name, bundle.files[name]
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
        if size != record.bytes:
            return f"it has {size:,} bytes, not {record.bytes:,}"
        return None if sha256_file(path) == record.sha256 else "its sha256 is another"
    except OSError as error:
        return one_line_reason(error)
