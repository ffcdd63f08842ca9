"""The check of all files of a bundle, whether a command uses them or not."""

from __future__ import annotations

import os
from itertools import islice

from resdeploy.bundle.bundle import SIGNATURE, Bundle
from resdeploy.bundle.manifest import MANIFEST, ExportWarning
from resdeploy.errors import BundleError, one_line_reason
from resdeploy.filesystem import open_regular, sha256_file
from resdeploy.readable_text import readable
from resdeploy.tables import plural

SHOWN = 5  # names in one sentence
MAX_ENTRIES = 10_000  # of a folder; listing more of them would take seconds


def check_files(bundle: Bundle) -> tuple[ExportWarning, ...]:
    """Check the size, then the sha256 of every file that the manifest lists.

    Return a warning about files in the folder that the manifest does not list.

    Raises:
        BundleError: Files are missing or were changed; the message names them.
    """
    faults = {name: fault for name in bundle.files if (fault := _fault(bundle, name))}
    if faults:
        shown = "; ".join(f"{name}: {fault}" for name, fault in islice(faults.items(), SHOWN))
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise BundleError(
            f"{bundle.path} is not as it was exported: {shown}{more}",
            "copy the bundle again, or export it again",
        )
    try:
        with os.scandir(bundle.path) as entries:
            found = {entry.name for entry in islice(entries, MAX_ENTRIES)}
    except OSError as error:
        raise BundleError(
            f"{bundle.path} cannot be listed: {one_line_reason(error)}", "check its permissions"
        ) from error
    unlisted = sorted(found - bundle.files.keys() - {MANIFEST, SIGNATURE})
    if not unlisted:
        return ()
    more = ", ..." if len(unlisted) > SHOWN else ""
    return (
        ExportWarning(
            message=f"the bundle holds {plural(len(unlisted), 'file')} that {MANIFEST} does not "
            f"list: {', '.join(f'{readable(name):.60}' for name in unlisted[:SHOWN])}{more}",
            hint="resdeploy does not read them; remove them if you do not know them",
        ),
    )


def _fault(bundle: Bundle, name: str) -> str | None:
    path, record = bundle.path / name, bundle.files[name]
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
        if size != record.bytes:
            return f"it has {size:,} bytes, not {record.bytes:,}"
        if sha256_file(path) != record.sha256:
            return "its sha256 is another"
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return one_line_reason(error)
    return None
