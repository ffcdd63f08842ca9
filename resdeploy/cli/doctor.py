"""The command `resdeploy doctor`: describe this machine, and check a bundle on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from click import argument

from resdeploy.cli.options.console import PATH, CommandResult, ExitCode, command, result_text
from resdeploy.cli.verify import verification_text

if TYPE_CHECKING:
    from resdeploy.runtime.diagnosis.doctor import Diagnosis

IN_A_LINE = 4  # versions, with about 20 characters each


@command
@argument("bundle", type=PATH, required=False)
def doctor(bundle: Path | None) -> CommandResult:
    """Show the hardware and the inference backends of this machine.

    The output includes how to install missing backends. With BUNDLE, the command also verifies the
    bundle on its golden images, and measures which engine for CPUs `--backend auto` should use.

    Exit code: 1 if no backend can run here, or if BUNDLE fails the verification; otherwise 0.
    """
    from resdeploy.progress import progress_bar
    from resdeploy.runtime.diagnosis.doctor import diagnose

    result = diagnose(bundle, progress=progress_bar)
    return CommandResult(
        result, diagnosis_text(result), ExitCode.OK if result.healthy else ExitCode.FAILED
    )


@result_text
def diagnosis_text(result: Diagnosis) -> str:
    """Return lines about the machine, its backends and advice, and the verification if any."""
    from resdeploy.report.origin import conditions_text, gpu_text, software_text

    device, memory = result.platform, result.platform.memory_bytes
    cores = f"{device.cores} cores, " if device.jetson else ""  # otherwise part of the name
    size = f"{memory / 2**30:.0f} GiB" if memory else "memory unknown"
    facts = [
        ("machine", f"{device.name} ({device.architecture}, {cores}{size})"),
        ("software", software_text(device)),
        ("container", device.container or ""),
        ("features", ", ".join(device.cpu_features) or "no relevant ones"),
        *(("gpu", text) for text in [gpu_text(gpu) for gpu in result.gpu] or ["none"]),
        ("state", conditions_text(device.conditions)),
    ]
    for backend in result.backends:
        state = f"ready, {backend.version}"
        if not backend.available:
            state = f"not available: {backend.obstacle}"
        facts.append(("backend", f"{backend.name}: {state}"))
    if result.speeds:
        facts.append(("speeds", str(result.speeds)))
    facts += [("advice", line) for line in result.advice]
    versions = [f"{name} {version}" for name, version in result.versions.items()]
    facts += [
        ("python", ", ".join(versions[i : i + IN_A_LINE]))
        for i in range(0, len(versions), IN_A_LINE)
    ]
    lines = [f"{name:<10}{text}" for name, text in facts if text]
    if result.self_test:
        lines += ["", verification_text(result.self_test)]
    return "\n".join(lines)
