"""A bundle is read only after its manifest and the sha256 of its files were checked."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resdeploy import __version__
from resdeploy.bundle import bundle as bundle_module
from resdeploy.bundle import golden as golden_module
from resdeploy.bundle.analysis import read_analysis
from resdeploy.bundle.bundle import ANALYSIS, GOLDEN, LABELS, Bundle, open_bundle
from resdeploy.bundle.golden import Golden
from resdeploy.bundle.manifest import MANIFEST, SCHEMA, Encoding, Precision
from resdeploy.errors import BundleError
from resdeploy.filesystem import sha256


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """Return a copy of the bundle that a test may damage."""
    return shutil.copytree(tiny_bundle.path, tmp_path / "copy.bundle")


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    change(document)
    (folder / MANIFEST).write_text(json.dumps(document))


def replace(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and update its record in the manifest, as an attacker would."""
    (folder / name).write_bytes(data)
    record = {"bytes": len(data), "sha256": sha256(data)}
    edit_manifest(folder, lambda document: document["files"][name].update(record))


# Intact bundles


def test_contract_of_the_manifest(tiny_bundle: Bundle) -> None:
    document = json.loads((tiny_bundle.path / MANIFEST).read_text())
    assert document["schema"] == SCHEMA
    assert set(document) == {
        "schema", "model", "input", "output", "preprocessing", "preprocessing_origins", "artifacts",
        "files", "calibration", "golden", "provenance", "warnings", "batch_norm_shift", "work",
    }  # fmt: skip
    assert document["input"] == {
        "name": "images", "dtype": "uint8", "shape": ["batch", 32, 32, 3], "layout": "NHWC",
        "colour": "RGB",
    }  # fmt: skip
    assert {"precision", "encoding", "file", "bytes", "sha256", "opset", "convs", "int8_convs"} < (
        set(document["artifacts"][0])
    )
    assert {"versions", "command", "git_commit", "date"} <= set(document["provenance"])


def test_files_of_the_contract(tiny_bundle: Bundle) -> None:
    assert {path.name for path in tiny_bundle.path.iterdir()} == {
        "manifest.json", "fp32.onnx", "fp16.onnx", "int8.onnx", "int8-cpu.onnx", "labels.txt",
        "golden.npz", "report.html", "calibration.json", "calibration.cache",
        "analysis.json", "README.md", "sbom.cdx.json",
    }  # fmt: skip


def test_artifacts_are_found_by_name(tiny_bundle: Bundle) -> None:
    found = {artifact.name: artifact for artifact in tiny_bundle.manifest.artifacts}
    assert list(found) == ["fp32", "fp16", "int8", "int8-cpu"]
    assert found["int8"].encoding is Encoding.TENSORRT
    assert found["int8-cpu"].encoding is Encoding.CPU
    assert found["fp16"].precision is Precision.FP16
    assert tiny_bundle.artifact("int8-cpu") == found["int8-cpu"]


def test_manifest_round_trip(tiny_bundle: Bundle) -> None:
    document = json.loads((tiny_bundle.path / MANIFEST).read_text())
    assert json.loads(json.dumps(tiny_bundle.manifest.to_json())) == document


def test_labels_and_golden(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.labels() == ("blue", "green", "red")
    golden = tiny_bundle.golden()
    assert golden.images.shape == (24, 32, 32, 3)
    assert golden.images.dtype == np.uint8
    assert golden.logits.shape == (24, 3)
    assert golden.logits.dtype == np.float32


def test_every_file_can_be_read(tiny_bundle: Bundle) -> None:
    for path in tiny_bundle.path.iterdir():
        if path.name != MANIFEST:
            assert tiny_bundle.read(path.name) == path.read_bytes()


# Damaged bundles


@pytest.mark.parametrize("name", ["fp32.onnx", "int8-cpu.onnx", LABELS, GOLDEN, "report.html"])
def test_rejects_a_changed_byte(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match="was changed") as caught:
        open_bundle(copy).read(name)
    assert caught.value.hint
    with pytest.raises(BundleError, match="was changed"), open_bundle(copy).checked_path(name):
        pass


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x"])
def test_rejects_another_length(copy: Path, change: Callable[[bytes], bytes]) -> None:
    path = copy / "fp32.onnx"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BundleError, match="was changed"):
        open_bundle(copy).read("fp32.onnx")
    with (
        pytest.raises(BundleError, match="was changed"),
        open_bundle(copy).checked_path("fp32.onnx"),
    ):
        pass


