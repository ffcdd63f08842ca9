"""The keys of cached engines, and the search for an engine that can run on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from resdeploy.bundle.manifest import Artifact
from resdeploy.runtime.backends.cuda import CudaDevice
from resdeploy.runtime.backends.tensorrt.engine_cache import CachedEngine, EngineCache
from resdeploy.runtime.backends.tensorrt.options import BuildOptions
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import Flavour, TensorRt

# Increase this number when `build_engine` makes another engine of the same parts.
REVISION = 1


def key_parts(
    tensorrt: TensorRt, artifact: Artifact, gpu: CudaDevice | None, options: BuildOptions
) -> dict[str, Any]:
    """Return everything on which an engine depends: graph, TensorRT, GPU and build options."""
    return {
        "onnx_sha256": artifact.sha256,
        "flavour": tensorrt.flavour.value,
        "version": tensorrt.version,
        "revision": REVISION,
        # TensorRT-RTX compiles for the GPU when the engine is loaded, not when it is built.
        "gpu": None if tensorrt.flavour is Flavour.RTX or gpu is None else asdict(gpu),
        "options": options.to_json(),
    }


def find_compatible_engine(
    cache: EngineCache, tensorrt: TensorRt, artifact: Artifact, gpu: CudaDevice
) -> CachedEngine | None:
    """Return the newest engine of a graph that can run here, whatever its build options are.

    Version- and hardware-compatible engines are slower, so any other engine is preferred.
    """
    here = key_parts(tensorrt, artifact, gpu, BuildOptions())
    found = [record for record in cache.records() if _can_run(record.parts, here, tensorrt)]
    return max(found, key=lambda record: (not _is_portable(record), record.built), default=None)


def _can_run(parts: Mapping[str, Any], here: Mapping[str, Any], tensorrt: TensorRt) -> bool:
    if any(parts[name] != here[name] for name in ("onnx_sha256", "flavour", "revision")):
        return False
    options = parts["options"]
    same_major = parts["version"].split(".")[0] == tensorrt.version.split(".")[0]
    version = parts["version"] == tensorrt.version or (options["version_compatible"] and same_major)
    return bool(version and (parts["gpu"] == here["gpu"] or options["hardware_compatible"]))


def _is_portable(record: CachedEngine) -> bool:
    options = record.parts["options"]
    return bool(options["version_compatible"] or options["hardware_compatible"])
