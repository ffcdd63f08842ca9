"""Programs of `torch.export`: read as PyTorch does, and without running anything of the file."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resdeploy
from resdeploy.bundle.bundle import open_bundle
from resdeploy.bundle.manifest import GoldenReference
from resdeploy.errors import CheckpointError
from resdeploy.export.inputs import load_network
from resdeploy.export.source.module import module_network, program_network
from resdeploy.export.source.program_file import read_program
from resdeploy.statistics import Verdict
from resdeploy.train.checkpoint.contents import Weights
from tests.export.source.test_module import SETTINGS, make_module
from tests.samples import CLASSES, SIZE

Program = torch.export.ExportedProgram
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
BATCH = ({0: torch.export.Dim("batch")},)


class WithNames(nn.Module):
    """A network that takes and returns named values, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_module()

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(pixel_values)}


class ChannelsLast(WithNames):
    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        logits: Tensor = self.network(images.permute(0, 3, 1, 2).contiguous())
        return logits


def program_of(module: nn.Module, dtype: torch.dtype = torch.float32, **options: Any) -> Program:
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=dtype)
    return torch.export.export(module.eval(), (images,), **options)


def saved(program: Program, folder: Path) -> Path:
    path = folder / "net.pt2"
    torch.export.save(program, path)
    return path


def logits(path: Path) -> Any:
    return program_network(path).classifier(SETTINGS).logits(IMAGES)


EXPECTED = module_network(make_module(), SETTINGS, None).classifier(SETTINGS).logits(IMAGES)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of PyTorch's decompositions
@pytest.mark.parametrize(
    "make",
    [
        lambda: program_of(make_module(), dynamic_shapes=BATCH),
        lambda: program_of(make_module()),
        lambda: program_of(WithNames(), dynamic_shapes=BATCH),
        lambda: torch.export.export(
            WithNames().eval(), (), {"pixel_values": torch.zeros(1, 3, SIZE, SIZE)}
        ),
        lambda: torch.export.export(ChannelsLast().eval(), (torch.zeros(2, SIZE, SIZE, 3),)),
        lambda: program_of(make_module(), dynamic_shapes=BATCH).run_decompositions(),
    ],
    ids=["dynamic", "fixed", "dictionary", "keyword", "channels last", "decomposed"],
)
def test_logits_are_those_of_the_module(make: Callable[[], Program], tmp_path: Path) -> None:
    classifier = program_network(saved(make(), tmp_path)).classifier(SETTINGS)
    assert classifier.reference is GoldenReference.PYTORCH
    # Kernels for one and for two images add in another order.
    np.testing.assert_allclose(classifier.logits(IMAGES), EXPECTED, rtol=1e-4, atol=1e-5)


def test_float16_and_probabilities(tmp_path: Path) -> None:
    half = saved(program_of(make_module().half(), torch.float16), tmp_path)
    # A float16 has 11 bits; a few layers add a few roundings of 2 ** -11.
    np.testing.assert_allclose(logits(half), EXPECTED, rtol=2e-2, atol=5e-3)
    softmax = nn.Sequential(make_module(), nn.Softmax(1))
    network = program_network(saved(program_of(softmax), tmp_path))
    assert network.notes == ("the output is a softmax; the logits of the bundle are its input",)
    found = network.classifier(SETTINGS)
    assert found.reference is GoldenReference.SOURCE_GRAPH  # PyTorch computes no logits here
    np.testing.assert_allclose(found.logits(IMAGES), EXPECTED, rtol=1e-4, atol=1e-5)


def test_a_module_that_ends_in_a_softmax_is_compared_by_its_logits() -> None:
    softmax = nn.Sequential(make_module(), nn.Softmax(1))
    found = module_network(softmax, SETTINGS, None).classifier(SETTINGS)
    np.testing.assert_allclose(found.logits(IMAGES), EXPECTED, rtol=1e-4, atol=1e-5)


def test_a_program_becomes_a_bundle(image_data: Path, tmp_path: Path) -> None:
    path = saved(program_of(make_module(), dynamic_shapes=BATCH), tmp_path)
    resdeploy.export(
        path, tmp_path / "net.bundle", mean=(0.5,) * 3, std=(0.5,) * 3,
        calibration_data=image_data, int8=True, calibrator="max", search_seconds=1,
    )  # fmt: skip
    bundle = open_bundle(tmp_path / "net.bundle")
    assert bundle.manifest.model["name"] == "net"
    assert bundle.manifest.golden is not None
    assert bundle.manifest.golden.reference is GoldenReference.PYTORCH
    assert resdeploy.verify(tmp_path / "net.bundle").verdict is Verdict.REPRODUCED


# Files that would act

