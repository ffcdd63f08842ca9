"""TODO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resdeploy.cli.console import PATH, CommandResult, ExitCode, command
from resdeploy.cli.machine_text import conditions_lines, gpu_text, jetson_lines
from resdeploy.cli.verify import verification_text

if TYPE_CHECKING:
    from resdeploy.runtime.diagnosis.doctor import Diagnosis


def diagnosis_text(result: Diagnosis) -> str:
    """One screen about this machine."""
    device = result.platform
    memory = device.memory_bytes
    cores = f"{device.cores} cores, " if device.jetson else ""  # otherwise in the name
    lines = [
        f"machine   {device.name} ({device.architecture}, {cores}"
        f"{f'{memory / 2**30:.0f} GiB' if memory else 'memory unknown'})",
        *jetson_lines(device),
        f"features  {', '.join(device.cpu_features) or 'none that matter'}",
        *(f"gpu       {text}" for text in [gpu_text(gpu) for gpu in result.gpu] or ["none"]),
        *conditions_lines(device.conditions),
    ]
    for backend in result.backends:
        state = f"ready, {backend.version}" if backend.available else f"no: {backend.obstacle}"
        lines.append(f"backend   {backend.name}: {state}")
    lines += [f"advice    {line}" for line in result.advice]
    lines.append(f"python    {', '.join(f'{k} {v}' for k, v in result.versions.items())}")
    if result.self_test:
        lines += ["", verification_text(result.self_test)]
    return "\n".join(lines)


@click.command()
@click.argument("bundle", type=PATH, required=False)
@command
def doctor(bundle: Path | None) -> CommandResult:
    """What this machine is, what it can run, and what to do about the rest.

    With BUNDLE, also whether its golden images get their answers. ExitCode 1: they do not, or nothing
    can run.
    """
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.diagnosis.doctor import diagnose

    result = diagnose(bundle, progress=progress_bar)
    return CommandResult(
        result, diagnosis_text(result), ExitCode.OK if result.healthy else ExitCode.FAILED
    )
