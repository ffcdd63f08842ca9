"""Write `docs/performance.md`, and the tables of `README.md`, from `docs/results/*.json`.

    python -m benchmarks.generate_docs

Each kind of document has a function here that makes a table of it; others are only listed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.results import QUANTIZATION, TRAINING, Quantization, QuantizedRow, Training
from resdeploy.bundle.manifest import graph_name
from resdeploy.documents import parse, read_json
from resdeploy.results.benchmark import SCHEMA as BENCHMARK
from resdeploy.results.benchmark import BenchmarkDocument
from resdeploy.results.provenance import Environment
from resdeploy.storage import write_file
from resdeploy.tables import markdown_cell, markdown_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
NOTICE = (
    "<!-- written by python -m benchmarks.generate_docs: change the script, or measure again -->"
)
HEAD = """# Performance

Every figure here is in [docs/results](results), as the script that is named wrote it. The date and
the machine stand below each table; on another machine they are others.
"""
NONE = "-"


@dataclass(frozen=True, slots=True)
class Part:
    """A table with what it is of."""

    title: str
    text: str
    table: str
    origin: str


def benchmark_part(documents: Sequence[BenchmarkDocument]) -> Part:
    """A row for each number of threads and contender."""
    limit = any(line.limit_share for one in documents for line in one.results)
    rows = [
        [
            str(line.threads),
            line.contender,
            graph_name(line.precision, line.encoding),
            f"{line.p50_ms:.1f} ms",
            f"{line.p99_ms:.1f} ms",
            NONE if line.speedup is None else f"{line.speedup:.2f}x",
            NONE if line.speedup is None else f"{line.speedup_low:.2f} to {line.speedup_high:.2f}",
            *([_percent(line.limit_share)] if limit else []),
        ]
        for one in documents
        for line in one.results
    ]
    head = ["threads", "contender", "graph", "median", "p99", "speed-up", "95 % interval"]
    first = documents[0].environment
    return Part(
        title=f"Latency on {first.device.cpu or first.device.architecture}",
        text=f"`benchmarks/latency.py`: {first.model} at {first.image_size} pixels, batch "
        f"{documents[0].results[0].batch}, every contender in its own process, in turns. On a "
        "CPU, float16 is computed in float32.",
        table=markdown_table([*head, *(["of the limit"] if limit else [])], rows),
        origin=origin([one.environment for one in documents]),
    )


def training_part(documents: Sequence[Training]) -> Part:
    """A row for each loop."""
    rows = [
        [
            line.loop,
            line.precision,
            f"{line.images_per_second:.0f}",
            f"{line.speedup:.2f}x",
            f"{line.speedup_low:.2f} to {line.speedup_high:.2f}",
            _percent(line.waiting),
            _percent(line.share_of_peak),
        ]
        for one in documents
        for line in one.results
    ]
    head = [
        "loop", "precision", "images/s", "speed-up", "95 % interval", "waiting for images",
        "of the fastest product",
    ]  # fmt: skip
    one = documents[0]
    return Part(
        title="Training",
        text=f"`benchmarks/training/__main__.py`: {one.image_size} pixels, batch {one.batch_size}, against "
        "a plain DataLoader, Pillow and FP32 loop, in turns.",
        table=markdown_table(head, rows),
        origin=origin([one.environment for one in documents]),
    )


def quantization_part(documents: Sequence[Quantization]) -> Part:
    """A row for each quantiser: means over the draws of calibration images."""
    (one,) = documents
    rows = []
    for name in dict.fromkeys(row.contender for row in one.rows):
        own = [row for row in one.rows if row.contender == name]
        agreements = [row.agreement for row in own]
        rows.append(
            [
                name,
                f"{_mean(own, 'top1'):.2f} %",
                f"{_mean(own, 'drop'):+.2f}",
                f"{_mean(own, 'agreement'):.2f} %",
                f"{min(agreements):.2f} to {max(agreements):.2f}",
                f"{_mean(own, 'sqnr_db'):.1f} dB",
                f"{_mean(own, 'sqnr_db_p5'):.1f} dB",
                f"{_mean(own, 'seconds'):.0f} s",
            ]
        )
    head = [
        "quantiser", "top-1", "drop", "same class", "range", "SQNR", "worst 5 %", "time",
    ]  # fmt: skip
    draws = len({row.seed for row in one.rows})
    return Part(
        title="How close INT8 stays",
        text=f"`benchmarks/quantization/__main__.py`: a {one.environment.model} with "
        f"{one.fp32_top1:.2f} % in FP32 on {one.validation_images:,} images, "
        f"{one.calibration_images} to calibrate on, means over {draws} draws of them; every tool "
        "in its own environment, every graph in ONNX Runtime. Same class: images that keep FP32's "
        "most likely class; range: over the draws. Drop: points of accuracy. Time: to calibrate "
        "and quantise.",
        table=markdown_table(head, rows),
        origin=origin([one.environment]),
    )


@dataclass(frozen=True, slots=True)
class Kind:
    """How documents of one schema are read and shown."""

    document: type[Any]
    part: Callable[[Sequence[Any]], Part]


KINDS: Mapping[str, Kind] = {
    BENCHMARK: Kind(BenchmarkDocument, benchmark_part),
    TRAINING: Kind(Training, training_part),
    QUANTIZATION: Kind(Quantization, quantization_part),
}


def read_parts(folder: Path) -> tuple[dict[str, Part], list[str]]:
    """A part for each file of a known kind, by the file's name, and the names of the others."""
    parts: dict[str, Part] = {}
    others = []
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        entries = content if isinstance(content, list) else [content]
        kind = KINDS.get(str(entries[0].get("schema")))
        if kind is None:
            others.append(path.name)
            continue
        parts[path.stem] = kind.part([parse(kind.document, entry) for entry in entries])
    return parts, others


