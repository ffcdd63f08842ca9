"""A signed bundle is opened only if the right signer has signed exactly these files."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("model_signing")
pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from model_signing import hashing, signing
from model_signing._cli import main as model_signing

from resdeploy.bundle import bundle as bundle_module
from resdeploy.bundle.bundle import SIGNATURE, Bundle, open_bundle
from resdeploy.bundle.manifest import MANIFEST
from resdeploy.bundle.signature import (
    PASSWORD,
    SIGSTORE,
    Signer,
    check_key,
    make_signer,
    open_signed,
    sign_bundle,
)
from resdeploy.cli import main
from resdeploy.errors import BundleError
from resdeploy.filesystem import read_limited, sha256, sha256_file

PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Keys:
    """PEM files of one signer."""

    private: Path
    encrypted: Path
    public: Path
    certificate: Path
    with_certificate: Path


def make_keys(folder: Path, curve: ec.EllipticCurve) -> Keys:
    folder.mkdir()
    key = ec.generate_private_key(curve)
    pkcs8 = serialization.PrivateFormat.PKCS8
    public = serialization.PublicFormat.SubjectPublicKeyInfo
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, True, False, False, False), True
        )
        .sign(key, hashes.SHA256())
        .public_bytes(PEM)
    )
    private = key.private_bytes(PEM, pkcs8, serialization.NoEncryption())
    encrypted = key.private_bytes(PEM, pkcs8, serialization.BestAvailableEncryption(b"secret"))
    contents = {
        "private": private,
        "encrypted": encrypted,
        "public": key.public_key().public_bytes(PEM, public),
        "certificate": certificate,
        "with_certificate": private + certificate,
    }
    for kind, data in contents.items():
        (folder / f"{kind}.pem").write_bytes(data)
    return Keys(**{kind: folder / f"{kind}.pem" for kind in contents})


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys") / "ours", ec.SECP256R1())


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys") / "others", ec.SECP256R1())


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle")


@pytest.fixture
def signed(copy: Path, keys: Keys) -> Path:
    sign_bundle(open_bundle(copy), str(keys.private))
    return copy


@pytest.mark.parametrize(
    "curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=["256", "384", "521"]
)
def test_signs_with_every_curve_of_the_format(
    copy: Path, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    made = make_keys(tmp_path / "keys", curve)
    assert sign_bundle(open_bundle(copy), str(made.private)) == copy / SIGNATURE
    assert open_signed(copy, Signer(str(made.public))).signer == str(made.public)


def test_an_encrypted_key_needs_its_password(
    copy: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleError, match="encrypted") as raised:
        check_key(str(keys.encrypted))
    assert PASSWORD in (raised.value.hint or "")
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(BundleError, match="cannot be used to sign"):
        check_key(str(keys.encrypted))
    monkeypatch.setenv(PASSWORD, "secret")
    sign_bundle(open_bundle(copy), str(keys.encrypted))
    open_signed(copy, Signer(str(keys.public)))


def test_a_certificate_is_trusted_through_its_root(copy: Path, keys: Keys, others: Keys) -> None:
    sign_bundle(open_bundle(copy), str(keys.with_certificate))
    open_signed(copy, Signer(str(keys.certificate)))
    for signer in (others.certificate, keys.public, others.public):
        with pytest.raises(BundleError, match="no valid signature"):
            open_signed(copy, Signer(str(signer)))


# The command and the functions of the package model-signing are the independent implementation.


@pytest.mark.parametrize("kind", ["key", "certificate"])
def test_the_command_of_openssf_verifies_our_signature(copy: Path, keys: Keys, kind: str) -> None:
    key = {"key": keys.private, "certificate": keys.with_certificate}[kind]
    trusted = {
        "key": ["--public_key", keys.public],
        "certificate": ["--certificate_chain", keys.certificate],
    }
    sign_bundle(open_bundle(copy), str(key))
    arguments = ["verify", kind, copy, "--signature", copy / SIGNATURE, *trusted[kind]]
    answer = CliRunner().invoke(model_signing, [str(argument) for argument in arguments])
    assert answer.exit_code == 0, answer.output


def test_we_verify_a_signature_of_the_command_of_openssf(copy: Path, keys: Keys) -> None:
    arguments = [
        "sign",
        "key",
        copy,
        "--signature",
        copy / SIGNATURE,
        "--private_key",
        keys.private,
    ]
    answer = CliRunner().invoke(model_signing, [str(argument) for argument in arguments])
    assert answer.exit_code == 0, answer.output
    open_signed(copy, Signer(str(keys.public)))


# Changes after the signature


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def add(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text("added")


def change_and_update_the_manifest(folder: Path) -> None:
    """Replace the labels and their record, so that the bundle itself is consistent."""
    labels = b"red\ngreen\nblue\n"
    (folder / "labels.txt").write_bytes(labels)
    document = json.loads((folder / MANIFEST).read_text())
    document["files"]["labels.txt"]["sha256"] = sha256(labels)
    (folder / MANIFEST).write_text(json.dumps(document))


def link_out(folder: Path) -> None:
    shutil.move(folder / "labels.txt", folder.parent / "labels.txt")
    (folder / "labels.txt").symlink_to(folder.parent / "labels.txt")


def grow(folder: Path) -> None:
    os.truncate(folder / "fp32.onnx", 1 << 42)  # sparse: hashing it would take an hour


def replace_the_signature_by_a_fifo(folder: Path) -> None:
    (folder / SIGNATURE).unlink()
    os.mkfifo(folder / SIGNATURE)


def change_the_payload(folder: Path) -> None:
    """Sign other labels without the key."""
    document = json.loads((folder / SIGNATURE).read_text())
    envelope = document["dsseEnvelope"]
    digests = base64.b64decode(envelope["payload"]).decode()
    digests = digests.replace(sha256_file(folder / "labels.txt"), 64 * "0")
    envelope["payload"] = base64.b64encode(digests.encode()).decode()
    (folder / SIGNATURE).write_text(json.dumps(document))


CHANGES: dict[str, Callable[[Path], object]] = {
    "hidden file": add(".gitignore"),
    "file": add("fp32.onnx.data"),
    "folder": lambda folder: (folder / ".git").mkdir(),
    "fifo": lambda folder: os.mkfifo(folder / "pipe"),
    "link": link_out,
    "consistent change": change_and_update_the_manifest,
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "huge file": grow,
    "no signature": lambda folder: (folder / SIGNATURE).unlink(),
    "signature fifo": replace_the_signature_by_a_fifo,
    "empty signature": lambda folder: (folder / SIGNATURE).write_bytes(b""),
    "deep signature": lambda folder: (folder / SIGNATURE).write_text("[" * 100_000),
    "huge signature": lambda folder: os.truncate(folder / SIGNATURE, 1 << 40),
    "object": lambda folder: (folder / SIGNATURE).write_text("{}"),
    "payload": change_the_payload,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_bundle_is_refused(
    signed: Path, keys: Keys, change: Callable[[Path], object]
) -> None:
    change(signed)
    with pytest.raises(BundleError) as raised:
        open_signed(signed, Signer(str(keys.public)))
    assert "\n" not in str(raised.value)


def test_every_file_is_protected(signed: Path, keys: Keys) -> None:
    for file in sorted(signed.iterdir()):
        content = file.read_bytes()
        flip(file)
        with pytest.raises(BundleError):
            open_signed(signed, Signer(str(keys.public)))
        file.unlink()
        with pytest.raises(BundleError):
            open_signed(signed, Signer(str(keys.public)))
        file.write_bytes(content)
    open_signed(signed, Signer(str(keys.public)))


def test_nothing_is_parsed_before_the_signature_was_verified(
    signed: Path, others: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "parse", pytest.fail)
    monkeypatch.setattr(bundle_module, "decode", pytest.fail)
    with pytest.raises(BundleError, match="no valid signature"):
        open_signed(signed, Signer(str(others.public)))


def test_the_parsed_manifest_is_the_signed_one(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process changes the bundle after the verification, before it is parsed."""

    def read_changed(path: Path, *rest: object) -> bytes:
        change_and_update_the_manifest(signed)
        return read_limited(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(bundle_module, "read_limited", read_changed)
    with pytest.raises(BundleError, match="not the file that was signed"):
        open_signed(signed, Signer(str(keys.public)))


def test_a_signature_that_leaves_files_out_is_refused(copy: Path, keys: Keys) -> None:
    """The signer of the package may ignore files; we trust only what is signed."""
    config = signing.Config().use_elliptic_key_signer(private_key=keys.private)
    ignoring = hashing.Config().set_ignored_paths(paths=["labels.txt", SIGNATURE])
    config.set_hashing_config(ignoring).sign(copy, copy / SIGNATURE)
    with pytest.raises(BundleError, match=r"labels\.txt is not part of the bundle"):
        open_signed(copy, Signer(str(keys.public)))


# Signing


def test_foreign_and_damaged_files_are_not_signed(copy: Path, keys: Keys) -> None:
    (copy / "note").write_text("added")
    with pytest.raises(BundleError, match="note is not part of the bundle"):
        sign_bundle(open_bundle(copy), str(keys.private))
    (copy / "note").unlink()
    flip(copy / "fp32.onnx")
    with pytest.raises(BundleError, match="was changed"):
        sign_bundle(open_bundle(copy), str(keys.private))
    assert not (copy / SIGNATURE).exists()


def test_other_keys_are_refused(tmp_path: Path, keys: Keys, others: Keys) -> None:
    key = rsa.generate_private_key(65537, 2048)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    (tmp_path / "rsa.pem").write_bytes(key.private_bytes(PEM, form, serialization.NoEncryption()))
    mixed = keys.private.read_bytes() + others.certificate.read_bytes()
    (tmp_path / "mixed.pem").write_bytes(mixed)
    os.mkfifo(tmp_path / "fifo.pem")
    for name in ("rsa.pem", "mixed.pem", "fifo.pem", "missing.pem"):
        with pytest.raises(BundleError):
            check_key(str(tmp_path / name))
    with pytest.raises(BundleError):
        check_key(str(keys.public))


@pytest.mark.parametrize(("name", "issuer"), [("missing.pem", None), (None, "https://issuer")])
def test_a_signer_is_a_file_or_an_identity(name: str | None, issuer: str | None) -> None:
    with pytest.raises(BundleError) as raised:
        make_signer(name, issuer)
    assert raised.value.hint


def test_a_private_key_is_not_a_signer(keys: Keys) -> None:
    with pytest.raises(BundleError, match="not a PEM file of a public key"):
        make_signer(str(keys.private), None)


def test_without_a_signer_an_unsigned_bundle_is_opened(copy: Path) -> None:
    assert make_signer(None, None) is None
    assert open_signed(copy, None).signer is None


def test_sigstore_without_its_servers_is_an_error(
    copy: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of Sigstore needs its servers, and is not shown by any test."""

    def refuse(*address: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("XDG_DATA_HOME", str(copy.parent / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(copy.parent / "cache"))
    with pytest.raises(BundleError, match="cannot be signed"):
        sign_bundle(open_bundle(copy), SIGSTORE)
    assert not (copy / SIGNATURE).exists()


# Commands


@pytest.fixture
def runner(signed: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.chdir(signed.parent)
    return CliRunner()


def test_verify_names_the_signer(runner: CliRunner, keys: Keys, others: Keys) -> None:
    signer = str(keys.public)
    arguments = ["verify", "copy.bundle", "--precision", "fp32", "--backend", "onnxruntime-cpu"]
    answer = runner.invoke(main, [*arguments, "--signer", signer])
    assert answer.exit_code == 0, answer.output
    assert f"signed by {signer}" in answer.stdout
    answer = runner.invoke(main, [*arguments, "--signer", signer, "--json"])
    assert json.loads(answer.stdout)["signer"] == signer
    answer = runner.invoke(main, [*arguments, "--signer", str(others.public)])
    assert answer.exit_code == 1
    assert "no valid signature" in answer.stderr


def test_sign_writes_a_signature(runner: CliRunner, keys: Keys) -> None:
    Path("copy.bundle", SIGNATURE).unlink()
    answer = runner.invoke(main, ["sign", "copy.bundle", str(keys.private)])
    assert answer.exit_code == 0, answer.output
    assert answer.stdout == f"wrote copy.bundle/{SIGNATURE}\n"
    open_signed(Path("copy.bundle"), Signer(str(keys.public)))
