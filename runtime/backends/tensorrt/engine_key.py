"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from resdeploy.bundle.manifest import Artifact
from resdeploy.runtime.backends.cuda import CudaDevice
from resdeploy.runtime.backends.tensorrt.engine_cache import CachedEngine, EngineCache
from resdeploy.runtime.backends.tensorrt.flavour import Flavour, TensorRt
from resdeploy.runtime.backends.tensorrt.options import BuildOptions

# Changes when `build_engine` would make another engine of the same parts.
REVISION = 1


def key_parts(
    tensorrt: TensorRt, artifact: Artifact, gpu: CudaDevice | None, options: BuildOptions
) -> dict[str, Any]:
    """All that decides which engine it is."""
    return {
        "onnx_sha256": artifact.sha256,
        "flavour": tensorrt.flavour.value,
        "version": tensorrt.version,
        "revision": REVISION,
        # TensorRT-RTX compiles for the GPU when the engine is loaded.
        "gpu": None if tensorrt.flavour is Flavour.RTX or gpu is None else asdict(gpu),
        "options": options.to_json(),
    }


def find_compatible_engine(
    cache: EngineCache, tensorrt: TensorRt, artifact: Artifact, gpu: CudaDevice
) -> CachedEngine | None:
    """The engine of a graph that runs here, however it was built; what was built last comes first.

    Those that were built for other versions or GPUs, too, come after all others: they are slower.
    """
    here = key_parts(tensorrt, artifact, gpu, BuildOptions())
    found = [record for record in cache.records() if _fits(record.parts, here, tensorrt)]
    return max(found, key=lambda record: (not _is_compatible(record), record.built), default=None)


def _fits(parts: Mapping[str, Any], here: Mapping[str, Any], tensorrt: TensorRt) -> bool:
    if any(parts[name] != here[name] for name in ("onnx_sha256", "flavour", "revision")):
        return False
    options = parts["options"]
    same_major = parts["version"].split(".")[0] == tensorrt.version.split(".")[0]
    version = parts["version"] == tensorrt.version or (options["version_compatible"] and same_major)
    return bool(version and (parts["gpu"] == here["gpu"] or options["hardware_compatible"]))


def _is_compatible(record: CachedEngine) -> bool:
    options = record.parts["options"]
    return bool(options["version_compatible"] or options["hardware_compatible"])
