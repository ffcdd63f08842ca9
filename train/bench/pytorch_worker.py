"""A benchmark worker that runs PyTorch: `python -m resdeploy.train.bench.pytorch_worker`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdeploy.benchmark_process.worker_loop import run_worker
from resdeploy.benchmark_process.workload import Infer, Workload
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import (
    BackendError,
    CheckpointError,
    needs_extra,
    one_line_reason,
    remedy_for,
)
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.machine.cpu import read_cpu
from resdeploy.result_files.provenance import shown_path

if TYPE_CHECKING:
    from resdeploy.train.model.resnet import Classifier


RANDOM = "random"
"""The name that stands for random weights, which need the same time as the checkpoint."""


class PyTorchMode(str, Enum):
    """The ways in which PyTorch runs the network, on a GPU if there is one."""

    EAGER = "pytorch-eager"  # FP32
    COMPILE = "pytorch-compile"  # FP32 with torch.compile and constant weights
    AUTOCAST = "pytorch-autocast"  # bfloat16 on a CPU, float16 on a GPU; channels last


def prepare_pytorch(
    workload: Workload, mode: PyTorchMode, checkpoint: str
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Build the bundle's network in PyTorch, and return a function that runs the workload.

    `checkpoint` is the path of the weights. If it is empty, they are those that the bundle was
    exported from or, if these are missing, random ones, whose values do not change the time.

    Raises:
        BackendError: This machine does not support the mode.
        CheckpointError: The weights in `checkpoint` cannot be used.
        MissingDependencyError: PyTorch is not installed.
    """
    with needs_extra():
        import torch

    bundle = open_bundle(workload.bundle)
    classifier, weights, notice = load_classifier(bundle, checkpoint)
    torch.set_num_threads(workload.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    infer, precision = make_infer(classifier.to(device).eval(), mode, device)
    run = workload.make_call(bundle, bundle.golden().images, infer)
    if mode is PyTorchMode.COMPILE:
        try:
            run()
        except Exception as error:  # the compiler has many exception types of its own
            compiler = any(map(shutil.which, ("g++", "clang++", os.environ.get("CXX", "g++"))))
            hint = "leave it out: --without pytorch-compile"
            raise BackendError(
                f"torch.compile failed on this machine: {one_line_reason(error)}",
                remedy_for(error, hint if compiler else "install a C++ compiler, such as g++"),
            ) from error
    size = Path(weights).stat().st_size if Path(weights).is_file() else None
    shown = shown_path(Path(weights))
    facts = {"weights": shown, "device": device, "precision": precision, "file_bytes": size}
    return run, facts | {"notice": notice}


def make_infer(classifier: Classifier, mode: PyTorchMode, device: str) -> tuple[Infer, str]:
    """Return a function that runs `classifier` on `device`, and its precision.

    Raises:
        BackendError: The CPU has no bfloat16 arithmetic.
    """
    import torch

    forward: Callable[[torch.Tensor], torch.Tensor] = classifier
    precision = "fp32"
    if mode is PyTorchMode.COMPILE:
        import torch._inductor.config

        torch._inductor.config.freezing = True  # converts the weights to the kernels' layout once
        forward = torch.compile(classifier, mode="reduce-overhead" if device == "cuda" else None)
    elif mode is PyTorchMode.AUTOCAST:
        on_gpu = device == "cuda"
        if not on_gpu and not read_cpu().has_fast_bf16:
            raise BackendError(
                f"{mode.value} needs bfloat16 arithmetic, which this CPU lacks",
                f"leave {mode.value} out",
            )
        dtype, precision = (torch.float16, "fp16") if on_gpu else (torch.bfloat16, "bf16")
        torch.nn.utils.convert_conv2d_weight_memory_format(classifier, torch.channels_last)
        forward = torch.autocast(device, dtype)(classifier.forward)

    @torch.no_grad()  # inference mode would disable the folding of constant weights
    def infer(images: UInt8Array) -> Float32Array:
        return forward(torch.from_numpy(images).to(device)).float().cpu().numpy()

    return infer, precision


def load_classifier(bundle: Bundle, checkpoint: str) -> tuple[Classifier, str, str | None]:
    """Return the network of a bundle, the path of its weights or `random`, and why it is random.

    Args:
        bundle: The bundle, whose manifest describes the network.
        checkpoint: The path of the weights, or `random`. If it is empty, the weights are those that
            the bundle was exported from, if the current folder has them, or random ones.

    Raises:
        CheckpointError: The weights in `checkpoint` cannot be used.
    """
    import torch

    from resdeploy.train.checkpoint.contents import Weights
    from resdeploy.train.checkpoint.load import load_checkpoint
    from resdeploy.train.model.architecture import Architecture
    from resdeploy.train.model.resnet import Classifier, ResNet

    preprocessing, model = bundle.manifest.preprocessing, bundle.manifest.model
    architecture, notice = Architecture.from_json(model), None
    if checkpoint != RANDOM:
        stated = Path(str(model.get("source")))
        if stated.is_absolute() or ".." in stated.parts:  # only files below the working folder
            stated = Path(stated.name)
        weights = checkpoint or str(stated)
        try:
            taken = Weights.AUTO if checkpoint else Weights(model.get("source_weights", "auto"))
            loaded = load_checkpoint(Path(weights), taken)
            if (loaded.architecture.classes, architecture.classes) == (1, 2):
                loaded = loaded.with_two_classes()
            if loaded.architecture != architecture:
                raise CheckpointError(
                    f"{weights} is a {loaded.architecture.name} with {loaded.architecture.classes} "
                    f"classes, but the bundle holds a {architecture.name} with "
                    f"{architecture.classes}",
                    "use the checkpoint that the bundle was exported from",
                )
            if not checkpoint and loaded.sha256 != model.get("source_sha256"):
                raise CheckpointError(f"{weights} is not the checkpoint that the bundle comes from")
        except CheckpointError as error:
            if checkpoint:
                raise
            notice = f"PyTorch has random weights, which take as long as the bundle's: {error}"
        else:
            network = Classifier(loaded.network(), preprocessing)
            return network, weights, None
    torch.manual_seed(0)
    network = Classifier(ResNet(architecture).eval(), preprocessing)
    return network, RANDOM, notice


if __name__ == "__main__":
    mode, checkpoint, *rest = sys.argv[1:]
    run_worker(
        lambda: prepare_pytorch(Workload.from_arguments(rest), PyTorchMode(mode), checkpoint)
    )
