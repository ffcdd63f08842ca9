"""How an engine is to be built, and which TensorRT on which board can do that.

Sources: NVIDIA, "TensorRT Developer Guide" 11.4.1, "Working with DLA", "Hardware Compatibility"
and "Version Compatibility"; NVIDIA, "TensorRT Support Matrix".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from resdeploy.errors import BackendError
from resdeploy.machine.device import Device
from resdeploy.machine.jetson import Jetson, version_numbers
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.backends.tensorrt.flavour import Flavour

OLDEST = (10, 3)  # of JetPack 6.1
LAST_IMPLICIT_DLA = (10, 7)
FIRST_TYPED_DLA = (11, 4, 1)
FIRST_TYPED_DLA_L4T = (39, 2, 2)  # of JetPack 7.2.2
SMALL_MODULE_BYTES = 6 << 30  # an Orin Nano with 4 GB; those with 8 GB show 7.4 GiB
SMALL_WORKSPACE_MIB = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What the builder is told; every field is part of an engine's key."""

    batches: Batches = field(default_factory=Batches)
    workspace_mib: int | None = None
    """Most memory that a kernel may use besides weights and activations; None: all there is."""
    version_compatible: bool = False
    """Whether later versions of the same major release may load the engine."""
    hardware_compatible: bool = False
    """Whether other GPUs from Ampere on may run the engine, at some loss of speed."""
    dla_core: int | None = None
    """Which deep-learning accelerator of a Jetson runs it; None for the GPU."""

    def to_json(self) -> dict[str, Any]:
        """Numbers and text, for keys and records."""
        return {
            "batches": str(self.batches),
            "workspace_mib": self.workspace_mib,
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
            "dla_core": self.dla_core,
        }


def default_options(device: Device) -> BuildOptions:
    """What is built where nobody says otherwise: on a small module for few images at once.

    There CPU and GPU share the memory, so that an engine for 32 images and kernels with gigabytes
    of workspace would take it from the program that is to use them.
    """
    memory = device.memory_bytes
    if device.jetson is None or memory is None or memory > SMALL_MODULE_BYTES:
        return BuildOptions()
    return BuildOptions(batches=Batches(1, 1, 4), workspace_mib=SMALL_WORKSPACE_MIB)


def check_options(options: BuildOptions, flavour: Flavour, version: str, device: Device) -> None:
    """Refuse what this TensorRT cannot build for this machine.

    Raises:
        BackendError: with what can be done instead.
    """
    numbers = version_numbers(version)
    if flavour is Flavour.TENSORRT and numbers < OLDEST:
        raise BackendError(
            f"TensorRT {version} is too old: 10.3 is the oldest that builds these graphs",
            "on a Jetson Orin, install JetPack 6.1 or newer",
        )
    if flavour is Flavour.RTX and (options.version_compatible or options.hardware_compatible):
        raise BackendError(
            "TensorRT-RTX knows neither version-compatible nor hardware-compatible engines",
            "leave it out: its engines run on RTX GPUs from Ampere on, and build in seconds",
        )
    if options.hardware_compatible and device.jetson:
        raise BackendError(
            f"hardware-compatible engines do not exist for a Jetson ({device.jetson.board})",
            "build on the board itself, without --hardware-compatible",
        )
    if options.dla_core is not None:
        _check_dla(options.dla_core, flavour, version, device.jetson)


def _check_dla(core: int, flavour: Flavour, version: str, jetson: Jetson | None) -> None:
    numbers = version_numbers(version)
    if flavour is Flavour.RTX:
        raise BackendError("TensorRT-RTX cannot build for a DLA", "use --flavour tensorrt")
    if jetson is None:
        raise BackendError("only a Jetson has a DLA", "leave --dla out to build for the GPU")
    if "Orin" not in jetson.board or "Nano" in jetson.board:
        raise BackendError(f"{jetson.board} has no DLA", "leave --dla out to build for the GPU")
    if core not in (0, 1):
        raise BackendError(f"there is no DLA core {core}", "choose 0 or 1")
    if numbers[:2] <= LAST_IMPLICIT_DLA:
        raise BackendError(
            f"on a DLA, TensorRT {version} takes INT8 only from a calibration cache",
            "trtexec --onnx=fp32.onnx --int8 --fp16 --calib=calibration.cache "
            f"--useDLACore={core} --allowGPUFallback, with the files of the bundle",
        )
    if numbers < FIRST_TYPED_DLA:
        raise BackendError(
            f"TensorRT {version} has no DLA: 10.8 to 11.4.0 came without",
            "leave --dla out, or install JetPack 7.2.2 with TensorRT 11.4.1 on an AGX Orin",
        )
    if "AGX Orin" not in jetson.board or version_numbers(jetson.l4t or "") < FIRST_TYPED_DLA_L4T:
        raise BackendError(
            f"TensorRT {version} drives the DLA of an AGX Orin with JetPack 7.2.2 (L4T 39.2.2) or "
            f"newer; this is {jetson.board} with L4T {jetson.l4t or 'unknown'}",
            "leave --dla out to build for the GPU",
        )
