"""INT8 accuracy against other quantisers, in one run: same weights, same images, same evaluation.

    python -m benchmarks.quantization CHECKPOINT DATA --output docs/results/quantization.json

DATA has train/, from which calibration images are drawn, and val/, on which all are judged. The
other tools get environments of their own, made on first use. They see the network behind the
normalisation, with float32 input, as they expect it. Every graph runs in ONNX Runtime on the CPU.
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
from resdeploy.results.provenance import here
from resdeploy.runtime.backends.onnxruntime.cpu import PROVIDER, OnnxRuntimeCpu, session_options
from resdeploy.runtime.backends.onnxruntime.session import create_session
from resdeploy.runtime.verification.golden_check import load_batches
from resdeploy.statistics import agreement_percent, compare_accuracy, sqnr_db
from resdeploy.tables import table
from resdeploy.train.model.resnet import Classifier

HERE = Path(__file__).parent
OUR_MODULE = "benchmarks.quantization.ours"
NORMALISED = "normalize.add"
PEER_INPUT = "pixels"
REQUIREMENTS = {
    "onnxruntime": ["onnx==1.21.0", "onnxruntime==1.32.0"],
    "nncf": ["nncf==3.4.0", "onnx==1.21.0", "onnxruntime==1.32.0"],
    "modelopt": ["torch==2.13.0", "nvidia-modelopt[onnx]==0.47.0"],
}
PEERS = (
    "onnxruntime MinMax",
    "onnxruntime Entropy",
    "onnxruntime Percentile",
    "nncf performance",
    "nncf mixed",
    "modelopt max",
    "modelopt entropy",
)
OURS = {Encoding.TENSORRT: "resdeploy int8.onnx", Encoding.CPU: "resdeploy int8-cpu.onnx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """The validation images, and what FP32 says of them."""

    images: UInt8Array
    normalised: Float32Array
    classes: np.ndarray
    reference: Float32Array

    def row(
        self, name: str, seed: int, logits: Float32Array, convs: int, took: Any
    ) -> QuantizedRow:
        """How far `logits` are from FP32's."""
        ratios = sqnr_db(self.reference, logits)
        paired = compare_accuracy(self.reference, logits, self.classes)
        return QuantizedRow(
            contender=name,
            seed=seed,
            top1=100 * paired.candidate_right / paired.images,
            drop=paired.drop,
            agreement=agreement_percent(self.reference, logits),
            sqnr_db=float(np.median(ratios)),
            sqnr_db_p5=float(np.percentile(ratios, 5)),
            int8_convs=convs,
            seconds=took["seconds"],
            peak_mb=took["peak_mb"],
        )


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--image-size", type=int, default=32, show_default=True)
@click.option("--images", type=int, default=512, show_default=True, help="To calibrate on.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option(
    "--peer", "peers", type=click.Choice(PEERS), multiple=True, default=PEERS, help="[default: all]"
)
@click.option(
    "--environments",
    type=click.Path(path_type=Path),
    default=Path("~/.cache/resdeploy/quantizers"),
    show_default=True,
    help="Where the other tools are installed.",
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
    """Quantise with every tool and every draw, judge, print, and write down."""
    folder = environments.expanduser()
    pythons = {peer: _environment(folder / peer.split()[0], peer.split()[0]) for peer in peers}
    source = read_source(checkpoint, image_size=image_size, calibration_data=data)
    checkpoint, data = checkpoint.resolve(), data.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        judge = _prepare(source, data, work)
        rows: list[QuantizedRow] = []
        for seed in seeds:
            for row in _draw(source, checkpoint, data, images, seed, work, judge, pythons):
                rows.append(row)
                click.echo(f"seed {seed}  {row.contender}: {row.agreement:.2f} %", err=True)
    click.echo(_text(rows))
    if output is not None:
        document = Quantization(
            environment=here(model=source.checkpoint.architecture.name, image_size=image_size),
            peers={tool: tuple(packages) for tool, packages in REQUIREMENTS.items()},
            calibration_images=images,
            validation_images=len(judge.images),
            fp32_top1=100 * float(np.mean(judge.reference.argmax(axis=1) == judge.classes)),
            rows=tuple(rows),
        )
        write_document(output, document)


def _environment(folder: Path, tool: str) -> Path:
    """A Python that has the tool; installed on first use."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        click.echo(f"installing {tool} into {folder}", err=True)
        venv.create(folder, with_pip=True, clear=True)
        # Without a CUDA build of PyTorch where the machine offers another one: asked for first.
        for requirement in REQUIREMENTS[tool]:
            subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True)
        (folder / "ready").touch()
    return python


def _prepare(source: Source, data: Path, work: Path) -> Judge:
    """Write `core.onnx`, the network behind the normalisation, and run FP32."""
    preprocessing = source.preprocessing
    classifier = Classifier(source.checkpoint.network(), preprocessing.mean, preprocessing.std)
    whole = to_bytes(to_onnx(classifier, preprocessing.image_size))
    (work / "whole.onnx").write_bytes(whole)
    core = onnx.utils.Extractor(onnx.load_from_string(whole)).extract_model(
        [NORMALISED], [OUTPUT_NAME]
    )
    for node in core.graph.node:
        node.input[:] = [PEER_INPUT if name == NORMALISED else name for name in node.input]
    core.graph.input[0].name = PEER_INPUT
    onnx.save(core, work / "core.onnx")
    front = onnx.utils.Extractor(onnx.load_from_string(whole)).extract_model(
        [INPUT_NAME], [NORMALISED]
    )
    onnx.save(front, work / "front.onnx")
    labelled = match_labels(read_image_folder(data / "val"), source.labels)
    batches = list(read_batches(labelled.files, preprocessing, 500))
    images = np.concatenate([batch.images for batch in batches])
    positions = [position for batch in batches for position in batch.positions]
    return Judge(
        images=images,
        normalised=_normalise(work, images),
        classes=np.array(labelled.labels)[positions],
        reference=load_batches(OnnxRuntimeCpu(whole, Encoding.FLOAT), images, 50),
    )


def _normalise(work: Path, images: UInt8Array) -> Float32Array:
    session = onnxruntime.InferenceSession(work / "front.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run([NORMALISED], {INPUT_NAME: images})[0])


def _draw(
    source: Source,
    checkpoint: Path,
    data: Path,
    images: int,
    seed: int,
    work: Path,
    judge: Judge,
    pythons: dict[str, Path],
) -> Iterator[QuantizedRow]:
    """Every contender on one draw of the calibration images."""
    size = str(source.preprocessing.image_size)
    took = _run([sys.executable, "-m", OUR_MODULE, checkpoint, size, data, images, seed, work])
    for encoding, name in OURS.items():
        graph = (work / f"{encoding.value}.onnx").read_bytes()
        logits = load_batches(OnnxRuntimeCpu(graph, encoding), judge.images, 50)
        yield judge.row(name, seed, logits, _int8_convs(graph), took)
    # The very images that ours calibrated on; those before them only scored the calibrators.
    ledger = CalibrationImages(source.preprocessing, wanted=images + SCORING_IMAGES)
    admitted = np.concatenate(list(ledger.admit(draw(source.pools.calibration, seed), 64)))
    np.save(work / "calibration.npy", _normalise(work, admitted[SCORING_IMAGES:]))
    for peer, python in pythons.items():
        output = work / "peer.onnx"
        output.unlink(missing_ok=True)
        took = _run(
            [
                python, HERE / "quantization_peer.py", peer,
                work / "core.onnx", work / "calibration.npy", output,
            ]
        )  # fmt: skip
        logits = _peer_logits(output, judge.normalised)
        yield judge.row(peer, seed, logits, _int8_convs(output.read_bytes()), took)


def _run(command: Sequence[object]) -> Any:
    """What the process printed last, as JSON."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parent,
    )
    if done.returncode:
        raise click.ClickException(f"{command[1]} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _peer_logits(graph: Path, normalised: Float32Array) -> Float32Array:
    options = session_options(Encoding.TENSORRT, read_cpu(), None)  # as for int8.onnx
    session = create_session(graph, options, [(PROVIDER, {})])
    return np.concatenate(
        [
            np.asarray(session.run(None, {PEER_INPUT: normalised[start : start + 50]})[0])
            for start in range(0, len(normalised), 50)
        ]
    )


def _int8_convs(graph: bytes) -> int:
    """Convolutions whose input and weight are both dequantised: TensorRT runs those in INT8."""
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
    """A line per contender: means over the draws, with the worst and the best agreement."""
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
        "quantiser", "top-1", "drop", "same class", "of the draws", "SQNR", "worst 5 %",
        "int8 convs", "time", "memory",
    ]  # fmt: skip
    return table(head, lines)


if __name__ == "__main__":
    main()
