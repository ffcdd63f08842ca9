"""Names that libraries give to the tensors of a residual network, and torchvision's names of them.

`SCHEMES` is the only list of naming schemes. A scheme may stand behind any prefix, such as
`backbone.`; the tensors that it does not name belong to the head, or are refused by name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# Modules that wrap another one and add their names to its keys: DataParallel and AveragedModel,
# torch.compile, FullyShardedDataParallel and activation checkpointing.
_WRAPPERS = re.compile(
    r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Buffers of thop (total_ops, total_params) and of torch.optim.swa_utils.AveragedModel.
_COUNTERS = re.compile(r"(?:^|\.)(?:total_ops|total_params|n_averaged)$")
MAX_NETWORKS = 50  # bounds the time for a hostile file
AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?|polyak|shadow)(?:[._]|$)", re.IGNORECASE)
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.((?:conv|bn)\d|downsample\.\d)\.(\w+)")
_PARTS = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample.0", "downsample.1")


@dataclass(frozen=True, kw_only=True)  # without slots, because of the cached property
class NamingScheme:
    """Names of the modules of a residual network without its head."""

    name: str
    source: str
    """Code that gives these names."""
    stem: tuple[str, str]
    """Names of the first convolution and of its batch norm."""
    block: str
    """Name of a block, with `{stage}` and `{block}`; blocks count from 0."""
    first_stage: int
    parts: tuple[str, ...]
    """Names within a block of the modules that torchvision names as in `_PARTS`."""

    @property
    def anchor(self) -> str:
        """Return the name of a tensor that every network of this scheme has."""
        return self.key("layer1.0.conv1.weight")

    def key(self, name: str) -> str:
        """Return this scheme's name of a tensor, given torchvision's."""
        if block := _BLOCK.fullmatch(name):
            stage = int(block[1]) - 1 + self.first_stage
            part = self.parts[_PARTS.index(block[3])]
            return f"{self.block.format(stage=stage, block=block[2])}.{part}.{block[4]}"
        module, _, leaf = name.partition(".")
        stem: dict[str, str] = dict(zip(("conv1", "bn1"), self.stem))
        return f"{stem.get(module, module)}.{leaf}"

    def translate(self, key: str) -> str | None:
        """Return torchvision's name of a tensor; None if it is not one of the stem or a block."""
        module, _, leaf = key.rpartition(".")
        if module in self.stem:
            return f"{('conv1', 'bn1')[self.stem.index(module)]}.{leaf}"
        match = self._pattern.fullmatch(module)
        if match is None or match["part"] not in self.parts:
            return None
        stage = int(match["stage"]) - self.first_stage + 1
        return f"layer{stage}.{match['block']}.{_PARTS[self.parts.index(match['part'])]}.{leaf}"

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        block = re.escape(self.block).replace(r"\{", "{").replace(r"\}", "}")
        return re.compile(
            block.format(stage=r"(?P<stage>\d)", block=r"(?P<block>\d+)") + r"\.(?P<part>.+)"
        )


_CIFAR = (*_PARTS[:6], "shortcut.0", "shortcut.1")
_HF_LAYERS = [f"layer.{n}.{kind}" for n in range(3) for kind in ("convolution", "normalization")]
SCHEMES = (
    NamingScheme(
        name="torchvision",
        source="torchvision/models/resnet.py; the same names in timm/models/resnet.py",
        stem=("conv1", "bn1"), block="layer{stage}.{block}", first_stage=1, parts=_PARTS,
    ),
    NamingScheme(
        name="pytorch-cifar", source="github.com/kuangliu/pytorch-cifar, models/resnet.py",
        stem=("conv1", "bn1"), block="layer{stage}.{block}", first_stage=1, parts=_CIFAR,
    ),
    NamingScheme(
        name="Hugging Face", source="transformers/models/resnet/modeling_resnet.py",
        stem=("embedder.embedder.convolution", "embedder.embedder.normalization"),
        block="encoder.stages.{stage}.layers.{block}", first_stage=0,
        parts=(*_HF_LAYERS, "shortcut.convolution", "shortcut.normalization"),
    ),
    NamingScheme(
        name="fastai", source="fastai/vision/learner.py, create_body and add_head",
        stem=("0.0", "0.1"), block="0.{stage}.{block}", first_stage=4, parts=_PARTS,
    ),
    NamingScheme(
        name="children of torchvision's network",
        source="torch.nn.Sequential(*network.children()), torchvision/models/resnet.py",
        stem=("0", "1"), block="{stage}.{block}", first_stage=4, parts=_PARTS,
    ),
    NamingScheme(
        name="pytorch-cifar100", source="github.com/weiaicunzai/pytorch-cifar100, models/resnet.py",
        stem=("conv1.0", "conv1.1"), block="conv{stage}_x.{block}", first_stage=2,
        parts=(*(f"residual_function.{n}" for n in (0, 1, 3, 4, 6, 7)), "shortcut.0", "shortcut.1"),
    ),
)  # fmt: skip
# Schemes whose only published network has CIFAR's stem without pooling.
CIFAR_SCHEMES = ("pytorch-cifar", "pytorch-cifar100")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTensors:
    """The tensors of one residual network in a state dict."""

    scheme: NamingScheme
    place: str
    """Keys that lead to the mapping of the tensors, with dots between them."""
    prefix: str
    """Start of the names in that mapping."""
    body: dict[str, Any]
    """Stem and blocks under torchvision's names."""
    rest: dict[str, Any]
    """All others under their own names, without the prefix."""
    keys: dict[str, str]
    """The name in the file of each tensor in `body` and `rest`."""
    averaged: bool
    """True for a moving average of the weights."""
    completed: bool = False
    """True if the statistics of the batch norms are those of other weights."""

    @property
    def where(self) -> str:
        """Return where the tensors stand in the file; empty at its top."""
        return f"{self.place} {self.prefix.rstrip('.')}".strip()

    def key(self, name: str) -> str:
        """Return the name that a tensor has, or would have, in the file."""
        return self.keys.get(name) or self.prefix + self.scheme.key(name)

    def module(self, name: str) -> str:
        """Return torchvision's name of a module, or else its own without the prefix."""
        name = _WRAPPERS.sub("", name).removeprefix(self.prefix)
        return (self.scheme.translate(f"{name}.weight") or name).removesuffix(".weight")


