"""Conversion of a bundle to a model repository of Triton, with one model for each graph.

Sources: the schema of `config.pbtxt` is `model_config.proto`,
https://github.com/triton-inference-server/common/blob/08365ea/protobuf/model_config.proto; the
backends' parameters: https://github.com/triton-inference-server/onnxruntime_backend (013d274) and
tensorrt_backend (25e7b08).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from resdeploy.bundle.bundle import LABELS, Bundle
from resdeploy.bundle.manifest import INPUT_NAME, MANIFEST, OUTPUT_NAME
from resdeploy.export.triton.plans import PLANS, plans_script
from resdeploy.filesystem import new_directory, refuse_existing, sha256_file
from resdeploy.images.preprocessing import ImageSize, height_and_width
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.serving.config import ServeConfig

MARKER = "resdeploy.json"
"""File in the root of the repository that names its bundle; Triton ignores files there."""
VERSION = "1"
CONFIG = "config.pbtxt"
WARM_UP = "golden-image"
BATCHES = Batches()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Triton's settings for one kind of graph."""

    backend: str
    instances: str
    """Kind of the instances; KIND_AUTO means a GPU if there is one, otherwise the CPU."""
    file: str
    """Name of the file that the backend loads."""
    tensorrt_fp16: bool = False
    """True if ONNX Runtime runs the graph with TensorRT in float16."""


# int8.onnx becomes a plan, because it needs both float16 and int8: TensorRT inside ONNX Runtime is
# weakly typed, and Triton enables either float16 or int8 there.
SETTINGS = {
    "fp32": ModelSettings(backend="onnxruntime", instances="KIND_AUTO", file="model.onnx"),
    "fp16": ModelSettings(
        backend="onnxruntime", instances="KIND_GPU", file="model.onnx", tensorrt_fp16=True
    ),
    "int8": ModelSettings(backend="tensorrt", instances="KIND_GPU", file="model.plan"),
    "int8-cpu": ModelSettings(backend="onnxruntime", instances="KIND_CPU", file="model.onnx"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """Model of a repository."""

    name: str
    artifact: str
    """Name of the bundle's artifact."""
    backend: str
    graph: Path
    """Path of the ONNX file, relative to the repository."""
    plan: Path | None
    """Path of the TensorRT plan, which must be built on the target; None for other backends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonRepository:
    """Result of `resdeploy export --triton`."""

    repository: Path
    bundle: Path
    models: tuple[TritonModel, ...]
    schema: str = "resdeploy.triton-repository/1"


def write_repository(bundle: Bundle, folder: Path, *, force: bool = False) -> TritonRepository:
    """Write a model repository for a bundle. A failure leaves no incomplete repository.

    Raises:
        BundleError: The bundle is damaged.
        OutputError: The repository exists already or cannot be written.
    """
    refuse_repository(folder, force=force)
    name = bundle.path.resolve().name.removesuffix(".bundle")
    models = tuple(
        _model(f"{name}-{artifact.name}", artifact.name)
        for artifact in bundle.manifest.artifacts
        if artifact.name in SETTINGS
    )
    labels = "".join(f"{label}\n" for label in bundle.labels()).encode()
    warm_up = bundle.golden().images[0].tobytes()
    size = bundle.manifest.preprocessing.image_size
    with new_directory(folder, force=force, marker=MARKER) as root:
        for model in models:
            model_folder = root / model.name
            (model_folder / VERSION).mkdir(parents=True)
            (model_folder / "warmup").mkdir()
            (root / model.graph).write_bytes(bundle.read(bundle.artifact(model.artifact).file))
            (model_folder / LABELS).write_bytes(labels)
            (model_folder / "warmup" / WARM_UP).write_bytes(warm_up)
            config = config_text(model.name, model.artifact, size, bundle.manifest.classes)
            (model_folder / CONFIG).write_text(config, encoding="utf-8")
        graphs = {model.graph: model.plan for model in models if model.plan is not None}
        if graphs:
            (root / PLANS).write_text(plans_script(graphs, size, BATCHES), encoding="utf-8")
        manifest = sha256_file(bundle.path / MANIFEST)
        marker = {"bundle": name, "manifest_sha256": manifest, "models": [m.name for m in models]}
        (root / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    return TritonRepository(repository=folder, bundle=bundle.path, models=models)


def refuse_repository(folder: Path, *, force: bool) -> None:
    """Check, before a long export, that `write_repository` may write to `folder`.

    Raises:
        OutputError: The folder exists, and `force` is not set or the folder is no repository.
    """
    refuse_existing(folder, force=force, marker=MARKER)


def config_text(name: str, artifact: str, size: ImageSize, classes: int) -> str:
    """Return the content of `config.pbtxt`, a ModelConfig in protobuf's text format.

    Batching, queue and timeout have the defaults of `resdeploy serve`. `size` is that of the
    images in pixels.
    """
    settings, serving = SETTINGS[artifact], ServeConfig()
    dims = ", ".join(map(str, (*height_and_width(size), 3)))
    warm_ups = ",".join(
        f"""
  {{
    name: "golden-{batch}"
    batch_size: {batch}
    inputs {{
      key: "{INPUT_NAME}"
      value {{ data_type: TYPE_UINT8 dims: [ {dims} ] input_data_file: "{WARM_UP}" }}
    }}
  }}"""
        for batch in sorted({BATCHES.smallest, BATCHES.usual, BATCHES.largest})
    )
    return f"""name: {json.dumps(name, ensure_ascii=False)}
backend: "{settings.backend}"
max_batch_size: {BATCHES.largest}
input [ {{ name: "{INPUT_NAME}" data_type: TYPE_UINT8 dims: [ {dims} ] }} ]
output [
  {{ name: "{OUTPUT_NAME}" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "{LABELS}" }}
]
instance_group [ {{ kind: {settings.instances} count: 1 }} ]
dynamic_batching {{
  max_queue_delay_microseconds: {round(1000 * serving.max_delay_ms)}
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {round(1000 * serving.timeout_ms)}
    allow_timeout_override: true
    max_queue_size: {serving.queue}
  }}
}}
{_tensorrt_accelerator(dims) if settings.tensorrt_fp16 else ""}model_warmup [{warm_ups}
]
"""


def _model(name: str, artifact: str) -> TritonModel:
    settings = SETTINGS[artifact]
    file = Path(name, VERSION, settings.file)
    is_plan = file.suffix == ".plan"
    return TritonModel(
        name=name,
        artifact=artifact,
        backend=settings.backend,
        graph=Path(name, f"{artifact}.onnx") if is_plan else file,
        plan=file if is_plan else None,
    )


def _tensorrt_accelerator(dims: str) -> str:
    """Return the settings for TensorRT in ONNX Runtime, with one engine for all batch sizes."""
    shape = dims.replace(", ", "x")
    options = {
        "precision_mode": "FP16",
        "trt_profile_min_shapes": f"{INPUT_NAME}:{BATCHES.smallest}x{shape}",
        "trt_profile_opt_shapes": f"{INPUT_NAME}:{BATCHES.usual}x{shape}",
        "trt_profile_max_shapes": f"{INPUT_NAME}:{BATCHES.largest}x{shape}",
    }
    parameters = "\n".join(
        f'        parameters {{ key: "{key}" value: "{value}" }}' for key, value in options.items()
    )
    return f"""optimization {{
  execution_accelerators {{
    gpu_execution_accelerator [
      {{
        name: "tensorrt"
{parameters}
      }}
    ]
  }}
}}
"""
