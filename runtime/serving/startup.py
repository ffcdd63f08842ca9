"""What must be right before a server starts: names, the token, the limit of open files."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Sequence
from pathlib import Path

from resdeploy.errors import ServeError
from resdeploy.runtime.serving.config import TOKEN_VARIABLE, ServeConfig

MODEL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


def model_names(bundles: Sequence[Path]) -> dict[str, Path]:
    """What clients call each bundle: its folder's name without `.bundle`.

    Raises:
        ServeError: two have the same name, or one has a name that is none in a path.
    """
    names: dict[str, Path] = {}
    for path in bundles:
        name = path.resolve().name.removesuffix(".bundle")
        if not MODEL_NAME.fullmatch(name):
            raise ServeError(
                f"{path} has a name that cannot stand in an address",
                "rename the folder: letters, digits, and . _ - between them",
            )
        if name in names:
            raise ServeError(f"two bundles are called {name}", "rename one of the folders")
        names[name] = path
    return names


def read_token(config: ServeConfig) -> bytes | None:
    """The bearer token, from the file or from the environment; None for an open server.

    Raises:
        ServeError: the file cannot be read, or the token is empty or has spaces.
    """
    if config.token_file is not None:
        try:
            text = config.token_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ServeError(
                f"{config.token_file} cannot be read", "write the token into a file of its own"
            ) from error
    elif TOKEN_VARIABLE in os.environ:
        text = os.environ[TOKEN_VARIABLE]
    else:
        return None
    token = text.strip().encode()
    if not token or len(token.split()) != 1:
        raise ServeError(
            "the token is empty or has spaces in it", "make one with: openssl rand -hex 32"
        )
    return token


def allow_files(wanted: int) -> None:
    """Raise this process's limit of open files where it is below `wanted` and may be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
