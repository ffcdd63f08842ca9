"""The command `resdeploy doctor`: describe this machine, and check a bundle on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from resdeploy.cli.console import PATH, CommandResult, ExitCode, command
from resdeploy.cli.machine_text import conditions_lines, gpu_text, jetson_lines
from resdeploy.cli.verify import verification_text

if TYPE_CHECKING:
    from resdeploy.runtime.diagnosis.doctor import Diagnosis


@click.command()
@click.argument("bundle", type=PATH, required=False)
@command
def doctor(bundle: Path | None) -> CommandResult:
    """Show the hardware and the inference backends of this machine.

    The advice says how to install missing backends. With BUNDLE, also verify it on its golden
    images.

    Exit code: 1 if no backend can run here, or if BUNDLE fails the verification; otherwise 0.
    """
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.diagnosis.doctor import diagnose

    result = diagnose(bundle, progress=progress_bar)
    return CommandResult(
        result, diagnosis_text(result), ExitCode.OK if result.healthy else ExitCode.FAILED
    )


def diagnosis_text(result: Diagnosis) -> str:
    """Return lines about the machine, its backends and advice, and the verification if any."""
    device = result.platform
    memory = device.memory_bytes
    cores = f"{device.cores} cores, " if device.jetson else ""  # otherwise part of the name
    lines = [
        f"machine   {device.name} ({device.architecture}, {cores}"
        f"{f'{memory / 2**30:.0f} GiB' if memory else 'memory unknown'})",
        *jetson_lines(device),
        f"features  {', '.join(device.cpu_features) or 'no relevant ones'}",
        *(f"gpu       {text}" for text in [gpu_text(gpu) for gpu in result.gpu] or ["none"]),
        *conditions_lines(device.conditions),
    ]
    for backend in result.backends:
        state = (
            f"ready, {backend.version}"
            if backend.available
            else f"not available: {backend.obstacle}"
        )
        lines.append(f"backend   {backend.name}: {state}")
    lines += [f"advice    {line}" for line in result.advice]
    lines.append(f"python    {', '.join(f'{k} {v}' for k, v in result.versions.items())}")
    if result.self_test:
        lines += ["", verification_text(result.self_test)]
    return "\n".join(lines)
