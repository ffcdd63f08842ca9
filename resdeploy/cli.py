"""The command line: parse, call one function, show its result. Nothing is decided here.

Heavy packages are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from resdeploy import __version__
from resdeploy.bench_options import bench_options
from resdeploy.compare_options import compare_options
from resdeploy.console import PATH, Exit, Outcome, command, exit_code, refuse_given, write_document
from resdeploy.export_options import export_options
from resdeploy.serve_options import serve_options
from resdeploy.train.config import DIGITS, TrainingConfig
from resdeploy.train_options import training_options

FORCE = click.option("--force", is_flag=True, help="Replace an existing output.")
BACKEND = click.option("--backend", default="auto", show_default=True, help="Engine to use.")
PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16", "int8"]),
    default="auto",
    show_default=True,
)
THREADS = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Threads of one inference.  [default: all cores]",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="resdeploy")
def main() -> None:
    """Train a ResNet, export it once, run it on GPUs, Jetsons and CPUs, and prove the answers."""


@main.command()
@FORCE
@command
def demo(force: bool) -> Outcome:
    """Everything once, on handwritten digits: minutes on a laptop, nothing is downloaded."""
    from resdeploy.demo import run_demo
    from resdeploy.progress import progress_bar
    from resdeploy.render import demo_text

    result = run_demo(force=force, progress=progress_bar)
    return Outcome(result, demo_text(result), exit_code(result.verdict))


@main.command()
@click.argument("data", default=DIGITS)
@click.option("-o", "--output", "run", type=PATH, help="Run folder.  [default: runs/DATA-TIME]")
@training_options
@click.option("--resume", type=PATH, help="Go on with this run folder, with its own settings.")
@FORCE
@command
def train(
    data: str,
    run: Path | None,
    resume: Path | None,
    force: bool,
    recipe: str | None,
    **settings: Any,
) -> Outcome:
    """Train a ResNet-34 on DATA: a folder with train/ and val/, or `digits` (default).

    Under torchrun, all its processes train one network together.
    """
    from resdeploy.progress import progress_bar
    from resdeploy.render import training_text
    from resdeploy.runtime.device import read_device
    from resdeploy.train import loop
    from resdeploy.train.processes import is_first

    device = read_device().to_json()
    if resume is not None:
        refuse_given(
            {"data": data, "run": run, "recipe": recipe, **settings},
            "--resume takes the run's own settings",
        )
        result = loop.resume(resume, device=device, progress=progress_bar)
    else:
        config = TrainingConfig.from_recipe(recipe, data=data, **settings)
        folder = run or loop.default_folder(data)
        result = training_of(config)(
            config, folder, device=device, force=force, progress=progress_bar
        )
    return Outcome(result, training_text(result), printed=is_first())


@main.command()
@export_options
@FORCE
@command
def export(source: Path, triton: Path | None, force: bool, **settings: Any) -> Outcome:
    """Write SOURCE (a run, a .safetensors or a .pth file) as a bundle of ONNX graphs with proof."""
    from resdeploy.bundle import MANIFEST, open_bundle
    from resdeploy.progress import progress_bar
    from resdeploy.render import export_text, repository_text

    if triton is not None and (source / MANIFEST).is_file():
        from resdeploy.export.triton import write_repository

        refuse_given(settings, f"{source} is a bundle already")
        written = write_repository(open_bundle(source), triton, force=force)
        return Outcome(written, repository_text(written))
    from resdeploy.export.pipeline import ExportConfig
    from resdeploy.export.pipeline import export as run_export

    settings |= {"source": source, "triton": triton}
    result = run_export(ExportConfig(**settings), force=force, progress=progress_bar)
    return Outcome(result, export_text(result))


@main.command()
@click.argument("bundle", type=PATH, required=False)
@PRECISION
@click.option(
    "--flavour",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    help="[default: tensorrt where it is installed]",
)
@click.option(
    "--batch",
    metavar="MIN,OPT,MAX",
    callback=lambda context, parameter, text: read_batches(text),
    help="Images at once: fewest, usual, most; one number for all.  "
    "[default: 1,8,32; 1,1,4 on a module with 4 GB]",
)
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Memory for kernels.")
@click.option("--version-compatible", is_flag=True, help="Later releases may load it.")
@click.option("--hardware-compatible", is_flag=True, help="Other GPUs from Ampere on may run it.")
@click.option("--dla", type=int, metavar="CORE", help="For a Jetson's accelerator, not its GPU.")
@click.option("--prune", is_flag=True, help="Only remove engines, the longest unused first.")
@click.option(
    "--keep",
    type=click.FloatRange(0),
    metavar="GIB",
    default=4.0,
    show_default=True,
    help="What --prune leaves.",
)
@click.option("--force", is_flag=True, help="Build anew what is there already.")
@command
def build(bundle: Path | None, prune: bool, keep: float, **settings: Any) -> Outcome:
    """Build a TensorRT engine of BUNDLE for this machine, into the cache."""
    from resdeploy.bundle import open_bundle
    from resdeploy.progress import progress_bar
    from resdeploy.render import build_text, prune_text
    from resdeploy.runtime.tensorrt.build import build_asked_for
    from resdeploy.runtime.tensorrt.engine_cache import prune_engines

    if prune:
        refuse_given({"bundle": bundle, **settings}, "--prune builds nothing")
        pruned = prune_engines(int(keep * 2**30))
        return Outcome(pruned, prune_text(pruned))
    if bundle is None:
        raise click.UsageError("name a BUNDLE to build, or add --prune")
    result = build_asked_for(open_bundle(bundle), progress=progress_bar, **settings)
    return Outcome(result, build_text(result))


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--data", type=PATH, help="Labelled folder, for accuracy and a verdict.")
@click.option("--max-drop", type=float, default=1.0, show_default=True, help="Points of accuracy.")
@BACKEND
@PRECISION
@THREADS
@command
def verify(bundle: Path, **settings: Any) -> Outcome:
    """Check that BUNDLE gives PyTorch's answers on this machine. Exit 1: no, 3: undecided."""
    from resdeploy.bundle import open_bundle
    from resdeploy.progress import progress_bar
    from resdeploy.render import verification_text
    from resdeploy.runtime.verify import verify as run_verify

    result = run_verify(open_bundle(bundle), progress=progress_bar, **settings)
    return Outcome(result, verification_text(result), exit_code(result.verdict))


