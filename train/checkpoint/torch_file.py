"""Files of torch.save and of TorchScript, read without loading or calling anything they name.

Sources: `_load`, `_legacy_load` and `_save` in torch/serialization.py, torch/_utils.py
(`_rebuild_*`), torch/_tensor.py (`__reduce_ex__`) and torch/csrc/jit/serialization/pickler.cpp of
PyTorch 2.13. A file is a ZIP archive with `data.pkl` and a member for each storage, or in the
legacy format a sequence of pickles and then the storages.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import torch
from torch import Tensor

from resdeploy.errors import CheckpointError, one_line_reason, remedy_for
from resdeploy.filesystem import open_regular
from resdeploy.train.checkpoint.inert_pickle import (
    InertUnpickler,
    Placeholder,
    RefusedPickleError,
    dict_of_pairs,
)

HINT = "save model.state_dict() with torch.save, or copy or download the file again"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_ARCHIVE_DIRECTORY = 4 << 20  # bytes; Python's object for a member is 15 times as large
# Limit of the pickle's instructions. Each creates less than 256 bytes; a tensor needs about 40.
BASE_INSTRUCTIONS, BYTES_PER_INSTRUCTION = 250_000, 16

_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    "QInt8": torch.qint8, "QUInt8": torch.quint8, "QInt32": torch.qint32,
    "QUInt4x2": torch.quint4x2, "QUInt2x4": torch.quint2x4, "Untyped": torch.uint8,
}  # fmt: skip
_VALUES = {f"torch.{name}": dtype for name, dtype in _DTYPES.items()} | {
    f"{module}.{name}Storage": dtype
    for name, dtype in _STORAGES.items()
    for module in ("torch", "torch.cuda", "torch.storage")
}


def read_torch_file(path: Path) -> Any:
    """Return the object in a file of torch.save or TorchScript.

    Tensors lie on the CPU and need no gradient. `Placeholder` stands for every object of another
    class, and for tensors that are not dense, under names such as `sparse tensor`; see `_BUILDERS`.
    The memory needed is the size of the storages, at most that of the file, and a small multiple
    of the pickle's size.

    Raises:
        CheckpointError: The file cannot be read, is damaged, or is made to exhaust memory or time.
    """
    try:
        with (
            open_regular(path) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            if data[:4] != b"PK\3\4":
                return _TorchFile(cast(IO[bytes], data), len(data)).read_legacy()
            with _DirectoryFile(file.fileno(), closefd=False) as directory:
                members = ZipFile(directory).infolist()
            return _TorchFile(cast(IO[bytes], data), len(data)).read_archive(members)
    except MemoryError:
        raise
    except Exception as error:  # a damaged archive can raise almost any exception
        known = isinstance(error, (RefusedPickleError, BadZipFile, OSError))
        reason = one_line_reason(error) if known else "its structure is damaged"
        raise CheckpointError(
            f"{path} is not an intact file of torch.save: {reason}; no code in it was executed",
            remedy_for(error, HINT),
        ) from error


class _DirectoryFile(io.FileIO):
    """A file for `ZipFile`, which reads a directory of any size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_ARCHIVE_DIRECTORY:
            raise RefusedPickleError(f"its directory of members has {size} bytes")
        return super().read(size) or b""


