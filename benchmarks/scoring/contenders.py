"""One contender of the scoring benchmark: python -m benchmarks.scoring.contenders NAME BUNDLE ...

Prints the seconds of its work. The plain scripts are what their documentations show: batch
inference with Ray Data (https://docs.ray.io/en/latest/data/batch_inference.html), and Daft's image
expressions with a class for the model (https://docs.daft.ai).
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

BACKEND = "onnxruntime-cpu"
BATCH = 8


def bare(bundle: Path, pictures: Path, output: Path) -> float:
    """Return the time of the engine alone for as many images as there are pictures."""
    from resdeploy.runtime.model import load

    count = len(list(pictures.iterdir()))
    with load(bundle, BACKEND, "int8") as model:
        images = np.random.default_rng(0).integers(0, 256, (BATCH, *model.preprocessing.size, 3))
        batch = images.astype(np.uint8)
        model.run(batch)
        start = time.perf_counter()
        for _ in range(count // BATCH):
            model.run(batch)
        return time.perf_counter() - start


def local(bundle: Path, pictures: Path, output: Path) -> float:
    """Return the time of `resdeploy score`."""
    return _score(bundle, pictures, output, ray=False)


def ray(bundle: Path, pictures: Path, output: Path) -> float:
    """Return the time of `resdeploy score --engine ray` on a cluster that runs already."""
    _start_ray()
    return _score(bundle, pictures, output, ray=True)


def plain_ray(bundle: Path, pictures: Path, output: Path) -> float:
    """Return the time of a plain script with Ray Data."""
    data = _start_ray().data
    graph, cores = str(bundle / "int8-cpu.onnx"), len(os.sched_getaffinity(0))
    side = _side(bundle)

    class Predictor:
        def __init__(self) -> None:
            self.session = _session(graph)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            (logits,) = self.session.run(None, {"images": batch["image"]})
            return {"path": batch["path"], "index": logits.argmax(axis=1)}

    start = time.perf_counter()
    images = data.read_images(str(pictures), size=(side, side), mode="RGB", include_paths=True)
    images.map_batches(
        Predictor, batch_size=BATCH, compute=data.ActorPoolStrategy(size=max(1, cores // 2)),
        num_cpus=1,
    ).write_parquet(str(output))  # fmt: skip
    return time.perf_counter() - start


def daft(bundle: Path, pictures: Path, output: Path) -> float:
    """Return the time of a plain script with Daft."""
    import daft as package
    from daft.functions import decode_image, download, resize

    graph, side = str(bundle / "int8-cpu.onnx"), _side(bundle)

    @package.cls
    class Predictor:
        def __init__(self) -> None:
            self.session = _session(graph)

        @package.method.batch(return_dtype=package.DataType.int64(), batch_size=BATCH)
        def predict(self, images: Any) -> Any:
            batch = np.stack(images.to_pylist())
            return self.session.run(None, {"images": batch})[0].argmax(axis=1)

    start = time.perf_counter()
    files = package.from_glob_path(f"{pictures}/*.jpg")
    decoded = decode_image(download(package.col("path")), mode="RGB")
    found = files.with_column("index", Predictor().predict(resize(decoded, side, side)))
    found.select("path", "index").write_parquet(str(output))
    return time.perf_counter() - start


CONTENDERS = {
    "bare": bare, "resdeploy": local, "resdeploy, Ray": ray, "Ray Data": plain_ray, "Daft": daft,
}  # fmt: skip


def _score(bundle: Path, pictures: Path, output: Path, *, ray: bool) -> float:
    from resdeploy.runtime.scoring.engines import RayOptions
    from resdeploy.runtime.scoring.score import ScoringOptions, score_sources
    from resdeploy.runtime.scoring.scorer import ScorerOptions

    count = len(list(pictures.iterdir()))
    cores = len(os.sched_getaffinity(0))
    options = ScoringOptions(
        scorer=ScorerOptions(backend=BACKEND, precision="int8", threads=1 if ray else None),
        shard=max(1, count // (4 * cores)),
        ray=RayOptions() if ray else None,
    )
    start = time.perf_counter()
    score_sources(bundle, [str(pictures)], str(output), options)
    return time.perf_counter() - start


def _start_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray.data

    ray.init(num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, log_to_driver=False,
             logging_level=logging.ERROR)  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def _side(bundle: Path) -> int:
    from resdeploy.bundle.bundle import open_bundle

    side = open_bundle(bundle).manifest.preprocessing.image_size
    assert isinstance(side, int)
    return side


def _session(graph: str) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    name, *paths = sys.argv[1:]
    print(CONTENDERS[name](*map(Path, paths)))
