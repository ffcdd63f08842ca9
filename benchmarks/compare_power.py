"""The statistical power of the latency test in `resdeploy compare`, for known differences.

    python -m benchmarks.compare_power BUNDLE --output docs/results/comparing.json

A graph of BUNDLE is compared with itself many times, then with a worker that is 10 % slower: it
waits after each call without releasing the core.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from resdeploy.benchmark_process.worker_loop import run_worker
from resdeploy.benchmark_process.worker_process import Worker
from resdeploy.benchmark_process.workload import Workload
from resdeploy.json_documents import write_document
from resdeploy.result_files.provenance import Environment
from resdeploy.runtime.backends.onnxruntime.cpu import NAME
from resdeploy.runtime.bench.backend_worker import prepare
from resdeploy.runtime.comparison.latency import WorkerCommand, compare_latency
from resdeploy.statistics import interval_verdict

LIMIT = 1.05
SECONDS = 60.0
SLOWER = "slower"


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--graph", default="int8-cpu", help="Artifact to time.")
@click.option("--threads", default=1, help="Threads per worker.")
@click.option("--same", default=20, help="Comparisons of the graph with itself.")
@click.option("--slower", default=10, help="Comparisons with the slower worker.")
@click.option("--share", default=0.1, help="Extra time of the slower worker / time of a call.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    bundle: Path, graph: str, threads: int, same: int, slower: int, share: float,
    output: Path | None,
) -> None:  # fmt: skip
    """Compare a graph of BUNDLE with itself and with a slower worker."""
    workload = Workload(bundle=bundle, batch=1, threads=threads)
    arguments = (NAME, graph, *workload.to_arguments())
    normal = WorkerCommand(Worker.RUNTIME, arguments)
    delayed = WorkerCommand("benchmarks.compare_power", (SLOWER, str(share), *arguments))
    results = []
    for name, second, count in (("itself", normal, same), ("slower", delayed, slower)):
        for _ in range(count):
            start = time.monotonic()
            found = compare_latency(normal, second, limit=LIMIT, threads=threads, seconds=SECONDS)
            verdict = interval_verdict(found.low, found.high, LIMIT).value
            duration = time.monotonic() - start
            results.append(
                {"second": name, "verdict": verdict, "seconds": duration, **asdict(found)}
            )
            click.echo(
                f"{name}: {found.ratio:.3f} ({found.low:.3f} to {found.high:.3f}), "
                f"{found.starts} starts, {duration:.0f} s: {verdict}"
            )
    for (name, verdict), count in Counter((r["second"], r["verdict"]) for r in results).items():
        click.echo(f"{name}: {count} times {verdict}")
    if output is not None:
        document = {
            "schema": "resdeploy.comparing/1",
            "environment": Environment.collect(bundle=bundle.name),
            "graph": graph,
            "threads": threads,
            "limit": LIMIT,
            "share": share,
            "results": results,
        }
        write_document(output, document)


def prepare_slower(
    share: float, workload: Workload, backend: str, artifact: str
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Prepare the worker of the runtime with a delay of `share` of the time of each call."""
    run, facts = prepare(workload, backend, artifact)

    def run_slower() -> None:
        start = time.perf_counter_ns()
        run()
        until = start + (1 + share) * (time.perf_counter_ns() - start)
        while time.perf_counter_ns() < until:
            pass

    return run_slower, facts


if __name__ == "__main__":
    if SLOWER in sys.argv[1:2]:  # as a worker process
        share, backend, artifact, *rest = sys.argv[2:]
        workload = Workload.from_arguments(rest)
        run_worker(lambda: prepare_slower(float(share), workload, backend, artifact))
    else:
        main()
