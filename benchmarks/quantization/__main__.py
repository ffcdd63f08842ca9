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
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx.utils
import onnxruntime

from benchmarks.quantization.peers import CONTENDERS, INPUT
from benchmarks.results import Quantization, QuantizedRow
from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import INPUT_NAME, OUTPUT_NAME, Encoding
from resdeploy.calibration.image_set import CalibrationImages, draw
from resdeploy.documents import write_document
from resdeploy.export.graph.to_onnx import to_bytes, to_onnx
from resdeploy.export.quantization.calibrate import SCORING_IMAGES
from resdeploy.export.source import Source, read_source
from resdeploy.images.folder import match_labels, read_batches, read_image_folder
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.machine.cpu import read_cpu
from resdeploy.results.provenance import Environment
from resdeploy.runtime.backends.onnxruntime.cpu import PROVIDER, OnnxRuntimeCpu, session_options
from resdeploy.runtime.backends.onnxruntime.session import create_session
from resdeploy.runtime.verification.golden_check import run_batches
from resdeploy.statistics import agreement_percent, compare_accuracy, sqnr_db
from resdeploy.tables import table
from resdeploy.train.model.resnet import Classifier

HERE = Path(__file__).parent
OUR_MODULE = "benchmarks.quantization.ours"
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
            seconds=usage["seconds"],
            peak_mb=usage["peak_mb"],
        )


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--image-size", type=int, default=32, show_default=True, help="Side of the input, in pixels."
)
@click.option(
    "--images", type=int, default=512, show_default=True, help="Number of calibration images."
)
@click.option(
    "--seed",
    "seeds",
    type=int,
    multiple=True,
    default=(0, 1, 2),
    show_default=True,
    help="Seed that draws the calibration images; can be repeated.",
)
@click.option(
    "--peer",
    "peers",
    type=click.Choice(list(CONTENDERS)),
    multiple=True,
    default=tuple(CONTENDERS),
    help="Other quantiser to compare with; can be repeated.  [default: all]",
)
@click.option(
    "--environments",
    type=click.Path(path_type=Path),
    default=Path("~/.cache/resdeploy/quantizers"),
    show_default=True,
    help="Folder in which the other tools are installed.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="JSON file to write the results to."
)
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
    folder = environments.expanduser()
    pythons = {peer: _environment(folder / peer.split()[0], peer.split()[0]) for peer in peers}
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
    click.echo(_text(rows))
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


def _environment(folder: Path, tool: str) -> Path:
    """Return a Python interpreter that has the tool, which is installed at the first use."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        click.echo(f"installing {tool} into {folder}", err=True)
        venv.create(folder, with_pip=True, clear=True)
        # One by one: if torch is there first, the tool does not install a CUDA build of it.
        for requirement in REQUIREMENTS[tool]:
            subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True)
        (folder / "ready").touch()
    return python


def _prepare(source: Source, data: Path, work: Path) -> ValidationSet:
    """Write `core.onnx`, the network without the normalisation, and compute FP32's logits."""
    preprocessing = source.preprocessing
    classifier = Classifier(source.checkpoint.network(), preprocessing.mean, preprocessing.std)
    whole = to_bytes(to_onnx(classifier, preprocessing.image_size))
    (work / "whole.onnx").write_bytes(whole)
    core = onnx.utils.Extractor(onnx.load_from_string(whole)).extract_model(
        [NORMALISED], [OUTPUT_NAME]
    )
    for node in core.graph.node:
        node.input[:] = [INPUT if name == NORMALISED else name for name in node.input]
    core.graph.input[0].name = INPUT
    onnx.save(core, work / "core.onnx")
    front = onnx.utils.Extractor(onnx.load_from_string(whole)).extract_model(
        [INPUT_NAME], [NORMALISED]
    )
    onnx.save(front, work / "front.onnx")
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
    usage = _run([sys.executable, "-m", OUR_MODULE, checkpoint, size, data, images, seed, work])
    for encoding, name in OURS.items():
        graph = (work / f"{encoding.value}.onnx").read_bytes()
        logits = run_batches(OnnxRuntimeCpu(graph, encoding), validation.images, 50)
        yield validation.compare(name, seed, logits, _int8_convs(graph), usage)
    # The same images on which resdeploy calibrates; the first ones only score its calibrators.
    scoring = min(SCORING_IMAGES, len(source.pools.calibration) // 4)
    image_set = CalibrationImages(source.preprocessing, wanted=images + scoring)
    usable = np.concatenate(list(image_set.add(draw(source.pools.calibration, seed), 64)))
    np.save(work / "calibration.npy", _normalise(work, usable[scoring:]))
    for peer, python in pythons.items():
        output = work / "peer.onnx"
        output.unlink(missing_ok=True)
        usage = _run(
            [
                python, HERE / "peers.py", peer,
                work / "core.onnx", work / "calibration.npy", output,
            ]
        )  # fmt: skip
        logits = _peer_logits(output, validation.normalised)
        yield validation.compare(peer, seed, logits, _int8_convs(output.read_bytes()), usage)


def _run(command: Sequence[object]) -> Any:
    """Run a process and return the last line of its output, parsed as JSON."""
    process = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parents[1],
    )
    if process.returncode:
        raise click.ClickException(f"{command[1]} failed: {process.stderr[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def _peer_logits(graph: Path, normalised: Float32Array) -> Float32Array:
    options = session_options(Encoding.TENSORRT, read_cpu(), None)  # as for int8.onnx
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
        name
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    return sum(set(node.input[:2]) <= dequantised for node in convs)


def _text(rows: Sequence[QuantizedRow]) -> str:
    """Return a table with the means over the draws, and the range of the agreement."""
    lines = []
    for name in dict.fromkeys(row.contender for row in rows):
        own = [row for row in rows if row.contender == name]

        def mean(field: str, own: Sequence[QuantizedRow] = own) -> float:
            return float(np.mean([getattr(row, field) for row in own]))

        agreements = [row.agreement for row in own]
        lines.append(
            [
                name,
                f"{mean('top1'):.2f} %",
                f"{mean('drop'):+.2f}",
                f"{mean('agreement'):.2f} %",
                f"{min(agreements):.2f} to {max(agreements):.2f}",
                f"{mean('sqnr_db'):.1f} dB",
                f"{mean('sqnr_db_p5'):.1f} dB",
                f"{mean('int8_convs'):.0f}",
                f"{mean('seconds'):.0f} s",
                f"{mean('peak_mb') / 1024:.1f} GB",
            ]
        )
    head = [
        "quantiser", "top-1", "drop", "agreement", "range", "SQNR", "SQNR p5", "INT8 convs",
        "time", "memory",
    ]  # fmt: skip
    return table(head, lines)


if __name__ == "__main__":
    main()
