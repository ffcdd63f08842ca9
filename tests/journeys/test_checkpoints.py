"""Checkpoints of other libraries: logits equal those of the library's own network and transform.

The networks are written after the published definitions, and the transforms with Pillow alone. They
share no code with resdeploy, which only sees the files. Sources: torchvision/models/resnet.py and
transforms/functional.py; timm/data/transforms_factory.py; transformers, modeling_resnet.py and
image_processing_pil_convnext.py; fastai/vision/learner.py (create_head); kuangliu/pytorch-cifar,
models/resnet.py.
"""

from __future__ import annotations

import json
import math
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from resdeploy.export.source.network import CheckpointNetwork
from resdeploy.export.source_preprocessing import choose_source_preprocessing
from resdeploy.images.loading import load_image
from resdeploy.images.preprocessing import Channels, Interpolation, ResizeMode
from resdeploy.images.preprocessing_settings import PreprocessingSettings
from resdeploy.progress import silent
from resdeploy.train.checkpoint.contents import Weights
from resdeploy.train.checkpoint.load import Checkpoint, load_checkpoint
from resdeploy.train.model.resnet import Classifier

SIZE, WIDTH, CLASSES = 64, 8, 5
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
BGR_STATISTICS = (103.5, 116.3, 123.7), (1.0, 1.0, 1.0)  # as in Caffe's networks
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
# Both sides compute in float32. Sums in another order, and a batch norm that is folded into the
# linear layer beside it, change the logits by about 1e-6 of their standard deviation.
TOLERANCE = 1e-4
TRACE: Any = torch.jit.trace
Transform = Callable[[Image.Image], Tensor]


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> Any:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class TorchvisionBlock(nn.Module):
    """BasicBlock and Bottleneck of torchvision; with `shortcut`, those of pytorch-cifar."""

    def __init__(
        self, inputs: int, planes: int, stride: int, *, bottleneck: bool = False, groups: int = 1,
        inner: int = 0, shortcut: str = "downsample",
    ) -> None:  # fmt: skip
        super().__init__()
        self.shortcut_name = shortcut
        outputs, inner = (4 * planes if bottleneck else planes), inner or planes
        if bottleneck:
            self.conv1, self.bn1 = convolution(inputs, inner, 1), nn.BatchNorm2d(inner)
            self.conv2, self.bn2 = (
                convolution(inner, inner, 3, stride, groups),
                nn.BatchNorm2d(inner),
            )
            self.conv3, self.bn3 = convolution(inner, outputs, 1), nn.BatchNorm2d(outputs)
        else:
            self.conv1, self.bn1 = convolution(inputs, planes, 3, stride), nn.BatchNorm2d(planes)
            self.conv2, self.bn2 = convolution(planes, planes, 3), nn.BatchNorm2d(planes)
        projection = nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = nn.Sequential(
                convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
        self.add_module(shortcut, projection)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, "bn3"):
            out = self.bn3(self.conv3(F.relu(out)))
        result: Tensor = F.relu(out + getattr(self, self.shortcut_name)(x))
        return result


def stages(
    blocks: tuple[int, ...], inner: Callable[[int], int] = lambda n: 0, **settings: Any
) -> Any:
    result, inputs = [], WIDTH
    for stage, count in enumerate(blocks):
        planes, layers = WIDTH << stage, []
        for index in range(count):
            stride = 2 if stage and not index else 1
            layers.append(TorchvisionBlock(inputs, planes, stride, inner=inner(planes), **settings))
            inputs = 4 * planes if settings.get("bottleneck") else planes
        result.append(nn.Sequential(*layers))
    return result, inputs


