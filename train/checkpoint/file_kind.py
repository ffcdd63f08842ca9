"""Names for files that are not checkpoints, found from their first bytes.

Sources: the table of file(1); onnx.proto of ONNX, saved_model.proto and graph.proto of TensorFlow;
git-lfs, docs/spec.md; numpy/lib/format.py; the first bytes of an engine of TensorRT-RTX 1.7.
"""

from __future__ import annotations

import re
from pathlib import Path

from resdeploy.errors import CheckpointError, one_line_reason, remedy_for
from resdeploy.filesystem import open_regular
from resdeploy.missing_paths import missing_path_hint

HEAD_BYTES = 1024
_AGAIN = "copy or download the file again"
_OTHER = "give a run folder, or weights of PyTorch: a .pth, .ckpt, .bin or .safetensors file"
_CONVERT = "convert its weights to a state dict of PyTorch"
_UNPACK = "unpack it, and give the path of the file inside"
_ONNX = "give the checkpoint of PyTorch from which the engine was built"
_EXPORT = "resdeploy export takes it, if its name ends in .onnx; other commands need the weights"
AN_ONNX_GRAPH = "an ONNX graph"
# A regular expression for the first bytes, a name, and a remedy.
_KINDS = (
    (rb"\Z", "an empty file", _AGAIN),
    (rb"\0{512}", "a file of zeros", _AGAIN),
    (rb"version https://git-lfs", "only a pointer of Git LFS", "fetch the file with: git lfs pull"),
    (rb"\s*<(?i:!doctype html|html|head|body)", "an HTML page",
     "download the file itself, not its web page"),
    (rb"\s*<(\?xml|!)", "an XML document", _OTHER),
    (rb"\x08[\x01-\x20](\x12(\0|[\x01-\x7f][ -~])|[:B])", AN_ONNX_GRAPH, _EXPORT),
    (rb"\x08\x01\x12[\x80-\xff]", "a SavedModel of TensorFlow", _CONVERT),
    (rb"\n.{1,3}\n[\x01-\x7f][ -~]+\x12[\x01-\x7f][A-Z]", "a graph of TensorFlow", _CONVERT),
    (rb".{4}TFL3", "a network of TensorFlow Lite", _CONVERT),
    (rb"\x89HDF\r\n", "an HDF5 file, such as weights of Keras", _CONVERT),
    (rb"PK\x03\x04.{26}(metadata|config)\.json", "a network of Keras", _CONVERT),
    (rb"\x93NUMPY|PK\x03\x04.{26}[^/]{1,200}\.npy", "a file of NumPy arrays", _CONVERT),
    (rb"PK\x03\x04.{26}([^/]{1,200}/(data/(weights|aotinductor)/|archive_)|serialized_exported_)",
     "a program of torch.export",
     "resdeploy export takes it, if its name ends in .pt2; other commands need the weights"),
    (rb"GGUF|ggml|lmgg", "a GGUF file of a language model", _OTHER),
    (rb"[a-z]trt\0", "an engine of TensorRT", _ONNX),
    (rb"\x7fELF|MZ", "a program or library", _OTHER),
    (rb"(sys_info|pickle|storages|tensors)\0.{240,}ustar", "a file of PyTorch 0.1",
     "load it with that version of PyTorch, and save model.state_dict() with a newer one"),
    (rb".{257}ustar", "a tar archive", _UNPACK),
    (rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a compressed file", _UNPACK),
    (rb"PK\x05\x06", "an empty ZIP archive", _AGAIN),
    (rb"PK\x03\x04.{26}(\[Content_Types\]|META-INF/)", "a document or Java archive", _OTHER),
    (rb"\xff\xd8\xff|\x89PNG|GIF8|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP", "an image", _OTHER),
    (rb"%PDF", "a PDF document", _OTHER),
    (rb"\s*[\[{]", "a JSON document", _OTHER),
    (rb"", "a text file", _OTHER),
)  # fmt: skip
_TEXTS = ("a JSON document", "a text file")


def refuse_missing(path: Path) -> None:
    """Check that a checkpoint exists, without reading it.

    Raises:
        CheckpointError: There is neither a file nor a folder.
    """
    hint = "give the path of a run folder or of a file of weights"
    if path.exists() and not path.is_file() and not path.is_dir():
        raise CheckpointError(f"{path} is not a regular file", hint)
    if not path.exists():
        raise CheckpointError(
            f"there is no checkpoint at {path}", missing_path_hint(path, _may_be_weights, hint, "")
        )


def _may_be_weights(path: Path) -> bool:
    if path.is_dir():  # of a run, or of Hugging Face
        return any((path / name).exists() for name in ("model.json", "config.json"))
    return path.suffix in (".bin", ".ckpt", ".onnx", ".pt", ".pth", ".safetensors")


def describe_foreign_file(path: Path) -> str | None:
    """Return what a file is, such as `an ONNX graph`; None if it may be a checkpoint.

    Raises:
        CheckpointError: The file cannot be read.
    """
    kind = _kind(path)
    return kind and kind[0]


def refuse_foreign_file(path: Path) -> None:
    """Raise a CheckpointError with a remedy if a file cannot be read or is not a checkpoint."""
    if kind := _kind(path):
        raise CheckpointError(f"{path} is not a checkpoint: it is {kind[0]}", kind[1])


def _kind(path: Path) -> tuple[str, str] | None:
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        reason = one_line_reason(error)
        raise CheckpointError(
            f"{path} cannot be read: {reason}", remedy_for(error, _AGAIN)
        ) from error
    text = head.isascii() and not re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]", head)
    for pattern, name, remedy in _KINDS:
        if re.match(pattern, head, re.DOTALL) and (text or name not in _TEXTS):
            return name, remedy
    return None
