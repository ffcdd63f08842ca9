"""Build options of an engine, and the TensorRT versions and boards that support them.

Sources: NVIDIA, "TensorRT Developer Guide" 11.4.1, "Working with DLA", "Hardware Compatibility"
and "Version Compatibility"; NVIDIA, "TensorRT Support Matrix".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from resdeploy.errors import BackendError
from resdeploy.machine.device import Device
from resdeploy.machine.jetson import Jetson, version_numbers
from resdeploy.runtime.backends.base import Batches
from resdeploy.runtime.backends.tensorrt.tensorrt_or_rtx import Flavour

OLDEST = (10, 3)  # of JetPack 6.1
LAST_IMPLICIT_DLA = (10, 7)
FIRST_TYPED_DLA = (11, 4, 1)
FIRST_TYPED_DLA_L4T = (39, 2, 2)  # of JetPack 7.2.2
SMALL_MODULE_BYTES = 6 << 30  # an Orin Nano with 4 GB; those with 8 GB show 7.4 GiB
SMALL_WORKSPACE_MIB = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """The options of the builder; every field is part of an engine's key."""

    batches: Batches = field(default_factory=Batches)
    workspace_mib: int | None = None
    """Maximum memory, in MiB, that a kernel may use besides weights and activations; None for no
    limit."""
    version_compatible: bool = False
    """True if later versions of the same major release can load the engine."""
    hardware_compatible: bool = False
    """True if other GPUs from Ampere on can run the engine, which costs some speed."""
    dla_core: int | None = None
    """Number of the deep-learning accelerator (DLA) of a Jetson; None for the GPU."""

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON values, for keys and records."""
        return {**asdict(self), "batches": str(self.batches)}


def default_options(device: Device) -> BuildOptions:
    """Return the default options: small batches and a small workspace on a module with 4 GB.

    CPU and GPU share the memory there: an engine for 32 images and kernels with gigabytes of
    workspace would leave too little of it for the application.
    """
    memory = device.memory_bytes
    if device.jetson is None or memory is None or memory > SMALL_MODULE_BYTES:
        return BuildOptions()
    return BuildOptions(batches=Batches(1, 1, 4), workspace_mib=SMALL_WORKSPACE_MIB)


def check_options(options: BuildOptions, flavour: Flavour, version: str, device: Device) -> None:
    """Raise BackendError if this TensorRT cannot build an engine with `options` for `device`."""
    if flavour is Flavour.TENSORRT and version_numbers(version) < OLDEST:
        raise BackendError(
            f"TensorRT {version} is too old; these graphs need 10.3 or newer",
            "install TensorRT 10.3 or newer; on a Jetson Orin, install JetPack 6.1 or newer",
        )
    if flavour is Flavour.RTX and (options.version_compatible or options.hardware_compatible):
        raise BackendError(
            "TensorRT-RTX builds neither version-compatible nor hardware-compatible engines",
            "leave the option out: RTX engines run on all RTX GPUs from Ampere on",
        )
    if options.hardware_compatible and device.jetson:
        raise BackendError(
            f"TensorRT builds no hardware-compatible engines on a Jetson ({device.jetson.board})",
            "leave --hardware-compatible out",
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
            f"TensorRT {version} supports INT8 on a DLA only with a calibration cache",
            "use the files of the bundle: trtexec --onnx=fp32.onnx --int8 --fp16 "
            f"--calib=calibration.cache --useDLACore={core} --allowGPUFallback",
        )
    if numbers < FIRST_TYPED_DLA:
        raise BackendError(
            f"TensorRT {version} does not support DLA; 10.8 to 11.4.0 do not",
            "leave --dla out, or install JetPack 7.2.2 with TensorRT 11.4.1 on an AGX Orin",
        )
    if "AGX Orin" not in jetson.board or version_numbers(jetson.l4t or "") < FIRST_TYPED_DLA_L4T:
        raise BackendError(
            f"TensorRT {version} supports only the DLA of an AGX Orin with JetPack 7.2.2 "
            f"(L4T 39.2.2) or newer; this is {jetson.board} with L4T {jetson.l4t or 'unknown'}",
            "leave --dla out to build for the GPU",
        )
