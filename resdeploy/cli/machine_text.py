"""Console text about a machine, which several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resdeploy.machine.nvml import Gpu


def machine_name(device: Mapping[str, Any]) -> str:
    """Return the name of the board, else of the processor, else the architecture."""
    board = device["jetson"]["board"] if device["jetson"] else None
    return str(board or device["cpu"] or device["architecture"])


def jetson_lines(platform: Mapping[str, Any]) -> list[str]:
    """Return lines about the Jetson module and the container, if there is one."""
    jetson, lines = platform["jetson"], []
    if jetson:
        lines.append(
            f"module    {jetson['module'] or 'unknown'}, JetPack {jetson['jetpack'] or 'unknown'} "
            f"(L4T {jetson['l4t'] or 'unknown'}), CUDA {platform['cuda'] or 'unknown'}, "
            f"TensorRT {platform['tensorrt'] or 'none'}"
        )
    if platform["container"]:
        lines.append(f"container {platform['container']}")
    return lines


def gpu_text(gpu: Gpu) -> str:
    """Return the name of a GPU, with its known properties in brackets."""
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


def conditions_lines(conditions: Mapping[str, Any]) -> list[str]:
    """Return a line with the power mode, the GPU clock and the temperature, if any is known."""
    mode, clock, hottest = (
        conditions[name] for name in ("power_mode", "gpu_clock", "temperature_c")
    )
    facts = [
        f"power mode {mode['name']} ({mode['number']})" if mode else None,
        f"GPU at {clock['now']:.0f} of {clock['high']:.0f} MHz" if clock else None,
        f"{hottest:.0f} C" if hottest is not None else None,
    ]
    text = ", ".join(fact for fact in facts if fact)
    return [f"state     {text}"] if text else []
