"""Programs of `torch.export` (`.pt2` files), loaded so that no code of the file runs.

PyTorch's own loader trusts the file: it unpickles example inputs, some tensors and custom objects,
evaluates the text of symbolic sizes, compiles guards, and calls functions that the file names. So
the parts that describe a network are checked and written to a new archive in memory, and PyTorch
loads that one.

Sources: torch/_export/serde/schema.py and serialize.py, torch/export/pt2_archive/_package.py, and
torch/fx/graph.py (names become Python code), all of PyTorch 2.13.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from resdeploy.errors import CheckpointError, one_line_reason
from resdeploy.json_documents import strict_json

MAX_BYTES = 4 << 30
MAX_RECORDS = 100_000
MAX_GRAPH_BYTES = 256 << 20
MAX_INPUT_VALUES = 1 << 28
SAVE_AGAIN = "save the program again with PyTorch 2.9 or newer: torch.export.save(program, FILE)"
CLASSIFIER = "export the classifier alone: torch.export.export(network, (images,))"
COPY_AGAIN = "copy or download the file again"

NAME = re.compile(r"[A-Za-z_]\w{0,999}", re.ASCII)
PARAMETER_NAME = re.compile(r"(?!__)\w{1,999}(\.(?!__)\w{1,999}){0,99}", re.ASCII)
# `aten.from_file` would read a file. Functions with an underscore are PyTorch's internal ones, some
# of which check less; those listed are what decompositions of usual layers leave.
TARGET = re.compile(
    r"torch\.ops\.aten\.((?!from_file\b)[a-z]\w*|_(unsafe_view|softmax|log_softmax|to_copy"
    r"|adaptive_avg_pool2d|native_batch_norm_legit(_no_training)?))\.\w+"
    r"|torch\.sym_(int|max|min|not)|_operator\.(getitem|add|sub|mul|floordiv|mod|eq|ne|lt|le|gt|ge)",
    re.ASCII,
)
# Values of the operators' options, such as the padding "same".
OPTION = re.compile(r"[a-z_]{0,20}")
SYMBOL = re.compile(r"Symbol\('[a-z]{1,2}\d{1,9}'(, (positive|integer|nonnegative)=True){0,3}\)")
PLACEHOLDER = "\0"  # stands for a symbol in the text of a size
# Possessive, because a number can be divided into numbers in many ways.
SIZE = re.compile(r"(Mul\(|Add\(|Integer\(|-?\d{1,9}|\0|, |\)){1,99}+")
# Kinds of arguments whose texts are checked, or that are numbers.
ARGUMENTS = {
    "as_none", "as_tensor", "as_tensors", "as_int", "as_ints", "as_float", "as_floats", "as_string",
    "as_sym_int", "as_sym_ints", "as_sym_bool", "as_scalar_type", "as_memory_format", "as_layout",
    "as_device", "as_bool", "as_bools", "as_optional_tensors", "as_optional_tensor", "as_sym_float",
    "as_name", "as_expr",
}  # fmt: skip
# The tree of one positional argument and of one result; the file's own trees name Python classes.
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


def _tree(kind: str, context: str, *children: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": f"builtins.{kind}", "context": context, "children_spec": list(children)}


VERIFIERS = ("TRAINING", "ATEN")  # dialects of the operators
ONE_ARGUMENT = json.dumps(
    [1, _tree("tuple", "null", _tree("tuple", "null", _LEAF), _tree("dict", "[]"))]
)
ONE_RESULT = json.dumps([1, _LEAF])


def read_program(content: bytes, path: Path) -> torch.export.ExportedProgram:
    """Return the program in the content of a `.pt2` file, on the CPU.

    Args:
        content: The whole file.
        path: Path of the file, for messages.

    Raises:
        CheckpointError: It is damaged, needs code of the file or of other libraries, or has several
            inputs or outputs.
    """
    try:
        copy = _checked_copy(content)
        return torch.export.load(copy)
    except _RefusedError as error:
        raise CheckpointError(f"{path} cannot be read: {error}", error.remedy) from error
    except Exception as error:  # of PyTorch's loader, which has no exception type of its own
        reason = one_line_reason(error)
        raise CheckpointError(
            f"PyTorch {torch.__version__} cannot load {path}: {reason}", SAVE_AGAIN
        ) from error


class _RefusedError(ValueError):
    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def _checked_copy(content: bytes) -> io.BytesIO:
    """Return an archive with the checked graph and the tensors of another one."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            records = _records(archive)
            graph_file = _graph_file(records)
            program = _checked_program(_json(archive, records[f"models/{graph_file}.json"]))
            configs = {
                kind: _json(archive, records[f"data/{kind}/{graph_file}_{kind}_config.json"])
                for kind in ("weights", "constants")
            }
            tensors = {
                kind: dict(_tensors(archive, records, kind, configs[kind])) for kind in configs
            }
    except KeyError as error:
        raise _RefusedError(f"it has no record {error}", SAVE_AGAIN) from error
    except (ValueError, TypeError, AttributeError, zipfile.BadZipFile, EOFError) as error:
        if isinstance(error, _RefusedError):
            raise
        raise _RefusedError(f"it is damaged: {one_line_reason(error)}", COPY_AGAIN) from error
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as archive:

        def write(name: str, data: bytes | str) -> None:
            archive.writestr(f"program/{name}", data)

        for name, text in (("archive_format", "pt2"), ("archive_version", "0"),
                           ("byteorder", "little"), (".data/version", "3\n")):  # fmt: skip
            write(name, text)
        write("models/model.json", json.dumps(program))
        write("data/sample_inputs/model.pt", _example(program))
        for kind, config in configs.items():
            write(f"data/{kind}/model_{kind}_config.json", json.dumps(config))
            for name, data in tensors[kind].items():
                write(f"data/{kind}/{name}", data)
    copy.seek(0)
    return copy