def page(parts: Mapping[str, Part], others: Sequence[str]) -> str:
    """The whole of `docs/performance.md`."""
    blocks = [NOTICE, HEAD.strip()]
    for name, part in parts.items():
        blocks += [
            f"## {part.title}",
            part.text,
            part.table,
            f"{part.origin} [All figures](results/{name}.json)",
        ]
    if others:
        listed = "\n".join(f"* [{name}](results/{name})" for name in others)
        blocks += ["## Other measurements", listed]
    return "\n\n".join(blocks) + "\n"


def with_tables(readme: str, parts: Mapping[str, Part]) -> str:
    """The text with each table between `<!-- table NAME -->` and `<!-- end -->` made anew."""

    def table(match: re.Match[str]) -> str:
        part = parts[match[1]]
        return f"<!-- table {match[1]} -->\n{part.table}\n\n{part.origin}\n<!-- end -->"

    return re.sub(r"<!-- table (\S+) -->\n.*?<!-- end -->", table, readme, flags=re.DOTALL)


def origin(environments: Sequence[Environment]) -> str:
    """When and where, and with which versions of what does the work."""
    first = environments[0]
    dates = sorted({environment.date[:10] for environment in environments})
    machines = sorted({environment.device.name for environment in environments})
    names = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    versions = [f"{names[key]} {first.versions[key]}" for key in names if key in first.versions]
    words = [", ".join(dates), " and ".join(map(markdown_cell, machines)), *versions]
    return f"Measured on {', '.join(words)}."


def _mean(rows: Sequence[QuantizedRow], field: str) -> float:
    return fmean(getattr(row, field) for row in rows)


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.0f} %"


def main() -> None:
    """Write both."""
    parts, others = read_parts(RESULTS)
    write_file(PAGE, page(parts, others).encode())
    readme = README.read_text(encoding="utf-8")
    write_file(README, with_tables(readme, parts).encode())


if __name__ == "__main__":
    main()
