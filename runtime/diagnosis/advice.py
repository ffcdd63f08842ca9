"""Advice for a machine: each problem with the command that mends it.

Sources: NVIDIA, "Jetson Linux Developer Guide" (nvpmodel, jetson_clocks); NVIDIA, "JetPack
Documentation" (TensorRT's Debian packages); Python, "venv" (`pyvenv.cfg`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
    return [text for check in CHECKS if (text := check(situation))]


def old_jetpack(situation: Situation) -> str | None:
    """Check for a JetPack before 6.1, the first with TensorRT 10.3."""
    jetson = situation.device.jetson
    if jetson is None or not jetson.too_old:
        return None
    return (
        f"Jetson Linux {jetson.l4t} (JetPack {jetson.jetpack or 'before 5'}) has a TensorRT older "
        "than 10.3; install JetPack 6.1 or newer"
    )


def unseen_tensorrt(situation: Situation) -> str | None:
    """Check for a TensorRT library of the system that this Python cannot import."""
    host, version = situation.host, situation.device.tensorrt
    if version is None or situation.sees_tensorrt:
        return None
    bindings = host.find("usr/lib/python3*/dist-packages/tensorrt")
    if not bindings:
        return (
            f"TensorRT {version} is installed without its Python module; "
            "sudo apt-get install python3-libnvinfer"
        )
    made_for = re.findall(r"python3\.(\d+)", str(bindings[-1]))
    if made_for and (3, int(made_for[-1])) != host.python:
        return (
            f"TensorRT {version} supports Python 3.{made_for[-1]}, but this is Python "
            f"{host.python[0]}.{host.python[1]}; "
            f"python3.{made_for[-1]} -m venv --system-site-packages .venv"
        )
    if host.environment is None:
        return None
    return (
        f"TensorRT {version} is not visible in the virtual environment {host.environment}; "
        "sed -i 's/^include-system-site-packages.*/include-system-site-packages = true/' "
        f"{host.environment / 'pyvenv.cfg'}"
    )


def no_tensorrt(situation: Situation) -> str | None:
    """Check for a Jetson without TensorRT."""
    device = situation.device
    if device.jetson is None or device.tensorrt or situation.sees_tensorrt:
        return None
    if device.container:
        return (
            "this container has no TensorRT; use an image with TensorRT, such as NVIDIA's "
            "l4t-tensorrt or l4t-jetpack, and start it with --runtime nvidia"
        )
    return "TensorRT is not installed; sudo apt-get install nvidia-jetpack"


def no_dla_compiler(situation: Situation) -> str | None:
    """Check for the DLA compiler, which TensorRT loads even if no DLA is used."""
    jetson = situation.device.jetson
    if jetson is None or not (jetson.l4t or DLA_L4T).startswith(DLA_L4T):
        return None
    found = [
        path
        for folder in (LIBRARIES, f"{LIBRARIES}/*")  # JetPack's containers use the second
        for path in situation.host.find(f"{folder}/libnvdla_compiler.so")
    ]
    if found or situation.device.tensorrt is None:
        return None
    return "libnvdla_compiler.so is missing, so TensorRT cannot be loaded; " + (
        "start the container with --runtime nvidia"
        if situation.device.container
        else "sudo apt-get install --reinstall nvidia-l4t-dla-compiler"
    )


def mixed_cuda(situation: Situation) -> str | None:
    """Check for wheels for two major versions of CUDA, of which an arbitrary one is loaded."""
    majors: dict[str, list[str]] = {}
    for name, version in situation.installed.items():
        if found := re.search(r"^(?:nvidia|tensorrt).*[-_]cu(\d+)(?:[-_]|$)", name):
            majors.setdefault(found[1], []).append(name)
        elif name in ("nvidia-cuda-runtime", "nvidia-cublas", "nvidia-cuda-nvrtc"):
            majors.setdefault(version.split(".")[0], []).append(name)
    if len(majors) < 2:
        return None
    wanted = (situation.device.cuda or situation.installed.get("cuda-bindings", "")).split(".")[0]
    kept = wanted if wanted in majors else max(majors, key=int)
    others = sorted(name for major, names in majors.items() if major != kept for name in names)
    return (
        f"packages for CUDA {' and '.join(sorted(majors))} are installed together; "
        f"pip uninstall -y {' '.join(others)}"
    )


def two_onnxruntimes(situation: Situation) -> str | None:
    """Check for both packages of ONNX Runtime, which share one folder."""
    if not {"onnxruntime", "onnxruntime-gpu"} <= situation.installed.keys():
        return None
    return (
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
        "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one that you need"
    )


def server_wheels(situation: Situation) -> str | None:
    """Check for wheels from PyPI on an Orin: those for aarch64 are built for servers."""
    jetson = situation.device.jetson
    if jetson is None or jetson.soc != "tegra234":
        return None
    wheels = sorted(
        name for name in situation.installed
        if re.search(r"^(?:nvidia|tensorrt).*[-_]cu\d+", name) or name == "onnxruntime-gpu"
    )  # fmt: skip
    if not wheels:
        return None
    return (
        f"{' and '.join(wheels)} from PyPI are built for servers and have no code for this GPU; "
        f"pip uninstall -y {' '.join(wheels)}"
    )


def slow_power_mode(situation: Situation) -> str | None:
    """Check for a power mode of nvpmodel that is not the fastest."""
    now = situation.device.conditions.power_mode
    fastest = situation.device.conditions.fastest_mode
    if now is None or fastest is None or now == fastest:
        return None
    return (
        f"the power mode is {now.name} ({now.number}), which is slower than {fastest.name}; "
        f"sudo nvpmodel -m {fastest.number}"
    )


def moving_clocks(situation: Situation) -> str | None:
    """Check for clocks that are not fixed on a Jetson."""
    if situation.device.jetson is None or situation.device.conditions.clocks_fixed is not False:
        return None
    return "clocks follow the load, so benchmarks vary more; sudo jetson_clocks"


def refused_power(situation: Situation) -> str | None:
    """Check for power sensors that only root may read."""
    host = situation.host
    files = unreadable_sensors(host) or unreadable_counters(host)
    if not files:
        return None
    return (
        f"this user may not read {len(files)} power sensors, so bench shows no energy; "
        f"sudo chmod a+r {' '.join(sorted({_pattern(str(path)) for path in files}))}"
    )


def no_vnni(situation: Situation) -> str | None:
    """Check for a processor without VNNI, which needs slower kernels for exact results."""
    if situation.device.processor.multiplies_int8_exactly:
        return None
    return (
        "this processor has no VNNI, so int8 uses exact but slower kernels; "
        "compare it with fp32 in resdeploy bench"
    )


def matrix_instructions(situation: Situation) -> str | None:
    """Check for AMX, which ONNX Runtime's convolutions do not use (core/mlas/lib/convsym.cpp)."""
    if not situation.device.processor.multiplies_int8_matrices:
        return None
    how = "use --backend openvino"
    if "openvino" not in situation.installed:
        how = f"pip install 'resdeploy[openvino]', and {how}"
    return (
        f"this processor has AMX, which makes INT8 faster in OpenVINO than in ONNX Runtime; {how}"
    )


def _pattern(path: str) -> str:
    # One pattern covers all channels, sensors or packages; hwmon numbers change at each start.
    path = re.sub(r"hwmon\d+", "hwmon*", path)
    path = re.sub(r"curr\d+_input", "*_input", path)
    path = re.sub(r"/\d+-00[0-9a-f]{2}/", "/*/", path)
    return re.sub(r"intel-rapl:[\d:]+", "intel-rapl:*", path)


CHECKS: tuple[Callable[[Situation], str | None], ...] = (
    old_jetpack,
    unseen_tensorrt,
    no_tensorrt,
    no_dla_compiler,
    mixed_cuda,
    two_onnxruntimes,
    server_wheels,
    slow_power_mode,
    moving_clocks,
    refused_power,
    no_vnni,
    matrix_instructions,
)
