"""The worker that measures ceilings of a CPU with matrix products of ONNX Runtime.

Usage: `python -m resdeploy.runtime.bench.onnxruntime_ceilings THREADS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from typing import Any

import numpy as np

from resdeploy.benchmark_process.ceilings import (
    COPY,
    COPY_BYTES,
    SHAPES,
    Probe,
    fastest_probe,
    probe_timer,
)
from resdeploy.benchmark_process.worker_loop import run_worker
from resdeploy.errors import needs_extra
from resdeploy.runtime.backends.onnxruntime.session import ERRORS_ONLY

PRODUCTS = {"fp32": "matrix_product_fp32.onnx", "int8": "matrix_product_int8.onnx"}
"""Graphs with one matrix product each; a test compares them with their source text."""


def prepare(threads: int) -> tuple[Callable[[], object], dict[str, Any]]:
    """Choose the fastest shape for each arithmetic and return the function to time.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    products = [fastest_probe(list(_product_probes(kind, threads))) for kind in PRODUCTS]
    return probe_timer([*products, copy_probe(threads)]), {}


def _product_probes(kind: str, threads: int) -> Iterator[Probe]:
    with needs_extra():
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    # Two sessions take turns: spinning threads of one would slow the other down.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        read_product(kind), options, providers=["CPUExecutionProvider"]
    )
    generator = np.random.default_rng(0)
    for rows, depth, columns in SHAPES:
        sizes = (rows, depth), (depth, columns)
        inputs = {
            name: generator.standard_normal(size, dtype=np.float32)
            if kind == "fp32"
            else generator.integers(*limits, size).astype(dtype)
            for name, size, limits, dtype in zip(
                ("left", "right"), sizes, ((0, 256), (-127, 128)), (np.uint8, np.int8)
            )
        }
        yield Probe(
            kind=kind,
            amount=2 * rows * depth * columns,
            run=partial(session.run, None, inputs),
        )


def read_product(kind: str) -> bytes:
    """Return the ONNX graph `result` (m, n) = `left` (m, k) @ `right` (k, n), for any size."""
    return resources.files("resdeploy.runtime.bench").joinpath(PRODUCTS[kind]).read_bytes()


def copy_probe(threads: int) -> Probe:
    """Return the probe of a copy in main memory, which is divided between the threads."""
    source, target = (np.full(COPY_BYTES, number, dtype=np.uint8) for number in (1, 2))
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads)))
    pool = ThreadPoolExecutor(threads)
    return Probe(
        kind=COPY,
        amount=2 * COPY_BYTES,
        run=lambda: list(pool.map(lambda part: np.copyto(*part), parts)),
    )


if __name__ == "__main__":
    (threads,) = sys.argv[1:]
    run_worker(lambda: prepare(int(threads)))
