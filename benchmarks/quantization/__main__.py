"""Benchmark of INT8 accuracy against other quantisers, with the same weights and images.

    python -m benchmarks.quantization CHECKPOINT DATA --output docs/results/quantization.json

Calibration images are drawn from train/ in DATA, and all graphs are evaluated on val/. Each of the
other tools has its own environment, which is created at the first use. The other tools quantise
the network without the normalisation, with the float32 input that they expect. Every graph runs in
ONNX Runtime on the CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx.utils
import onnxruntime

from benchmarks.environment import make_environment
from benchmarks.quantization.peers import CONTENDERS, INPUT
from benchmarks.results import QUANTIZATION_HEAD, Quantization, QuantizedRow, quantization_cells
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME, Encoding
from resdeploy.calibration.image_set import CalibrationImages, draw
from resdeploy.export.graph.to_onnx import to_bytes, to_onnx
from resdeploy.export.inputs import Source, read_source
from resdeploy.export.quantization.held_out import scoring_images
from resdeploy.images.class_folders import match_labels, read_image_folder
from resdeploy.images.folder import read_batches
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.json_documents import write_document
from resdeploy.result_files.provenance import Environment
from resdeploy.runtime.backends.onnxruntime.cpu import PROVIDER, OnnxRuntimeCpu, session_options
from resdeploy.runtime.backends.onnxruntime.session import create_session
from resdeploy.runtime.verification.golden_check import run_batches
from resdeploy.statistics import agreement_percent, compare_accuracy, sqnr_db
from resdeploy.tables import table
from resdeploy.train.model.resnet import Classifier

HERE = Path(__file__).parent
NORMALISED = "normalize.add"
REQUIREMENTS = {
    "onnxruntime": ["onnx==1.21.0", "onnxruntime==1.32.0"],
    "nncf": ["nncf==3.4.0", "onnx==1.21.0", "onnxruntime==1.32.0"],
    "modelopt": ["torch==2.13.0", "nvidia-modelopt[onnx]==0.47.0"],
}
OURS = {Encoding.TENSORRT: "resdeploy int8.onnx", Encoding.CPU: "resdeploy int8-cpu.onnx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSet:
    """Validation images with FP32's logits, against which every graph is compared."""

    images: UInt8Array
    """uint8 (N, H, W, 3)."""
    normalised: Float32Array
    """The same images as input of the other tools' graphs, (N, 3, H, W)."""
    classes: np.ndarray
    """True class of each image, (N,)."""
    reference: Float32Array
    """FP32's logits, (N, K)."""

    def compare(
        self, contender: str, seed: int, logits: Float32Array, convs: int, usage: Any
    ) -> QuantizedRow:
        """Compare `logits` (N, K) with FP32's; `usage` is what the quantiser's process printed."""
        ratios = sqnr_db(self.reference, logits)
        paired = compare_accuracy(self.reference, logits, self.classes)
        return QuantizedRow(
            contender=contender,
            seed=seed,
            top1=100 * paired.candidate_correct / paired.images,
            drop=paired.drop,
            agreement=agreement_percent(self.reference, logits),
            sqnr_db=float(np.median(ratios)),
            sqnr_db_p5=float(np.percentile(ratios, 5)),
            int8_convs=convs,
            processor_seconds=usage["processor_seconds"],
            peak_mb=usage["peak_mb"],
        )


@click.command(context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--image-size", default=32, help="Side of the input, in pixels.")
@click.option("--images", default=512, help="Number of calibration images.")
@click.option("--seed", "seeds", multiple=True, default=(0, 1, 2), help="Seed of the calibration.")
@click.option(
    "--peer",
    "peers",
    type=click.Choice(list(CONTENDERS)),
    multiple=True,
    default=tuple(CONTENDERS),
    help="Other quantiser to compare with; can be repeated.",
)
@click.option(
    "--environments",
    type=click.Path(path_type=Path),
    default=Path("~/.cache/resdeploy/quantizers"),
    help="Folder in which the other tools are installed.",
)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    checkpoint: Path,
    data: Path,
    image_size: int,
    images: int,
    seeds: tuple[int, ...],
    peers: tuple[str, ...],
    environments: Path,
    output: Path | None,
) -> None:
    """Quantise CHECKPOINT with every tool and seed, evaluate on DATA, and print a table."""
    pythons = {}
    for peer in peers:
        tool = peer.split()[0]
        pythons[peer] = make_environment(environments.expanduser() / tool, REQUIREMENTS[tool])
    source = read_source(checkpoint, image_size=image_size, calibration_data=data)
    checkpoint, data = checkpoint.resolve(), data.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        validation = _prepare(source, data, work)
        rows: list[QuantizedRow] = []
        for seed in seeds:
            for row in _compare_all(
                source, checkpoint, data, images, seed, work, validation, pythons
            ):
                rows.append(row)
                click.echo(f"seed {seed}  {row.contender}: {row.agreement:.2f} %", err=True)
    click.echo(table(QUANTIZATION_HEAD, quantization_cells(rows)))
    if output is not None:
        document = Quantization(
            environment=Environment.collect(
                model=source.checkpoint.architecture.name, image_size=image_size
            ),
            peers={tool: tuple(packages) for tool, packages in REQUIREMENTS.items()},
            calibration_images=images,
            validation_images=len(validation.images),
            fp32_top1=100
            * float(np.mean(validation.reference.argmax(axis=1) == validation.classes)),
            rows=tuple(rows),
        )
        write_document(output, document)