def test_checked_path_ignores_a_file_that_replaces_the_checked_one(copy: Path) -> None:
    bundle = open_bundle(copy)
    whole = bundle.read("fp32.onnx")
    with bundle.checked_path("fp32.onnx") as path:
        (copy / "other").write_bytes(b"another graph")
        (copy / "other").replace(copy / "fp32.onnx")
        assert path.read_bytes() == whole
    (copy / "fp32.onnx").unlink()
    with pytest.raises(BundleError, match="cannot be read"), bundle.checked_path("fp32.onnx"):
        pass


def test_rejects_a_missing_file_by_name(copy: Path) -> None:
    (copy / "fp16.onnx").unlink()
    with pytest.raises(BundleError, match=r"fp16\.onnx cannot be read"):
        open_bundle(copy).read("fp16.onnx")


def test_rejects_an_unlisted_file(copy: Path) -> None:
    (copy / "extra.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"no file extra\.onnx"):
        open_bundle(copy).read("extra.onnx")


def test_the_hint_for_a_missing_artifact_names_the_option(copy: Path) -> None:
    def keep_fp32(document: dict[str, Any]) -> None:
        document["artifacts"] = document["artifacts"][:1]

    edit_manifest(copy, keep_fp32)
    with pytest.raises(BundleError, match="holds no int8-cpu graph, only fp32") as caught:
        open_bundle(copy).artifact("int8-cpu")
    assert "--int8" in str(caught.value.hint)


def test_rejects_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(tmp_path)


def test_names_the_folder_if_a_file_or_a_run_is_given(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="a file of a bundle") as caught:
        open_bundle(copy / "fp32.onnx")
    assert caught.value.hint == f"give the folder: {copy}"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").touch()
    with pytest.raises(BundleError, match="is not a bundle") as caught:
        open_bundle(tmp_path / "run")
    assert f"resdeploy export {tmp_path / 'run'}" in str(caught.value.hint)
    with pytest.raises(BundleError, match="is a file, and a bundle is a folder"):
        open_bundle(tmp_path / "run" / "model.json")


def test_names_the_pointer_of_git_lfs_instead_of_a_change(copy: Path) -> None:
    (copy / "fp32.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BundleError, match="Git LFS") as caught:
        open_bundle(copy).read("fp32.onnx")
    assert "git lfs pull" in str(caught.value.hint)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="its pathlib does not call `io.open`")
@pytest.mark.parametrize(
    ("code", "hint"), [(errno.EACCES, "permissions"), (errno.EMFILE, "ulimit")]
)
def test_a_file_that_cannot_be_read_keeps_its_reason(
    copy: Path, refuse_to_open: Callable[..., None], code: int, hint: str
) -> None:
    bundle = open_bundle(copy)
    refuse_to_open(copy / "fp32.onnx", code)
    with pytest.raises(BundleError, match=os.strerror(code)) as caught:
        bundle.read("fp32.onnx")
    assert hint in str(caught.value.hint)


def test_a_bundle_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.bundle does not exist") as caught:
        open_bundle(tmp_path / "none.bundle")
    assert caught.value.hint == "create a bundle with resdeploy export"


@pytest.mark.parametrize(
    ("files", "given", "hint"),
    [
        (["model.json"], "", "create a bundle of this run with: resdeploy export {}"),
        (
            ["state.json"],
            "",
            "--resume {}, or with --finish after its best epoch so far; then ",
        ),
        (["a.pth"], "a.pth", "of weights, it writes one with: resdeploy export {}"),
    ],
)
def test_a_run_or_weights_get_the_command_for_a_bundle(
    tmp_path: Path, files: list[str], given: str, hint: str
) -> None:
    path = tmp_path / "my run" / given
    for name in files:
        path.parent.mkdir(exist_ok=True)
        (tmp_path / "my run").mkdir(exist_ok=True)
        (tmp_path / "my run" / name).touch()
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    assert hint.replace("{}", f"'{path}'") in str(caught.value.hint)


@pytest.mark.parametrize("schema", [0, 2, 99, "1", None, [1]])
def test_rejects_an_unknown_schema(copy: Path, schema: object) -> None:
    edit_manifest(copy, lambda document: document.update(schema=schema))
    with pytest.raises(BundleError, match="schema") as caught:
        open_bundle(copy)
    assert "export it again" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("version", "message", "hint"),
    [
        ("0.0.9", r"was written by resdeploy 0\.0\.9, and .* cannot read it: .*model", "again, or"),
        (__version__, r"is damaged: .*model", "exported on 20"),
        ("\x1b[2J", r"resdeploy \\x1b\[2J, and", "again, or"),
        (7, r"resdeploy 7, and", "again, or"),
    ],
)
def test_a_manifest_of_another_version_is_not_called_damaged(
    copy: Path, version: object, message: str, hint: str
) -> None:
    def edit(document: dict[str, Any]) -> None:
        del document["model"]
        document["provenance"]["versions"]["resdeploy"] = version

    edit_manifest(copy, edit)
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(copy)
    assert hint in str(caught.value.hint)


