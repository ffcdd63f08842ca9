"""What each quantised tensor costs: alone, and among all the others.

One graph holds a switch for every quantised tensor, so that hundreds of combinations run in one
session, at FP32's speed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from resdeploy.bundle import CALIBRATION, INPUT_NAME, OUTPUT_NAME, Bundle, Encoding, Float32Array
from resdeploy.calibration.ranges import Range
from resdeploy.errors import BundleError, needs_extra
from resdeploy.export.placement import place
from resdeploy.export.qdq import insert_qdq
from resdeploy.export.to_onnx import to_bytes
from resdeploy.preprocessing import UInt8Array
from resdeploy.progress import Progress, silent
from resdeploy.statistics import sqnr_db

SWITCHES = "switches"
DEFAULT_IMAGES = 16
BATCH = 16

Switches = npt.NDArray[np.bool_]
Run = Callable[[Switches], Float32Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSensitivity:
    """One quantised tensor: an activation by its name, or a weight."""

    tensor: str
    kind: str
    """`activation` or `weight`."""
    low: float | None
    """Lower end of an activation's calibrated range; None for weights, whose channels differ."""
    high: float | None
    sqnr_alone_db: float
    """At the logits, when this tensor alone is quantised: median over the images."""
    gain_db: float
    """How much better an image's logits are when all tensors but this one are quantised: median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What `resdeploy explain` found about one INT8 graph."""

    bundle: str
    encoding: Encoding
    calibrator: str
    images: int
    sqnr_db: float
    """With every tensor quantised."""
    layers: tuple[TensorSensitivity, ...]
    """The worst first."""


def explain(
    bundle: Bundle,
    *,
    encoding: Encoding = Encoding.TENSORRT,
    images: int = DEFAULT_IMAGES,
    progress: Progress = silent,
) -> Explanation:
    """Measure, on golden images, what each quantised tensor of an INT8 graph costs.

    Args:
        bundle: One with INT8 graphs.
        encoding: TENSORRT for `int8.onnx`, CPU for `int8-cpu.onnx`.
        images: Golden images to use; the time grows with them.
        progress: Told of each combination.

    Raises:
        BundleError: the bundle is damaged, or has no INT8 graph.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    bundle.artifact("int8" if encoding is Encoding.TENSORRT else "int8-cpu")
    calibrator, ranges = read_calibration(bundle, encoding)
    model = ir.from_proto(onnx.load_from_string(bundle.read("fp32.onnx")))
    graph, tensors = with_switches(model, ranges, encoding)
    run = _session(graph, bundle.golden().images[:images])
    count = len(tensors)
    none, everything, single = (
        np.zeros(count, bool),
        np.ones(count, bool),
        np.eye(count, dtype=bool),
    )
    with progress("explaining", 2 * count) as advance:
        reference = run(none)
        total = sqnr_db(reference, run(everything))

        def ratios(switches: Switches) -> npt.NDArray[np.float64]:
            advance(1)
            return sqnr_db(reference, run(switches))

        layers = [
            TensorSensitivity(
                tensor=tensor,
                kind="activation" if tensor in ranges else "weight",
                low=ranges[tensor].low if tensor in ranges else None,
                high=ranges[tensor].high if tensor in ranges else None,
                sqnr_alone_db=float(np.median(ratios(single[index]))),
                gain_db=float(np.median(ratios(~single[index]) - total)),
            )
            for index, tensor in enumerate(tensors)
        ]
    return Explanation(
        bundle=str(bundle.path),
        encoding=encoding,
        calibrator=calibrator,
        images=min(images, len(bundle.golden().images)),
        sqnr_db=float(np.median(total)),
        layers=tuple(sorted(layers, key=lambda layer: layer.sqnr_alone_db)),
    )


def read_calibration(bundle: Bundle, encoding: Encoding) -> tuple[str, dict[str, Range]]:
    """The calibrator and the ranges that `calibration.json` holds for `encoding`.

    Raises:
        BundleError: the file is damaged.
    """
    try:
        document = json.loads(bundle.read(CALIBRATION))[encoding.value]
        ranges = {
            str(tensor): Range(low=float(ends["low"]), high=float(ends["high"]))
            for tensor, ends in document["ranges"].items()
        }
        return str(document["calibrator"]), ranges
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(
            f"{bundle.path / CALIBRATION} cannot be used: {error!r}", "export the bundle again"
        ) from error


def with_switches(
    model: ir.Model, ranges: Mapping[str, Range], encoding: Encoding
) -> tuple[bytes, list[str]]:
    """The FP32 graph with every quantised tensor beside its float original.

    Returns:
        A graph with another input, `switches`, bool (T,), and the T tensors they stand for. True
        quantises. Tensors that share a range share a switch. Biases are quantised in any case.
    """
    quantised = model.clone()
    graph = quantised.graph
    edges = place(graph, encoding)
    insert_qdq(quantised, edges, ranges, encoding)
    range_of = {edge.tensor: edge.range_of for edge in edges}
    tensors: list[str] = []
    switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL))
    graph.inputs.append(switches)
    for node in [node for node in graph if node.op_type == "DequantizeLinear"]:
        name = str(node.name).removesuffix(".dequantize")
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        if producer is not None:
            original = producer.inputs[0]
            tensor = range_of[name]
        elif name.endswith(".weight"):
            source = model.graph.initializers[name]
            original = ir.Value(
                name=f"{name}.float", type=source.type, shape=source.shape,
                const_value=source.const_value,
            )  # fmt: skip
            graph.initializers.add(original)
            tensor = name
        else:
            continue
        if tensor not in tensors:
            tensors.append(tensor)
        _insert_switch(graph, node, original, switches, tensors.index(tensor))
    switches.shape = ir.Shape([len(tensors)])
    return to_bytes(quantised), tensors


def _insert_switch(
    graph: ir.Graph, dequantize: ir.Node, original: ir.Value | None, switches: ir.Value, index: int
) -> None:
    name = str(dequantize.name).removesuffix(".dequantize")
    where = ir.Value(
        name=f"{name}.switch_index", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]),
        const_value=ir.tensor(np.array(index, dtype=np.int64)),
    )  # fmt: skip
    graph.initializers.add(where)
    uses = list(dequantize.outputs[0].uses())
    flag = ir.node("Gather", [switches, where], {"axis": 0}, name=f"{name}.flag")
    flag.outputs[0].name = f"{name}.flag"
    choose = ir.node(
        "Where", [flag.outputs[0], dequantize.outputs[0], original], name=f"{name}.choose"
    )
    choose.outputs[0].name = f"{name}.chosen"
    graph.insert_after(dequantize, [flag, choose])
    for use in uses:
        use.node.replace_input_with(use.idx, choose.outputs[0])


def _session(graph: bytes, images: UInt8Array) -> Run:
    with needs_extra():
        import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def run(switches: Switches) -> Float32Array:
        feeds = (
            {INPUT_NAME: images[start : start + BATCH], SWITCHES: switches}
            for start in range(0, len(images), BATCH)
        )
        parts = [np.asarray(session.run([OUTPUT_NAME], feed)[0]) for feed in feeds]
        return np.concatenate(parts)

    return run
