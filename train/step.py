"""One training step: SGD with momentum on a global batch, divided among processes and parts.

Sources: He et al. 2015, arXiv:1512.03385, section 3.4 (SGD, momentum 0.9); Szegedy et al. 2015,
arXiv:1512.00567, section 7 (label smoothing); Goyal et al. 2017, arXiv:1706.02677, section 3 (the
loss is a mean over the global batch); Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2
(distillation).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from resdeploy.errors import TrainingError
from resdeploy.images.preprocessing import Preprocessing
from resdeploy.machine.cpu import read_cpu
from resdeploy.train.compiling import compile_mode, should_compile
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.dataset import Batch
from resdeploy.train.data.mixing import mix_batch
from resdeploy.train.distributed import Process
from resdeploy.train.ema import WeightAverage
from resdeploy.train.initialization import make_optimizer
from resdeploy.train.model.resnet import Classifier, ResNet
from resdeploy.train.qat.distillation import Teacher
from resdeploy.train.qat.network import QuantizedClassifier, QuantizedStart

Tensors = dict[str, Tensor]
MIN_IMAGES = 2  # per part of a batch, because batch norm needs two


class Learner:
    """A network with the state that a training step changes: weights, momentum and average."""

    def __init__(
        self,
        config: TrainingConfig,
        network: ResNet,
        preprocessing: Preprocessing,
        process: Process,
        class_weights: Tensor | None = None,
        start: QuantizedStart | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        """Take ownership of `network` and move it to the device of `process`.

        Args:
            config: Settings of the run.
            network: Network with its initial weights.
            preprocessing: Mean and standard deviation of the images.
            process: This process.
            class_weights: Weights of the classes in the loss, float32 (K,); None: all are 1.
            start: Tensors to quantise and their scales; None: training in float.
            teacher: Network whose predictions are targets; `config.distillation` is their share.

        Raises:
            TrainingError: The batch is too small for the number of processes and parts.
        """
        shares = process.count * config.accumulate
        if config.batch_size < MIN_IMAGES * shares:
            raise TrainingError(
                f"a batch of {config.batch_size} images is too small for {process.count} processes "
                f"with {config.accumulate} parts each",
                f"use --batch-size {MIN_IMAGES * shares} or more",
            )
        self.config = config
        self.process = process
        self.network = network
        self._teacher = None if teacher is None else teacher.to(process.device)
        # Convolution libraries compute in this memory layout.
        self.classifier = Classifier(
            network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
            preprocessing,
        ).to(process.device)
        self.quantized = (
            QuantizedClassifier(self.classifier, start.scales, start.quantized_inputs)
            if start
            else None
        )
        # `_trained` holds the parameters; a step calls `_model`, or the compiled `_whole_model`.
        self._trained = self.network if self.quantized is None else self.quantized
        self._model: nn.Module = self.quantized or self.classifier
        self._parallel: DistributedDataParallel | None = None
        if process.count > 1:
            # PyTorch builds for Jetson lack parts of torch.distributed.
            from resdeploy.train.model.sync_batch_norm import synchronize_batch_norms

            synchronize_batch_norms(self.network)
            self._parallel = DistributedDataParallel(self._model, forward_sync_buffers=False)
            self._model = self._parallel
        self._whole_model: nn.Module = self._model  # for whole batches
        self.compiled = start is None and should_compile(config.compile, process.device)
        if self.compiled:
            mode = compile_mode(process.device, shares)
            self._whole_model = cast("nn.Module", torch.compile(self._model, mode=mode))
        self.average = WeightAverage(self.classifier, config.ema) if config.ema else None
        self.optimizer = make_optimizer(self._trained, config)
        self._best, self._best_is_current = Tensors(), True
        self._class_weights = class_weights
        self._loss_weights = None if class_weights is None else class_weights.to(process.device)
        self.bf16 = bool(config.bf16)
        if config.bf16 is None:  # not with QAT: bfloat16's rounding would hide that of INT8
            self.bf16 = start is None and computes_bf16(process.device)

    @property
    def final_network(self) -> ResNet:
        """Return the network to save: the averaged one if there is an average."""
        return self.network if self.average is None else self.average.classifier.network

    @property
    def evaluated_model(self) -> nn.Module:
        """Return the model to evaluate, which maps images to logits as the deployed model does."""
        return self.quantized or (
            self.classifier if self.average is None else self.average.classifier
        )

    def keep_best(self) -> None:
        """Keep a copy of the weights that are evaluated now, which are the best so far."""
        self._best = {name: tensor.clone() for name, tensor in self._evaluated.state_dict().items()}
        self._best_is_current = True

    def use_best(self) -> None:
        """Set the evaluated model to the best weights; do not train it any more."""
        if not self._best_is_current:
            self._evaluated.load_state_dict(self._best)

    def train_mode(self) -> None:
        """Set the network to training mode; call this before the steps of an epoch."""
        self._whole_model.train()
        if self.config.freeze:
            self.network.eval()  # batch-norm statistics are part of the frozen features

    def step(self, batch: Batch, lr: float, generator: np.random.Generator) -> Tensor:
        """Train one step, together with the other processes.

        Args:
            batch: Images of this process.
            lr: Learning rate of this step.
            generator: Source of randomness for mixup and CutMix.

        Returns:
            This process's share of the loss and its number of images, float32 (2,). They stay on
            the device, so that nothing waits for a GPU. Both are 0 if any process has fewer than
            two images, because then all processes skip the step.
        """
        config = self.config
        weight = count = float(len(batch.labels))
        if self._class_weights is not None:
            weight = float(self._class_weights[batch.labels].sum())
        sizes = self.process.gather(torch.tensor([weight, count]))
        accumulate = min(config.accumulate, int(sizes[:, 1].min()) // MIN_IMAGES)
        if not accumulate:
            return torch.zeros(2, device=self.process.device)
        # Each other size would be compiled again.
        is_whole = sizes[:, 1].sum() == config.batch_size
        model = self._whole_model if is_whole else self._model
        self._best_is_current = False
        global_weight = float(sizes[:, 0].sum())
        moved = batch.to(self.process.device)
        mixed = mix_batch(moved.images, moved.labels, config.mixup, config.cutmix, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.process.device)
        parts = [
            value.tensor_split(accumulate)
            for value in (mixed.images, mixed.labels, mixed.other_labels)
        ]
        for index, (images, labels, other_labels) in enumerate(zip(*parts), start=1):
            exchange: AbstractContextManager[Any] = nullcontext()
            if self._parallel is not None and index < accumulate:
                exchange = self._parallel.no_sync()  # only the last part exchanges gradients
            with exchange:
                with torch.autocast(moved.images.device.type, torch.bfloat16, enabled=self.bf16):
                    logits = model(images)
                loss = mixed.share * self._loss(logits, labels)
                if mixed.share < 1:
                    loss = loss + (1 - mixed.share) * self._loss(logits, other_labels)
                if self._teacher is not None:
                    teacher_loss = self._teacher.loss(logits, images)
                    loss = loss + config.distillation * (teacher_loss - loss)
                loss = loss / global_weight
                # DistributedDataParallel averages gradients, but their sum is needed.
                (loss * self.process.count).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        return torch.stack([total, torch.full_like(total, count)])

    def state(self) -> dict[str, Tensors]:
        """Return the `model`, the `momentum` by parameter, the `average`, the `best` weights.

        The average is empty without one, the best weights if they are the current ones.
        """
        momentum = {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self._trained.named_parameters()
            if self.optimizer.state[parameter].get("momentum_buffer") is not None
        }
        average = {} if self.average is None else self.average.classifier.network.state_dict()
        state = {"model": self._trained.state_dict(), "momentum": momentum, "average": average}
        return state | {"best": {} if self._best_is_current else self._best}

    def state_bytes(self) -> tuple[int, int]:
        """Return the largest sizes of the state and of the weights, in bytes."""
        state = self.state()
        trained = [value for value in self._trained.parameters() if value.requires_grad]
        best = self._evaluated.state_dict().values()
        everything = [*state["model"].values(), *state["average"].values(), *trained, *best]
        weights = self.network.state_dict().values()
        return sum(t.nbytes for t in everything), sum(t.nbytes for t in weights)

    def restore(self, model: Tensors, momentum: Tensors, average: Tensors, best: Tensors) -> None:
        """Restore the values that `state` returned."""
        self._trained.load_state_dict(model)
        if self.average is not None:
            self.average.restore(average)
        parameters = dict(self._trained.named_parameters())
        for name, buffer in momentum.items():
            # The fused optimiser requires the memory layout of the parameter.
            copied = torch.empty_like(parameters[name]).copy_(buffer)
            self.optimizer.state[parameters[name]]["momentum_buffer"] = copied
        self.keep_best()
        if best:
            self._best, self._best_is_current = best, False

    @property
    def _evaluated(self) -> nn.Module:
        """Return the module with the weights that are evaluated."""
        return self._trained if self.average is None else self.average.classifier.network

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.float(),
            labels,
            weight=self._loss_weights,
            label_smoothing=self.config.label_smoothing,
            reduction="sum",
        )


def computes_bf16(device: torch.device) -> bool:
    """Return True if bfloat16 is faster than float32 on `device`."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else read_cpu().has_fast_bf16