def _records(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the records by their names without the archive's folder."""
    records = archive.infolist()
    if len(records) > MAX_RECORDS or sum(record.file_size for record in records) > MAX_BYTES:
        raise _RefusedError("it unpacks to too many records or bytes", "give a smaller network")
    if any(record.filename.endswith("serialized_exported_program.json") for record in records):
        raise _RefusedError("it was saved by an old version of PyTorch", SAVE_AGAIN)
    return {record.filename.partition("/")[2]: record for record in records}


def _graph_file(records: Mapping[str, Any]) -> str:
    """Return the name of the only program."""
    found = [name[7:-5] for name in records if re.fullmatch(r"models/[^/]+\.json", name)]
    if len(found) != 1:
        other = "a compiled library of AOTInductor" if any("aoti" in n for n in records) else ""
        raise _RefusedError(
            f"it holds {other or f'{len(found)} programs'}, and not one program",
            "save the program of torch.export.export alone: torch.export.save(program, FILE)",
        )
    return str(found[0])


def _json(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> dict[str, Any]:
    if record.file_size > MAX_GRAPH_BYTES:
        raise _RefusedError(f"{record.filename} is too large", "give a smaller network")
    document = strict_json(archive.read(record))
    if not isinstance(document, dict):
        raise TypeError(f"{record.filename} is not an object")
    return document


def _tensors(
    archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo], kind: str,
    config: Mapping[str, Any],
) -> Iterator[tuple[str, bytes]]:  # fmt: skip
    """Yield the files of tensors of a configuration, which is changed to the CPU."""
    for name, entry in config["config"].items():
        file, meta = entry["path_name"], entry["tensor_meta"]
        if entry["use_pickle"] or meta is None or not re.fullmatch(r"(weight|tensor)_\d+", file):
            raise _RefusedError(
                f"{name!r:.80} is stored as a pickle, which can run code",
                "export a network whose parameters are plain tensors",
            )
        _check(PARAMETER_NAME, name)
        meta["device"] = {"type": "cpu", "index": None}
        sizes = [size["as_int"] for size in meta["sizes"]]
        data = archive.read(records[f"data/{kind}/{file}"])
        if not data and math.prod(sizes):  # PyTorch would take zeros of these sizes
            raise ValueError(f"the tensor {name!r:.80} has no values")
        yield file, data


def _checked_program(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a program that describe the network, after checking them."""
    module = document["graph_module"]
    graph, signature = module["graph"], module["signature"]
    inputs = [spec for spec in signature["input_specs"] if "user_input" in spec]
    outputs = signature["output_specs"]
    if len(inputs) != 1 or len(outputs) != 1 or "user_output" not in outputs[0]:
        raise _RefusedError(
            f"it has {len(inputs)} inputs and {len(outputs)} outputs, and not one each", CLASSIFIER
        )
    for spec in signature["input_specs"]:
        ((kind, value),) = spec.items()
        if kind not in ("user_input", "parameter", "buffer", "tensor_constant"):
            raise _RefusedError(f"its inputs are of the kind {kind!r:.40}", CLASSIFIER)
        if kind != "user_input":
            _check(PARAMETER_NAME, value[f"{kind}_name"])
    for node in graph["nodes"]:
        node["metadata"] = {}  # paths of the author's machine, and names of functions
        if not TARGET.fullmatch(node["target"]):
            raise _RefusedError(
                f"it uses the operator {node['target']!r:.80}, which is not one of PyTorch's own",
                "replace it by operators of PyTorch (torch.ops.aten)",
            )
        for given in node["inputs"]:
            _check(NAME, given["name"])
        for argument in (*(given["arg"] for given in node["inputs"]), *node["outputs"]):
            _check_argument(argument)
    if graph.get("custom_obj_values"):
        raise _RefusedError("it has custom objects", CLASSIFIER)
    for values in ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values"):
        for name in graph.get(values, {}):
            _check(NAME, name)
    _check_texts([graph, signature])
    root = {
        "fqn": "",
        "signature": {
            "inputs": [], "outputs": [], "in_spec": ONE_ARGUMENT, "out_spec": ONE_RESULT,
            "forward_arg_names": None,
        },
    }  # fmt: skip
    ranges = document.get("range_constraints", {})
    for name in ranges:
        _check(NAME, name)
    return {
        "graph_module": {
            "graph": graph, "signature": signature, "module_call_graph": [root],
            "treespec_namedtuple_fields": {},
        },
        "opset_version": {"aten": int(document["opset_version"]["aten"])},
        "range_constraints": {
            name: {side: None if limits[side] is None else int(limits[side])
                   for side in ("min_val", "max_val")}
            for name, limits in ranges.items()
        },
        "schema_version": {
            part: int(document["schema_version"][part]) for part in ("major", "minor")
        },
        "verifiers": [name for name in document["verifiers"] if name in VERIFIERS],
        "torch_version": "", "guards_code": [],
    }  # fmt: skip


def _check_argument(argument: Mapping[str, Any]) -> None:
    """Raise an error if an argument is of a kind that holds graphs, functions or objects."""
    ((kind, value),) = argument.items()
    if kind not in ARGUMENTS:
        raise _RefusedError(f"it has an argument of the kind {kind!r:.40}", CLASSIFIER)
    if kind == "as_string":
        _check(OPTION, value)
    elif kind == "as_device":
        value.update(type="cpu", index=None)


def _check_texts(value: Any, key: str = "") -> None:
    """Check all texts that PyTorch evaluates or writes into Python code; set devices to the CPU."""
    if isinstance(value, dict):
        if set(value) == {"type", "index"}:
            value.update(type="cpu", index=None)
        for inner, entry in value.items():
            _check_texts(entry, inner)
    elif isinstance(value, list):
        for entry in value:
            _check_texts(entry, key)
    elif isinstance(value, str):
        if key == "expr_str":
            _check(SIZE, SYMBOL.sub(PLACEHOLDER, value))
        elif key in ("name", "as_name"):
            _check(NAME, value)
        elif key not in ("target", "parameter_name", "buffer_name", "tensor_constant_name", "type",
                         "as_string"):  # fmt: skip
            raise _RefusedError(f"it has a text as {key!r:.40}", CLASSIFIER)


def _check(pattern: re.Pattern[str], text: Any) -> None:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise _RefusedError(f"it has the name {text!r:.80}, which is not allowed", CLASSIFIER)


def _example(program: Mapping[str, Any]) -> bytes:
    """Return an example of the program's input; the file's own one is a pickle."""
    graph, specs = program["graph_module"]["graph"], program["graph_module"]["signature"]
    (name,) = (s["user_input"]["arg"]["as_tensor"]["name"] for s in specs["input_specs"]
               if "user_input" in s)  # fmt: skip
    sizes = [size.get("as_int", 2) for size in graph["tensor_values"][name]["sizes"]]
    if math.prod(sizes) > MAX_INPUT_VALUES:
        raise _RefusedError(f"its input has the sizes {sizes}", CLASSIFIER)
    buffer = io.BytesIO()
    torch.save(((torch.zeros(sizes),), {}), buffer)
    return buffer.getvalue()
