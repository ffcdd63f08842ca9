"""PyTorch on a GPU as a contender, as fast as it goes: `python -m benchmarks.gpu.pytorch_worker`.

    python -m benchmarks.gpu.pytorch_worker BUNDLE CHECKPOINT MODE BATCH LABELLED

It does what every backend does: uint8 (N, H, W, 3) in host memory in, float32 logits (N, K) in
host memory out. Shape letters: N images, H rows, W columns, K classes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.answers import read_answers
from resdeploy.bench.worker import run_worker
from resdeploy.bundle.bundle import Bundle, open_bundle
from resdeploy.bundle.golden import Float32Array
from resdeploy.errors import BackendError, CheckpointError, MissingDependencyError, needs_extra
from resdeploy.images.preprocessing import UInt8Array
from resdeploy.runtime.backends.base import Unavailability

if TYPE_CHECKING:
    import torch

    from resdeploy.train.model.resnet import Classifier

RANDOM = "random"
"""In place of a checkpoint: other weights than the bundle's, which take the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A way to run the network; below FP32 in the memory format that tensor cores like best."""

    name: str
    precision: str
    """fp32, fp16 or bf16."""
    compiled: bool = False


MODES = {
    "eager-fp32": Mode(name="pytorch-eager", precision="fp32"),
    "eager-fp16": Mode(name="pytorch-eager", precision="fp16"),
    "compile-fp16": Mode(name="pytorch-compile", precision="fp16", compiled=True),
    "eager-bf16": Mode(name="pytorch-eager", precision="bf16"),
    "compile-bf16": Mode(name="pytorch-compile", precision="bf16", compiled=True),
}
OPTIONAL = ("eager-bf16", "compile-bf16")


def obstacle() -> Unavailability | None:
    """Why no mode can run on a GPU here."""
    try:
        with needs_extra():
            import torch
    except MissingDependencyError as error:
        return Unavailability(str(error), error.hint or "")
    if not torch.cuda.is_available():
        return Unavailability(
            f"PyTorch {torch.__version__} sees no GPU", "install a build of PyTorch for CUDA"
        )
    return None


class PyTorchBackend:
    """The network on a device, with pinned memory for batches of one size."""

    def __init__(
        self,
        name: str,
        forward: Callable[[torch.Tensor], torch.Tensor],
        shape: tuple[int, int, int, int],
        classes: int,
        device: str,
    ) -> None:
        """Allocate.

        Args:
            name: The contender's.
            forward: uint8 images (N, H, W, 3) to float32 logits (N, K), both on `device`.
            shape: (N, H, W, 3).
            classes: K.
            device: PyTorch's name of it.
        """
        import torch

        self.name = name
        self._forward = forward
        self._on_gpu = device == "cuda"
        self._images = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._on_gpu)
        self._given = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._logits = torch.zeros((shape[0], classes), pin_memory=self._on_gpu)

    def run(self, images: UInt8Array) -> Float32Array:
        """See `Backend.run`; there must be exactly N."""
        self._images.numpy()[...] = images
        self.infer()
        return self._logits.numpy().copy()

    def infer(self) -> None:
        """What is timed: from the pinned images to the pinned logits, whatever lies there."""
        import torch

        self._given.copy_(self._images, non_blocking=True)
        self._logits.copy_(self._forward(self._given), non_blocking=True)
        if self._on_gpu:
            torch.cuda.current_stream().synchronize()

    def close(self) -> None:
        """See `Backend.close`."""


