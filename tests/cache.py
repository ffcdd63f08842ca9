"""What is downloaded once for tests, in the user's cache, for all checkouts together."""

from __future__ import annotations

import shutil
import time

from resdeploy.storage import cache_folder

# Before a test's own XDG_CACHE_HOME hides it.
CACHE = cache_folder() / "tests"
UNUSED_SECONDS = 14 * 24 * 3600


def prune(pattern: str) -> None:
    """Remove what nobody asked for in two weeks: another checkout may use another recipe now."""
    for folder in CACHE.glob(pattern):
        if time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(folder)