def name_tensors(state: Mapping[str, Any], place: str) -> list[NamedTensors]:
    """Return every network in a state dict, without copying its tensors.

    Raises:
        ValueError: Two tensors have the same name apart from those of wrappers.
    """
    keys: dict[str, str] = {}
    for key in state:
        name = _WRAPPERS.sub("", key)
        if not _COUNTERS.search(name) and keys.setdefault(name, key) != key:
            raise ValueError(f"{keys[name]} and {key} are two tensors of one name")
    bodies: list[tuple[NamingScheme, str, dict[str, str]]] = []
    prefixes = list(_find_prefixes(keys))
    if len(prefixes) > MAX_NETWORKS:
        raise ValueError(f"holds more than {MAX_NETWORKS} networks in one state dict")
    for scheme, prefix in sorted(prefixes, key=lambda pair: -_count(keys, *pair)):
        body = {
            translated: name
            for name in keys
            if name.startswith(prefix) and (translated := scheme.translate(name[len(prefix) :]))
        }
        if not any(set(body.values()) <= set(other.values()) for _, _, other in bodies):
            bodies.append((scheme, prefix, body))
    used = {name for _, _, body in bodies for name in body.values()}
    networks = []
    for scheme, prefix, body in bodies:
        rest = {
            name.removeprefix(prefix): name
            for name in keys
            # Of several networks, a head belongs to that with the most of its prefix.
            if name not in used
            and _shared(name, prefix) == max(_shared(name, other) for _, other, _ in bodies)
        }
        files = {name: keys[found] for name, found in (body | rest).items()}
        averages = [k.removesuffix("n_averaged") for k in state if k.endswith("n_averaged")]
        networks.append(
            NamedTensors(
                scheme=scheme,
                place=place,
                prefix=prefix,
                body={name: state[files[name]] for name in body},
                rest={name: state[files[name]] for name in rest},
                keys=files,
                averaged=bool(AVERAGED.search(f"{place}.{prefix}"))
                or any(files["layer1.0.conv1.weight"].startswith(start) for start in averages),
            )
        )
    return networks


class SpellingError(ValueError):
    """Names of tensors that are those of a scheme apart from capitals and slashes."""

    hint = (
        "rename the tensors and save them again: torch.save({name.lower().replace('/', '.'): "
        "tensor for name, tensor in state_dict.items()}, 'renamed.pth')"
    )


def unknown_names(names: Sequence[str]) -> ValueError:
    """Return an error that says how the names of tensors differ from those of `SCHEMES`."""
    scheme, strange = nearest_scheme(names)
    for other, _ in _find_prefixes([name.lower().replace("/", ".") for name in names]):
        return SpellingError(
            f"has the name {strange[0]}, but {other.name}, the nearest scheme, has small letters, "
            "with dots between the modules"
        )
    return ValueError(
        f"does not hold a residual network: {len(names) - len(strange)} of its {len(names)} "
        f"tensors have names of {scheme.name}, the nearest scheme, "
        + (f"but not {', '.join(strange[:3])}" if strange else f"which also has {scheme.anchor}")
    )


def nearest_scheme(names: Iterable[str]) -> tuple[NamingScheme, list[str]]:
    """Return the scheme that most names fit, and the names that do not fit it."""
    plain = [_WRAPPERS.sub("", name) for name in names]
    common = Counter(name.partition(".")[0] + "." for name in plain).most_common(2)
    scheme, prefix = max(
        ((scheme, prefix) for scheme in SCHEMES for prefix in ("", *(p for p, _ in common))),
        key=lambda pair: _count(plain, *pair),
    )
    return scheme, [n for n in plain if not scheme.translate(n.removeprefix(prefix))]


def _find_prefixes(names: Iterable[str]) -> Iterator[tuple[NamingScheme, str]]:
    for scheme in SCHEMES:
        for name in names:
            prefix = name.removesuffix(scheme.anchor)
            if prefix != name and (not prefix or prefix.endswith(".")):
                yield scheme, prefix


def _count(names: Iterable[str], scheme: NamingScheme, prefix: str) -> int:
    return sum(
        name.startswith(prefix) and scheme.translate(name[len(prefix) :]) is not None
        for name in names
    )


def _shared(name: str, prefix: str) -> int:
    """Return the number of leading components that a name and a prefix have in common."""
    pairs = list(zip(name.split("."), prefix.split(".")[:-1]))
    return next((n for n, (one, other) in enumerate(pairs) if one != other), len(pairs))
