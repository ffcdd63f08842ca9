"""Results as text for people: pure functions from a result to a few lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resdeploy.bundle import graph_name
from resdeploy.console import table
from resdeploy.render_machine import conditions_lines, gpu_text, jetson_lines, machine_name

if TYPE_CHECKING:
    from resdeploy.demo import DemoResult
    from resdeploy.export.coverage import Coverage
    from resdeploy.export.pipeline import ExportResult
    from resdeploy.export.sensitivity import Explanation
    from resdeploy.export.triton import TritonRepository
    from resdeploy.runtime.camera import CameraReport
    from resdeploy.runtime.doctor import Diagnosis
    from resdeploy.runtime.model import FilePredictions
    from resdeploy.runtime.serving.server import Served
    from resdeploy.runtime.tensorrt.build import BuildReport
    from resdeploy.runtime.tensorrt.engine_cache import PruneReport
    from resdeploy.runtime.verify import Verification
    from resdeploy.train.loop import TrainingResult

NONE = "-"
WORST = 15


def training_text(result: TrainingResult) -> str:
    """Two lines: where the run is, and how good."""
    return (
        f"{result.run}: {result.accuracy:.2f} % right after {result.epochs} epochs "
        f"({result.images_per_second:.0f} images/s)\n"
        + (f"{result.unreadable} images could not be decoded\n" if result.unreadable else "")
        + "next: resdeploy export --fp16 --int8"
    )


def export_text(result: ExportResult) -> str:
    """A row per graph."""
    rows = [
        [
            artifact.file,
            f"{artifact.bytes / 1e6:.1f} MB",
            f"{artifact.int8_convs}/{artifact.convs}",
            f"{artifact.parity.agreement:.1f} %",
            f"{artifact.parity.sqnr_db:.1f} dB",
            f"{artifact.parity.max_error:.1g}",
        ]
        for artifact in result.artifacts
    ]
    head = ["graph", "size", "int8 convs", "same class", "SQNR", "max error"]
    images = result.artifacts[0].parity.images
    return (
        f"{table(head, rows)}\n{calibration_text(result.calibration)}"
        + "".join(f"{build_text(report)}\n" for report in result.engines)
        + f"{result.bundle} in {result.seconds:.0f} s, compared with PyTorch on {images} images"
        + (f"\n{repository_text(result.triton)}" if result.triton else "")
    )


def repository_text(result: TritonRepository) -> str:
    """A row per model, and what is left to do."""
    rows = [
        [
            model.name,
            model.backend,
            str(model.plan or model.graph),
            "to build" if model.plan else "",
        ]
        for model in result.models
    ]
    lines = [table(["model of Triton", "backend", "file", ""], rows)]
    if any(model.plan for model in result.models):
        lines.append(f"on the target, in Triton's image: sh {result.repository}/build-plans.sh")
    lines.append(f"{result.repository} from {result.bundle}")
    return "\n".join(lines)


def calibration_text(calibration: Mapping[str, Any] | None) -> str:
    """One line: on what, by which calibrator, and how it was chosen."""
    if calibration is None:
        return ""
    chosen = ", ".join(f"{name} for {kind}" for kind, name in calibration["method"].items())
    tried = len({score["calibrator"] for score in calibration["scores"]})
    how = f", the best of {tried} on {calibration['scoring_images']} others" if tried else ""
    lines = [f"calibrated on {calibration['images']} images: {chosen}{how}"]
    lines += [handback_text(handback) for handback in calibration["handed_back"]]
    return "\n".join(lines) + "\n"


def handback_text(handback: Mapping[str, Any]) -> str:
    """One line: what was given up for the gate, and what that bought."""
    names, convolutions = handback["layers"], handback["convolutions"]
    kept = f"{handback['agreement']:.2f} % of {handback['images']} images keep their class"
    if not names:
        return f"nothing handed back for {handback['encoding'].value}: {kept}"
    share = f"{plural(convolutions, 'convolution')} ({handback['conv_share_percent']:.0f} %)"
    first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"back to float for {handback['encoding'].value}: {plural(len(names), 'layer')} ({first}), "
        f"{share} among them: {kept}, instead of {handback['agreement_before']:.2f} %"
        + ("; out of time, fewer might do" if handback["out_of_time"] else "")
    )


def verification_text(result: Verification) -> str:
    """A row per artifact, and the verdict."""
    with_data = result.max_drop is not None
    head = ["backend", "graph", "same class", "SQNR"]
    rows = [
        [
            line.backend,
            graph_name(line.precision.value, line.encoding),
            f"{line.agreement:.2f} %",
            f"{line.sqnr_db:.1f} dB",
            *(
                [f"{line.top1:.2f} %", f"{line.drop:+.2f}", f"{line.drop_upper95:+.2f}"]
                if with_data
                else []
            ),
            line.rule.value,
            line.verdict.value,
        ]
        for line in result.results
    ]
    accuracy = ["top-1", "drop", "at most (95 %)"] if with_data else []
    lines = [table([*head, *accuracy, "rule", "verdict"], rows)]
    lines += [
        f"{graph_name(line.precision.value, line.encoding)} on {line.backend}: "
        f"{plural(line.different, 'golden image')} with other logits than at the export"
        for line in result.results
        if line.different
    ]
    if result.unreadable:
        lines.append(f"{result.unreadable} images could not be decoded and were left out")
    if result.used_before:
        lines.append(
            f"{result.used_before} of the images chose INT8's ranges or layers: others are fairer"
        )
    allowed = (
        "" if result.max_drop is None else f", a drop of {plural(result.max_drop, 'point')} allowed"
    )
    lines.append(f"verdict: {result.verdict.value} on {result.images} images{allowed}")
    needed = [line.images_to_decide for line in result.results if line.images_to_decide]
    if needed:
        lines.append(f"about {max(needed):,} images would decide, if answers differ as often")
    return "\n".join(lines)


def predictions_text(files: Sequence[FilePredictions]) -> str:
    """For each image its labels, with bars."""
    blocks = []
    for file in files:
        width = max(len(line.label) for line in file.predictions)
        bars = [
            f"  {line.label.ljust(width)}  {100 * line.probability:5.1f} %  "
            f"{'#' * round(30 * line.probability)}".rstrip()
            for line in file.predictions
        ]
        blocks.append("\n".join([str(file.image), *bars]))
    return "\n".join(blocks)


def camera_text(report: CameraReport) -> str:
    """What was seen, and the account of the frames."""
    width = max(len(label) for label in report.labels)
    lines = [
        f"  {label.ljust(width)}  {plural(count, 'frame')}"
        for label, count in list(report.labels.items())[:WORST]
    ]
    lost = "" if report.lost is None else f", {report.lost} lost before they came"
    return "\n".join(
        [
            report.source,
            *lines,
            f"{report.captured} frames in {report.seconds:.1f} s: {report.classified} classified "
            f"({report.frames_per_second:.1f} a second, {report.p50_ms:.1f} ms each), "
            f"{report.dropped} dropped{lost}",
        ]
    )


def demo_text(result: DemoResult) -> str:
    """The one table of the demo: for each graph its accuracy, agreement and speed."""
    timings = {
        graph_name(line.precision, line.encoding): line
        for line in result.benchmark.results
        if line.contender != result.benchmark.results[0].contender
    }
    baseline = result.benchmark.results[0]
    rows = [
        ["PyTorch eager", f"{result.accuracy:.2f} %", NONE, NONE, f"{baseline.p50_ms:.2f} ms",
         f"{baseline.speedup or 1:.2f}x", NONE]
    ]  # fmt: skip
    for line in result.verification.results:
        name = graph_name(line.precision.value, line.encoding)
        timing = timings.get(name)
        rows.append(
            [
                f"{name}.onnx",
                f"{line.top1:.2f} %",
                f"{line.agreement:.2f} %",
                f"{line.sqnr_db:.1f} dB",
                f"{timing.p50_ms:.2f} ms" if timing else NONE,
                f"{timing.speedup:.2f}x" if timing and timing.speedup else NONE,
                line.verdict.value,
            ]
        )
    head = ["graph", "accuracy", "same class", "SQNR", "latency", "speed-up", "verdict"]
    environment = result.benchmark.environment
    return "\n".join(
        [
            table(head, rows),
            f"{result.verification.images} held-out digits; batch 1, "
            f"{plural(baseline.threads, 'thread')}, "
            f"{environment['image_size']} pixels, {environment['device']['cpu']}; int8.onnx is for "
            "TensorRT and not timed on a CPU",
            "",
            predictions_text([result.prediction]),
            "",
            f"{result.bundle} in {result.seconds:.0f} s: open {result.report}, or try",
            f"  resdeploy predict {result.bundle} {result.prediction.image}",
            "  resdeploy export --int8",
        ]
    )


def explanation_text(result: Explanation) -> str:
    """The tensors that cost most."""
    rows = [
        [
            layer.tensor,
            layer.kind,
            NONE if layer.low is None else f"{layer.low:.3g} to {layer.high:.3g}",
            f"{layer.sqnr_alone_db:.1f} dB",
            f"{layer.gain_db:+.2f} dB",
        ]
        for layer in result.layers[:WORST]
    ]
    head = ["tensor", "kind", "range", "alone", "gain without"]
    lines = [table(head, rows)]
    if len(result.layers) > WORST:
        least = result.layers[WORST].sqnr_alone_db
        lines.append(f"{len(result.layers) - WORST} more at {least:.1f} dB and above: see --json")
    lines.append(
        f"all {len(result.layers)} quantised ({result.encoding.value}, {result.calibrator}): "
        f"{result.sqnr_db:.1f} dB at the logits, on {plural(result.images, 'golden image')}"
    )
    return "\n".join([*lines, coverage_text(result.coverage)])


def coverage_text(coverage: Coverage) -> str:
    """Two lines: what runs in integers, and what stays float."""
    islands = [
        f"{island.nodes[0]}"
        + (f" to {island.nodes[-1]} ({len(island.nodes)} nodes)" if len(island.nodes) > 1 else "")
        + f" in {island.dtype}"
        for island in coverage.islands
    ]
    return (
        f"{coverage.int8_convs} of {coverage.convs} convolutions and {coverage.fused_additions} of "
        f"{coverage.additions} residual additions run in INT8\n"
        f"float: {'; '.join(islands) or 'nothing'}"
    )


def diagnosis_text(result: Diagnosis) -> str:
    """One screen about this machine."""
    platform = result.platform
    memory = platform["memory_bytes"]
    lines = [
        f"machine   {machine_name(platform)} "
        f"({platform['architecture']}, {platform['cores']} cores, "
        f"{f'{memory / 2**30:.0f} GiB' if memory else 'memory unknown'})",
        *jetson_lines(platform),
        f"features  {', '.join(platform['cpu_features']) or 'none that matter'}",
        *(f"gpu       {text}" for text in [gpu_text(gpu) for gpu in result.gpu] or ["none"]),
        *conditions_lines(platform["conditions"]),
    ]
    for backend in result.backends:
        state = f"ready, {backend.version}" if backend.available else f"no: {backend.obstacle}"
        lines.append(f"backend   {backend.name}: {state}")
    lines += [f"advice    {line}" for line in result.advice]
    lines.append(f"python    {', '.join(f'{k} {v}' for k, v in result.versions.items())}")
    if result.self_test:
        lines += ["", verification_text(result.self_test)]
    return "\n".join(lines)


def build_text(result: BuildReport) -> str:
    """Where the engine is, what it is, and whether it is in integers as expected."""
    how = "was there" if result.cached else f"built in {result.seconds:.1f} s"
    lines = [
        str(result.engine),
        f"{result.artifact} for batches of {result.batches} by {result.flavour.value} "
        f"{result.version}: {result.bytes / 1e6:.1f} MB, {how}",
    ]
    if result.convs is not None and result.int8_convs_expected:
        lines.append(
            f"{result.int8_convs} of {result.convs} convolutions in INT8, "
            f"{result.int8_convs_expected} expected"
        )
    return "\n".join(lines)


def prune_text(result: PruneReport) -> str:
    """What went, and what stayed."""
    return (
        f"{plural(result.removed, 'engine')} removed ({result.freed_bytes / 1e6:.1f} MB), "
        f"{result.kept} kept ({result.bytes / 1e6:.1f} MB) in {result.folder}"
    )


def plural(count: float, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count:g} {noun}" if count == 1 else f"{count:g} {noun}s"


def served_text(served: Served) -> str:
    """One line: how much was done until the server was stopped."""
    reloaded = f", {plural(served.reloads, 'reload')}" if served.reloads else ""
    return (
        f"{plural(served.requests, 'request')} and {plural(served.images, 'image')} in "
        f"{served.seconds:.0f} s{reloaded}"
    )
