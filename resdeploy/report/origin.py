"""Where results come from, and how to get them again."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.machine.device import Device
from resdeploy.pages.blocks import Commands, Facts, Section
from resdeploy.results.provenance import Environment


def origin_section(environments: Sequence[tuple[str, Environment]]) -> Section:
    """What was measured where; each with a name, such as `benchmark`."""
    return Section(
        title="What was measured where",
        blocks=tuple(
            Facts(caption=name, facts=environment_facts(environment))
            for name, environment in environments
        ),
    )


def commands_section(environments: Sequence[Environment]) -> Section:
    """The commands that made all of it, in their order."""
    lines = [environment.command for environment in environments if environment.command]
    return Section(title="Do it again", blocks=(Commands(lines=tuple(dict.fromkeys(lines))),))


def environment_facts(environment: Environment) -> tuple[tuple[str, str], ...]:
    """Date, machine, its state, and versions, as far as they are known."""
    device = environment.device
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    facts = {
        "date": environment.date,
        "machine": device.name,
        "memory": f"{device.memory_bytes / 2**30:.0f} GiB" if device.memory_bytes else "",
        "features": ", ".join(device.cpu_features),
        "software": _software(device),
        "GPU": "; ".join(_gpu_facts(device)),
        "state": _state(device),
        "system": environment.platform,
        "versions": versions,
        "commit": environment.git_commit or "",
    }
    return tuple((name, value) for name, value in facts.items() if value)


def _software(device: Device) -> str:
    board = device.jetson
    known = {
        "module": board and board.module,
        "JetPack": board and board.jetpack,
        "L4T": board and board.l4t,
        "CUDA": device.cuda,
        "TensorRT": device.tensorrt,
        "container": device.container,
    }
    return ", ".join(f"{name} {value}" for name, value in known.items() if value)


def _gpu_facts(device: Device) -> list[str]:
    found = []
    for gpu in device.gpus:
        facts = [
            gpu.driver and f"driver {gpu.driver}",
            gpu.clock_mhz and f"{gpu.clock_mhz} of {gpu.max_clock_mhz} MHz",
            gpu.power_limit_w and f"limit {gpu.power_limit_w:.0f} W",
        ]
        found.append(", ".join([gpu.name, *(fact for fact in facts if fact)]))
    return found


def _state(device: Device) -> str:
    now = device.conditions
    clocks = [("CPU", now.cpu_clock), ("GPU", now.gpu_clock)]
    facts = [
        f"power mode {now.power_mode.name}" if now.power_mode else "",
        *(f"{name} at {c.now:.0f} of {c.high:.0f} MHz" for name, c in clocks if c),
        f"{now.temperature_c:.0f} C" if now.temperature_c is not None else "",
        f"cooled by {', '.join(now.cooling)}" if now.cooling else "",
    ]
    return ", ".join(fact for fact in facts if fact)
