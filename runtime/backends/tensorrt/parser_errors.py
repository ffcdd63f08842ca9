"""What TensorRT's parser refused, in one sentence, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from resdeploy.errors import BackendError

EXPORT_AGAIN = (
    "use the int8.onnx that resdeploy export --int8 writes; int8-cpu.onnx and other tools' files "
    "are for other engines"
)
UNKNOWN_OPERATOR = "it does not know this operator"
# By what stands in the reason, as TensorRT-RTX 1.7 words it.
REMEDIES = (
    ("zero point", f"TensorRT quantises symmetrically, with zero point 0: {EXPORT_AGAIN}"),
    ("type int32", f"TensorRT wants the bias of a convolution as a float: {EXPORT_AGAIN}"),
    (
        UNKNOWN_OPERATOR,
        "replace it in the network, or run the graph with --backend onnxruntime-cuda",
    ),
    ("parse the onnx model", "this is no ONNX file, or a damaged one: export it again"),
)
OTHERWISE = "export the bundle again with this version of resdeploy; --debug shows TensorRT's log"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParserError:
    """One error of the parser."""

    code: str
    """Name of a member of its ErrorCode."""
    description: str
    node: str = ""
    operator: str = ""


def explain_parser_error(refusal: ParserError, tensorrt: str, graph: str) -> BackendError:
    """The error to raise.

    Args:
        refusal: What the parser said.
        tensorrt: Name and version of who said it.
        graph: The file in question.
    """
    reason = extract_reason(refusal)
    where = f" at node {refusal.node} ({refusal.operator})" if refusal.node else ""
    remedy = next((remedy for sign, remedy in REMEDIES if sign in reason.lower()), OTHERWISE)
    return BackendError(f"{tensorrt} refuses {graph}{where}: {reason}", remedy)


def extract_reason(refusal: ParserError) -> str:
    """The sentence in a description, without the parser's source lines and conditions."""
    text = refusal.description
    if refusal.code == "UNSUPPORTED_NODE" or "Plugin not found" in text:
        return UNKNOWN_OPERATOR
    # Invalid Node - NAME \n FUNCTION: Error Code 4: API Usage Error (NAME: REASON. In ... at ...)
    if found := re.search(r"Error Code \d+: [\w ]+ \((?:\S+: )?(.+?)\.? In \S+ at ", text):
        return found[1]
    # Assertion failed: CONDITION: REASON. FURTHER ADVICE.
    if text.startswith("Assertion failed: "):
        text = text.removeprefix("Assertion failed: ").partition(": ")[2] or text
        text = text.split(". ")[0]
    return " ".join(text.split()).rstrip(".") or "it gives no reason"
