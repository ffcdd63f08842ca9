"""Advice for a machine: its problems, each with the command that solves it.

Sources: NVIDIA, "Jetson Linux Developer Guide" (nvpmodel, jetson_clocks); NVIDIA, "JetPack
Documentation" (TensorRT's Debian packages); Python, "venv" (`pyvenv.cfg`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from resdeploy.errors import install_hint
from resdeploy.machine.device import LIBRARIES, Device
from resdeploy.machine.host import Host
from resdeploy.runtime.energy.counters import unreadable_counters
from resdeploy.runtime.energy.rails import unreadable_sensors

DLA_L4T = "36"
"""The major version of Jetson Linux whose TensorRT needs the DLA compiler to load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The facts that advice depends on."""

    host: Host
    device: Device
    sees_tensorrt: bool = False
    """True if Python finds the module `tensorrt`, even if importing it fails."""
    installed: Mapping[str, str] = field(default_factory=dict)
    """Versions of the installed Python packages by normalised name."""


def advise(situation: Situation) -> list[str]:
    """Return the advice of all checks."""
    return [text for check in CHECKS for text in check(situation)]


def old_jetpack(situation: Situation) -> Iterator[str]:
    """Check for a JetPack before 6.1, the first with TensorRT 10.3."""
    jetson = situation.device.jetson
    if jetson and jetson.too_old:
        yield (
            f"Jetson Linux {jetson.l4t} (JetPack {jetson.jetpack or 'before 5'}) has a TensorRT "
            "older than 10.3; install JetPack 6.1 or newer"
        )


def unseen_tensorrt(situation: Situation) -> Iterator[str]:
    """Check for a TensorRT library of the system that this Python cannot import."""
    host, version = situation.host, situation.device.tensorrt
    if version is None or situation.sees_tensorrt:
        return
    bindings = host.find("usr/lib/python3*/dist-packages/tensorrt")
    made_for = re.findall(r"python3\.(\d+)", str(bindings[-1])) if bindings else []
    if not bindings:
        yield (
            f"TensorRT {version} is installed without its Python module; "
            "sudo apt-get install python3-libnvinfer"
        )
    elif made_for and (3, int(made_for[-1])) != host.python:
        yield (
            f"TensorRT {version} supports Python 3.{made_for[-1]}, but this is Python "
            f"{host.python[0]}.{host.python[1]}; "
            f"python3.{made_for[-1]} -m venv --system-site-packages .venv"
        )
    elif host.environment:
        yield (
            f"TensorRT {version} is not visible in the virtual environment {host.environment}; "
            "sed -i 's/^include-system-site-packages.*/include-system-site-packages = true/' "
            f"{host.environment / 'pyvenv.cfg'}"
        )


def no_tensorrt(situation: Situation) -> Iterator[str]:
    """Check for a Jetson without TensorRT."""
    device = situation.device
    if device.jetson and not (device.tensorrt or situation.sees_tensorrt):
        yield (
            "this container has no TensorRT; use an image with TensorRT, such as NVIDIA's "
            "l4t-tensorrt or l4t-jetpack, and start it with --runtime nvidia"
            if device.container
            else "TensorRT is not installed; sudo apt-get install nvidia-jetpack"
        )


def no_dla_compiler(situation: Situation) -> Iterator[str]:
    """Check for a missing DLA compiler, which TensorRT loads even if no DLA is used."""
    device = situation.device
    if device.jetson is None or not (device.jetson.l4t or DLA_L4T).startswith(DLA_L4T):
        return
    patterns = LIBRARIES, f"{LIBRARIES}/*"  # JetPack's containers use the second
    if device.tensorrt and not any(
        situation.host.find(f"{pattern}/libnvdla_compiler.so") for pattern in patterns
    ):
        yield "libnvdla_compiler.so is missing, so TensorRT cannot be loaded; " + (
            "start the container with --runtime nvidia"
            if device.container
            else "sudo apt-get install --reinstall nvidia-l4t-dla-compiler"
        )


def mixed_cuda(situation: Situation) -> Iterator[str]:
    """Check for wheels for two major versions of CUDA; Python would load an arbitrary one."""
    majors: dict[str, list[str]] = {}
    for name, version in situation.installed.items():
        if found := re.search(r"^(?:nvidia|tensorrt).*[-_]cu(\d+)(?:[-_]|$)", name):
            majors.setdefault(found[1], []).append(name)
        elif name in ("nvidia-cuda-runtime", "nvidia-cublas", "nvidia-cuda-nvrtc"):
            majors.setdefault(version.split(".")[0], []).append(name)
    if len(majors) < 2:
        return
    wanted = (situation.device.cuda or situation.installed.get("cuda-bindings", "")).split(".")[0]
    kept = wanted if wanted in majors else max(majors, key=int)
    others = sorted(name for major, names in majors.items() if major != kept for name in names)
    yield (
        f"packages for CUDA {' and '.join(sorted(majors))} are installed together; "
        f"pip uninstall -y {' '.join(others)}"
    )


def two_onnxruntimes(situation: Situation) -> Iterator[str]:
    """Check for both packages of ONNX Runtime, which share one folder."""
    if {"onnxruntime", "onnxruntime-gpu"} <= situation.installed.keys():
        yield (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one that you need"
        )


def server_wheels(situation: Situation) -> Iterator[str]:
    """Check for wheels from PyPI on an Orin: those for aarch64 are built for servers."""
    jetson = situation.device.jetson
    wheels = sorted(
        name for name in situation.installed
        if re.search(r"^(?:nvidia|tensorrt).*[-_]cu\d+", name) or name == "onnxruntime-gpu"
    )  # fmt: skip
    if wheels and jetson and jetson.soc == "tegra234":
        yield (
            f"{' and '.join(wheels)} from PyPI are built for servers and have no code for this "
            f"GPU; pip uninstall -y {' '.join(wheels)}"
        )


def slow_power_mode(situation: Situation) -> Iterator[str]:
    """Check for a power mode of nvpmodel that is not the fastest."""
    now = situation.device.conditions.power_mode
    fastest = situation.device.conditions.fastest_mode
    if now and fastest and now != fastest:
        yield (
            f"the power mode is {now.name} ({now.number}), which is slower than {fastest.name}; "
            f"sudo nvpmodel -m {fastest.number}"
        )


def unfixed_clocks(situation: Situation) -> Iterator[str]:
    """Check for clocks that are not fixed on a Jetson."""
    if situation.device.jetson and situation.device.conditions.clocks_fixed is False:
        yield "clocks follow the load, so benchmarks vary more; sudo jetson_clocks"


def unreadable_power_sensors(situation: Situation) -> Iterator[str]:
    """Check for power sensors that only root may read."""
    if files := unreadable_sensors(situation.host) or unreadable_counters(situation.host):
        yield (
            f"this user may not read {len(files)} power sensors, so bench shows no energy; "
            f"sudo chmod a+r {' '.join(sorted({_pattern(str(path)) for path in files}))}"
        )


def matrix_instructions(situation: Situation) -> Iterator[str]:
    """Check for AMX, which ONNX Runtime's convolutions do not use (core/mlas/lib/convsym.cpp)."""
    processor, installed = situation.device.processor, situation.installed
    if processor.multiplies_int8_matrices and "openvino" not in installed:
        yield (
            "this processor has AMX, which makes INT8 faster in OpenVINO than in ONNX Runtime; "
            + install_hint("openvino")
        )


def _pattern(path: str) -> str:
    # One pattern covers all channels, sensors or packages; hwmon numbers change at each start.
    path = re.sub(r"hwmon\d+", "hwmon*", path)
    path = re.sub(r"curr\d+_input", "*_input", path)
    path = re.sub(r"/\d+-00[0-9a-f]{2}/", "/*/", path)
    return re.sub(r"intel-rapl:[\d:]+", "intel-rapl:*", path)


CHECKS: tuple[Callable[[Situation], Iterator[str]], ...] = (
    old_jetpack,
    unseen_tensorrt,
    no_tensorrt,
    no_dla_compiler,
    mixed_cuda,
    two_onnxruntimes,
    server_wheels,
    slow_power_mode,
    unfixed_clocks,
    unreadable_power_sensors,
    matrix_instructions,
)
