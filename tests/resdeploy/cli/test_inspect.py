"""`resdeploy inspect`: its text and its JSON."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from resdeploy.cli import main
from resdeploy.export.graph.to_onnx import export_program
from tests.export.source.test_module import make_module
from tests.results import read_document
from tests.samples import SIZE
from tests.train.checkpoint.states import make_state


def test_inspect_prints_a_line_for_each_fact(tmp_path: Path) -> None:
    torch.save({"model": make_state(), "classes": ["cat", "dog", "fish"]}, tmp_path / "net.pth")
    answer = CliRunner().invoke(main, ["inspect", str(tmp_path / "net.pth")])
    assert answer.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in answer.output.splitlines())
    assert lines["tensors"] == "named as in torchvision, in model"
    assert lines["blocks"] == "basic, 2, 1, 1 per stage, shortcuts B"
    assert lines["head"] == "average pooling, linear 32 -> 3"
    assert lines["labels"] == "cat, dog, fish"
    assert "(assumed)" in lines["input"]
    assert "mean (--mean), std (--std)" in lines["not"]


def test_inspect_prints_one_document(tmp_path: Path) -> None:
    torch.save(make_state(), tmp_path / "net.pth")
    answer = CliRunner().invoke(main, ["inspect", str(tmp_path / "net.pth"), "--json"])
    result = read_document(answer.stdout)
    assert result["architecture"]["blocks"] == [2, 1, 1]
    assert result["missing"]["labels"] == "--labels"
    assert result["origins"]["mean"] == "assumed"


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_inspect_describes_graphs(tmp_path: Path, ending: str) -> None:
    network, images = make_module().eval(), torch.zeros(2, 3, SIZE, SIZE)
    batch = ({0: torch.export.Dim("batch")},)
    file = tmp_path / f"net.{ending}"
    if ending == "pt2":
        torch.export.save(torch.export.export(network, (images,), dynamic_shapes=batch), file)
    else:
        export_program(network, images, "net").save(file)
    answer = CliRunner().invoke(main, ["inspect", str(file)])
    assert answer.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in answer.output.splitlines())
    kind = "ONNX file" if ending == "onnx" else "program of torch.export"
    assert lines["file"] == f"{kind}, operator set 20"
    assert lines["images"] == f"any number of images, 3 x {SIZE} x {SIZE}, float32"
    assert lines["output"] == "logits of 3 classes"
    assert lines["network"].startswith("2,001 weights and constants; 7 Conv, 5 Clip, 2 Add")
    assert f"{SIZE} pixels (from the graph)" in lines["input"]
    assert "mean (--mean), std (--std)" in lines["not"]
    assert "labels (--labels)" in lines["not"]
    json_answer = CliRunner().invoke(main, ["inspect", str(file), "--json"])
    assert read_document(json_answer.stdout)["operators"]["Conv"] == 7


def test_inspect_refuses_in_one_line(tmp_path: Path) -> None:
    torch.save({"patch_embed.proj.weight": torch.zeros(1)}, tmp_path / "net.pth")
    answer = CliRunner().invoke(main, ["inspect", str(tmp_path / "net.pth")])
    assert answer.exit_code == 1
    assert "the nearest scheme, but not patch_embed.proj.weight" in answer.stderr
    assert "docs/checkpoints.md" in answer.stderr


@pytest.mark.parametrize("trained", [False, True])
def test_inspect_says_if_no_batch_norm_has_statistics(tmp_path: Path, trained: bool) -> None:
    state = make_state()
    for name, tensor in state.items():
        if name.endswith(("running_mean", "running_var")):
            state[name] = torch.full_like(tensor, 0.5 if trained else float("var" in name))
    torch.save(state, tmp_path / "net.pth")
    answer = CliRunner().invoke(main, ["inspect", str(tmp_path / "net.pth")])
    told = "batch norms warning: the batch norms have no statistics" in answer.output
    assert told is not trained
    assert ("as in a network that was never trained" in answer.output) is not trained
