"""The translation of TensorRT's parser errors into one sentence and a hint."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from resdeploy.errors import BackendError

if TYPE_CHECKING:
    import tensorrt as trt

EXPORT_AGAIN = (
    "use the int8.onnx that resdeploy export --int8 writes; int8-cpu.onnx and other tools' files "
    "are for other engines"
)
UNKNOWN_OPERATOR = "it does not support this operator"
# Hints by a part of the reason, in the words of TensorRT-RTX 1.7.
HINTS = (
    ("zero point", f"TensorRT quantises symmetrically, with zero point 0: {EXPORT_AGAIN}"),
    ("type int32", f"TensorRT needs the bias of a convolution in float: {EXPORT_AGAIN}"),
    (
        UNKNOWN_OPERATOR,
        "replace it in the network, or run the graph with --backend onnxruntime-cuda",
    ),
    ("parse the onnx model", "the file is damaged or no ONNX file: export it again"),
)
DEFAULT_HINT = "export the bundle again with this version; --debug shows TensorRT's log"


def explain_parser_error(error: trt.ParserError, tensorrt: str, graph: str) -> BackendError:
    """Return the exception to raise for an error; `tensorrt` is the product with its version."""
    reason = _extract_reason(str(error.code().name), error.desc())
    where = f" at node {error.node_name()} ({error.node_operator()})" if error.node_name() else ""
    hint = next((hint for words, hint in HINTS if words in reason.lower()), DEFAULT_HINT)
    return BackendError(f"{tensorrt} rejects {graph}{where}: {reason}", hint)


def _extract_reason(code: str, text: str) -> str:
    """Return the reason in an error's description, without source lines and conditions."""
    if code == "UNSUPPORTED_NODE" or "Plugin not found" in text:
        return UNKNOWN_OPERATOR
    # Invalid Node - NAME \n FUNCTION: Error Code 4: API Usage Error (NAME: REASON. In ... at ...)
    if found := re.search(r"Error Code \d+: [\w ]+ \((?:\S+: )?(.+?)\.? In \S+ at ", text):
        return found[1]
    # Assertion failed: CONDITION: REASON. FURTHER ADVICE.
    if text.startswith("Assertion failed: "):
        text = text.removeprefix("Assertion failed: ").partition(": ")[2] or text
        text = text.split(". ")[0]
    return " ".join(text.split()).rstrip(".") or "it gives no reason"