Change = Callable[[dict[str, Any]], None]


class Acting:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def change(path: Path, name: str, edit: Callable[[bytes], bytes]) -> None:
    """Change one record of an archive."""
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    (found,) = [record for record in records if record.endswith(name)]
    records[found] = edit(records[found])
    with zipfile.ZipFile(path, "w") as archive:
        for record, data in records.items():
            archive.writestr(record, data)


def change_json(path: Path, name: str, edit: Change) -> None:
    def in_json(data: bytes) -> bytes:
        document = json.loads(data)
        edit(document)
        return json.dumps(document).encode()

    change(path, name, in_json)


GRAPH, WEIGHTS = "models/model.json", "model_weights_config.json"
CONSTANTS = "model_constants_config.json"


def graph(document: dict[str, Any]) -> Any:
    return document["graph_module"]["graph"]


def node(document: dict[str, Any], **changes: Any) -> None:
    graph(document)["nodes"][2].update(changes)


def first_size(document: dict[str, Any], text: str) -> None:
    for value in graph(document)["tensor_values"].values():
        for size in value["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = text


def rename(document: dict[str, Any], name: str, new: str) -> None:
    renamed: dict[str, Any] = json.loads(json.dumps(document).replace(f'"{name}"', json.dumps(new)))
    document.clear()
    document.update(renamed)


def first_weight(document: dict[str, Any], **changes: Any) -> None:
    next(iter(document["config"].values())).update(changes)


def constant(document: dict[str, Any], file: str) -> None:
    document["config"]["c"] = {
        "path_name": file, "is_param": False, "use_pickle": True, "tensor_meta": None,
    }  # fmt: skip


MKDIR = "__import__('os').mkdir('MARK')"
STRING_ARGUMENT = {"name": "filename", "arg": {"as_string": "/etc/passwd"}, "kind": 1}
SPEC = '[1, {"type": "os.mkdir", "context": "\\"MARK\\"", "children_spec": []}]'
REFUSED: dict[str, tuple[str, Change, str]] = {
    "symbolic size": (GRAPH, lambda d: first_size(d, MKDIR), "the name .* is not allowed"),
    "huge power": (GRAPH, lambda d: first_size(d, "9**9**9**9"), "is not allowed"),
    "many ways to match": (GRAPH, lambda d: first_size(d, "1" * 500 + "x"), "is not allowed"),
    "name of sympy": (GRAPH, lambda d: first_size(d, "Add(S, S)"), "is not allowed"),
    "internal operator": (
        GRAPH, lambda d: node(d, target="torch.ops.aten._unsafe_index.Tensor"), "uses the operator",
    ),
    "special attribute": (
        GRAPH, lambda d: rename(d, "0.weight", "__class__.weight"), "is not allowed",
    ),
    "stride": (
        WEIGHTS,
        lambda d: next(iter(d["config"].values()))["tensor_meta"].update(
            strides=[{"as_expr": {"expr_str": MKDIR}}]
        ),
        "Only as_int is supported",
    ),
    "function of os": (
        GRAPH, lambda d: node(d, target="torch.serialization.os.mkdir"), "uses the operator",
    ),
    "function of math": (GRAPH, lambda d: node(d, target="math.factorial"), "uses the operator"),
    "custom operator": (GRAPH, lambda d: node(d, target="torch.ops.mine.run.default"), "uses the"),
    "extension": (GRAPH, lambda d: node(d, target="#os:mkdir"), "uses the operator"),
    "file of a tensor": (
        GRAPH, lambda d: node(d, target="torch.ops.aten.from_file.default"), "uses the operator",
    ),
    "text of an argument": (
        GRAPH, lambda d: node(d, inputs=[STRING_ARGUMENT]), "'/etc/passwd', which is not allowed",
    ),
    "graph as an argument": (
        GRAPH, lambda d: node(d, inputs=[{"name": "g", "arg": {"as_graph": {}}, "kind": 1}]),
        "an argument of the kind 'as_graph'",
    ),
    "operator as an argument": (
        GRAPH,
        lambda d: node(d, inputs=[{"name": "g", "arg": {"as_operator": "os.mkdir"}, "kind": 1}]),
        "an argument of the kind 'as_operator'",
    ),
    "code in a name": (
        GRAPH,
        lambda d: rename(d, graph(d)["nodes"][2]["name"], f"x\n    {MKDIR}"),
        "which is not allowed",
    ),
    "code in the name of the input": (
        GRAPH, lambda d: rename(d, "input", f"input={MKDIR}"), "which is not allowed",
    ),
    "code in the name of a weight": (
        GRAPH, lambda d: rename(d, "0.weight", f'0"),{MKDIR},("'), "which is not allowed",
    ),
    "pickled weight": (WEIGHTS, lambda d: first_weight(d, use_pickle=True), "stored as a pickle"),
    "path of a weight": (
        WEIGHTS, lambda d: first_weight(d, path_name="../constants/x"), "stored as a pickle",
    ),
    "custom object": (CONSTANTS, lambda d: constant(d, "custom_obj_0"), "stored as a pickle"),
    "opaque object": (CONSTANTS, lambda d: constant(d, "opaque_obj_0"), "stored as a pickle"),
    "pickled constant": (CONSTANTS, lambda d: constant(d, "tensor_0"), "stored as a pickle"),
    "huge input": (
        GRAPH,
        lambda d: graph(d)["tensor_values"]["input"].update(
            sizes=[{"as_int": 1}, {"as_int": 3}, {"as_int": 1 << 20}, {"as_int": 1 << 20}]
        ),
        "its input has the sizes",
    ),
    "no outputs": (
        GRAPH, lambda d: d["graph_module"]["signature"].update(output_specs=[]), "0 outputs",
    ),
    "a list as the document": (GRAPH, lambda d: d.update(graph_module=[]), "is damaged"),
    "no configuration": (WEIGHTS, lambda d: d.clear(), "has no record 'config'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_would_act_are_refused(name: str, tmp_path: Path) -> None:
    record, edit, message = REFUSED[name]
    mark = tmp_path / "acted"
    path = saved(program_of(make_module(), dynamic_shapes=BATCH), tmp_path)
    change_json(path, record, edit)
    change(path, record, lambda data: data.replace(b"MARK", str(mark).encode()))
    with pytest.raises(CheckpointError, match=message):
        read_program(path.read_bytes(), path)
    assert not mark.exists()


def test_parts_that_are_not_needed_are_left_out(tmp_path: Path) -> None:
    """Example inputs that are pickles, guards, and trees of arguments are never looked at."""
    mark = tmp_path / "acted"
    path = saved(program_of(make_module(), dynamic_shapes=BATCH), tmp_path)
    change(path, "sample_inputs/model.pt", lambda _: pickle.dumps(Acting(mark)))
    code = MKDIR.replace("MARK", str(mark))

    def edit(document: dict[str, Any]) -> None:
        document["guards_code"] = [code]
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        signature.update(in_spec=SPEC, out_spec=SPEC, forward_arg_names=[code])
        for entry in graph(document)["nodes"]:
            entry["metadata"] = {"stack_trace": f'"""\n{code}', "torch_fn": code}

    change_json(path, GRAPH, edit)
    np.testing.assert_allclose(logits(path), EXPECTED, rtol=1e-4, atol=1e-5)
    assert not mark.exists()


def test_archives_that_are_no_program(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"

    def refused(records: dict[str, bytes], message: str) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in records.items():
                archive.writestr(name, data)
        with pytest.raises(CheckpointError, match=message):
            load_network(path, Weights.AUTO)

    refused({"serialized_exported_program.json": b"{}"}, "an old version of PyTorch")
    refused({"a/data/aotinductor/model/x.so": b""}, "a compiled library of AOTInductor")
    refused({"a/models/a.json": b"{}", "a/models/b.json": b"{}"}, "it holds 2 programs")
    refused({"a/models/model.json": b"{}"}, "no record 'graph_module'")
    for content in (b"PK\x03\x04", b"\x80\x04.", os.urandom(100)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged"):
            load_network(path, Weights.AUTO)


def test_a_weight_without_values_is_refused(tmp_path: Path) -> None:
    path = saved(program_of(make_module()), tmp_path)
    change(path, "data/weights/weight_0", lambda _: b"")
    with pytest.raises(CheckpointError, match="has no values"):
        read_program(path.read_bytes(), path)


def test_a_weight_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = saved(program_of(make_module()), tmp_path)
    change(path, "data/weights/weight_0", lambda data: data[:4])
    with pytest.raises(CheckpointError, match="cannot load"):
        read_program(path.read_bytes(), path)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(program_of(make_module()), tmp_path)
    monkeypatch.setattr("resdeploy.export.source.program_file.MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match="too many records or bytes"):
        read_program(path.read_bytes(), path)
    monkeypatch.undo()
    copied = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copied, "w") as other:
        for record in archive.infolist():
            data = archive.read(record)
            if record.filename.endswith("model.json"):
                data = b"[" * 100_000
            other.writestr(record.filename, data)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        read_program(copied.getvalue(), path)


def test_class_names_come_from_the_option_only(tmp_path: Path) -> None:
    network = program_network(saved(program_of(make_module()), tmp_path))
    assert network.labels is None
    assert network.classes == len(CLASSES)
