"""Tests of training in two processes on a CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resdeploy.errors import TrainingError
from resdeploy.train.distributed import Process, busy_cores, connect_processes
from resdeploy.train.run import folder as run_folder
from tests.forked import Forked
from tests.train.batch_norm_worker import PARTS, global_batch, loss_of, make_network

ROOT = Path(__file__).parents[2]


def fork_two(code: str, *arguments: object) -> list[Forked]:
    """Start two processes without torchrun, which would stop the second one itself."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        Forked(*arguments, code=code, environment={**shared, "RANK": str(rank)})
        for rank in range(2)
    ]


def test_a_training_on_busy_cores_names_the_remedy() -> None:
    told = busy_cores(7.44, cores=2, threads=2)
    assert told is not None
    assert told.startswith("the load average is 7.4 on 2 cores")
    assert "OMP_NUM_THREADS=1" in told
    assert busy_cores(1.9, cores=2, threads=2) is None
    assert busy_cores(7.4, cores=2, threads=1) is None  # it has no threads that wait
    assert busy_cores(None, cores=2, threads=2) is None


def test_a_single_process_exchanges_nothing() -> None:
    with connect_processes() as process:
        assert (process.rank, process.count, process.is_main) == (0, 1, True)
        assert process.gather(torch.tensor([1.5, 2.0])).tolist() == [[1.5, 2.0]]
        assert process.total(torch.tensor([1.5, 2.0])).tolist() == [1.5, 2.0]
    assert not Process(1, 2, torch.device("cpu")).is_main


def test_processes_that_cannot_connect_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # without an address to connect to
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(TrainingError, match="cannot connect to the others"), connect_processes():
        pass


def test_synchronised_batch_norm_is_that_of_the_global_batch(tmp_path: Path) -> None:
    processes = fork_two("from tests.train.batch_norm_worker import main; main()", tmp_path)
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    parts = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    network, images = make_network(), global_batch().requires_grad_()
    loss_of(network, images).backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    # Subtracting the mean from float64 values near 1e4 has an error of a few times 1e-16 * 1e4.
    for part, gradient in zip(parts, torch.split(images.grad, list(PARTS))):
        torch.testing.assert_close(part["input"], gradient, rtol=0, atol=1e-9)
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(part["state"][name], tensor, rtol=1e-12, atol=0)
    weight = sum(part["weight"] for part in parts)
    torch.testing.assert_close(weight, network[0].weight.grad, rtol=0, atol=1e-8)


def test_other_data_or_the_end_of_a_process_is_an_error_in_the_other() -> None:
    code = """
import os
from pathlib import Path
import torch
from resdeploy.errors import TrainingError
from resdeploy.train.distributed import connect_processes
from resdeploy.train.run.failures import explained_failures
from resdeploy.train.run.folder import RunPosition
with connect_processes() as process, explained_failures(Path("run"), RunPosition, print):
    process.check_equal("images", "same")
    try:
        process.check_equal("images", str(process.rank))
    except TrainingError as error:
        print(error, flush=True)
    if process.rank == 1:
        os._exit(1)
    process.gather(torch.zeros(1))
"""
    processes = fork_two(code)
    (output, errors), (other, _) = (process.communicate() for process in processes)
    assert output == other == "process 1 has other images than process 0\n"
    assert "the connection to another training process was lost" in errors.splitlines()[-2]
    assert errors.splitlines()[-1].startswith("hint: ")


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(
    image_data: Path, narrow_checkpoint: Path, tmp_path: Path
) -> None:
    """Check a batch of 15, of which the processes have 8 and 7 images."""
    arguments = [
        "resdeploy", "train", image_data, "--init", narrow_checkpoint, "--epochs", 2,
        "--batch-size", 15, "--no-bf16", "--class-weights", "--ema", 0.9, "-o",
    ]  # fmt: skip
    together = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", *map(str, arguments), str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("2 epochs") == 1  # only one process prints the result
    assert together.stderr.count("so their order is a guess") == 1
    assert "Warning" not in together.stderr.replace("OMP_NUM_THREADS", "")
    alone = Forked(*arguments[1:], tmp_path / "one")
    _, errors = alone.communicate()
    assert alone.returncode == 0, errors
    one, two = (run_folder.load_metrics(tmp_path / name, 2) for name in ("one", "two"))
    # Another order of summation gives errors of 1e-7, and each step multiplies them by about ten,
    # because batch norm over 15 values (the last maps have one pixel) divides by small deviations.
    for expected, found, tolerance in zip(one, two, (1e-3, 1e-2)):
        assert found.loss == pytest.approx(expected.loss, rel=tolerance)
        assert found.val_loss == pytest.approx(expected.val_loss, rel=tolerance)