class _TorchFile:
    """One file, and the storages that were read from it."""

    def __init__(self, data: IO[bytes], size: int) -> None:
        self.data = data
        self.size = self.left = size  # bytes of storages that the file can still hold
        self.members: dict[str, ZipInfo] | None = None
        self.storages: dict[Any, bytearray] = {}
        self.item_bytes: dict[Any, int] = {}
        self.unpickler = InertUnpickler(
            values=_VALUES,
            builders=_BUILDERS | self.builders(),
            persistent_load=self.storage,
            budget=BASE_INSTRUCTIONS + size // BYTES_PER_INSTRUCTION,
        )

    def builders(self) -> dict[str, Callable[..., Any]]:
        """Return the functions that call another one."""
        return {
            "copyreg.__newobj__": lambda kind, *args: self.unpickler.call(kind, args),
            "copyreg._reconstructor": lambda kind, *_: self.unpickler.call(kind, ()),
            "torch._tensor._rebuild_from_type_v2": lambda function, kind, args, state: (
                self.unpickler.call(function, args)
            ),
        }

    def read_archive(self, members: list[ZipInfo]) -> Any:
        folder = members[0].filename.partition("/")[0] + "/"
        self.members = {member.filename.removeprefix(folder): member for member in members}
        if len(self.members) < len(members):
            raise RefusedPickleError("two of its members have the same name")
        if any(not member.filename.startswith(folder) for member in members):
            raise RefusedPickleError(f"it has members outside of the folder {folder}")
        if "byteorder" in self.members and self.member("byteorder") != b"little":
            raise RefusedPickleError("its numbers are not little-endian")
        return self.unpickler.load(io.BytesIO(self.member("data.pkl")))

    def member(self, name: str) -> bytes:
        """Return the content of a member, which PyTorch stores without compression."""
        member = (self.members or {}).get(name)
        if member is None:
            raise RefusedPickleError(f"it is a ZIP archive without {name}")
        if member.compress_type != ZIP_STORED or member.file_size != member.compress_size:
            raise RefusedPickleError(f"{name} in it is compressed, which PyTorch never does")
        self.data.seek(member.header_offset)
        signature, names = struct.unpack("<4s22xI", self.data.read(30))  # the local header
        self.data.seek((names & 0xFFFF) + (names >> 16), io.SEEK_CUR)
        content = self.data.read(member.file_size)
        if signature != b"PK\3\4" or len(content) < member.file_size:
            raise RefusedPickleError(f"{name} in it is cut off")
        return content

    def read_legacy(self) -> Any:
        content = self.unpickler.load(self.data)
        keys = []
        if type(content) is int and content == LEGACY_MAGIC:
            protocol, system = self.unpickler.load(self.data), self.unpickler.load(self.data)
            if protocol != LEGACY_PROTOCOL or not system["little_endian"]:
                raise RefusedPickleError("it is of another version or not little-endian")
            content, keys = self.unpickler.load(self.data), self.unpickler.load(self.data)
            for key in keys:
                buffer = self.storages[key]
                count = int.from_bytes(self.data.read(8), "little")  # of elements
                fits = count * self.item_bytes[key] == len(buffer)
                if not fits or self.data.tell() + len(buffer) > self.size:
                    raise RefusedPickleError("one of its storages is cut off or of another size")
                memoryview(buffer)[:] = self.data.read(len(buffer))
        if len(self.storages) != len(keys):
            raise RefusedPickleError("it lacks the content of some storages")
        return content

    def storage(self, identifier: Any) -> Any:
        """Return a storage as a flat tensor; a pickle names it by a persistent identifier."""
        if identifier[0] == "module":  # a class with its source code, in the legacy format
            return identifier[1]
        kind, dtype, key, _, count, *views = identifier
        if kind != "storage" or type(key) is not str or type(count) is not int or count < 0:
            raise RefusedPickleError("its pickle refers to something else than a storage")
        size = count * dtype.itemsize
        if key not in self.storages:
            self.left -= size
            if self.left < 0:
                raise RefusedPickleError("its storages are larger than the file")
            content = self.member(f"data/{key}")[:size] if self.members else size
            self.storages[key], self.item_bytes[key] = bytearray(content), dtype.itemsize
        if dtype in _QUANTIZED:
            return Placeholder("quantised storage")
        if len(buffer := self.storages[key]) < size:
            raise RefusedPickleError(f"its storage {key} is cut off")
        _, offset, count = (views and views[0]) or (None, 0, count)  # a part of a legacy storage
        if not count:
            return _empty(dtype)
        return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset * dtype.itemsize)


def _empty(dtype: torch.dtype, size: tuple[int, ...] = (0,)) -> Tensor:
    return torch.empty(size, dtype=dtype)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *options: Any) -> Any:
    """Return a dense tensor that lies within its storage; `options` as in `_rebuild_tensor_v3`."""
    if isinstance(storage, Placeholder):
        return Placeholder(f"tensor of a {storage.name}")
    if any(isinstance(option, dict) and option for option in options[2:]):  # bits of a lazy view
        return Placeholder("conjugated or negated tensor")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise RefusedPickleError("a tensor in it has an impossible shape")
    if options[2:] and isinstance(options[2], torch.dtype):
        dtype = options[2]
        if dtype in _QUANTIZED:
            return Placeholder("quantised tensor")
        storage = storage[: len(storage) // dtype.itemsize * dtype.itemsize].view(dtype)
    if not (count := math.prod(size)):
        return _empty(storage.dtype, size)
    if offset + sum((n - 1) * step for n, step in zip(size, stride)) >= len(storage):
        raise RefusedPickleError("a tensor in it reaches beyond its storage")
    if count > len(storage):  # a small file must not become a huge tensor
        return Placeholder("expanded tensor")
    return storage.as_strided(size, stride, offset)


def _named(name: str) -> Callable[..., Placeholder]:
    return lambda *args: Placeholder(name, args)


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _bytes(text: Any = b"", _: str = "") -> bytes:
    """Return bytes, which protocol 2 writes as text of latin-1."""
    return text if isinstance(text, bytes) else str.encode(text, "latin-1")


_QUANTIZED = (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4)
_BUILDERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _bytes,
    "builtins.bytes": _bytes,
    "builtins.bytearray": lambda *args: bytearray(_bytes(*args)),
    "builtins.set": lambda items=(): set(dict_of_pairs([(item, None) for item in items])),
    "collections.Counter": dict_of_pairs,
    "collections.OrderedDict": dict_of_pairs,
    "collections.defaultdict": lambda _=None, pairs=(): dict_of_pairs(pairs),
    "torch.Size": tuple,
    "torch.autograd.variable.Variable": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_qtensor": _named("quantised tensor"),
    "torch._utils._rebuild_sparse_tensor": _named("sparse tensor"),
    "torch._utils._rebuild_nested_tensor": _named("nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _named("tensor without values"),
    **{
        f"torch.jit._pickle.build_{kind}list": _first
        for kind in ("int", "tensor", "double", "bool")
    },
    "torch.jit._pickle.restore_type_tag": _first,
}
