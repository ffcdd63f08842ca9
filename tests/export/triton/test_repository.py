"""Tests of Triton repositories with Triton's schema and with the graphs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.manifest import Precision
from resdeploy.cli import main
from resdeploy.cli.export import export_text, repository_text
from resdeploy.errors import BundleError, OutputError
from resdeploy.export.pipeline import ExportConfig, export
from resdeploy.export.triton.plans import PLANS
from resdeploy.export.triton.repository import (
    CONFIG,
    MARKER,
    TritonRepository,
    config_text,
    write_repository,
)
from resdeploy.runtime.verification.golden_check import FLOAT_FLOOR_DB
from resdeploy.statistics import sqnr_db
from tests.results import read_document
from tests.samples import CLASSES, SIZE

SCHEMA: Any = model_config_pb2  # protobuf creates its classes at import
TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}
FAKE_TRTEXEC = """#!/bin/sh
case " $* " in *" --help "*) echo '  --stronglyTyped'; exit;; esac
echo "$@" > "{log}"
for argument; do case $argument in --saveEngine=*) echo plan > "${{argument#*=}}";; esac; done
exit {code}
"""


@pytest.fixture(scope="module")
def repository(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> TritonRepository:
    return write_repository(tiny_bundle, tmp_path_factory.mktemp("triton") / "models")


def parse(text: str) -> Any:
    """Parse a configuration like Triton, which rejects unknown fields and values."""
    return text_format.Parse(text, SCHEMA.ModelConfig())


def configurations(repository: TritonRepository) -> dict[str, Any]:
    return {
        model.artifact: parse((repository.repository / model.name / CONFIG).read_text("utf-8"))
        for model in repository.models
    }


def test_there_is_a_model_for_each_graph(repository: TritonRepository) -> None:
    found = {model.name: (model.backend, str(model.graph)) for model in repository.models}
    assert found == {
        "tiny-fp32": ("onnxruntime", "tiny-fp32/1/model.onnx"),
        "tiny-fp16": ("onnxruntime", "tiny-fp16/1/model.onnx"),
        "tiny-int8": ("tensorrt", "tiny-int8/int8.onnx"),
        "tiny-int8-cpu": ("onnxruntime", "tiny-int8-cpu/1/model.onnx"),
    }
    folders = {entry.name for entry in repository.repository.iterdir() if entry.is_dir()}
    assert folders == set(found)


def test_configurations_match_the_graphs(repository: TritonRepository) -> None:
    configs = configurations(repository)
    for model in repository.models:
        config = configs[model.artifact]
        assert (config.name, config.backend) == (model.name, model.backend)
        session = onnxruntime.InferenceSession(
            repository.repository / model.graph, providers=["CPUExecutionProvider"]
        )
        for tensors, described in (
            (session.get_inputs(), config.input),
            (session.get_outputs(), config.output),
        ):
            (tensor,), (entry,) = tensors, described
            kind = SCHEMA.DataType.Name(entry.data_type)
            assert (entry.name, kind) == (tensor.name, TYPES[tensor.type])
            # The batch dimension is a name in the graph, and max_batch_size in Triton.
            assert isinstance(tensor.shape[0], str)
            assert list(entry.dims) == tensor.shape[1:]
        assert config.max_batch_size == 32


def test_each_graph_has_its_kind_of_instances(repository: TritonRepository) -> None:
    group = SCHEMA.ModelInstanceGroup
    kinds = {
        artifact: group.Kind.Name(config.instance_group[0].kind)
        for artifact, config in configurations(repository).items()
    }
    assert kinds == {
        "fp32": "KIND_AUTO", "fp16": "KIND_GPU", "int8": "KIND_GPU", "int8-cpu": "KIND_CPU",
    }  # fmt: skip


def test_only_fp16_runs_with_tensorrt_in_onnx_runtime(repository: TritonRepository) -> None:
    configs = configurations(repository)
    (accelerator,) = configs["fp16"].optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert dict(accelerator.parameters) == {
        "precision_mode": "FP16",
        "trt_profile_min_shapes": f"images:1x{SIZE}x{SIZE}x3",
        "trt_profile_opt_shapes": f"images:8x{SIZE}x{SIZE}x3",
        "trt_profile_max_shapes": f"images:32x{SIZE}x{SIZE}x3",
    }
    others = [config for artifact, config in configs.items() if artifact != "fp16"]
    assert not any(config.HasField("optimization") for config in others)


def test_the_queue_has_the_defaults_of_resdeploy_serve(repository: TritonRepository) -> None:
    for config in configurations(repository).values():
        policy = config.dynamic_batching.default_queue_policy
        assert config.dynamic_batching.max_queue_delay_microseconds == 2000
        assert (policy.max_queue_size, policy.default_timeout_microseconds) == (256, 10_000_000)
        assert policy.allow_timeout_override


def test_the_warm_up_is_a_golden_image_in_three_batch_sizes(
    repository: TritonRepository, tiny_bundle: Bundle
) -> None:
    golden = tiny_bundle.golden().images[0].tobytes()
    for config in configurations(repository).values():
        assert [sample.batch_size for sample in config.model_warmup] == [1, 8, 32]
        for sample in config.model_warmup:
            (entry,) = (sample.inputs["images"],)
            assert (entry.data_type, list(entry.dims)) == (
                config.input[0].data_type, list(config.input[0].dims),
            )  # fmt: skip
            folder = repository.repository / config.name / "warmup"
            assert (folder / entry.input_data_file).read_bytes() == golden


def test_labels_are_those_of_the_bundle(repository: TritonRepository) -> None:
    for config in configurations(repository).values():
        file = repository.repository / config.name / config.output[0].label_filename
        assert tuple(file.read_text().splitlines()) == CLASSES


def run_like_triton(repository: TritonRepository, artifact: str, bundle: Bundle) -> Any:
    """Run a model without options, as its configuration says, on the golden images.

    Triton cannot disable a single optimisation.
    """
    config = configurations(repository)[artifact]
    assert not config.parameters
    assert not config.HasField("optimization")
    (model,) = (model for model in repository.models if model.artifact == artifact)
    session = onnxruntime.InferenceSession(
        repository.repository / model.graph, providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"images": bundle.golden().images})
    return logits


def test_fp32_is_accurate_in_a_session_like_tritons(
    repository: TritonRepository, tiny_bundle: Bundle
) -> None:
    logits = run_like_triton(repository, "fp32", tiny_bundle)
    median = np.median(sqnr_db(tiny_bundle.golden().logits, logits))
    assert median >= FLOAT_FLOOR_DB[Precision.FP32]


def test_int8_has_the_golden_bits_in_a_session_like_tritons(
    repository: TritonRepository, tiny_bundle: Bundle
) -> None:
    """tests/aarch64 repeats this on emulated processors."""
    logits = run_like_triton(repository, "int8-cpu", tiny_bundle)
    np.testing.assert_array_equal(logits, tiny_bundle.golden().bit_exact["int8-cpu"])


def test_names_are_quoted() -> None:
    assert parse(config_text('ein "r34" für\\alle-fp32', "fp32", 8, 2)).name == (
        'ein "r34" für\\alle-fp32'
    )


def run_plans(folder: Path, tmp_path: Path, code: int) -> subprocess.CompletedProcess[str]:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "trtexec").write_text(FAKE_TRTEXEC.format(log=tmp_path / "log", code=code))
    (tools / "trtexec").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", folder / PLANS], env={"PATH": path}, capture_output=True, text=True, check=False
    )


def test_the_script_builds_strongly_typed_plans(tiny_bundle: Bundle, tmp_path: Path) -> None:
    written = write_repository(tiny_bundle, tmp_path / "my models")
    assert run_plans(written.repository, tmp_path, 0).returncode == 0
    assert (tmp_path / "log").read_text().split() == [
        "--stronglyTyped", "--skipInference", "--onnx=tiny-int8/int8.onnx",
        "--saveEngine=tiny-int8/1/model.plan.partial", f"--minShapes=images:1x{SIZE}x{SIZE}x3",
        f"--optShapes=images:8x{SIZE}x{SIZE}x3", f"--maxShapes=images:32x{SIZE}x{SIZE}x3",
    ]  # fmt: skip
    (plan,) = (model.plan for model in written.models if model.plan)
    assert (written.repository / plan).read_text() == "plan\n"


def test_a_failed_build_leaves_no_plan(tiny_bundle: Bundle, tmp_path: Path) -> None:
    written = write_repository(tiny_bundle, tmp_path / "models")
    assert run_plans(written.repository, tmp_path, 1).returncode == 1
    assert not (written.repository / "tiny-int8/1/model.plan").exists()


def test_the_script_fails_with_a_hint_without_trtexec(
    repository: TritonRepository, tmp_path: Path
) -> None:
    for tool in ("dirname", "grep"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    done = subprocess.run(
        [str(shutil.which("sh")), repository.repository / PLANS],
        env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "run this script in Triton's or TensorRT's image" in done.stderr


def test_exporting_a_bundle_imports_neither_torch_nor_onnx(tiny_bundle: Bundle) -> None:
    code = (
        "import sys; from resdeploy.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'onnx', 'onnx_ir', 'starlette'} & set(sys.modules)"
    )
    arguments = ["export", str(tiny_bundle.path), "--triton", "models", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    document = read_document(done.stdout)
    assert document["repository"] == "models"
    assert [model["name"] for model in document["models"]][-1] == "tiny-int8-cpu"
    assert os.listdir() == ["models"]


def test_export_writes_bundle_and_repository_at_once(tiny_checkpoint: Path) -> None:
    config = ExportConfig(
        source=tiny_checkpoint, output=Path("x.bundle"), image_size=SIZE, triton=Path("models")
    )
    result = export(config)
    assert result.triton is not None
    assert [model.name for model in result.triton.models] == ["x-fp32"]
    assert not Path("models", PLANS).exists()
    assert export_text(result).splitlines()[-2] == "wrote models from x.bundle"


def test_an_existing_repository_is_rejected_before_the_export(tiny_checkpoint: Path) -> None:
    Path("models").mkdir()
    Path("models/mine").touch()
    config = ExportConfig(
        source=tiny_checkpoint, output=Path("x.bundle"), image_size=SIZE, triton=Path("models")
    )
    with pytest.raises(OutputError, match="models exists already"):
        export(config)
    with pytest.raises(OutputError, match=f"was not written by resdeploy: it has no {MARKER}"):
        export(config, force=True)
    assert os.listdir() == ["models"]


def test_force_replaces_a_repository(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_repository(tiny_bundle, tmp_path / "models")
    (tmp_path / "models" / "old").touch()
    write_repository(tiny_bundle, tmp_path / "models", force=True)
    assert not (tmp_path / "models" / "old").exists()


def test_a_damaged_bundle_leaves_no_repository(tiny_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / "bad.bundle")
    with (tmp_path / "bad.bundle" / "fp16.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match=r"fp16\.onnx was changed"):
        write_repository(open_bundle(tmp_path / "bad.bundle"), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_export_options_are_rejected_for_a_bundle(tiny_bundle: Bundle) -> None:
    arguments = ["export", str(tiny_bundle.path), "--triton", "models", "--int8"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "is a bundle already: leave --int8 out" in result.stderr


def test_the_text_says_how_to_build_plans(repository: TritonRepository) -> None:
    lines = repository_text(repository).splitlines()
    assert lines[4].split() == ["tiny-int8", "tensorrt", "tiny-int8/1/model.plan", "to", "build"]
    assert lines[-2] == (
        f"build the engines on the target, in Triton's image: sh {repository.repository}/{PLANS}"
    )
