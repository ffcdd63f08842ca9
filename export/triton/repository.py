"""A bundle as a model repository of Triton Inference Server: one model for each graph.

Sources: the schema of `config.pbtxt` is `model_config.proto`,
https://github.com/triton-inference-server/common/blob/08365ea/protobuf/model_config.proto; what its
backends read of it: https://github.com/triton-inference-server/onnxruntime_backend (013d274) and
tensorrt_backend (25e7b08).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from resdeploy.bundle.bundle import LABELS, Bundle
from resdeploy.bundle.manifest import INPUT_NAME, MANIFEST, OUTPUT_NAME
from resdeploy.export.triton.plans import PLANS, plans_script
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.serving.config import ServeConfig
from resdeploy.storage import new_directory, refuse_existing, sha256

SIGN = "resdeploy.json"
"""In the repository's root, where Triton reads folders only: which bundle it was made from."""
VERSION = "1"
CONFIG = "config.pbtxt"
WARM_UP = "golden-image"
BATCHES = Batches()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """How Triton runs one kind of graph."""

    backend: str
    instances: str
    """Kind of the instances: on a GPU, on the CPU, or on a GPU where there is one."""
    file: str
    """Which its backend looks for."""
    half: bool = False
    """Whether ONNX Runtime hands the graph to TensorRT, in float16."""


# TensorRT inside ONNX Runtime is weakly typed, and Triton lets it have float16 or int8, not both:
# what is not quantised in int8.onnx is float16, so that graph becomes a plan.
VARIANTS = {
    "fp32": Variant(backend="onnxruntime", instances="KIND_AUTO", file="model.onnx"),
    "fp16": Variant(backend="onnxruntime", instances="KIND_GPU", file="model.onnx", half=True),
    "int8": Variant(backend="tensorrt", instances="KIND_GPU", file="model.plan"),
    "int8-cpu": Variant(backend="onnxruntime", instances="KIND_CPU", file="model.onnx"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """One model of a repository."""

    name: str
    artifact: str
    backend: str
    graph: Path
    """Within the repository."""
    plan: Path | None
    """Where its TensorRT engine is expected, which only the target can build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonRepository:
    """What `resdeploy export --triton` reports."""

    repository: Path
    bundle: Path
    models: tuple[TritonModel, ...]


def write_repository(bundle: Bundle, folder: Path, *, force: bool = False) -> TritonRepository:
    """Write a model repository; when anything fails before it is whole, none is left.

    Raises:
        BundleError: the bundle is damaged.
        OutputError: the repository exists already, or cannot be written.
    """
    refuse_repository(folder, force=force)
    name = bundle.path.resolve().name.removesuffix(".bundle")
    models = tuple(
        _model(f"{name}-{artifact.name}", artifact.name)
        for artifact in bundle.manifest.artifacts
        if artifact.name in VARIANTS
    )
    labels = "".join(f"{label}\n" for label in bundle.labels()).encode()
    warm_up = bundle.golden().images[0].tobytes()
    size = bundle.manifest.preprocessing.image_size
    with new_directory(folder, force=force, marker=SIGN) as root:
        for model in models:
            home = root / model.name
            (home / VERSION).mkdir(parents=True)
            (home / "warmup").mkdir()
            (root / model.graph).write_bytes(bundle.read(bundle.artifact(model.artifact).file))
            (home / LABELS).write_bytes(labels)
            (home / "warmup" / WARM_UP).write_bytes(warm_up)
            config = config_text(model.name, model.artifact, size, bundle.manifest.classes)
            (home / CONFIG).write_text(config, encoding="utf-8")
        graphs = {model.graph: model.plan for model in models if model.plan is not None}
        if graphs:
            (root / PLANS).write_text(plans_script(graphs, size, BATCHES), encoding="utf-8")
        manifest = sha256((bundle.path / MANIFEST).read_bytes())
        sign = {"bundle": name, "manifest_sha256": manifest, "models": [m.name for m in models]}
        (root / SIGN).write_text(json.dumps(sign, indent=2) + "\n", encoding="utf-8")
    return TritonRepository(repository=folder, bundle=bundle.path, models=models)


def refuse_repository(folder: Path, *, force: bool) -> None:
    """Check before long work whether `write_repository` may write there.

    Raises:
        OutputError: it may not.
    """
    refuse_existing(folder, force=force, marker=SIGN)


def config_text(name: str, artifact: str, size: int, classes: int) -> str:
    """A model's `config.pbtxt`: a ModelConfig in protobuf's text format.

    Batches, waiting and refusals are what `resdeploy serve` does where nothing else is said.

    Args:
        name: Of the model and its folder.
        artifact: Of `VARIANTS`.
        size: Side of the pictures in pixels.
        classes: Length of a row of logits.
    """
    variant, serving = VARIANTS[artifact], ServeConfig()
    dims = f"{size}, {size}, 3"
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
backend: "{variant.backend}"
max_batch_size: {BATCHES.largest}
input [ {{ name: "{INPUT_NAME}" data_type: TYPE_UINT8 dims: [ {dims} ] }} ]
output [
  {{ name: "{OUTPUT_NAME}" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "{LABELS}" }}
]
instance_group [ {{ kind: {variant.instances} count: 1 }} ]
dynamic_batching {{
  max_queue_delay_microseconds: {round(1000 * serving.max_delay_ms)}
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {round(1000 * serving.timeout_ms)}
    allow_timeout_override: true
    max_queue_size: {serving.queue}
  }}
}}
{_accelerator(dims) if variant.half else ""}model_warmup [{warm_ups}
]
"""


def _model(name: str, artifact: str) -> TritonModel:
    variant, home = VARIANTS[artifact], Path(name)
    file = home / VERSION / variant.file
    planned = file.suffix == ".plan"
    return TritonModel(
        name=name,
        artifact=artifact,
        backend=variant.backend,
        graph=home / f"{artifact}.onnx" if planned else file,
        plan=file if planned else None,
    )


def _accelerator(dims: str) -> str:
    """TensorRT within ONNX Runtime, for all sizes of batches at once: else it builds for each."""
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
