"""Options that several commands share."""

from __future__ import annotations

from click import Choice, IntRange, option

FORCE = option("--force", is_flag=True, help="Replace an output that exists.")
BACKEND = option(
    "--backend",
    default="auto",
    help="Inference backend, such as onnxruntime-cpu; `resdeploy doctor` lists them.",
)
PRECISION = option(
    "--precision",
    type=Choice(["auto", "fp32", "fp16", "int8"]),
    default="auto",
    help="Precision of the graph to use; auto: the fastest graph, or all graphs if the command "
    "compares graphs.",
)
THREADS = option(
    "--threads", type=IntRange(1, 1024), help="CPU threads per inference.  [default: one per core]"
)
