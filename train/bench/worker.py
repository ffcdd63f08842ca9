"""PyTorch as a benchmark's contender: `python -m resdeploy.train.bench.worker`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdeploy.bench.worker import run_worker
from resdeploy.bench.workload import Infer, Workload
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import BackendError, CheckpointError, needs_extra
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.machine.cpu import read_cpu

if TYPE_CHECKING:
    from resdeploy.train.model.resnet import Classifier


class Mode(str, Enum):
    """How PyTorch runs the network: on a GPU where it sees one, otherwise on the CPU."""

    EAGER = "pytorch-eager"  # FP32, as it was trained
    COMPILE = "pytorch-compile"  # FP32 through torch.compile, with constant weights
    AUTOCAST = "pytorch-autocast"  # bfloat16 on a CPU, float16 on a GPU; channels last


def prepare(
    workload: Workload, mode: Mode, checkpoint: str
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Build the bundle's network in PyTorch and return what runs it.

    Args:
        workload: What is run.
        mode: How.
        checkpoint: Weights to use; empty for those that the bundle was exported from, and random
            ones where these are gone (their values do not change the time).

    Raises:
        BackendError: this machine cannot do what the mode asks for.
        CheckpointError: the weights that were asked for cannot be used.
        MissingDependencyError: PyTorch is not installed.
    """
    with needs_extra():
        import torch

    bundle = open_bundle(workload.bundle)
    classifier, weights = _classifier(bundle, checkpoint)
    torch.set_num_threads(workload.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    infer, precision = make_infer(classifier.to(device).eval(), mode, device)
    run = workload.make_call(bundle, bundle.golden().images, infer)
    if mode is Mode.COMPILE:
        try:
            run()
        except Exception as error:  # the compiler raises many types of its own
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BackendError(
                f"torch.compile cannot compile here: {why}", "install a C++ compiler, such as g++"
            ) from error
    size = Path(weights).stat().st_size if Path(weights).is_file() else None
    facts = {"weights": weights, "device": device, "precision": precision, "file_bytes": size}
    return run, facts


def make_infer(classifier: Classifier, mode: Mode, device: str) -> tuple[Infer, str]:
    """What runs `classifier` on `device`, and the precision in which it does.

    Raises:
        BackendError: the CPU has no bfloat16 arithmetic.
    """
    import torch

    forward: Callable[[torch.Tensor], torch.Tensor] = classifier
    narrow: Callable[[], Any] = nullcontext
    precision = "fp32"
    if mode is Mode.COMPILE:
        import torch._inductor.config

        torch._inductor.config.freezing = True  # weights are laid out for the kernels beforehand
        forward = torch.compile(classifier, mode="reduce-overhead" if device == "cuda" else None)
    elif mode is Mode.AUTOCAST:
        on_gpu = device == "cuda"
        if not on_gpu and not read_cpu().has_fast_bf16:
            raise BackendError("this processor has no bfloat16 arithmetic", "leave it out")
        dtype, precision = (torch.float16, "fp16") if on_gpu else (torch.bfloat16, "bf16")
        torch.nn.utils.convert_conv2d_weight_memory_format(classifier, torch.channels_last)
        narrow = lambda: torch.autocast(device, dtype)  # noqa: E731

    @torch.no_grad()  # not inference mode, in which constant weights are not folded
    def infer(images: UInt8Array) -> Float32Array:
        with narrow():
            logits = forward(torch.from_numpy(images).to(device))
        return logits.float().cpu().numpy()

    return infer, precision


def _classifier(bundle: Bundle, checkpoint: str) -> tuple[Classifier, str]:
    """The network, and where its weights came from."""
    from resdeploy.train.model.architecture import Architecture
    from resdeploy.train.model.checkpoint import load_checkpoint
    from resdeploy.train.model.resnet import Classifier, ResNet

    preprocessing = bundle.manifest.preprocessing
    model = bundle.manifest.model
    architecture = Architecture.from_json(model)
    weights = checkpoint or str(model.get("source"))
    try:
        loaded = load_checkpoint(Path(weights))
        if loaded.architecture != architecture:
            raise CheckpointError(
                f"{weights} is a {loaded.architecture.name} of {loaded.architecture.classes} "
                f"classes, the bundle holds a {architecture.name} of {architecture.classes}",
                "name the checkpoint that the bundle was exported from with --baseline",
            )
        if not checkpoint and loaded.sha256 != model.get("source_sha256"):
            raise CheckpointError(f"{weights} is not what the bundle was exported from")
        network = loaded.network()
    except CheckpointError:
        if checkpoint:
            raise
        network, weights = ResNet(architecture).eval(), "random"
    return Classifier(network, preprocessing.mean, preprocessing.std), weights


if __name__ == "__main__":
    mode, checkpoint, *rest = sys.argv[1:]
    run_worker(lambda: prepare(Workload.from_arguments(rest), Mode(mode), checkpoint))
