"""The benchmark worker for PyTorch on a GPU, with its fastest settings.

    python -m benchmarks.gpu.pytorch_worker BUNDLE CHECKPOINT MODE BATCH LABELLED

Like every backend, it converts uint8 images (N, H, W, 3) in host memory to float32 logits (N, K) in
host memory. Shape letters: N images, H rows, W columns, K classes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.logit_checks import check_outputs
from resdeploy.benchmark_process.worker_loop import run_worker
from resdeploy.bundle.bundle import open_bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import BackendError, needs_extra, one_line_reason, remedy_for
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.train.bench.pytorch_worker import RANDOM, load_classifier

if TYPE_CHECKING:
    import torch

    from resdeploy.train.model.resnet import Classifier


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionMode:
    """A way to run the network; FP16 and BF16 use channels last, the format of tensor cores."""

    name: str
    precision: str
    """fp32, fp16 or bf16."""
    compiled: bool = False


MODES = {
    "eager-fp32": ExecutionMode(name="pytorch-eager", precision="fp32"),
    "eager-fp16": ExecutionMode(name="pytorch-eager", precision="fp16"),
    "compile-fp16": ExecutionMode(name="pytorch-compile", precision="fp16", compiled=True),
    "eager-bf16": ExecutionMode(name="pytorch-eager", precision="bf16"),
    "compile-bf16": ExecutionMode(name="pytorch-compile", precision="bf16", compiled=True),
}


def check_pytorch(device: str) -> None:
    """Raise an error unless PyTorch is installed and can use the device."""
    with needs_extra():
        import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            f"PyTorch {torch.__version__} sees no GPU", "install a build of PyTorch for CUDA"
        )


class PyTorchBackend:
    """The network on a device, with pinned memory for batches of one shape.

    `forward` converts uint8 images of `shape`, (N, H, W, 3), to float32 logits (N, `classes`); both
    are on `device`.
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        shape: tuple[int, ...],
        classes: int,
        device: str,
    ) -> None:
        import torch

        self.name = "pytorch"
        self._forward = forward
        self._on_gpu = device == "cuda"
        self._images = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._on_gpu)
        self._device_images = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._logits = torch.zeros((shape[0], classes), pin_memory=self._on_gpu)

    def run(self, images: UInt8Array) -> Float32Array:
        """Return the logits of exactly N images."""
        self._images.numpy()[...] = images
        self.infer()
        return self._logits.numpy().copy()

    def infer(self) -> None:
        """Run the network from the pinned images to the pinned logits; this is the timed call."""
        import torch

        self._device_images.copy_(self._images, non_blocking=True)
        self._logits.copy_(self._forward(self._device_images), non_blocking=True)
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()

    def close(self) -> None:
        """Do nothing."""


def make_forward(
    classifier: Classifier, mode: ExecutionMode, device: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from images (N, H, W, 3) to float32 logits (N, K); modify `classifier`."""
    import torch

    classifier = classifier.to(device).eval()
    module: torch.nn.Module = classifier
    if mode.precision != "fp32":
        dtype = torch.float16 if mode.precision == "fp16" else torch.bfloat16
        network = classifier.network.to(dtype)
        torch.nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
        normalize = classifier.normalize

        class SixteenBitClassifier(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.normalize = normalize
                self.network = network

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                # The classifier's own normalisation would change the memory format.
                normalised = self.normalize(images, contiguous=False)
                logits: torch.Tensor = self.network(normalised.to(dtype)).float()
                return logits

        module = SixteenBitClassifier().eval()
    run: Callable[[torch.Tensor], torch.Tensor] = module
    if mode.compiled:
        run = torch.compile(module, mode="max-autotune", fullgraph=True, dynamic=False)

    # Inference mode saves a little time per kernel. Compiled code is a single call, so it gains
    # little, and torch.compile is mostly tested without inference mode.
    without_gradients = torch.no_grad if mode.compiled else torch.inference_mode

    def forward(images: torch.Tensor) -> torch.Tensor:
        with without_gradients():
            return run(images)

    return forward


def prepare(
    path: str, checkpoint: str, mode: str, batch: int, labelled: str, device: str = "cuda"
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Load the network, check its outputs, and return the function to time.

    The arguments are those of the command line. The outputs of random weights are not checked.
    """
    check_pytorch(device)
    bundle = open_bundle(Path(path))
    classifier, *_ = load_classifier(bundle, checkpoint)
    import torch

    # cuDNN tries its kernels and keeps the fastest, which pays off for one batch size.
    torch.backends.cudnn.benchmark = True
    chosen, golden = MODES[mode], bundle.golden().images
    images = golden[np.arange(batch) % len(golden)]
    start = time.perf_counter()
    try:
        forward = make_forward(classifier, chosen, device)
        backend = PyTorchBackend(forward, images.shape, bundle.manifest.classes, device)
        backend.run(images)
    except Exception as error:  # compilers behind torch.compile raise many types
        raise BackendError(
            f"PyTorch failed: {one_line_reason(error)}", remedy_for(error, "use another mode")
        ) from error
    facts = {
        "artifact": None,
        "version": torch.__version__,
        "opening_seconds": time.perf_counter() - start,
        "cuda_graphs": "its own" if chosen.compiled else "no",
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "answers": None
        if checkpoint == RANDOM
        else check_outputs(backend, batch, bundle, chosen.precision, "", labelled),
    }
    backend.run(images)  # the check has replaced the images in the pinned memory
    return backend.infer, facts


if __name__ == "__main__":
    path, checkpoint, mode, batch, labelled = sys.argv[1:]
    run_worker(lambda: prepare(path, checkpoint, mode, int(batch), labelled))
