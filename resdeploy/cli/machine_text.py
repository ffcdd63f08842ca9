"""What a machine is, as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resdeploy.machine.conditions import Conditions
    from resdeploy.machine.device import Device
    from resdeploy.machine.nvml import Gpu


def jetson_lines(device: Device) -> list[str]:
    """The module and its software, where it is a Jetson; the container, where it is one."""
    jetson, lines = device.jetson, []
    if jetson:
        lines.append(
            f"module    {jetson.module or 'unknown'}, JetPack {jetson.jetpack or 'unknown'} "
            f"(L4T {jetson.l4t or 'unknown'}), CUDA {device.cuda or 'unknown'}, "
            f"TensorRT {device.tensorrt or 'none'}"
        )
    if device.container:
        lines.append(f"inside    {device.container}")
    return lines


def gpu_text(gpu: Gpu) -> str:
    """What is known of a GPU, in one line."""
    known = {
        "compute capability": gpu.compute_capability,
        "driver": gpu.driver,
        "GiB": None if gpu.memory_bytes is None else f"{gpu.memory_bytes / 2**30:.0f}",
    }
    facts = [
        f"{value} {name}" if name == "GiB" else f"{name} {value}"
        for name, value in known.items()
        if value is not None
    ]
    return f"{gpu.name} ({', '.join(facts)})" if facts else gpu.name


def conditions_lines(conditions: Conditions) -> list[str]:
    """Power mode, clocks and heat, as far as they are known."""
    mode, clock = conditions.power_mode, conditions.gpu_clock
    hottest = conditions.temperature_c
    facts = [
        f"power mode {mode.name} ({mode.number})" if mode else None,
        f"GPU at {clock.now:.0f} of {clock.high:.0f} MHz" if clock else None,
        f"{hottest:.0f} C" if hottest is not None else None,
    ]
    text = ", ".join(fact for fact in facts if fact)
    return [f"state     {text}"] if text else []
