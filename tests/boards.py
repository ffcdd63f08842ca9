"""Three Jetsons as folders with the files of their kernels and JetPack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resdeploy.machine.host import Host

Files = Mapping[str, str]


def cpuinfo(part: str, cores: int, features: str = "") -> str:
    """Return /proc/cpuinfo of an Arm CPU."""
    return "".join(
        f"processor\t: {number}\nBogoMIPS\t: 62.50\n"
        "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid "
        f"asimdrdm lrcpc dcpop asimddp{features}\n"
        f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\n"
        "CPU revision\t: 1\n\n"
        for number in range(cores)
    )


def ina3221(address: str, hwmon: int, rails: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Return the files of one sensor, from the millivolts and milliamperes of each rail."""
    folder = f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon{hwmon}"
    files = {f"{folder}/name": "ina3221\n", f"{folder}/in7_label": "sum of shunt voltages\n"}
    for channel, (name, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        files[f"{folder}/in{channel}_label"] = f"{name}\n"
        files[f"{folder}/in{channel}_input"] = f"{millivolts}\n"
        files[f"{folder}/curr{channel}_input"] = f"{milliamperes}\n"
    return files


def software(l4t: tuple[int, str], cuda: str, tensorrt: str, python: str) -> dict[str, str]:
    """Return the files of Jetson Linux, CUDA and TensorRT that JetPack installs."""
    library = f"usr/lib/aarch64-linux-gnu/libnvinfer.so.{tensorrt}"
    return {
        "etc/nv_tegra_release": f"# R{l4t[0]} (release), REVISION: {l4t[1]}, GCID: 42132812, "
        "BOARD: generic, EABI: aarch64, DATE: Thu Sep 18 22:54:44 UTC 2025\n",
        "usr/local/cuda/version.json": f'{{"cuda": {{"name": "CUDA SDK", "version": "{cuda}"}}}}',
        library: "",
        f"{library.partition('.so.')[0]}.so.{tensorrt.split('.')[0]}": "",
        f"usr/lib/{python}/dist-packages/tensorrt/__init__.py": "",
    }


def clock(folder: str, now: int, low: int, high: int) -> dict[str, str]:
    """Return the files of one clock of devfreq, in Hz."""
    names = zip(("cur", "min", "max"), (now, low, high))
    return {f"sys/class/devfreq/{folder}/{name}_freq": f"{hertz}\n" for name, hertz in names}


def modes(**numbers: int) -> str:
    """Return an /etc/nvpmodel.conf with these power modes."""
    blocks = [f"< POWER_MODEL ID={n} NAME={name} >\nCPU_ONLINE CORE_0 1\n"
              for name, n in numbers.items()]  # fmt: skip
    return "\n".join([*blocks, "< PM_CONFIG DEFAULT=1 >\n"])


ORIN_NANO: Files = {
    **software((36, "4.7"), "12.6.68", "10.3.0", "python3.10"),
    **ina3221("1-0040", 1, {
        "VDD_IN": (5016, 2100), "VDD_CPU_GPU_CV": (5016, 700), "VDD_SOC": (5016, 500),
    }),
    **clock("17000000.gpu", 306_000_000, 306_000_000, 1_020_000_000),
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0"
    "nvidia,tegra234\0",
    "proc/cpuinfo": cpuinfo("0xd42", 6),
    "proc/meminfo": "MemTotal:        7802636 kB\nMemFree: 1 kB\nMemAvailable:  5000000 kB\n"
    "SwapFree:     3901312 kB\n",
    "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so": "",
    "etc/nvpmodel.conf": modes(**{"15W": 0, "25W": 1, "MAXN_SUPER": 2}),
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "50125\n",
    "sys/class/thermal/thermal_zone8/type": "tj-thermal\n",
    "sys/class/thermal/thermal_zone8/temp": "51656\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "3\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "15\n",
}  # fmt: skip
AGX_ORIN: Files = {
    **software((36, "4.3"), "12.6.68", "10.3.0", "python3.10"),
    **ina3221("1-0040", 4, {
        "VDD_GPU_SOC": (19000, 150), "VDD_CPU_CV": (19000, 80), "VIN_SYS_5V0": (5000, 900),
    }),
    **ina3221("1-0041", 5, {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 300)}),
    **clock("17000000.ga10b", 1_300_500_000, 1_300_500_000, 1_300_500_000),
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0"
    "nvidia,tegra234\0",
    "proc/cpuinfo": cpuinfo("0xd42", 12),
    "proc/meminfo": "MemTotal:       64349328 kB\n",
    "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so": "",
    "etc/nvpmodel.conf": modes(**{"MAXN": 0, "15W": 1, "30W": 2, "50W": 3}),
}  # fmt: skip
AGX_THOR: Files = {
    **software((38, "2.1"), "13.0.48", "10.13.3", "python3.12"),
    **ina3221("2-0040", 2, {
        "VDD_GPU": (19800, 99), "VDD_CPU_SOC_MSS": (19800, 297), "VIN_SYS_5V0": (5000, 1127),
    }),
    **clock("gpu-gpc-0", 1_575_000_000, 315_000_000, 1_575_000_000),
    "sys/class/hwmon/hwmon6/name": "ina238\n",
    "sys/class/hwmon/hwmon6/power1_input": "19780000\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0"
    "nvidia,tegra264\0",
    "proc/cpuinfo": cpuinfo("0xd83", 14, " sve sve2 i8mm bf16"),
    "proc/meminfo": "MemTotal:      128790528 kB\n",
    "etc/nvpmodel.conf": modes(**{"MAXN": 0, "120W": 1}),
}  # fmt: skip
BOARDS = {"orin-nano": ORIN_NANO, "agx-orin": AGX_ORIN, "agx-thor": AGX_THOR}


def lay_out(root: Path, files: Files) -> Path:
    """Write the files below a folder."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def power_mode(name: str, number: int) -> str:
    """Return the output of `nvpmodel -q`."""
    return f"NV Power Mode: {name}\n{number}\n"


def host_of(root: Path, files: Files, mode: str = "", **change: Any) -> Host:
    """Return a machine with these files; `mode` is the output of nvpmodel."""

    def run(command: Sequence[str]) -> str:
        return mode if list(command) == ["nvpmodel", "-q"] else ""

    return Host(
        root=lay_out(root, files),
        **{"architecture": "aarch64", "environment": None, "run": run, "nvml": lambda: None}
        | change,
    )


def meminfo(available_mib: int, swap_mib: int = 0) -> dict[str, str]:
    return {
        "proc/meminfo": f"MemTotal: 4000000 kB\nMemAvailable: {available_mib * 1024} kB\n"
        f"SwapFree: {swap_mib * 1024} kB\n"
    }