class TorchvisionNet(nn.Module):
    """torchvision's ResNet; timm's has the same names."""

    def __init__(
        self, blocks: tuple[int, ...] = (1, 2, 1, 1), channels: int = 3, head: Any = nn.Linear,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1, self.bn1 = (
            nn.Conv2d(channels, WIDTH, 7, 2, 3, bias=False),
            nn.BatchNorm2d(WIDTH),
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        (self.layer1, self.layer2, self.layer3, self.layer4), features = stages(blocks, **settings)
        self.fc = head(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        result: Tensor = self.fc(x.mean((2, 3)))
        return result


class CifarNet(nn.Module):
    """ResNet of github.com/kuangliu/pytorch-cifar."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(3, WIDTH, 3), nn.BatchNorm2d(WIDTH)
        (self.layer1, self.layer2, self.layer3, self.layer4), features = stages(
            (2, 1, 1, 1), shortcut="shortcut"
        )
        self.linear = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        result: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return result


class HuggingFaceConv(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.convolution = convolution(inputs, outputs, kernel, stride)
        self.normalization, self.active = nn.BatchNorm2d(outputs), active

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalization(self.convolution(x))
        return F.relu(x) if self.active else x


class HuggingFaceLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, kind: str, early: bool) -> None:
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = HuggingFaceConv(inputs, outputs, 1, stride, active=False)
        if kind == "basic":
            convolutions = [
                HuggingFaceConv(inputs, outputs, 3, stride),
                HuggingFaceConv(outputs, outputs, 3, active=False),
            ]
        else:
            inner = outputs // 4
            convolutions = [
                HuggingFaceConv(inputs, inner, 1, stride if early else 1),
                HuggingFaceConv(inner, inner, 3, 1 if early else stride),
                HuggingFaceConv(inner, outputs, 1, active=False),
            ]
        self.layer = nn.Sequential(*convolutions)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x) + self.shortcut(x))


class HuggingFaceNet(nn.Module):
    """ResNetForImageClassification; `early` is `downsample_in_bottleneck`."""

    def __init__(self, kind: str, early: bool = False) -> None:
        super().__init__()
        resnet, inputs, stages = nn.Module(), WIDTH, nn.ModuleList()
        resnet.embedder = nn.Module()
        resnet.embedder.embedder = HuggingFaceConv(3, WIDTH, 7, 2)
        for stage, count in enumerate((1, 2, 1, 1)):
            outputs = (WIDTH if kind == "basic" else 4 * WIDTH) << stage
            layers = [
                HuggingFaceLayer(inputs if not n else outputs, outputs,
                                 2 if stage and not n else 1, kind, early)
                for n in range(count)
            ]  # fmt: skip
            stages.append(nn.Module())
            stages[-1].layers = nn.Sequential(*layers)
            inputs = outputs
        resnet.encoder = nn.Module()
        resnet.encoder.stages = stages
        self.resnet = resnet
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(inputs, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        parts: Any = self.resnet
        x = F.max_pool2d(parts.embedder.embedder(x), 3, 2, 1)
        for stage in parts.encoder.stages:
            x = stage.layers(x)
        result: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1))
        return result


class ConcatPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)], 1)


def fastai_learner() -> nn.Module:
    """Return the network of `vision_learner(dls, resnet...)`: body and head."""
    layers, features = stages((1, 1, 1, 1))
    stem = [nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    body = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *layers)
    head = [
        ConcatPool(), nn.Flatten(), nn.BatchNorm1d(2 * features), nn.Dropout(0.25),
        nn.Linear(2 * features, 16, bias=False), nn.ReLU(), nn.BatchNorm1d(16), nn.Dropout(0.5),
        nn.Linear(16, CLASSES, bias=False),
    ]  # fmt: skip
    return nn.Sequential(body, nn.Sequential(*head))


class Wrapper(nn.Module):
    """A network with its head outside, as people write around a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = TorchvisionNet()
        self.classifier = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(self.backbone.fc.in_features, CLASSES)
        )
        self.backbone.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.classifier(self.backbone(x))
        return result


def as_values(picture: Image.Image, statistics: Any, scale: float = 255) -> Tensor:
    pixels = np.asarray(picture, np.float32)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    mean, std = (np.asarray(numbers, np.float32) for numbers in statistics)
    return torch.from_numpy(((pixels / scale - mean) / std).transpose(2, 0, 1))


def cropped(
    resize: int, filter_: Image.Resampling, statistics: Any, *, hugging_face: bool = False
) -> Transform:
    """Return Resize(resize), CenterCrop(SIZE), ToTensor and Normalize."""

    def transform(picture: Image.Image) -> Tensor:
        width, height = picture.size
        if width <= height:
            width, height = resize, int(resize * height / width)
        else:
            width, height = int(resize * width / height), resize
        picture = picture.resize((width, height), filter_)
        if hugging_face:
            left, top = (width - SIZE) // 2, (height - SIZE) // 2
        else:
            left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
        return as_values(picture.crop((left, top, left + SIZE, top + SIZE)), statistics)

    return transform


def squashed(statistics: Any, channels: str = "RGB", scale: float = 255) -> Transform:
    def transform(picture: Image.Image) -> Tensor:
        picture = picture.resize((SIZE, SIZE), BILINEAR)
        if channels == "BGR":
            picture = Image.merge("RGB", picture.split()[::-1])
        return as_values(picture.convert(channels.replace("BGR", "RGB")), statistics, scale)

    return transform


def settled(network: nn.Module, channels: int = 3) -> nn.Module:
    """Give batch norms random gains, and statistics of the features that they see."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None  # plain averages
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    network.train()
    with torch.no_grad():
        network(torch.randn(16, channels, SIZE, SIZE))
    return network.eval()


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def plain(network: nn.Module, folder: Path) -> Path:
    return save(network.state_dict(), folder / "weights.pth")


def timm_folder(crop: float) -> Callable[[nn.Module, Path], Path]:
    def write(network: nn.Module, folder: Path) -> Path:
        save_file(network.state_dict(), folder / "model.safetensors", {"format": "pt"})
        config = {
            "architecture": "resnet34", "num_classes": CLASSES,
            "pretrained_cfg": {
                "input_size": [3, SIZE, SIZE], "interpolation": "bicubic", "crop_pct": crop,
                "crop_mode": "center", "mean": HALF[0], "std": HALF[1],
            },
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


def hugging_face_folder(network: nn.Module, folder: Path, early: bool = False) -> Path:
    save_file(network.state_dict(), folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "resnet", "hidden_act": "relu", "downsample_in_bottleneck": early}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {
        "image_processor_type": "ConvNextImageProcessor", "do_resize": True, "do_rescale": True,
        "do_normalize": True, "rescale_factor": 1 / 255, "resample": 3, "crop_pct": 0.875,
        "size": {"shortest_edge": SIZE}, "image_mean": IMAGENET[0], "image_std": IMAGENET[1],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def lightning(network: nn.Module, folder: Path) -> Path:
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    parameters = {"lr": 1e-3, "img_size": SIZE, "mean": [0.4] * 3, "std": [0.2] * 3}
    content = {
        "epoch": 3, "pytorch-lightning_version": "2.6.6", "hyper_parameters": parameters,
        "state_dict": state, "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
    }  # fmt: skip
    return save(content, folder / "last.ckpt")


def with_average(network: nn.Module, folder: Path) -> Path:
    raw = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    content = {"arch": "resnet34", "state_dict": raw, "state_dict_ema": network.state_dict()}
    return save(content, folder / "checkpoint.pth.tar")


def timm_file(network: nn.Module, folder: Path) -> Path:
    """Write what timm/utils/checkpoint_saver.py does."""
    args = Namespace(
        model="resnet34", img_size=SIZE, mean=HALF[0], std=HALF[1], crop_pct=0.9,
        interpolation="bicubic",
    )  # fmt: skip
    content = {
        "epoch": 7, "arch": "resnet34", "state_dict": network.state_dict(), "args": args,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "version": 2, "metric": 71.5,
    }  # fmt: skip
    return save(content, folder / "checkpoint-7.pth.tar")


def renamed(rename: Callable[[str], str]) -> Callable[[nn.Module, Path], Path]:
    def write(network: nn.Module, folder: Path) -> Path:
        state = {rename(name): tensor for name, tensor in network.state_dict().items()}
        return save(state, folder / "weights.pth")

    return write


def pytorch_cifar100(name: str) -> str:
    """Return the name of a tensor in github.com/weiaicunzai/pytorch-cifar100, models/resnet.py."""
    name = re.sub(r"^layer(\d)\.", lambda match: f"conv{int(match[1]) + 1}_x.", name)
    for ours, theirs in (("conv1", "0"), ("bn1", "1"), ("conv2", "3"), ("bn2", "4")):
        name = re.sub(rf"(_x\.\d+)\.{ours}\.", rf"\1.residual_function.{theirs}.", name)
    name = re.sub(r"^(conv1|bn1)\.", lambda m: f"conv1.{int(m[1] == 'bn1')}.", name)
    return name.replace("linear.", "fc.")


def children(network: nn.Module, folder: Path) -> Path:
    """Write `nn.Sequential(*network.children())` of torchvision, whose ReLU is the third child."""
    names = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7, "fc": 10}
    return renamed(lambda name: re.sub(r"^\w+", lambda m: str(names[m[0]]), name))(network, folder)


def half_precision(network: nn.Module, folder: Path) -> Path:
    halved = {name: tensor.half() for name, tensor in network.state_dict().items()}
    network.load_state_dict(halved)
    return save(halved, folder / "half.PTH")


def script(network: nn.Module, folder: Path) -> Path:
    TRACE(network, torch.zeros(1, 3, SIZE, SIZE)).save(str(folder / "network.pt"))
    return folder / "network.pt"


def hidden_head(features: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(features, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, classes)
    )


def stated(**settings: Any) -> PreprocessingSettings:
    return PreprocessingSettings(**settings)


SQUASH = stated(image_size=SIZE, resize_mode=ResizeMode.SQUASH)


@dataclass(frozen=True, kw_only=True)
class Case:
    network: Callable[[], nn.Module] = TorchvisionNet
    write: Callable[[nn.Module, Path], Path] = plain
    transform: Transform = field(default_factory=lambda: squashed(IMAGENET))
    options: PreprocessingSettings = SQUASH
    scheme: str = "torchvision"


CASES = {
    "torchvision, shorter side": Case(
        transform=cropped(73, BILINEAR, IMAGENET),
        options=stated(image_size=SIZE, crop_fraction=0.875),
    ),
    "timm, mean 0.5, crop 0.9": Case(
        write=timm_folder(0.9), options=stated(),
        transform=cropped(math.floor(SIZE / 0.9), BICUBIC, HALF),
    ),
    "timm, mean 0.5, crop 0.95": Case(
        write=timm_folder(0.95), options=stated(),
        transform=cropped(math.floor(SIZE / 0.95), BICUBIC, HALF),
    ),
    "timm, file of a training": Case(
        write=timm_file, options=stated(),
        transform=cropped(math.floor(SIZE / 0.9), BICUBIC, HALF),
    ),
    "prefixes": Case(write=renamed(lambda name: f"module.model.backbone.{name}")),
    "children of torchvision's network": Case(
        write=children, scheme="children of torchvision's network"
    ),
    "pytorch-cifar100": Case(
        network=CifarNet, write=renamed(pytorch_cifar100), scheme="pytorch-cifar100"
    ),
    "Hugging Face, a file alone": Case(
        network=lambda: HuggingFaceNet("bottleneck"), scheme="Hugging Face"
    ),
    "Hugging Face, basic": Case(
        network=lambda: HuggingFaceNet("basic"), write=hugging_face_folder, scheme="Hugging Face",
        options=stated(),
        transform=cropped(int(SIZE / 0.875), BICUBIC, IMAGENET, hugging_face=True),
    ),
    "Hugging Face, stride in the 1x1 convolution": Case(
        network=lambda: HuggingFaceNet("bottleneck", early=True), scheme="Hugging Face",
        write=lambda network, folder: hugging_face_folder(network, folder, early=True),
        options=stated(),
        transform=cropped(int(SIZE / 0.875), BICUBIC, IMAGENET, hugging_face=True),
    ),
    "fastai": Case(network=fastai_learner, scheme="fastai"),
    "Lightning": Case(
        write=lightning, options=stated(resize_mode=ResizeMode.SQUASH),
        transform=squashed(((0.4,) * 3, (0.2,) * 3)),
    ),
    "pytorch-cifar": Case(network=CifarNet, scheme="pytorch-cifar"),
    "head of dropout and linear": Case(
        network=lambda: TorchvisionNet(
            head=lambda *sizes: nn.Sequential(nn.Dropout(), nn.Linear(*sizes))
        )
    ),
    "head with a hidden layer": Case(network=lambda: TorchvisionNet(head=hidden_head)),
    "head outside of the prefix": Case(network=Wrapper),
    "grey": Case(
        network=lambda: TorchvisionNet(channels=1), transform=squashed(((0.5,), (0.25,)), "L"),
        options=stated(image_size=SIZE, resize_mode=ResizeMode.SQUASH, mean=(0.5,), std=(0.25,)),
    ),
    "BGR, 0 to 255": Case(
        transform=squashed(BGR_STATISTICS, "BGR", 1),
        options=stated(
            image_size=SIZE, resize_mode=ResizeMode.SQUASH, channels=Channels.BGR, value_range=255,
            mean=BGR_STATISTICS[0], std=BGR_STATISTICS[1], interpolation=Interpolation.BILINEAR,
        ),
    ),
    "bottleneck": Case(network=lambda: TorchvisionNet(bottleneck=True)),
    "grouped": Case(
        network=lambda: TorchvisionNet(bottleneck=True, groups=4, inner=lambda planes: 2 * planes)
    ),
    "wide": Case(network=lambda: TorchvisionNet(bottleneck=True, inner=lambda planes: 2 * planes)),
    "average of the weights": Case(write=with_average),
    "float16": Case(write=half_precision),
    "whole network": Case(write=lambda network, folder: save(network, folder / "network.pth")),
    "TorchScript": Case(write=script),
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write six smooth pictures of different shapes, odd margins included."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = []
    for index, size in enumerate([(131, 97), (90, 170), (64, 64), (75, 75), (200, 81), (99, 64)]):
        coarse = generator.integers(0, 256, (9, 12, 3), np.uint8)
        paths.append(folder / f"{index}.png")
        Image.fromarray(coarse).resize(size, BICUBIC).save(paths[-1])
    return paths


def logits_of(
    checkpoint: Checkpoint, options: PreprocessingSettings, pictures: list[Path]
) -> Tensor:
    """Return the logits of the classifier that an export of the checkpoint would write."""
    choice = choose_source_preprocessing(
        CheckpointNetwork(checkpoint), options, None, (), None, seed=0, progress=silent
    )
    classifier = Classifier(checkpoint.network(), choice.preprocessing).eval()
    inputs = np.stack([load_image(path, choice.preprocessing) for path in pictures])
    with torch.no_grad():
        result: Tensor = classifier(torch.from_numpy(inputs))
    return result


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_library(name: str, tmp_path: Path, pictures: list[Path]) -> None:
    case = CASES[name]
    network = settled(case.network(), channels=1 if name == "grey" else 3)
    checkpoint = load_checkpoint(case.write(network, tmp_path), Weights.AUTO)
    ours = logits_of(checkpoint, case.options, pictures)
    with torch.no_grad():
        theirs = network(torch.stack([case.transform(Image.open(path)) for path in pictures]))
    assert checkpoint.scheme == case.scheme
    assert theirs.std() > 0.05  # logits that a wrong network would not give by chance
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "widths", "early"),
    [("basic", (8, 16, 32, 64), False), ("bottleneck", (32, 64, 128, 256), True)],
)
def test_logits_are_those_of_transformers(
    tmp_path: Path, pictures: list[Path], kind: str, widths: tuple[int, ...], early: bool
) -> None:
    """Write the folder with transformers itself, and compare with its processor and network."""
    hub = pytest.importorskip("transformers", reason="transformers is not installed")
    config = hub.ResNetConfig(
        layer_type=kind, embedding_size=WIDTH, hidden_sizes=widths, depths=[1, 2, 1, 1],
        num_labels=CLASSES, downsample_in_bottleneck=early,
    )  # fmt: skip
    network: Any = settled(hub.ResNetForImageClassification(config))
    processor = hub.ConvNextImageProcessorPil(size={"shortest_edge": SIZE}, crop_pct=0.875)
    network.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    images = [Image.open(path) for path in pictures]
    with torch.no_grad():
        inputs = torch.cat([processor(i, return_tensors="pt")["pixel_values"] for i in images])
        theirs = network(inputs).logits
    ours = logits_of(load_checkpoint(tmp_path), stated(), pictures)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
