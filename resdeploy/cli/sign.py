"""The command `resdeploy sign`: sign a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from click import argument

from resdeploy.cli.options.console import PATH, CommandResult, command


@dataclass(frozen=True, slots=True)
class SigningResult:
    """Result of `resdeploy sign`."""

    signature: Path
    schema: str = "resdeploy.signature/1"


@command
@argument("bundle", type=PATH)
@argument("key", metavar="KEY|sigstore")
def sign(bundle: Path, key: str) -> CommandResult:
    """Sign BUNDLE in the format of OpenSSF Model Signing.

    KEY is a PEM file with a private key on an elliptic curve and, after it, optionally its
    certificate and the chain to the root. The variable RESDEPLOY_KEY_PASSWORD holds the password of
    an encrypted key. The word sigstore signs with your identity, over the network. The signature is
    checked by `verify --signer` and `serve --require-signer`.
    """
    from resdeploy.bundle.bundle import open_bundle
    from resdeploy.bundle.signature import sign_bundle

    signature = sign_bundle(open_bundle(bundle), key)
    return CommandResult(SigningResult(signature), f"wrote {signature}")