def test_rejects_a_large_manifest(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(BundleError, match="larger than"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", '"schema"', '{"schema": 1}', "\x00", "[" * 100_000]
)
def test_rejects_a_manifest_of_another_form(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"is (damaged|empty)"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/b", "", ".", "..", ".hidden", "a\nb", "fp32.onnx\n"]
)
def test_rejects_paths_outside_the_bundle(copy: Path, name: str) -> None:
    edit_manifest(copy, lambda document: document["artifacts"][0].update(file=name))
    with pytest.raises(BundleError, match="not a plain file name"):
        open_bundle(copy)


def test_rejects_a_link_to_a_file_with_another_hash(copy: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (copy / LABELS).unlink()
    (copy / LABELS).symlink_to(secret)
    with pytest.raises(BundleError, match="was changed"):
        open_bundle(copy).labels()


def paths_of(document: Any, prefix: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the path of every value in a JSON document."""
    found = [prefix] if prefix else []
    items = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    for key, value in items:
        found += paths_of(value, (*prefix, key))
    return found


@given(data=st.data())
@settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_any_damage_of_the_manifest_is_a_bundle_error_or_harmless(
    tiny_bundle: Bundle, tmp_path: Path, data: st.DataObject
) -> None:
    document = json.loads((tiny_bundle.path / MANIFEST).read_text())
    where = data.draw(st.sampled_from(paths_of(document)))
    target = document
    for key in where[:-1]:
        target = target[key]
    if data.draw(st.booleans()):
        del target[where[-1]]
    else:
        scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
        target[where[-1]] = data.draw(scalars | st.just([]) | st.just({}) | st.floats())
    (tmp_path / MANIFEST).write_text(json.dumps(document))
    try:
        opened = open_bundle(tmp_path)
        assert opened.manifest.classes >= 1
    except BundleError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("size", [-1, 10**30, float("inf"), 3 << 30, "many"])
def test_rejects_impossible_sizes(copy: Path, size: object) -> None:
    edit_manifest(copy, lambda document: document["artifacts"][0].update(bytes=size))
    with pytest.raises(BundleError, match="is damaged"):
        open_bundle(copy)


@pytest.mark.parametrize("classes", [0, -3, None, "3", 3.5])
def test_rejects_an_impossible_number_of_classes(copy: Path, classes: object) -> None:
    edit_manifest(copy, lambda document: document["model"].update(classes=classes))
    with pytest.raises(BundleError, match=r"is damaged: model\.classes is"):
        open_bundle(copy)


@pytest.mark.parametrize("figure", ["images", "sqnr_db", "agreement"])
def test_rejects_figures_that_are_not_numbers(copy: Path, figure: str) -> None:
    edit_manifest(copy, lambda document: document["artifacts"][0]["parity"].update({figure: "x"}))
    where = rf"is damaged: artifacts\[0\]\.parity\.{figure} is a string, not"
    with pytest.raises(BundleError, match=where):
        open_bundle(copy)


def test_rejects_a_wrong_number_of_labels(copy: Path) -> None:
    replace(copy, LABELS, b"one\ntwo\n")
    with pytest.raises(BundleError, match="2 lines for 3 classes"):
        open_bundle(copy).labels()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "analysis.json cannot be used: "),
        (b"{}", "its schema is None, not resdeploy.analysis/3"),
        (b'{"schema": "resdeploy.analysis/9"}', "its schema is 'resdeploy.analysis/9', not"),
        (b'{"schema": "resdeploy.analysis/3", "layers": []}', "the document has no "),
    ],
)
def test_rejects_a_damaged_analysis(copy: Path, data: bytes, message: str) -> None:
    replace(copy, ANALYSIS, data)
    with pytest.raises(BundleError, match=message):
        read_analysis(open_bundle(copy))


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


IMAGES, LOGITS = np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a zip",
        npz(images=IMAGES),
        npz(images=IMAGES[:0], logits=LOGITS[:0]),
        npz(images=IMAGES, logits=LOGITS[:1]),
        npz(images=IMAGES, logits=LOGITS.astype(np.float64)),
        npz(images=IMAGES.astype(np.int16), logits=LOGITS),
        npz(images=IMAGES[:, :8], logits=LOGITS),
        npz(images=np.uint8(3), logits=LOGITS),
        npz(images=np.array([{"a": 1}], dtype=object), logits=LOGITS),  # a pickle
        npz(images=IMAGES, logits=LOGITS.astype(">f4")),
        npz(images=np.asfortranarray(IMAGES), logits=LOGITS),
        npz(images=IMAGES, logits=LOGITS, other=LOGITS),
        npz(images=IMAGES, logits=LOGITS, **{f"bit-exact-{n}": LOGITS for n in range(20)}),
        npz(images=IMAGES, logits=LOGITS).replace(b"logits", b"images"),
        npz(images=IMAGES, logits=LOGITS)[:-30],
        npz(images=IMAGES, logits=LOGITS).replace(b"(2, 32, 32, 3), ", b"(2, 99999, 9999)"),
    ],
)
def test_rejects_golden_images_of_another_form(copy: Path, data: bytes) -> None:
    replace(copy, GOLDEN, data)
    edit_manifest(copy, lambda document: document["golden"].update(images=2))
    with pytest.raises(BundleError, match="cannot be used"):
        open_bundle(copy).golden()


def test_rejects_a_zip_bomb(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_module, "MAX_GOLDEN_BYTES", 1 << 20)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(1 << 21))
    assert len(stream.getvalue()) < 1 << 14
    replace(copy, GOLDEN, stream.getvalue())
    with pytest.raises(BundleError, match="unpacks to 2097152 bytes; at most 1048576"):
        open_bundle(copy).golden()


def many_files(document: dict[str, Any]) -> None:
    record = document["files"]["labels.txt"]
    document["files"] |= {f"f{n}": record for n in range(1000)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (many_files, "it lists 1,0.. files; at most 64 are allowed"),
        (lambda d: d["artifacts"].append(d["artifacts"][0]), "it lists fp32.onnx twice"),
        (lambda d: d["files"].update({"fp32.onnx": d["files"]["labels.txt"]}), "fp32.onnx twice"),
        (lambda d: d["files"].update({MANIFEST: d["files"]["labels.txt"]}), "manifest.json twice"),
        (lambda d: [d["files"][name].update(bytes=1 << 31) for name in d["files"]], "have .* byt"),
    ],
)
def test_refuses_a_manifest_with_too_many_files(
    copy: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(copy, change)
    with pytest.raises(BundleError, match=message):
        open_bundle(copy)


@pytest.mark.parametrize("name", [LABELS, ANALYSIS, GOLDEN])
def test_refuses_a_large_file_before_it_is_read(copy: Path, name: str) -> None:
    os.truncate(copy / name, 1 << 30)
    edit_manifest(copy, lambda document: document["files"][name].update(bytes=1 << 30))
    with pytest.raises(BundleError, match=r"1,073,741,824 bytes; at most .* are read"):
        open_bundle(copy).read(name)


def test_refuses_a_label_of_many_characters(copy: Path) -> None:
    replace(copy, LABELS, b"a\nb\n" + b"c" * 1001 + b"\n")
    with pytest.raises(BundleError, match="a line of 1,001 characters"):
        open_bundle(copy).labels()


def test_golden_round_trip(copy: Path) -> None:
    golden = Golden(images=IMAGES + 7, logits=LOGITS + 1, bit_exact={"int8-cpu": LOGITS.T.copy().T})
    replace(copy, GOLDEN, golden.to_bytes())
    edit_manifest(copy, lambda document: document["golden"].update(images=2))
    read = open_bundle(copy).golden()
    np.testing.assert_array_equal(read.images, golden.images)
    np.testing.assert_array_equal(read.logits, golden.logits)
