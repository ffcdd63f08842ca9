"""TensorRT's calibration cache, which DLA needs up to TensorRT 10.7 (it knows no Q/DQ there).

A text: a line with the version and the kind of calibrator, then `tensor: scale` for each tensor,
where the scale is the range's larger end over 127, as the eight hexadecimal digits of a float32.

Sources: NVIDIA, TensorRT samples, sampleINT8, section "Calibration file"; a whole cache in
github.com/NVIDIA/TensorRT/issues/2958. Not yet shown: a board that reads ours.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from resdeploy.calibration.ranges import Range
from resdeploy.calibration.scales import symmetric
from resdeploy.errors import CalibrationError

HEADER = "TRT-100300-EntropyCalibration2"  # 10.3, of JetPack 6.1
MAX_BYTES = 16 << 20


def write_cache(ranges: Mapping[str, Range]) -> bytes:
    """The cache that gives every tensor its symmetric scale."""
    lines = [
        f"{tensor}: {struct.pack('>f', symmetric(chosen, half=False).scale).hex()}"
        for tensor, chosen in ranges.items()
    ]
    return ("\n".join([HEADER, *lines]) + "\n").encode()


def read_cache(data: bytes) -> dict[str, float]:
    """Scales by tensor, of a cache that TensorRT or `write_cache` wrote.

    Raises:
        CalibrationError: it is not a calibration cache.
    """
    try:
        if len(data) > MAX_BYTES:
            raise ValueError("it is too large")
        header, *lines = data.decode().splitlines()
        if not header.startswith("TRT-"):
            raise ValueError("its first line names no version")
        parts = [line.rsplit(": ", 1) for line in lines if line]
        return {tensor: struct.unpack(">f", bytes.fromhex(digits))[0] for tensor, digits in parts}
    except (ValueError, struct.error) as error:
        raise CalibrationError(
            f"this is no calibration cache of TensorRT: {error}", "export the bundle again"
        ) from error
