"""Report section of the environments of results, and of the commands that produced them."""

from __future__ import annotations

from collections.abc import Sequence

from resdeploy.images.preprocessing import size_text
from resdeploy.machine.conditions import Conditions
from resdeploy.machine.device import Device
from resdeploy.machine.nvml import Gpu
from resdeploy.pages.blocks import Block, Commands, Facts, Section
from resdeploy.result_files.provenance import Environment


def origin_section(environments: Sequence[tuple[str, Environment]]) -> Section:
    """Return the facts that all environments share, then all commands, then the other facts."""
    facts = [(name, _facts(environment)) for name, environment in environments]
    shared = [fact for fact in facts[0][1] if all(fact in found for _, found in facts)]
    commands = tuple(dict.fromkeys(e.command for _, e in environments if e.command))
    blocks: list[Block] = [Facts(facts=tuple(shared))] if shared else []
    blocks.append(Commands(lines=commands))
    for name, found in facts:
        if others := tuple(fact for fact in found if fact not in shared):
            blocks.append(Facts(caption=name, facts=others))
    return Section(title="Provenance", blocks=tuple(blocks))


def subject_text(environment: Environment) -> str:
    """Return the bundle, the network and its input size, as far as they are known."""
    size = environment.image_size
    model = environment.model or "a network"
    network = f"{model} at {size_text(size)} pixels" if size else model
    return f"{environment.bundle} ({network})" if environment.bundle else network


def made_text(environment: Environment) -> str:
    """Return the day and the machine of a result."""
    return f"on {environment.date[:10]} on {environment.device.name}"


def software_text(device: Device) -> str:
    """Return the known software of a machine, with the module of a Jetson."""
    board = device.jetson
    return _join(
        board and board.module and f"module {board.module}",
        board and board.jetpack and f"JetPack {board.jetpack}",
        board and board.l4t and f"L4T {board.l4t}",
        device.cuda and f"CUDA {device.cuda}",
        device.tensorrt and f"TensorRT {device.tensorrt}",
    )


def gpu_text(gpu: Gpu) -> str:
    """Return the name and the known properties of a GPU."""
    return _join(
        gpu.name,
        gpu.compute_capability and f"compute capability {gpu.compute_capability}",
        gpu.driver and f"driver {gpu.driver}",
        gpu.memory_bytes and f"{gpu.memory_bytes / 2**30:.0f} GiB",
        gpu.clock_mhz and f"{gpu.clock_mhz} of {gpu.max_clock_mhz} MHz",
        gpu.power_limit_w and f"limit {gpu.power_limit_w:.0f} W",
    )


def conditions_text(now: Conditions) -> str:
    """Return the known power mode, clocks, temperature and active cooling devices."""
    clocks = {"CPU": now.cpu_clock, "GPU": now.gpu_clock}
    return _join(
        now.power_mode and f"power mode {now.power_mode.name} ({now.power_mode.number})",
        *(c and f"{name} at {c.now:.0f} of {c.high:.0f} MHz" for name, c in clocks.items()),
        now.temperature_c is not None and f"{now.temperature_c:.0f} C",
        now.cooling and f"clocks reduced by {', '.join(now.cooling)}",
    )


def _facts(environment: Environment) -> tuple[tuple[str, str], ...]:
    device = environment.device
    facts = {
        "date": environment.date,
        "machine": device.name,
        "memory": f"{device.memory_bytes / 2**30:.0f} GiB" if device.memory_bytes else "",
        "CPU features": ", ".join(device.cpu_features),
        "software": software_text(device),
        "container": device.container or "",
        "GPU": "; ".join(map(gpu_text, device.gpus)),
        "state": conditions_text(device.conditions),
        "system": environment.platform,
        "versions": ", ".join(f"{name} {text}" for name, text in environment.versions.items()),
        "commit": environment.git_commit or "",
    }
    return tuple((name, value) for name, value in facts.items() if value)


def _join(*facts: object) -> str:
    return ", ".join(str(fact) for fact in facts if fact)