@main.command()
@click.argument("bundle", type=PATH)
@bench_options
@FORCE
@command
def bench(bundle: Path, output: Path | None, force: bool, mode: str, **settings: Any) -> Outcome:
    """Time BUNDLE on every backend here against PyTorch, in turns, one process each."""
    from resdeploy.bundle import open_bundle
    from resdeploy.progress import progress_bar
    from resdeploy.render_benchmark import benchmark_text
    from resdeploy.runtime.bench import BenchmarkConfig, run_benchmark
    from resdeploy.storage import refuse_existing_file
    from resdeploy.workload import Mode

    if output is not None:
        refuse_existing_file(output, force=force)
    config = BenchmarkConfig(mode=Mode(mode), **settings)
    result = run_benchmark(open_bundle(bundle), config, progress=progress_bar)
    if output is not None:
        write_document(output, result)
    return Outcome(result, benchmark_text(result))


@main.command()
@compare_options
@command
def compare(first: str, second: str, **settings: Any) -> Outcome:
    """Is SECOND as accurate and as fast as FIRST? Exit 1: no, 3: undecided.

    Two bundles, which are run here, or two files of benchmarks. FILE@DATE is one date of several.
    """
    from resdeploy.progress import progress_bar
    from resdeploy.report.comparison import comparison_text
    from resdeploy.runtime.compare import CompareConfig
    from resdeploy.runtime.compare import compare as run_compare

    result = run_compare(first, second, CompareConfig(**settings), progress=progress_bar)
    return Outcome(result, comparison_text(result), exit_code(result.verdict))


@main.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, help="File.  [default: report.html]")
@click.option("--markdown", is_flag=True, help="For a pull request; printed, unless -o is given.")
@click.option("--time-layers", "with_times", is_flag=True, help="Of bundles, here on the CPU.")
@FORCE
@command
def report(sources: tuple[str, ...], **settings: Any) -> Outcome:
    """One page about SOURCES: bundles, and JSON of verify, bench and compare.

    It needs no network and no script.
    """
    from resdeploy.report.report import report as run_report

    result = run_report(sources, **settings)
    return Outcome(result, str(result.report or result.markdown))