def _prepare(source: Source, data: Path, work: Path) -> ValidationSet:
    """Write `core.onnx`, the network without the normalisation, and compute FP32's logits."""
    preprocessing = source.preprocessing
    classifier = Classifier(source.checkpoint.network(), preprocessing)
    whole = to_bytes(to_onnx(classifier, preprocessing.image_size))
    extractor = onnx.utils.Extractor(onnx.load_from_string(whole))
    onnx.save(extractor.extract_model([INPUT_NAME], [NORMALISED]), work / "front.onnx")
    core = extractor.extract_model([NORMALISED], [OUTPUT_NAME])
    for node in core.graph.node:
        node.input[:] = [INPUT if name == NORMALISED else name for name in node.input]
    core.graph.input[0].name = INPUT
    onnx.save(core, work / "core.onnx")
    labelled = match_labels(read_image_folder(data / "val"), source.labels)
    batches = list(read_batches(labelled.files, preprocessing, 500))
    images = np.concatenate([batch.images for batch in batches])
    positions = [position for batch in batches for position in batch.positions]
    return ValidationSet(
        images=images,
        normalised=_normalise(work, images),
        classes=np.array(labelled.labels)[positions],
        reference=run_batches(OnnxRuntimeCpu(whole, Encoding.FLOAT), images, 50),
    )


def _normalise(work: Path, images: UInt8Array) -> Float32Array:
    session = onnxruntime.InferenceSession(work / "front.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run([NORMALISED], {INPUT_NAME: images})[0])


def _compare_all(
    source: Source,
    checkpoint: Path,
    data: Path,
    images: int,
    seed: int,
    work: Path,
    validation: ValidationSet,
    pythons: dict[str, Path],
) -> Iterator[QuantizedRow]:
    """Quantise with every tool on one draw of the calibration images, and yield their results."""
    size = str(source.preprocessing.image_size)
    ours = [sys.executable, "-m", "benchmarks.quantization.ours"]
    usage = _run([*ours, checkpoint, size, data, images, seed, work])
    for encoding, name in OURS.items():
        graph = (work / f"{encoding.value}.onnx").read_bytes()
        logits = run_batches(OnnxRuntimeCpu(graph, encoding), validation.images, 50)
        yield validation.compare(name, seed, logits, _int8_convs(graph), usage)
    # The same images on which resdeploy calibrates; the first ones only score its calibrators.
    scoring = scoring_images(len(source.pools.calibration), source.preprocessing.image_size)
    image_set = CalibrationImages(source.preprocessing, wanted=images + scoring)
    usable = np.concatenate(list(image_set.add(draw(source.pools.calibration, seed), 64)))
    np.save(work / "calibration.npy", _normalise(work, usable[scoring:]))
    for peer, python in pythons.items():
        output = work / "peer.onnx"
        output.unlink(missing_ok=True)
        files = (work / "core.onnx", work / "calibration.npy", output)
        usage = _run([python, HERE / "peers.py", peer, *files])
        logits = _peer_logits(output, validation.normalised)
        yield validation.compare(peer, seed, logits, _int8_convs(output.read_bytes()), usage)


def _run(command: Sequence[object]) -> Any:
    """Run a process and return the last line of its output, parsed as JSON."""
    process = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=HERE.parents[1]
    )
    if process.returncode:
        raise click.ClickException(f"{command[1]} failed: {process.stderr[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def _peer_logits(graph: Path, normalised: Float32Array) -> Float32Array:
    options = session_options(Encoding.TENSORRT, None)  # as for int8.onnx
    session = create_session(graph, options, [(PROVIDER, {})])
    return np.concatenate(
        [
            np.asarray(session.run(None, {INPUT: normalised[start : start + 50]})[0])
            for start in range(0, len(normalised), 50)
        ]
    )


def _int8_convs(graph: bytes) -> int:
    """Count the convolutions that TensorRT runs in INT8: input and weight are dequantised."""
    model = onnx.load_from_string(graph)
    dequantised = {
        node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"
    }
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    return sum(set(node.input[:2]) <= dequantised for node in convs)


if __name__ == "__main__":
    main()
