"""Checks and preparations before a server starts: model names, token, limit of open files."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Sequence
from pathlib import Path

from resdeploy.errors import ServeError, one_line_reason
from resdeploy.filesystem import read_limited
from resdeploy.runtime.serving.config import TOKEN_VARIABLE, ServeConfig

MAX_TOKEN_BYTES = 1 << 20
MODEL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


def model_names(bundles: Sequence[Path]) -> dict[str, Path]:
    """Return the path of each bundle by model name: the folder's name without `.bundle`.

    Raises:
        ServeError: Two bundles have the same name, or a name cannot be part of a URL.
    """
    names: dict[str, Path] = {}
    for path in bundles:
        name = path.resolve().name.removesuffix(".bundle")
        if name == "stats" or not MODEL_NAME.fullmatch(name):  # /v2/models/stats is Triton's path
            raise ServeError(
                f"the folder name of {path} cannot be part of a URL",
                "rename the folder with letters, digits and . _ -",
            )
        if name in names:
            raise ServeError(f"two bundles are called {name}", "rename one of the folders")
        names[name] = path
    return names


def read_token(config: ServeConfig) -> bytes | None:
    """Return the bearer token from the file or the environment; None if there is none.

    Raises:
        ServeError: The file cannot be read, or the token is empty or contains spaces.
    """
    if config.token_file is not None:
        hint = "name a text file that contains only the token"
        try:
            text = read_limited(config.token_file, MAX_TOKEN_BYTES, ServeError, hint).decode()
        except UnicodeDecodeError as error:
            raise ServeError(f"{config.token_file}: {one_line_reason(error)}", hint) from error
    elif TOKEN_VARIABLE in os.environ:
        text = os.environ[TOKEN_VARIABLE]
    else:
        return None
    token = text.strip().encode()
    if not token or len(token.split()) != 1:
        raise ServeError(
            "the token is empty or contains spaces", "create one with: openssl rand -hex 32"
        )
    return token


def raise_file_limit(count: int) -> int:
    """Raise the soft limit of open files to `count`, as far as allowed; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    return count if soft == resource.RLIM_INFINITY else soft
