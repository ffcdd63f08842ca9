"""The engines of a scoring: `local` in this process, and `ray` on a cluster.

Source: the documentation of Ray Data (https://docs.ray.io/en/latest/data), `map_batches` and
`ActorPoolStrategy`. Each actor holds the loaded bundle and scores whole parts: it reads their
pictures itself, so that names travel and not pixels, and writes their files. Ray schedules the
parts, and gives those of an actor that died to another one.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from resdeploy.errors import DataError, ResdeployError, needs_extra, one_line_reason
from resdeploy.filesystem import sha256
from resdeploy.json_documents import decode, to_text
from resdeploy.machine.device import available_cores
from resdeploy.progress import Advance, counted
from resdeploy.runtime.scoring.job import PartRecord, save_part
from resdeploy.runtime.scoring.result_files import TableFormat, table_bytes
from resdeploy.runtime.scoring.rows import Row
from resdeploy.runtime.scoring.scorer import Scorer
from resdeploy.runtime.scoring.sources import Part
from resdeploy.runtime.scoring.storage import OutputFolder, absolute_name

_WORKER_HINT = (
    "check that all machines have the same packages and enough memory, and go on with --resume"
)
OBJECT_STORE_BYTES = 100 << 20  # of a cluster on this machine; only names and records travel


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """The cluster and the pool of actors."""

    address: str | None = None
    """Address of a cluster that exists; None for one on this machine."""
    workers: int | None = None
    """Number of actors; None for as many as the cluster has CPUs for."""
    worker_cpus: int = 1
    """CPUs of an actor, and threads of its inference."""
    worker_gpus: float = 0
    """GPUs of an actor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartWriter:
    """Function that scores a part, and writes its file and its record."""

    scorer: Scorer
    output: str
    format: TableFormat
    bundle_sha256: str
    outputs: dict[str, int]
    """Output of the network for each true class; empty if there are none."""
    stops: bool = False
    """True to raise an error at the first row that cannot be scored."""

    def absolute(self) -> PartWriter:
        """Return the writer with absolute paths, which mean the same in another folder."""
        scorer = Scorer(self.scorer.bundle.absolute(), self.scorer.options)
        return replace(self, scorer=scorer, output=absolute_name(self.output))

    def __call__(self, part: Part, advance: Advance = lambda done: None) -> PartRecord:
        """Score a part.

        Raises:
            DataError: A row cannot be scored, and `stops` is set; or a table cannot be read.
            BackendError, BundleError, OutputError: As their names say.
        """
        rows: Iterable[Row] = part.rows if part.slice is None else part.slice.rows()
        scores = self.scorer.score(counted(rows, advance), remote=part.is_remote, stops=self.stops)
        failed = [path for path, error in zip(scores.paths, scores.errors) if error is not None]
        labels = self.scorer.model.labels
        data = table_bytes(
            self.format, scores, labels, self.bundle_sha256, labelled=bool(self.outputs)
        )
        record = PartRecord(
            number=part.number,
            file=f"part-{part.number:06}.{self.format.value}",
            bytes=len(data),
            sha256=sha256(data),
            rows=len(scores.paths),
            failed=len(failed),
            first_failed=failed[0] if failed else None,
            engine=scores.engine,
            confusion=scores.confusion(self.outputs),
        )
        save_part(OutputFolder(self.output), record, data)
        return record


def score_locally(
    write: PartWriter, parts: Iterable[Part], advance: Advance
) -> Iterator[PartRecord]:
    """Score parts in this process, one after another."""
    for part in parts:
        yield write(part, advance)


def score_with_ray(
    write: PartWriter, parts: Iterable[Part], advance: Advance, options: RayOptions
) -> Iterator[PartRecord]:
    """Score parts in a pool of Ray's actors, in any order.

    Raises:
        DataError: No cluster can be reached, or a worker has failed; or as `PartWriter`.
        MissingDependencyError: Ray is not installed.
    """
    ray = import_ray()
    items = [{"part": pickle.dumps(part.absolute())} for part in parts]
    if not items:
        return
    write = write.absolute()
    with _cluster(ray, options):
        ray.data.DataContext.get_current().enable_progress_bars = False
        cpus = int(ray.cluster_resources().get("CPU", 1))
        workers = options.workers or max(1, cpus // options.worker_cpus)
        results = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _PartActor,
            fn_constructor_args=(write,),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
            batch_size=1,
            num_cpus=options.worker_cpus,
            num_gpus=options.worker_gpus or None,
        )
        try:
            for row in results.iter_rows():
                if row["error"]:
                    raise pickle.loads(row["error"])
                record = decode(PartRecord, row["record"])
                advance(record.rows)
                yield record
        except ray.exceptions.RayError as error:
            raise DataError(f"Ray has failed: {_last_line(error)}", _WORKER_HINT) from error


def import_ray() -> Any:
    """Return the package Ray with Ray Data, which reports its use to nobody.

    Raises:
        MissingDependencyError: It is not installed.
    """
    # Ray would tell its makers: https://docs.ray.io/en/latest/cluster/usage-stats.html
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what fails is raised here, too
    with needs_extra():
        import ray.data
    return ray


class _PartActor:
    """An actor of Ray, which loads the bundle once and scores one part at a time."""

    def __init__(self, write: PartWriter) -> None:
        self._write = write

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        try:
            record = self._write(pickle.loads(batch["part"][0]))
        except Exception as error:  # Ray would wrap it, and print a traceback
            if not isinstance(error, ResdeployError):
                reason = f"a worker has failed: {type(error).__name__}: {one_line_reason(error)}"
                error = DataError(reason, _WORKER_HINT)
            return {"record": [b""], "error": [pickle.dumps(error)]}
        return {"record": [to_text(record).encode()], "error": [b""]}


def _last_line(error: Exception) -> str:
    """Return the reason of an error of Ray, which is below a traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


@contextmanager
def _cluster(ray: Any, options: RayOptions) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine for the time of the `with` block."""
    if ray.is_initialized():
        yield
        return
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it reports each execution
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if options.address is None:
        settings |= {
            "address": "local", "num_cpus": available_cores(), "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }  # fmt: skip
    else:
        settings["address"] = options.address
    try:
        ray.init(**settings)
    except Exception as error:  # of many kinds
        raise DataError(
            f"no cluster of Ray can be reached: {one_line_reason(error)}",
            "check --ray-address, and that the cluster has the same versions of Python and Ray",
        ) from error
    # Ray prints the death of a worker on stdout, which belongs to the result; it has no option.
    vars(ray._private.worker)["_worker_logs_enabled"] = False
    try:
        yield
    finally:
        ray.shutdown()
