"""How fast on this GPU, beside PyTorch at its best, and how near to what the GPU can do?

    python -m benchmarks.gpu CHECKPOINT --output docs/results/gpu-NAME.json

CHECKPOINT is a run, a .safetensors or a .pth file, or `random` for a ResNet-34 of 1000 classes.
Every backend of the runtime that runs here, and PyTorch eager and compiled, take turns, each in a
process of its own, after each has shown its answers. What is missing here is told and written
down, and the rest goes on. To be started in the repository's root.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu.answers import write_labelled
from benchmarks.gpu.ceilings import ceilings_of
from benchmarks.gpu.children import (
    NAMES,
    Notes,
    ask,
    backend_entries,
    build_engines,
    pytorch_entries,
    time_in_turns,
)
from benchmarks.gpu.pytorch_worker import RANDOM
from benchmarks.gpu.report import (
    TRANSFERS,
    Missing,
    Row,
    answers_text,
    document,
    engines_text,
    rows_of,
    times_text,
)
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.work import Work
from resdeploy.errors import CalibrationError, ResdeployError, needs_extra
from resdeploy.machine.device import read_device
from resdeploy.progress import progress_bar
from resdeploy.results.provenance import collect_provenance
from resdeploy.runtime.backends.cuda import CudaRuntime, check_gpu_availability
from resdeploy.runtime.bench.rounds import turns
from resdeploy.storage import write_file

DEFAULT_IMAGE_SIZE = 224


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured."""

    bundle: Bundle
    weights: str
    """A checkpoint for PyTorch, or `RANDOM`."""
    labelled: str
    """The folder of decoded images; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How it is measured."""

    batches: Sequence[int]
    seconds: float
    """For each contender at each batch."""
    bf16: bool
    without: Collection[str]
    cache_kept: bool


