"""One step of training: SGD with momentum on a batch that processes and parts may share.

Sources: He et al. 2015, arXiv:1512.03385, section 3.4 (SGD, momentum 0.9); Szegedy et al. 2015,
arXiv:1512.00567, section 7 (label smoothing); Goyal et al. 2017, arXiv:1706.02677, section 3 (the
loss is a mean over the joint batch, whoever computes which part of it); Hinton, Vinyals and Dean
2015, arXiv:1503.02531, section 2 (one network's answers as another's labels).
"""

from __future__ import annotations

from collections.abc import Mapping
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
from resdeploy.train.compiling import compile_mode, compiles
from resdeploy.train.config import TrainingConfig
from resdeploy.train.data.dataset import Batch
from resdeploy.train.data.mixing import mix
from resdeploy.train.distributed import Process
from resdeploy.train.ema import WeightAverage
from resdeploy.train.initialization import make_optimizer
from resdeploy.train.model.resnet import Classifier, ResNet
from resdeploy.train.qat.distillation import Teacher
from resdeploy.train.qat.network import QuantizedClassifier, QuantizedStart

LEAST_IMAGES = 2  # of a part: batch norm needs two


class Learner:
    """A network with all that a step changes: weights, momentum, average."""

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
        """Take over `network`.

        Args:
            config: Settings.
            network: With the weights to start from.
            preprocessing: Its mean and deviation.
            process: This process, with whose like the batches are shared.
            class_weights: float32 (K,); None: every image counts alike.
            start: What is quantised while training; None: it trains in float.
            teacher: Whose answers count as `config.distillation` says.

        Raises:
            TrainingError: the batch is too small for the number of processes and parts.
        """
        shares = process.count * config.accumulate
        if config.batch_size < LEAST_IMAGES * shares:
            raise TrainingError(
                f"a batch of {config.batch_size} cannot be divided by {process.count} processes "
                f"and {config.accumulate} parts",
                f"use --batch-size {LEAST_IMAGES * shares} or more",
            )
        self.config = config
        self.process = process
        self.network = network
        self._teacher = None if teacher is None else teacher.to(process.device)
        # channels_last is the layout that convolution libraries compute in.
        self.classifier = Classifier(
            network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
            preprocessing.mean,
            preprocessing.std,
        ).to(process.device)
        self.quantized = (
            QuantizedClassifier(self.classifier, start.scales, start.reads) if start else None
        )
        self._trained = self.network if self.quantized is None else self.quantized
        self._model: nn.Module = self.quantized or self.classifier
        self._parallel: DistributedDataParallel | None = None
        if process.count > 1:
            from resdeploy.train.model.sync_batch_norm import (
                norms_over_processes,
            )  # Jetson's torch lacks it

            norms_over_processes(self.network)
            self._parallel = DistributedDataParallel(self._model, forward_sync_buffers=False)
            self._model = self._parallel
        if start is None and compiles(config.compile, process.device):
            mode = compile_mode(process.device, shares)
            self._model = cast("nn.Module", torch.compile(self._model, mode=mode))
        self.average = WeightAverage(self.classifier, config.ema) if config.ema else None
        self.optimizer = make_optimizer(self._trained, config)
        self._class_weights = class_weights
        self._loss_weights = None if class_weights is None else class_weights.to(process.device)
        self._bf16 = config.bf16
        if config.bf16 is None:  # its rounding would hide that to int8
            self._bf16 = start is None and computes_bf16(process.device)

    @property
    def kept(self) -> ResNet:
        """The network that is kept: the average where there is one."""
        return self.network if self.average is None else self.average.classifier.network

    @property
    def measured(self) -> nn.Module:
        """What is measured: images to logits, as it will be deployed."""
        return self.quantized or (
            self.classifier if self.average is None else self.average.classifier
        )

    def train_mode(self) -> None:
        """Before the steps of an epoch."""
        self._model.train()
        if self.config.freeze:
            self.network.eval()  # the norms' statistics belong to the features

    def step(self, batch: Batch, lr: float, generator: np.random.Generator) -> Tensor:
        """Take one step, together with the other processes.

        Args:
            batch: This process's part.
            lr: The rate of this step.
            generator: Decides on mixup and CutMix.

        Returns:
            This process's share of the joint loss and of its images, float32 (2,), on the device
            so that a GPU need not be waited for. Both are 0 where one process has too few images:
            then all of them leave the step out.
        """
        config = self.config
        weight = len(batch.labels) if self._class_weights is None else self._class_weights[
            batch.labels
        ].sum()  # fmt: skip
        everyone = self.process.gather(torch.tensor([float(weight), len(batch.labels)]))
        if everyone[:, 1].min() < LEAST_IMAGES * config.accumulate:
            return torch.zeros(2, device=self.process.device)
        joint_weight = float(everyone[:, 0].sum())
        here = batch.to(self.process.device)
        mixed = mix(here.images, here.labels, config.mixup, config.cutmix, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.process.device)
        parts = [
            value.tensor_split(config.accumulate)
            for value in (mixed.images, mixed.labels, mixed.others)
        ]
        for index, (images, labels, others) in enumerate(zip(*parts), start=1):
            with self._exchange(last=index == config.accumulate):
                with self._autocast():
                    logits = self._model(images)
                loss = mixed.share * self._loss(logits, labels)
                if mixed.share < 1:
                    loss = loss + (1 - mixed.share) * self._loss(logits, others)
                if self._teacher is not None:
                    taught = self._teacher.loss(logits, images)
                    loss = loss + config.distillation * (taught - loss)
                loss = loss / joint_weight
                # The exchange takes the mean of the processes' gradients; their sum is wanted.
                (loss * self.process.count).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        return torch.stack([total, torch.full_like(total, len(batch.labels))])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Weights, momentum by parameter, and the average (empty where there is none)."""
        momentum = {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self._trained.named_parameters()
            if self.optimizer.state[parameter].get("momentum_buffer") is not None
        }
        average = {} if self.average is None else self.average.classifier.network.state_dict()
        return self._trained.state_dict(), momentum, average

    def restore(
        self,
        weights: Mapping[str, Tensor],
        momentum: Mapping[str, Tensor],
        average: Mapping[str, Tensor],
    ) -> None:
        """Go on from what `state` gave."""
        self._trained.load_state_dict(dict(weights))
        if self.average is not None:
            self.average.restore(average)
        parameters = dict(self._trained.named_parameters())
        for name, buffer in momentum.items():
            # In the parameter's own layout: the fused optimiser walks over both as they lie.
            like = torch.empty_like(parameters[name]).copy_(buffer)
            self.optimizer.state[parameters[name]]["momentum_buffer"] = like

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.float(),
            labels,
            weight=self._loss_weights,
            label_smoothing=self.config.label_smoothing,
            reduction="sum",
        )

    def _exchange(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged with the last part only."""
        if last or self._parallel is None:
            return nullcontext()
        return self._parallel.no_sync()

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self._bf16:
            return nullcontext()
        return torch.autocast(self.process.device.type, torch.bfloat16)


def computes_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster there than float32."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else read_cpu().has_fast_bf16
