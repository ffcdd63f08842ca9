"""What keeps a machine from doing better, each with the command that mends it.

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
"""The TensorRT of JetPack 6 does not load without the compiler for the DLA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that an advice may depend on."""

    host: Host
    device: Device
    sees_tensorrt: bool = False
    """Whether `import tensorrt` finds it, working or not."""
    installed: Mapping[str, str] = field(default_factory=dict)
    """Versions of Python's packages, by their lower-case names."""


def advise(situation: Situation) -> list[str]:
    """Everything that can be done better here."""
    return [text for check in CHECKS if (text := check(situation))]


def old_jetpack(situation: Situation) -> str | None:
    """The runtime starts at TensorRT 10.3, which JetPack 6.1 brought."""
    jetson = situation.device.jetson
    if jetson is None or not jetson.too_old:
        return None
    return (
        f"Jetson Linux {jetson.l4t} (JetPack {jetson.jetpack or 'before 5'}) has a TensorRT before "
        "10.3; install JetPack 6.1 or newer"
    )


def unseen_tensorrt(situation: Situation) -> str | None:
    """The system has TensorRT, and this Python does not see it."""
    host, version = situation.host, situation.device.tensorrt
    if version is None or situation.sees_tensorrt:
        return None
    bindings = host.find("usr/lib/python3*/dist-packages/tensorrt")
    if not bindings:
        return (
            f"TensorRT {version} is there without its Python module; "
            "sudo apt-get install python3-libnvinfer"
        )
    made_for = re.findall(r"python3\.(\d+)", str(bindings[-1]))
    if made_for and (3, int(made_for[-1])) != host.python:
        return (
            f"TensorRT {version} is for Python 3.{made_for[-1]}, this is "
            f"{host.python[0]}.{host.python[1]}; "
            f"python3.{made_for[-1]} -m venv --system-site-packages .venv"
        )
    if host.environment is None:
        return None
    return (
        f"TensorRT {version} is not seen from the virtual environment {host.environment}; "
        "sed -i 's/^include-system-site-packages.*/include-system-site-packages = true/' "
        f"{host.environment / 'pyvenv.cfg'}"
    )


def no_tensorrt(situation: Situation) -> str | None:
    """A Jetson without TensorRT."""
    device = situation.device
    if device.jetson is None or device.tensorrt or situation.sees_tensorrt:
        return None
    if device.container:
        return (
            "this container has no TensorRT; take an image that has, such as NVIDIA's l4t-tensorrt "
            "or l4t-jetpack, and start it with --runtime nvidia"
        )
    return "TensorRT is not installed; sudo apt-get install nvidia-jetpack"


def no_dla_compiler(situation: Situation) -> str | None:
    """A library that TensorRT asks for even where no DLA is used."""
    jetson = situation.device.jetson
    if jetson is None or not (jetson.l4t or DLA_L4T).startswith(DLA_L4T):
        return None
    found = [
        path
        for folder in (LIBRARIES, f"{LIBRARIES}/*")  # the second in JetPack's own containers, too
        for path in situation.host.find(f"{folder}/libnvdla_compiler.so")
    ]
    if found or situation.device.tensorrt is None:
        return None
    return "libnvdla_compiler.so is missing, without which TensorRT does not load; " + (
        "start the container with --runtime nvidia"
        if situation.device.container
        else "sudo apt-get install --reinstall nvidia-l4t-dla-compiler"
    )


def mixed_cuda(situation: Situation) -> str | None:
    """Wheels for two major versions of CUDA: which one is loaded is a matter of luck."""
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
        f"packages for CUDA {' and '.join(sorted(majors))} are mixed; "
        f"pip uninstall -y {' '.join(others)}"
    )


def two_onnxruntimes(situation: Situation) -> str | None:
    """They share one folder, and overwrite each other's files."""
    if not {"onnxruntime", "onnxruntime-gpu"} <= situation.installed.keys():
        return None
    return (
        "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other; "
        "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one that is wanted"
    )


def server_wheels(situation: Situation) -> str | None:
    """What PyPI has for aarch64 is built for servers."""
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
        f"{' and '.join(wheels)} of PyPI are built for servers and have no code for this GPU; "
        f"pip uninstall -y {' '.join(wheels)}"
    )


def slow_power_mode(situation: Situation) -> str | None:
    """Another mode of nvpmodel is faster."""
    now = situation.device.conditions.power_mode
    fastest = situation.device.conditions.fastest_mode
    if now is None or fastest is None or now == fastest:
        return None
    return (
        f"the power mode is {now.name} ({now.number}), which is slower than {fastest.name}; "
        f"sudo nvpmodel -m {fastest.number}"
    )


def moving_clocks(situation: Situation) -> str | None:
    """A benchmark wants them fixed."""
    if situation.device.jetson is None or situation.device.conditions.clocks_fixed is not False:
        return None
    return "clocks follow the load, which blurs benchmarks; sudo jetson_clocks"


def refused_power(situation: Situation) -> str | None:
    """Sensors that only root may read."""
    host = situation.host
    files = unreadable_sensors(host) or unreadable_counters(host)
    if not files:
        return None
    return (
        f"this user may not read {len(files)} power sensors, so bench shows no energy; "
        f"sudo chmod a+r {' '.join(sorted({_pattern(str(path)) for path in files}))}"
    )


def no_vnni(situation: Situation) -> str | None:
    """Right answers come slower there."""
    if situation.device.processor.multiplies_int8_exactly:
        return None
    return (
        "this processor has no VNNI: int8 runs with exact but slower kernels; "
        "compare with resdeploy bench"
    )


def matrix_instructions(situation: Situation) -> str | None:
    """ONNX Runtime's direct convolutions do without Intel's AMX (core/mlas/lib/convsym.cpp)."""
    if not situation.device.processor.multiplies_int8_matrices:
        return None
    how = "use --backend openvino"
    if "openvino" not in situation.installed:
        how = f"pip install 'resdeploy[openvino]', and {how}"
    return f"this processor has AMX, with which OpenVINO runs INT8 faster; {how}"


def _pattern(path: str) -> str:
    # One pattern for all channels, sensors or packages; hwmon's numbers change at each start.
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