def make_forward(
    classifier: Classifier, mode: Mode, device: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What runs `classifier`, which is changed: images (N, H, W, 3) to float32 logits (N, K)."""
    import torch

    classifier = classifier.to(device).eval()
    module: torch.nn.Module = classifier
    if mode.precision != "fp32":
        dtype = torch.float16 if mode.precision == "fp16" else torch.bfloat16
        network = classifier.network.to(dtype)
        torch.nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
        normalize = classifier.normalize

        class Narrow(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.normalize = normalize
                self.network = network

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                # Pixels come channels last; the classifier's own normalisation would turn them.
                pixels = images.permute(0, 3, 1, 2).float()
                normalised = pixels * self.normalize.scale + self.normalize.shift
                logits: torch.Tensor = self.network(normalised.to(dtype)).float()
                return logits

        module = Narrow().eval()
    run: Callable[[torch.Tensor], torch.Tensor] = module
    # Inference mode saves a little for each kernel; compiled, there is one call in all, and
    # torch.compile is tested most without.
    without_gradients = torch.no_grad if mode.compiled else torch.inference_mode
    if mode.compiled:
        run = torch.compile(module, mode="max-autotune", fullgraph=True, dynamic=False)

    def forward(images: torch.Tensor) -> torch.Tensor:
        with without_gradients():
            return run(images)

    return forward


def load_classifier(bundle: Bundle, checkpoint: str) -> Classifier:
    """The bundle's network in PyTorch, with the weights of a checkpoint or `RANDOM` ones.

    Raises:
        CheckpointError: the file cannot be used, or holds another network.
        MissingDependencyError: PyTorch is not installed.
    """
    with needs_extra():
        import torch

        from resdeploy.train.model.architecture import Architecture
        from resdeploy.train.model.checkpoint import load_checkpoint
        from resdeploy.train.model.resnet import Classifier, ResNet

    preprocessing = bundle.manifest.preprocessing
    architecture = Architecture.from_json(bundle.manifest.model)
    if checkpoint == RANDOM:
        torch.manual_seed(0)
        network = ResNet(architecture).eval()
    else:
        loaded = load_checkpoint(Path(checkpoint))
        if loaded.architecture != architecture:
            raise CheckpointError(
                f"{checkpoint} is a {loaded.architecture.name} of {loaded.architecture.classes} "
                f"classes, the bundle holds a {architecture.name} of {architecture.classes}",
                "name the checkpoint that the bundle was exported from",
            )
        network = loaded.network()
    return Classifier(network, preprocessing.mean, preprocessing.std)


def prepare(
    path: str, checkpoint: str, mode: str, batch: int, labelled: str, device: str = "cuda"
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Load the network, check its answers, and return what runs golden images.

    Args:
        path: The bundle.
        checkpoint: Its weights, or `RANDOM`.
        mode: A key of `MODES`.
        batch: Images in one run.
        labelled: The folder of `gpu_answers.write_labelled`; empty for none.
        device: PyTorch's name of it.

    Raises:
        BackendError: there is no GPU, or PyTorch failed.
    """
    if device == "cuda" and (none := obstacle()):
        raise BackendError(none.reason, none.hint)
    bundle = open_bundle(Path(path))
    classifier = load_classifier(bundle, checkpoint)
    import torch

    # With batches of one size, PyTorch's best: cuDNN tries its kernels and keeps the fastest.
    torch.backends.cudnn.benchmark = True
    chosen, golden = MODES[mode], bundle.golden().images
    images = golden[np.arange(batch) % len(golden)]
    shape = (batch, *golden.shape[1:])
    start = time.perf_counter()
    try:
        backend = PyTorchBackend(
            chosen.name,
            make_forward(classifier, chosen, device),
            shape,
            bundle.manifest.classes,
            device,
        )
        backend.run(images)
    except Exception as error:  # the compiler behind torch.compile raises nearly anything
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackendError(f"PyTorch failed: {why}", "try a smaller batch") from error
    facts: dict[str, Any] = {
        "artifact": None,
        "version": torch.__version__,
        "opening_seconds": time.perf_counter() - start,
        "cuda_graphs": "its own" if chosen.compiled else "no",
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "answers": None,
    }
    if checkpoint != RANDOM:
        facts["answers"] = read_answers(backend, batch, bundle, chosen.precision, "", labelled)
        backend.run(images)
    return backend.infer, facts


if __name__ == "__main__":
    path, checkpoint, mode, batch, labelled = sys.argv[1:]
    run_worker(lambda: prepare(path, checkpoint, mode, int(batch), labelled))
