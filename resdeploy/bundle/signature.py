"""Signatures of bundles, in the format of OpenSSF Model Signing.

The signature is the file `model.sig` of the bundle: a Sigstore bundle whose payload lists the
sha256 of every other file (https://github.com/sigstore/model-transparency, the package
`model-signing`). The command `model_signing` of that package verifies what this module signs, and
the reverse.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resdeploy.bundle.bundle import SIGNATURE, Bundle, open_bundle
from resdeploy.bundle.file_check import check_files
from resdeploy.bundle.manifest import MANIFEST
from resdeploy.errors import BundleError, needs_extra, one_line_reason
from resdeploy.filesystem import in_memory, read_limited, write_file
from resdeploy.json_documents import strict_json

SIGSTORE = "sigstore"
PASSWORD = "RESDEPLOY_KEY_PASSWORD"
"""Environment variable with the password of an encrypted private key."""
# A signature lists about 20 files with 200 bytes each; chains of certificates take some kilobytes.
MAX_SIGNATURE_BYTES = 1 << 20
MAX_PEM_BYTES = 1 << 20
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_PUBLIC_KEY = b"-----BEGIN PUBLIC KEY-----"
_KEY_HINT = "create a key with: openssl ecparam -genkey -noout -name prime256v1 -out key.pem"
_SIGSTORE_HINT = "signing with an identity needs Sigstore's servers; or give a private key"
_SIGNER_HINT = (
    "give the PEM file of a public key or of a root certificate, or an identity and --issuer URL"
)


@dataclass(frozen=True, slots=True)
class Signer:
    """Whoever must have signed a bundle."""

    name: str
    """PEM file with a public key or with root certificates, or an identity of Sigstore."""
    issuer: str | None = None
    """OpenID Connect issuer that vouches for an identity of Sigstore."""

    def __post_init__(self) -> None:
        """Raise a BundleError if this is neither a PEM file nor an identity with its issuer."""
        if self.issuer is None and not self.pem.startswith((_PUBLIC_KEY, _CERTIFICATE)):
            reason = f"{self.name} is not a PEM file of a public key or certificates"
            raise BundleError(reason, _SIGNER_HINT)

    @property
    def pem(self) -> bytes:
        """Return the content of the PEM file.

        Raises:
            BundleError: The file cannot be read.
        """
        return read_limited(Path(self.name), MAX_PEM_BYTES, BundleError, _SIGNER_HINT)


def make_signer(name: str | None, issuer: str | None) -> Signer | None:
    """Return the signer that the options of a command name; None if they name none.

    Raises:
        BundleError: There is only an issuer, or the signer is neither a PEM file nor an identity.
    """
    if name is not None:
        return Signer(name, issuer)
    if issuer is not None:
        raise BundleError("an issuer alone names nobody", _SIGNER_HINT)
    return None


def check_key(key: str | None) -> None:
    """Raise a BundleError before long work if `sign_bundle` cannot use the private key.

    With `sigstore`, this only checks that the package is installed; with None, nothing.
    """
    if key is not None:
        with _signing_config(key):
            pass


def sign_bundle(bundle: Bundle, key: str) -> Path:
    """Sign all files of a bundle, and return the path of the signature.

    Args:
        bundle: The bundle; a signature that it has is replaced.
        key: A PEM file with a private key on the curve P-256, P-384 or P-521, and after it, if
            wanted, the certificate of this key and the chain to its root; or `sigstore`, to sign
            with an identity: that opens connections to the servers of Sigstore.

    Raises:
        BundleError: A file is damaged or is not part of the bundle, or the key cannot be used.
        MissingDependencyError: The package model-signing is not installed.
        OutputError: The signature cannot be written.
    """
    signature = bundle.path / SIGNATURE
    for name in bundle.files:
        bundle.read(name)
    _refuse_other_files(bundle.path, {MANIFEST, *bundle.files})
    with _signing_config(key) as config, tempfile.TemporaryDirectory() as folder:
        private = Path(folder) / SIGNATURE
        try:
            config.set_hashing_config(_hashing_config())
            config.sign(bundle.path.resolve(), private)
        except Exception as error:  # the library raises exceptions of many types
            reason, hint = one_line_reason(error), _SIGSTORE_HINT if key == SIGSTORE else _KEY_HINT
            raise BundleError(f"{bundle.path} cannot be signed: {reason}", hint) from error
        write_file(signature, private.read_bytes())
    return signature


def open_signed(path: Path, signer: Signer | None) -> Bundle:
    """Open a bundle after checking its signature; without a signer, only open it.

    Nothing in the bundle is parsed before the signature was verified. The manifest that is parsed
    is the one that was signed, and the sizes and sha256 in it protect all other files.

    Raises:
        BundleError: The bundle has no signature of the signer, or a file was changed, added or
            left out; or the bundle is damaged.
        MissingDependencyError: The package model-signing is not installed.
    """
    if signer is None or not path.is_dir():
        return open_bundle(path)  # without a folder, it raises an error that names the reason
    signature, hint = path / SIGNATURE, "do not use it; ask its author for a new copy"
    if not signature.exists():
        hint = "ask its author for a signed copy; the author signs it with: resdeploy sign"
        raise BundleError(f"{path} is not signed: it has no {SIGNATURE}", hint)
    data = read_limited(signature, MAX_SIGNATURE_BYTES, BundleError, hint)
    opened: list[Bundle] = []

    class Checked(_config_class()):  # type: ignore[misc]
        """Hashing that starts after the signature of the payload was found to be valid."""

        def hash(self, model_path: Path, *, files_to_hash: Any = None) -> Any:
            opened.append(_open_listed(path, _signed_digests(data)))
            self.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
            return super().hash(model_path, files_to_hash=files_to_hash)

    try:
        # Another process may change the file, so the library verifies a private copy.
        pem = signer.pem if signer.issuer is None else b""
        with in_memory(SIGNATURE, data) as copy, in_memory("signer.pem", pem) as key:
            config = _verifying_config(signer, pem, key)
            config.set_hashing_config(Checked())
            config.verify(path.resolve(), copy)
    except BundleError:
        raise
    except Exception as error:  # the library raises exceptions of many types
        reason = one_line_reason(error)
        if isinstance(error, (AttributeError, LookupError, TypeError, RecursionError)):
            reason = f"{SIGNATURE} is damaged, or made with another kind of key"
        raise BundleError(
            f"{path} has no valid signature of {signer.name}: {reason}", hint
        ) from error
    return replace(opened[0], signer=signer.name)


def _open_listed(path: Path, digests: Mapping[str, str]) -> Bundle:
    """Open a bundle whose files are exactly those in `digests`, the sha256 by name."""
    _refuse_other_files(path, digests.keys())
    bundle = open_bundle(path, manifest_sha256=digests.get(MANIFEST, ""))
    for name, record in bundle.files.items():
        if digests.get(name) != record.sha256:
            raise BundleError(
                f"{path / name} is not the file that was signed", "copy the bundle again"
            )
    check_files(bundle)  # sizes first: the library hashes a replaced file, however large it is
    return bundle


def _refuse_other_files(path: Path, names: Any) -> None:
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.name not in {*names, SIGNATURE} or not entry.is_file(follow_symlinks=False):
            raise BundleError(
                f"{path / entry.name} is not part of the bundle", "remove it, or copy the bundle"
            )


def _signed_digests(signature: bytes) -> dict[str, str]:
    """Return the sha256 of each file by its name, from a signature that was verified."""
    payload = strict_json(base64.b64decode(strict_json(signature)["dsseEnvelope"]["payload"]))
    resources = payload["predicate"]["resources"]
    if any(resource["algorithm"] != "sha256" for resource in resources):
        raise ValueError("it does not use sha256")
    return {resource["name"]: resource["digest"] for resource in resources}


def _config_class() -> type[Any]:
    with needs_extra():
        from model_signing.hashing import Config
    return Config  # type: ignore[no-any-return]


def _hashing_config() -> Any:
    """Return the default of the library, but with files such as `.gitignore` signed, too."""
    return _config_class()().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


@contextmanager
def _signing_config(key: str) -> Iterator[Any]:
    with needs_extra():
        from model_signing import signing
    config = signing.Config()
    if key == SIGSTORE:
        yield config
        return
    pem = read_limited(Path(key), MAX_PEM_BYTES, BundleError, _KEY_HINT)
    password = os.environ.get(PASSWORD)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if _CERTIFICATE in pem:
                first, rest = _write_certificates(pem, Path(folder))
                config.use_certificate_signer(
                    private_key=key, signing_certificate=first, certificate_chain=[rest]
                )
            else:
                # The library passes the password on to a function that takes bytes.
                secret: Any = password.encode() if password else None
                config.use_elliptic_key_signer(private_key=key, password=secret)
        except Exception as error:
            reason, hint = one_line_reason(error), _KEY_HINT
            if isinstance(error, TypeError):  # the key and the password do not fit together
                hint = f"set {PASSWORD} to the password, only if the key has one"
            raise BundleError(f"{key} cannot be used to sign: {reason}", hint) from error
        yield config


def _write_certificates(pem: bytes, folder: Path) -> tuple[Path, Path]:
    """Write the first certificate to a file and the others, or the first again, to another."""
    first, *others = [_CERTIFICATE + part for part in pem.split(_CERTIFICATE)[1:]]
    (folder / "first.pem").write_bytes(first)
    (folder / "others.pem").write_bytes(b"".join(others) or first)
    return folder / "first.pem", folder / "others.pem"


def _verifying_config(signer: Signer, pem: bytes, key: Path) -> Any:
    with needs_extra():
        from model_signing import verifying
    config = verifying.Config()
    if signer.issuer is not None:
        return config.use_sigstore_verifier(identity=signer.name, oidc_issuer=signer.issuer)
    if _CERTIFICATE in pem:
        return config.use_certificate_verifier(certificate_chain=[key])
    return config.use_elliptic_key_verifier(public_key=key)
