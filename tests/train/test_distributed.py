"""Two processes on a CPU give what one gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resdeploy.errors import TrainingError
from resdeploy.train.distributed import Process, joined_processes
from resdeploy.train.run import folder as run_folder
from tests.train.batch_norm_worker import PARTS, joint_batch, loss_of, make_network

ROOT = Path(__file__).parents[2]


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes with a thread each, in the working folder."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip


def test_alone_there_is_nothing_to_exchange() -> None:
    with joined_processes() as process:
        assert (process.rank, process.count, process.is_main) == (0, 1, True)
        assert process.gather(torch.tensor([1.5, 2.0])).tolist() == [[1.5, 2.0]]
        assert process.total(torch.tensor([1.5, 2.0])).tolist() == [1.5, 2.0]
    assert not Process(1, 2, torch.device("cpu")).is_main


def test_processes_that_cannot_meet_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # and no address to meet at
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(TrainingError, match="cannot join the others"), joined_processes():
        pass


def test_a_joint_norm_is_that_of_the_joint_batch(tmp_path: Path) -> None:
    finished = torchrun("tests.train.batch_norm_worker", tmp_path)
    assert finished.returncode == 0, finished.stderr
    parts = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    network, images = make_network(), joint_batch().requires_grad_()
    loss_of(network, images).backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    # float64 of numbers near 1e4, whose mean is taken away: 1e-16 * 1e4, a few times.
    for part, gradient in zip(parts, torch.split(images.grad, list(PARTS))):
        torch.testing.assert_close(part["input"], gradient, rtol=0, atol=1e-9)
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(part["state"][name], tensor, rtol=1e-12, atol=0)
    weight = sum(part["weight"] for part in parts)
    torch.testing.assert_close(weight, network[0].weight.grad, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(
    image_data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A batch of 15 is 8 and 7 images; mirroring and crops follow the image, not the process."""
    arguments = [
        "resdeploy", "train", image_data, "--init", tiny_checkpoint, "--epochs", 2,
        "--batch-size", 15, "--no-bf16", "--class-weights", "--ema", 0.9, "-o",
    ]  # fmt: skip
    together = torchrun(*arguments, tmp_path / "two")
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("right after 2 epochs") == 1  # one of them speaks
    assert "Warning" not in together.stderr.replace("OMP_NUM_THREADS", "")
    alone = subprocess.run(
        [sys.executable, "-m", *map(str, arguments), str(tmp_path / "one")],
        capture_output=True, text=True, check=False, timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    one, two = (run_folder.load_metrics(tmp_path / name) for name in ("one", "two"))
    # Sums in another order: 1e-7 at first, and about ten times that after every step, because
    # norms over 15 values (the last maps are one pixel) divide by small deviations.
    for expected, found, tolerance in zip(one, two, (1e-3, 1e-2)):
        assert found.loss == pytest.approx(expected.loss, rel=tolerance)
        assert found.val_loss == pytest.approx(expected.val_loss, rel=tolerance)
