"""Files that would act, or exhaust memory or time, if a reader trusted them.

Run as a program with a folder, it reads every file there within a limit of memory, and prints one
line of JSON for each: what was returned or raised, the seconds, and the audit events
(https://peps.python.org/pep-0578) of imports, executed code, processes and written files.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

MEMORY_LIMIT = 300 << 20  # bytes on top of what PyTorch needs; the largest file has 5 MB
COMMAND = "touch hacked"
CODE = "open('hacked', 'w').close()"


def pickled(value: object) -> bytes:
    """Return the instructions that push a value."""
    return pickle.dumps(value, 2)[2:-1]


def named(name: str) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode()


def call(function: str | bytes, *args: object) -> bytes:
    """Return the instructions that call a function; bytes are instructions themselves."""
    pushed = b"".join(arg if isinstance(arg, bytes) else pickled(arg) for arg in args)
    return (named(function) if isinstance(function, str) else function) + b"(" + pushed + b"tR"


def archive(instructions: bytes, **members: bytes) -> bytes:
    """Return a file of torch.save with a pickle; `data_0` is the first storage."""
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + instructions + b".")
        for name, content in members.items():
            file.writestr("archive/" + name.replace("_", "/"), content)
    return stream.getvalue()


def storage(
    count: int, key: str = "0", kind: bytes = b"ctorch\nFloatStorage\n", *view: object
) -> bytes:
    """Return the instructions that push a storage; `view` names a part of a legacy storage."""
    parts = map(pickled, (key, "cpu", count, *view))
    return b"(" + pickled("storage") + kind + b"".join(parts) + b"tQ"


def legacy(instructions: bytes, keys: list[str], storages: bytes) -> bytes:
    """Return a file of torch.save in the format before ZIP archives."""
    header = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return (
        b"".join(pickle.dumps(value, 2) for value in header)
        + b"\x80\x02" + instructions + b"."
        + pickle.dumps(keys, 2) + storages
    )  # fmt: skip


def tensor(source: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    return call("torch._utils._rebuild_tensor_v2", source, offset, size, stride, False, b"}")


ACTS = {
    "system": call("os.system", COMMAND),
    "posix": call("posix.system", COMMAND),
    "eval": call("builtins.eval", CODE),
    "exec-python2": call("__builtin__.exec", CODE),
    "compile": call("builtins.compile", CODE, "x", "exec"),
    "import": call("builtins.__import__", "antigravity"),
    "import-module": call("importlib.import_module", "antigravity"),
    "getattr": call(call("builtins.getattr", call("builtins.__import__", "os"), "system"), COMMAND),
    "dotted-name": b"\x80\x04\x8c\x0atorch.load\x8c\x0f__globals__.get\x93" + b"(" + b"tR",
    "attrgetter": call(call("operator.attrgetter", "system"), call("builtins.__import__", "os")),
    "methodcaller": call(call("operator.methodcaller", "system", COMMAND), named("os.path")),
    "popen": call("subprocess.Popen", ["touch", "hacked"]),
    "partial": call(call("functools.partial", named("os.system"), COMMAND)),
    "reduce": call("functools.reduce", named("os.system"), [COMMAND, 0]),
    "map": call("builtins.list", call("builtins.map", named("os.system"), [COMMAND])),
    "run-path": call("runpy.run_path", "hacked.py"),
    "open": call("io.open", "hacked", "w"),
    "touch": call("pathlib.Path.touch", call("pathlib.PosixPath", "hacked")),
    "remove": call("shutil.rmtree", "."),
    "socket": call("socket.create_connection", ("127.0.0.1", 9)),
    "codecs": call("codecs.decode", "uryyb", "rot13"),
    "encode": call("_codecs.encode", "x", "rot13"),
    "pickle": call("pickle.loads", pickle.dumps(1)),
    "torch-load": call("torch.load", "hacked.pth"),
    "torch-hub": call("torch.hub.load", "owner/repository", "model"),
    "torch-jit": call("torch.jit._script.unpack", "hacked"),
    "torch-storage": call("torch.storage._load_from_bytes", pickled(b"hacked")),
    "torch-fx": call("torch.fx.graph_module.reduce_graph_module", {"_code": CODE}, "import os"),
    "ctypes": call("ctypes.CDLL", "libc.so.6"),
    "finalize": call("weakref.finalize", named("os.path"), named("os.system"), COMMAND),
    "numpy": call("numpy._core.multiarray._reconstruct", named("numpy.ndarray"), (1 << 40,), "d"),
    "extension": call("copyreg.add_extension", "os", "system", 1) + b"0\x82\x01(tR",
    "new-object": call("copyreg.__newobj__", named("os.system"), COMMAND),
    "reconstructor": call("copyreg._reconstructor", named("os.system"), named("a.b"), COMMAND),
    "subclass": call(
        "torch._tensor._rebuild_from_type_v2",
        named("os.system"), named("torch.Tensor"), (COMMAND,), {},
    ),
    "default": call("collections.defaultdict", named("os.getcwd")),
    "instance": b"(" + pickled(COMMAND) + b"ios\nsystem\n",
    "object": b"(" + named("os.system") + pickled(COMMAND) + b"o",
    "new": named("os.system") + pickled((COMMAND,)) + b"\x81",
    "build": named("os.environ") + pickled({"PATH": ""}) + b"b",
    "set-items": named("os.environ") + b"(" + pickled("PATH") + pickled("") + b"u",
    "append": named("sys.path") + pickled(".") + b"a",
    "state-dict": b"}" + pickled("state_dict") + call("os.system", COMMAND) + b"s",
}  # fmt: skip


def copied(value: object) -> bytes:
    """Return the instructions that keep a value under the index 256."""
    return pickled(value) + b"r\0\1\0\x000"


def doubled(start: bytes, pair: bytes) -> bytes:
    """Return the instructions for 200 levels of containers that hold the level below twice."""
    levels = (b"h%c" % i * 2 for i in range(200))
    return start + b"q\x000" + b"".join(
        pair.replace(b"..", level) + b"q%c0" % (i + 1) for i, level in enumerate(levels)
    ) + b"h\xc8"  # fmt: skip


def in_themselves() -> bytes:
    """Return the instructions for a module with two children, which are the module itself."""
    children = pickled("a") + b"h\xff" + pickled("b") + b"h\xff"
    return (
        named("torch.nn.Module") + b")\x81q\xff}" + pickled("_modules") + b"}(" + children + b"usb"
    )


LISTS, TUPLES = doubled(b"]", b"](..e"), doubled(b")", b"..\x86")
FLOATS = bytes(64)
BOMBS = {
    "billion-laughs": archive(LISTS),
    "billion-laughs-as-key": archive(b"}" + TUPLES + b"Ns"),
    "billion-laughs-in-a-set": archive(b"\x8f(" + TUPLES + b"\x90"),
    "modules-in-themselves": archive(in_themselves()),
    "deep-tuple-as-key": archive(b"})" + b"\x85" * 200_000 + b"Ns"),
    "deep-list": archive(b"]" * 120_000 + b"a" * 119_999),
    "marks": archive(b"(" * 1_000_000),
    "sets": archive(b"\x8f" * 1_000_000),
    "put-4-billion": archive(b"]r\xff\xff\xff\xff"),
    "long-of-2-gigabytes": archive(b"\x8b\xff\xff\xff\x7f"),
    "bytes-of-a-terabyte": archive(b"\x8e" + struct.pack("<Q", 1 << 40)),
    "bytearray-of-a-terabyte": archive(b"\x96" + struct.pack("<Q", 1 << 40)),
    "text-of-a-terabyte": archive(b"\x8d" + struct.pack("<Q", 1 << 40)),
    "frame-of-an-exabyte": archive(b"\x95" + struct.pack("<Q", 1 << 60)),
    "bytearray-by-number": archive(call("builtins.bytearray", 1 << 40)),
    "copied-list": archive(
        copied([0] * 50_000) + (named("torch.Size") + b"(j\0\1\0\0tR") * 9999
    ),
    "copied-text": archive(
        copied("x" * 500_000) + (named("_codecs.encode") + b"(j\0\1\0\0NtR") * 9999
    ),
    "long-name": archive(b"c" + b"m" * 100_000 + b"\nx\n"),
    "unknown-protocol": archive(b"\x80\xff\xff"),
    "buffer": archive(b"\x97"),
    "tensor-beyond-its-storage": archive(tensor(storage(16), 1, (16,), (1,)), data_0=FLOATS),
    "tensor-before-its-storage": archive(tensor(storage(16), 15, (16,), (-1,)), data_0=FLOATS),
    "tensor-of-a-negative-size": archive(tensor(storage(16), 0, (-4, -4), (4, 1)), data_0=FLOATS),
    "tensor-at-a-negative-offset": archive(tensor(storage(16), -8, (8,), (1,)), data_0=FLOATS),
    "tensor-of-an-overflowing-size": archive(
        tensor(storage(16), 0, (1 << 33, 1 << 33), (0, 0)), data_0=FLOATS
    ),
    "expanded-tensor": archive(
        b"}" + pickled("w") + tensor(storage(16), 0, (1 << 20, 1 << 20), (0, 0)) + b"s",
        data_0=FLOATS,
    ),
    "storage-larger-than-its-member": archive(tensor(storage(999), 0, (999,), (1,)), data_0=FLOATS),
    "storage-of-a-terabyte": archive(tensor(storage(1 << 38), 0, (1,), (1,)), data_0=FLOATS),
    "storage-of-a-negative-size": archive(tensor(storage(-1), 0, (0,), (1,)), data_0=FLOATS),
    "storage-elsewhere": archive(tensor(storage(16, "../../../etc/passwd"), 0, (16,), (1,))),
    "storage-of-a-function": archive(
        tensor(storage(16, kind=named("os.system")), 0, (16,), (1,)), data_0=FLOATS
    ),
    "persistent-text": archive(b"P/etc/passwd\n"),
    "big-endian": archive(b"N", byteorder=b"big"),
    "legacy-storage-of-a-terabyte": legacy(tensor(storage(1 << 38), 0, (1,), (1,)), ["0"], b""),
    "legacy-storage-cut-off": legacy(
        tensor(storage(4), 0, (4,), (1,)), ["0"], struct.pack("<q", 4) + bytes(12)
    ),
    "legacy-storage-of-another-size": legacy(
        tensor(storage(4), 0, (4,), (1,)), ["0"], struct.pack("<q", 1 << 40) + bytes(16)
    ),
    "legacy-storage-without-content": legacy(tensor(storage(4), 0, (4,), (1,)), [], bytes(24)),
    "legacy-view-beyond-its-storage": legacy(
        tensor(storage(4, "0", b"ctorch\nFloatStorage\n", ("v", 2, 4)), 0, (4,), (1,)),
        ["0"], struct.pack("<q", 4) + bytes(16),
    ),
    "deep-calls": archive(named("a.b") + b"q\x00" + b"h\x00" * 80_000 + b")" + b"\x85R" * 80_000),
    "deep-types": archive(
        named("torch._tensor._rebuild_from_type_v2") + b"q\x00"
        + b"(h\x00N" * 40_000 + b"N" + b"}t" * 40_000 + b"R"
    ),
}  # fmt: skip


def overlapping_members() -> bytes:
    """Return an archive of which 1000 members are the same 1 MB."""
    pickles = b"(" + b"".join(tensor(storage(1 << 18, str(i)), 0, (1,), (1,)) for i in range(1000))
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + pickles + b"t.")
        file.writestr("a/data/0", bytes(1 << 20))
        first = file.getinfo("a/data/0")
        for index in range(1, 1000):
            other = zipfile.ZipInfo(f"a/data/{index}")
            other.header_offset, other.CRC = first.header_offset, first.CRC
            other.file_size = other.compress_size = first.file_size
            file.filelist.append(other)
            file.NameToInfo[other.filename] = other
    return stream.getvalue()


def archive_of(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(stream := io.BytesIO(), "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return stream.getvalue()


def many_members() -> bytes:
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *[0] * 6, 0, 0, 0, 2, *[0] * 4, 0, 0) + b"a/"
    count = 100_000
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, count * len(entry), 30, 0)
    return b"PK\x03\x04" + bytes(26) + entry * count + end


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "overlapping-members": overlapping_members,
    "many-members": many_members,
    "compressed-storage": lambda: archive_of(
        ("a/data.pkl", b"\x80\x02" + tensor(storage(1 << 25), 0, (1,), (1,)) + b"."),
        ("a/data/0", bytes(100 << 20)),
        compression=zipfile.ZIP_DEFLATED,
    ),
    "member-outside": lambda: archive_of(("a/data.pkl", b"N."), ("../b", b"")),
    "no-pickle": lambda: archive_of(("a/weights", b"")),
}


def main(folder: Path) -> None:
    import resource

    from resdeploy.errors import CheckpointError
    from resdeploy.train.checkpoint.inert_pickle import Placeholder
    from resdeploy.train.checkpoint.load import load_checkpoint
    from resdeploy.train.checkpoint.torch_file import read_torch_file

    def read(path: Path) -> str:
        try:
            content = read_torch_file(path)
        except CheckpointError as error:
            return str(error)
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            kind = content.name if isinstance(content, Placeholder) else type(content).__name__
            return f"{kind}: {error}"
        return "accepted"

    events: list[str] = []
    watched = ("import", "exec", "compile", "os.", "subprocess.", "socket.", "shutil.", "ctypes.",
               "pickle.", "code.", "marshal.")  # fmt: skip

    def watch(event: str, args: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if event.startswith(watched) or writes:
            events.append(f"{event} {args[:2]}")

    sys.addaudithook(watch)
    paths = sorted(folder.iterdir())
    for path in paths[:2]:  # the first plain pickle and archive import modules
        read(path)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_LIMIT, -1))
    for path in paths:
        events.clear()
        start = time.process_time()
        try:
            message = read(path)
        except BaseException as error:
            message = f"FAILED {error!r}"
        seconds = time.process_time() - start
        print(json.dumps([path.stem, message, seconds, list(events)]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
