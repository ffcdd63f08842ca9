"""The choice between one wide session and several streams, for throughput.

Engines divide each layer among their threads, which wait for each other after it. Streams run parts
of a batch side by side and wait once per batch, but share the caches.

Source: OpenVINO, "Using Advanced Throughput Options: Streams and Batching".
"""

from __future__ import annotations

import logging
import math
import random
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from resdeploy.benchmark_process.worker_process import Contender
from resdeploy.benchmark_process.workload import Workload
from resdeploy.bundle.bundle import Bundle
from resdeploy.bundle.manifest import Precision
from resdeploy.errors import ResdeployError
from resdeploy.machine.device import Scope
from resdeploy.runtime.bench.contenders import ContenderSpec, backend_contenders
from resdeploy.runtime.bench.rounds import TURN_SECONDS, medians, run_round, warm_up
from resdeploy.runtime.bench.runs import START_SECONDS

logger = logging.getLogger(__name__)

# A gain of streams, where there is one, is 8 % or more (docs/benchmarks.md): few rounds reveal it.
ROUNDS = 5


def with_faster_streams(spec: ContenderSpec, bundle: Bundle, workload: Workload) -> ContenderSpec:
    """Return `spec`, or the same contender with streams if it was faster in `ROUNDS` turns.

    Streams, each with as many images and threads, are tried for INT8 graphs on a CPU. FP32 gained
    less than 2 % (docs/benchmarks.md), which is not worth the time.
    """
    streams = math.gcd(workload.batch, workload.threads)
    is_int8 = spec.precision == Precision.INT8.value
    if streams == 1 or spec.runs_on is not Scope.CPU or not is_int8:
        return spec
    divided = backend_contenders(bundle, replace(workload, streams=streams), spec.name)
    (other,) = [d for d in divided if d.precision == spec.precision]
    with ExitStack() as stack:
        contenders = []
        try:
            for each in (spec, other):
                contenders.append(
                    Contender.start(
                        each.label, each.worker, each.arguments, workload.threads, START_SECONDS
                    )
                )
                stack.callback(contenders[-1].stop)
            for contender in contenders:
                warm_up(contender)
            generator = random.Random(0)
            turns = [run_round(contenders, TURN_SECONDS, generator) for _ in range(ROUNDS)]
        except ResdeployError as error:
            logger.info("streams are not tried with %s: %s", spec.label, error)
            return spec
    one, several = (medians(list(rounds)) for rounds in zip(*turns))
    return other if np.median(one / several) > 1 else spec
