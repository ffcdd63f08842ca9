"""Files of safetensors, whose header is limited before the library parses it.

Source: the format's description in README.md of github.com/huggingface/safetensors. The library
itself refuses overlapping tensors, holes, and sizes that differ from the file's.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from resdeploy.filesystem import open_regular

# The library allows 100 MB, for which it needs about 1 GB. The header of a ResNet-152 has 100 kB.
MAX_HEADER_BYTES = 8 << 20


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file and its metadata.

    Raises:
        SafetensorError: The file is damaged, or its header is too long.
        OSError: The file cannot be read.
    """
    with open_regular(path) as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise SafetensorError(f"its header has {size} bytes, more than {MAX_HEADER_BYTES}")
        with safe_open(f"/dev/fd/{stream.fileno()}", framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
