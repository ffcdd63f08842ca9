"""A cache for downloads of tests, in the user's cache folder, shared by all checkouts."""

from __future__ import annotations

import shutil
import time

from resdeploy.filesystem import cache_folder

# Read at import, before a test sets its own XDG_CACHE_HOME.
CACHE = cache_folder() / "tests"
UNUSED_SECONDS = 14 * 24 * 3600


def prune(pattern: str) -> None:
    """Remove folders that were not used for two weeks; other checkouts may need other ones."""
    for folder in CACHE.glob(pattern):
        if time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(folder)