@main.command()
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH, nargs=-1)
@click.option("--camera", metavar="SOURCE", help="Instead: a number, /dev/video0, a URL, a file.")
@click.option("--frames", type=click.IntRange(1), help="Of the camera.  [default: until CTRL-C]")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="The same.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True)
@BACKEND
@PRECISION
@THREADS
@command
def predict(
    bundle: Path, images: tuple[Path, ...], camera: str | None, frames: int | None,
    seconds: float | None, top: int, **settings: Any,
) -> Outcome:  # fmt: skip
    """Name what IMAGES show, or a camera."""
    from resdeploy.progress import progress_bar
    from resdeploy.render import camera_text, predictions_text
    from resdeploy.runtime.model import load, predict_files

    if bool(images) == bool(camera):
        raise click.UsageError("name IMAGES or a --camera")
    if camera is None:
        refuse_given(("frames", "seconds"), "only a --camera has an end to choose")
    else:
        from resdeploy.runtime.camera import watch_camera

        with load(bundle, progress=progress_bar, **settings) as model:
            report = watch_camera(model, camera, frames=frames, seconds=seconds, top=top)
        return Outcome(report, camera_text(report))
    with load(bundle, progress=progress_bar, **settings) as model:
        result = predict_files(model, images, top)
    return Outcome(result, predictions_text(result))


@main.command()
@click.argument("bundles", metavar="BUNDLE...", type=PATH, nargs=-1, required=True)
@serve_options
@BACKEND
@PRECISION
@command
def serve(bundles: tuple[Path, ...], **settings: Any) -> Outcome:
    """Answer over HTTP with BUNDLEs: tensors, pictures, a page. SIGHUP loads changed ones.

    Names are the folders' without `.bundle`. SIGTERM answers what was accepted, then exits.
    """
    from resdeploy.errors import needs_extra
    from resdeploy.progress import progress_bar
    from resdeploy.render import served_text
    from resdeploy.runtime.serving.config import ServeConfig

    with needs_extra():
        from resdeploy.runtime.serving.server import serve as run_serve

    result = run_serve(bundles, ServeConfig(**settings), progress_bar)
    return Outcome(result, served_text(result))


@main.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--encoding",
    type=click.Choice(["tensorrt", "cpu"]),
    help="int8.onnx or int8-cpu.onnx.  [default: tensorrt; cpu with --slow]",
)
@click.option(
    "--images", type=click.IntRange(1), default=16, show_default=True, help="Golden images to use."
)
@click.option("--slow", is_flag=True, help="Instead: why INT8 is not faster on this CPU.")
@click.option(
    "--batch", type=click.IntRange(1, 4096), default=1, show_default=True, help="With --slow."
)
@THREADS
@command
def explain(
    bundle: Path, encoding: str | None, images: int, slow: bool, batch: int, threads: int | None
) -> Outcome:
    """What each quantised tensor of BUNDLE costs, the worst first."""
    from resdeploy.bundle import Encoding, open_bundle

    if slow:
        from resdeploy.progress import progress_bar
        from resdeploy.render_slowness import slowness_text
        from resdeploy.runtime.slow import explain_slowness

        refuse_given(("images",), "--slow needs no more than one batch")
        slowness = explain_slowness(
            open_bundle(bundle), encoding=Encoding(encoding or "cpu"), threads=threads,
            batch=batch, progress=progress_bar,
        )  # fmt: skip
        return Outcome(slowness, slowness_text(slowness))
    refuse_given(("batch", "threads"), "only --slow takes time")
    from resdeploy.export.sensitivity import explain as run_explain
    from resdeploy.progress import progress_bar
    from resdeploy.render import explanation_text

    result = run_explain(
        open_bundle(bundle),
        encoding=Encoding(encoding or "tensorrt"),
        images=images,
        progress=progress_bar,
    )
    return Outcome(result, explanation_text(result))


@main.command()
@click.argument("bundle", type=PATH, required=False)
@command
def doctor(bundle: Path | None) -> Outcome:
    """What this machine is, what it can run, and what to do about the rest.

    With BUNDLE, also whether its golden images get their answers. Exit 1: they do not, or nothing
    can run.
    """
    from resdeploy.progress import progress_bar
    from resdeploy.render import diagnosis_text
    from resdeploy.runtime.doctor import diagnose

    result = diagnose(bundle, progress=progress_bar)
    return Outcome(result, diagnosis_text(result), Exit.OK if result.healthy else Exit.FAILED)


def training_of(config: TrainingConfig) -> Any:
    """The function that trains as `config` says; what quantises it needs the export's packages."""
    from resdeploy.train.loop import train

    if config.qat:
        from resdeploy.export.quantized_training import train_quantized

        return train_quantized
    return train


def read_batches(text: str | None) -> Any:
    """The value of --batch."""
    if text is None:
        return None
    from resdeploy.runtime.backend import Batches

    try:
        return Batches.parse(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is not MIN,OPT,MAX, in ascending order from 1"
        ) from error