@click.command()
@click.argument("checkpoint")
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), help="Its bundle, if made.")
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Labelled images.")
@click.option("--images", type=int, default=2000, show_default=True, help="At most, of --data.")
@click.option("--image-size", type=int, help="[default: the run's own, or 224]")
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 8, 32, 128),
    show_default=True,
)
@click.option("--seconds", type=float, default=3.0, show_default=True, help="For each contender.")
@click.option("--bf16", is_flag=True, help="PyTorch in bfloat16, too.")
@click.option("--without", multiple=True, type=click.Choice(NAMES), help="Leave this one out.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Keep engines and compiled kernels there. Without, nothing is kept, and builds are cold.",
)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    checkpoint: str,
    bundle: Path | None,
    data: Path | None,
    images: int,
    image_size: int | None,
    batches: tuple[int, ...],
    seconds: float,
    bf16: bool,
    without: tuple[str, ...],
    cache: Path | None,
    output: Path | None,
) -> None:
    """Export, build, check, time, print, and write down."""
    if none := check_gpu_availability():
        raise click.ClickException(f"there is no GPU to measure: {none.reason}; {none.hint}")
    notes = Notes()
    for name in without:
        notes.add(name, "--without")
    plan = Plan(
        batches=batches, seconds=seconds, bf16=bf16, without=without, cache_kept=cache is not None
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            _keep_caches_in((cache or folder / "cache").resolve())
            opened, weights = _open_or_export(checkpoint, bundle, data, image_size, folder, notes)
            labelled = _decode(opened, data, images, folder, notes)
            subject = Subject(bundle=opened, weights=weights, labelled=labelled)
            rows = measure(subject, plan, output, notes)
    except ResdeployError as error:
        raise click.ClickException(f"{error} ({error.hint})") from error
    if not rows:
        raise click.ClickException("not one contender could be timed; see the lines above")
    click.echo(f"\n{answers_text(rows)}\n\n{TRANSFERS}")


def measure(subject: Subject, plan: Plan, output: Path | None, notes: Notes) -> list[Row]:
    """Ceilings, engines, then one batch after the other; each is printed and written at once.

    A run that is cut short has lost only the batch that was under way, and its file says so.
    """
    work, ceilings = _work(subject.bundle, notes), _ceilings(notes)
    engines = build_engines(subject.bundle, plan.batches, plan.without, notes)
    click.echo(engines_text(engines))
    rows: list[Row] = []
    for number, batch in enumerate(plan.batches, start=1):
        place = (subject.bundle, batch, subject.labelled)
        entries = [
            *backend_entries(*place, plan.without, notes),
            *pytorch_entries(*place, subject.weights, plan.bf16, plan.without, notes),
        ]
        timed = time_in_turns(entries, batch, plan.seconds, notes)
        fresh = rows_of(timed, batch, work, ceilings_of(ceilings) if ceilings else None)
        rows += fresh
        click.echo(f"\n{times_text(fresh)}")
        if output is None or not rows:
            continue
        later = [
            Missing(what=f"batch {other}", why="the run ended before it")
            for other in plan.batches[number:]
        ]
        result = document(
            machine=_machine(),
            network=_network(subject.bundle),
            settings={
                "batches": list(plan.batches),
                "seconds": plan.seconds,
                "rounds": turns(plan.seconds)[0],
                "cache_kept": plan.cache_kept,
            },
            ceilings=ceilings,
            work=work,
            engines=engines,
            rows=rows,
            missing=[*notes.entries, *later],
        )
        write_file(output, (json.dumps(result, indent=2) + "\n").encode())
    return rows


def _keep_caches_in(folder: Path) -> None:
    """For this process and its children: engines, and what PyTorch's compiler makes."""
    os.environ["XDG_CACHE_HOME"] = str(folder)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")


def _open_or_export(
    checkpoint: str,
    bundle: Path | None,
    data: Path | None,
    image_size: int | None,
    folder: Path,
    notes: Notes,
) -> tuple[Bundle, str]:
    """The bundle, and what PyTorch shall load; without images to calibrate on there is no INT8."""
    if bundle is not None:
        weights = checkpoint if checkpoint == RANDOM else str(Path(checkpoint).resolve())
        return open_bundle(bundle.resolve()), weights
    if checkpoint == RANDOM:
        with needs_extra():
            from benchmarks.latency import make_bundle

        return make_bundle(folder, image_size or DEFAULT_IMAGE_SIZE), str(folder / "resnet34.pth")

    weights = str(Path(checkpoint).resolve())
    # A run's own images calibrate best; those that will judge must do where none are known.
    why = ""
    for images in dict.fromkeys((None, data)):
        try:
            return _export(Path(checkpoint), folder, image_size, images, int8=True), weights
        except CalibrationError as error:
            why = f"{error} ({error.hint})"
    notes.add("int8", why)
    return _export(Path(checkpoint), folder, image_size, None, int8=False), weights


def _export(
    source: Path, folder: Path, image_size: int | None, images: Path | None, *, int8: bool
) -> Bundle:
    with needs_extra():
        from resdeploy.export.pipeline import ExportConfig, export

    config = ExportConfig(
        source=source,
        output=folder / "network.bundle",
        image_size=image_size,
        fp16=True,
        int8=int8,
        calibration_data=images,
    )
    return open_bundle(export(config, progress=progress_bar).bundle)


def _decode(bundle: Bundle, data: Path | None, most: int, folder: Path, notes: Notes) -> str:
    """The folder of decoded images for the children; empty where there are none."""
    if data is None:
        notes.add("labelled images", "no --data")
        return ""
    decoded = folder / "labelled"
    decoded.mkdir()
    try:
        count = write_labelled(bundle, data, most, decoded)
    except ResdeployError as error:
        notes.add("labelled images", str(error))
        return ""
    click.echo(f"{count} labelled images", err=True)
    return str(decoded)


def _work(bundle: Bundle, notes: Notes) -> Work | None:
    try:
        with needs_extra():
            from resdeploy.export.graph.work import work_of_bundle

        return work_of_bundle(bundle)
    except ResdeployError as error:
        notes.add("roofline", str(error))
        return None


def _ceilings(notes: Notes) -> dict[str, Any] | None:
    """What a process of its own measured of this GPU."""
    try:
        measured = ask("ceilings", "benchmarks.gpu.ceilings", [])
    except ResdeployError as error:
        notes.add("roofline", str(error))
        return None
    for one in measured["missing"]:
        notes.add(one["what"], one["why"])
    return measured


def _machine() -> dict[str, Any]:
    return collect_provenance(read_device().to_json()) | {"gpu": asdict(CudaRuntime().gpu())}


def _network(bundle: Bundle) -> dict[str, Any]:
    kept = ("name", "classes", "blocks", "shortcut", "source_sha256")
    model = bundle.manifest.model
    return {
        **{key: model[key] for key in kept if key in model},
        "image_size": bundle.manifest.preprocessing.image_size,
        "artifacts": {one.name: one.sha256 for one in bundle.manifest.artifacts},
    }


if __name__ == "__main__":
    main()
