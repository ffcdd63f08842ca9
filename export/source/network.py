"""Interface of a network to export, from any kind of file, and its form for a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from resdeploy.bundle.golden import Float32Array
from resdeploy.bundle.manifest import GoldenReference
from resdeploy.export.graph.to_onnx import to_onnx
from resdeploy.images.preprocessing import Channels, Preprocessing, UInt8Array
from resdeploy.images.preprocessing_choice import DEFAULT_IMAGE_SIZE, StatedSettings
from resdeploy.images.preprocessing_settings import PreprocessingSettings
from resdeploy.train.checkpoint.load import Checkpoint
from resdeploy.train.checkpoint.sources import crop_offset_of, stated_sources
from resdeploy.train.model.architecture import Stem
from resdeploy.train.model.resnet import Classifier

if TYPE_CHECKING:
    import onnx_ir as ir

CIFAR_IMAGE_SIZE = 32  # in pixels; the networks with this stem were made for CIFAR


class ReferenceClassifier(Protocol):
    """A network with its pre-processing: the reference of all graphs of a bundle."""

    @property
    def reference(self) -> GoldenReference:
        """Return the engine that computes the logits."""
        ...

    def logits(self, images: UInt8Array) -> Float32Array:
        """Return the logits (N, K) of images (N, H, W, 3), in float32."""
        ...

    def to_onnx(self) -> ir.Model:
        """Return the graph, as `graph.to_onnx.to_onnx` describes it."""
        ...


class Network(Protocol):
    """A network to export, and what its file states."""

    @property
    def path(self) -> Path:
        """Return the file or folder."""
        ...

    @property
    def sha256(self) -> str:
        """Return the digest of the file."""
        ...

    @property
    def name(self) -> str:
        """Return the name of the architecture."""
        ...

    @property
    def classes(self) -> int:
        """Return the number of logits."""
        ...

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Return the names of the classes, if the file states them."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Return sentences on what was assumed, dropped or taken."""
        ...

    @property
    def default_size(self) -> int:
        """Return the usual image size of the architecture, in pixels."""
        ...

    @property
    def default_channels(self) -> Channels:
        """Return the usual channels of a network with as many inputs."""
        ...

    def stated_settings(self) -> Sequence[StatedSettings]:
        """Return the pre-processing that the file and its neighbours state."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return the facts that the manifest holds, with `name` and `classes`."""
        ...

    def classifier(self, preprocessing: Preprocessing) -> ReferenceClassifier:
        """Return the network with its pre-processing."""
        ...


@dataclass(frozen=True, slots=True)
class CheckpointNetwork:
    """A ResNet whose weights were read from a checkpoint."""

    checkpoint: Checkpoint

    @property
    def path(self) -> Path:
        return self.checkpoint.path

    @property
    def sha256(self) -> str:
        return self.checkpoint.sha256

    @property
    def name(self) -> str:
        return self.checkpoint.architecture.name

    @property
    def classes(self) -> int:
        return self.checkpoint.architecture.classes

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.checkpoint.labels

    @property
    def notes(self) -> tuple[str, ...]:
        return self.checkpoint.notes

    @property
    def default_size(self) -> int:
        is_small = self.checkpoint.architecture.stem is Stem.CIFAR
        return CIFAR_IMAGE_SIZE if is_small else DEFAULT_IMAGE_SIZE

    @property
    def default_channels(self) -> Channels:
        is_gray = self.checkpoint.architecture.input_channels == 1
        return Channels.GRAY if is_gray else Channels.RGB

    def stated_settings(self) -> Sequence[StatedSettings]:
        convention = PreprocessingSettings(crop_offset=crop_offset_of(self.checkpoint))
        last = StatedSettings(settings=convention, place=self.checkpoint.scheme)
        return [*stated_sources(self.checkpoint), last]

    def facts(self) -> dict[str, Any]:
        return {
            **self.checkpoint.architecture.to_json(),
            "source_weights": self.checkpoint.weights,
        }

    def classifier(self, preprocessing: Preprocessing) -> TorchClassifier:
        return TorchClassifier(Classifier(self.checkpoint.network(), preprocessing), preprocessing)


@dataclass(frozen=True, slots=True)
class TorchClassifier:
    """A ResNet in PyTorch with its pre-processing."""

    module: Classifier
    preprocessing: Preprocessing

    @property
    def reference(self) -> GoldenReference:
        return GoldenReference.PYTORCH

    @torch.inference_mode()
    def logits(self, images: UInt8Array) -> Float32Array:
        module = self.module.float().cpu().eval()  # before batch norm is folded
        single = [module(torch.from_numpy(images[i : i + 1])).numpy() for i in range(len(images))]
        return np.concatenate(single)

    def to_onnx(self) -> ir.Model:
        return to_onnx(self.module, self.preprocessing.image_size)
