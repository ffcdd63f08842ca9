"""The speed of a network on this GPU, against PyTorch and against the limits of the GPU.

    python -m benchmarks.gpu CHECKPOINT --output docs/results/gpu-NAME.json

CHECKPOINT is a run folder, a .safetensors or .pth file, or `random` for a ResNet-34 with 1000
classes. Every backend that runs here, PyTorch eager and PyTorch compiled take turns, each in its
own process, after their outputs were checked. Contenders that cannot run are reported and left out.
Start the script in the root of the repository.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu.contenders import (
    NAMES,
    Notes,
    Plan,
    build_engines,
    gpu_contenders,
    time_in_turns,
)
from benchmarks.gpu.logit_checks import write_labelled
from benchmarks.gpu.report import (
    RULES,
    GpuResult,
    Missing,
    checks_text,
    engines_text,
    summarise_gpu,
    times_text,
)
from benchmarks.turns import measure_ceilings
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.errors import CalibrationError, ResdeployError, needs_extra
from resdeploy.json_documents import write_document
from resdeploy.machine.device import read_device
from resdeploy.progress import progress_bar
from resdeploy.result_files.provenance import collect_provenance
from resdeploy.runtime.backends.cuda import CudaRuntime, check_gpu_availability
from resdeploy.runtime.bench.rounds import plan_rounds
from resdeploy.train.bench.pytorch_worker import RANDOM

EXISTING = click.Path(exists=True, path_type=Path)


@click.command(context_settings={"show_default": True})
@click.argument("checkpoint")
@click.option("--bundle", type=EXISTING, help="Bundle of CHECKPOINT.  [default: export one]")
@click.option("--data", type=EXISTING, help="Folder of labelled images.")
@click.option("--images", default=2000, help="Largest number of labelled images.")
@click.option("--image-size", type=int, help="Size in pixels.  [default: the run's, or 224]")
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 8, 32, 128),
    help="Images in one call.",
)
@click.option("--seconds", default=3.0, help="Time limit per contender.")
@click.option("--bf16", is_flag=True, help="Also time PyTorch in bfloat16.")
@click.option("--without", multiple=True, type=click.Choice(NAMES), help="Contender to leave out.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder that keeps engines and compiled kernels.  [default: keep nothing]",
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
    """Export a bundle, build its engines, check their outputs, and time them."""
    if obstacle := check_gpu_availability():
        raise click.ClickException(f"no GPU can be used: {obstacle.reason}; {obstacle.hint}")
    notes = Notes()
    for name in without:
        notes.add(name, "--without")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            # Engines and compiled kernels of this process and its children.
            caches = (cache or folder / "cache").resolve()
            os.environ["XDG_CACHE_HOME"] = str(caches)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(caches / "inductor")
            os.environ["TRITON_CACHE_DIR"] = str(caches / "triton")
            opened, weights = _open_or_export(checkpoint, bundle, data, image_size, folder, notes)
            plan = Plan(
                bundle=opened,
                weights=weights,
                labelled=_decode(opened, data, images, folder, notes),
                batches=batches,
                seconds=seconds,
                bf16=bf16,
                without=without,
                cache_kept=cache is not None,
            )
            rows = measure(plan, output, notes)
    except ResdeployError as error:
        raise click.ClickException(f"{error} ({error.hint})") from error
    if not rows:
        raise click.ClickException("no contender could be timed; read the messages above")
    click.echo(f"\n{checks_text(rows)}\n\n{RULES['transfers']}")


def measure(plan: Plan, output: Path | None, notes: Notes) -> list[GpuResult]:
    """Measure ceilings, engines and all batch sizes; print and write the rows after each size.

    If the script is interrupted, the file lists the batch sizes that are missing.
    """
    work, ceilings = plan.bundle.manifest.work.totals, None
    with notes.leave_out_on_error("roofline"):
        ceilings = measure_ceilings()
    engines = build_engines(plan.bundle, plan.batches, plan.without, notes)
    click.echo(engines_text(engines))
    rows: list[GpuResult] = []
    for number, batch in enumerate(plan.batches, start=1):
        timed = time_in_turns(gpu_contenders(plan, batch, notes), batch, plan.seconds, notes)
        batch_rows = summarise_gpu(timed, batch, work, ceilings)
        rows += batch_rows
        click.echo(f"\n{times_text(batch_rows)}")
        if output is None or not rows:
            continue
        later = [
            Missing(what=f"batch {other}", why="the script ended before it")
            for other in plan.batches[number:]
        ]
        document = {
            **collect_provenance(read_device().to_json()),
            "gpu": CudaRuntime().gpu(),
            "network": {**_network(plan.bundle), "work_of_one_image": work},
            "settings": {
                "batches": plan.batches,
                "seconds": plan.seconds,
                "rounds": plan_rounds(plan.seconds)[0],
                "cache_kept": plan.cache_kept,
            },
            "rules": RULES,
            "ceilings": ceilings,
            "engines": engines,
            "rows": rows,
            "missing": [*notes.entries, *later],
        }
        write_document(output, document)
    return rows


def _open_or_export(
    checkpoint: str,
    bundle: Path | None,
    data: Path | None,
    image_size: int | None,
    folder: Path,
    notes: Notes,
) -> tuple[Bundle, str]:
    """Return the bundle and the weights for PyTorch; skip INT8 without calibration images."""
    weights = checkpoint if checkpoint == RANDOM else str(Path(checkpoint).resolve())
    if bundle is not None:
        return open_bundle(bundle.resolve()), weights
    if checkpoint == RANDOM:
        with needs_extra():
            from benchmarks.latency import make_bundle

        return make_bundle(folder, image_size or 224), str(folder / "resnet34.pth")

    # None selects the images of the run, which are better: `data` will measure the accuracy.
    reason = ""
    for images in dict.fromkeys((None, data)):
        try:
            return _export(Path(checkpoint), folder, image_size, images, int8=True), weights
        except CalibrationError as error:
            reason = f"{error} ({error.hint})"
    notes.add("int8", reason)
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


def _decode(bundle: Bundle, data: Path | None, limit: int, folder: Path, notes: Notes) -> str:
    """Decode labelled images for the children; return their folder, or an empty string."""
    if data is None:
        notes.add("labelled images", "no --data")
        return ""
    decoded = folder / "labelled"
    decoded.mkdir()
    with notes.leave_out_on_error("labelled images"):
        count = write_labelled(bundle, data, limit, decoded)
        click.echo(f"{count} labelled images", err=True)
        return str(decoded)
    return ""


def _network(bundle: Bundle) -> dict[str, Any]:
    keys = {"name", "classes", "blocks", "shortcut", "source_sha256"}
    return {
        **{key: value for key, value in bundle.manifest.model.items() if key in keys},
        "image_size": bundle.manifest.preprocessing.image_size,
        "artifacts": {artifact.name: artifact.sha256 for artifact in bundle.manifest.artifacts},
    }


if __name__ == "__main__":
    main()
