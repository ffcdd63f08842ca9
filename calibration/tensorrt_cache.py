"""TensorRT's calibration cache, for the DLA: TensorRT up to 10.7 rejects Q/DQ nodes there.

The format is text: one line with the version and the kind of calibrator, then one line
`tensor: scale` per tensor. The scale is the larger end of the range divided by 127, written as the
eight hexadecimal digits of a float32.

Sources: NVIDIA, TensorRT samples, sampleINT8, section "Calibration file"; a complete cache in
github.com/NVIDIA/TensorRT/issues/2958. Loading our cache has not been tested on a board yet.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from resdeploy.calibration.ranges import Range
from resdeploy.calibration.scales import symmetric_parameters

HEADER = "TRT-100300-EntropyCalibration2"  # TensorRT 10.3, as in JetPack 6.1


def write_cache(ranges: Mapping[str, Range]) -> bytes:
    """Return the content of a cache that holds the symmetric scale of every tensor."""
    lines = [
        f"{tensor}: {struct.pack('>f', symmetric_parameters(chosen, half=False).scale).hex()}"
        for tensor, chosen in ranges.items()
    ]
    return ("\n".join([HEADER, *lines]) + "\n").encode()
