"""A pickle reader that builds containers and placeholders, and calls nothing that a file names.

`pickletools.genops` of the standard library parses the instructions; this module executes them.
`pickle.Unpickler` with another `find_class` is not enough (CPython, Modules/_pickle.c): EXT1 to
EXT4 return objects of `copyreg`'s cache without asking it; BUILD, APPEND and SETITEM call methods
of any object; a PUT of index 2**32 and a BYTEARRAY8 of 2**40 bytes allocate memory before they
read; and the hash of nested tuples takes exponential time or overflows C's stack.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
MAX_NAME = 500  # characters
BYTES_PER_UNIT = 64  # copying this many bytes takes about as long as an instruction
_DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


class RefusedPickleError(ValueError):
    """A pickle that is damaged or made to exhaust memory or time."""


@dataclass(slots=True, eq=False, repr=False)
class Placeholder:
    """An object of a class or function that was not loaded; it may contain itself."""

    name: str
    """Module and name of the class or function, such as `argparse.Namespace`."""
    args: tuple[Any, ...] = ()
    """Arguments of the call that would have created the object."""
    state: Any = None
    """Usually the attributes: a dict, or a tuple of it and of a dict of slots."""
    items: list[Any] | dict[Any, Any] = field(default_factory=list)
    """Items of a foreign list, set or mapping."""

    def __repr__(self) -> str:
        return f"<{self.name}>"  # the other fields may contain this object

    def attributes(self) -> dict[Any, Any]:
        """Return the attributes that the state holds."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {key: part[key] for part in parts if isinstance(part, dict) for key in part}


class _Global(Placeholder):
    """A class or function that the file names, before a call."""

    __slots__ = ()


@dataclass(kw_only=True)
class InertUnpickler:
    """A reader of the pickles of one file."""

    values: Mapping[str, Any]
    """Objects for names, such as dtypes."""
    builders: Mapping[str, Callable[..., Any]]
    """Functions that build the result of a call, by the name of what is called."""
    persistent_load: Callable[[Any], Any]
    """A function that returns an object outside of the pickle from its identifier."""
    budget: int
    """Number of instructions that are left."""

    def load(self, stream: IO[bytes]) -> Any:
        """Return the object of the next pickle in a stream whose `read` clamps lengths.

        Raises:
            RefusedPickleError: The pickle is damaged, or needs more instructions than the budget.
        """
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        last: int | None = 0
        try:
            for opcode, argument, position in pickletools.genops(stream):
                last = position
                self.spend(1)
                if opcode.name in _PUSHES:
                    self.stack.append(_PUSHES[opcode.name](argument))
                else:
                    _STEPS[opcode.name](self, argument)
            return self.stack.pop()
        except RefusedPickleError:
            raise
        except (*_DAMAGE, struct.error) as error:
            raise RefusedPickleError(f"its pickle is damaged after byte {last}") from error

    def spend(self, units: int) -> None:
        """Subtract from the budget."""
        self.budget -= units
        if self.budget < 0:
            raise RefusedPickleError("its pickle has too many instructions for a checkpoint")

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop(self, count: int | None = 1) -> list[Any]:
        """Remove and return the last objects, or with None those above the last mark."""
        if count is None:
            items, self.stack = self.stack, self.marks.pop()
        elif len(self.stack) < count:
            raise IndexError
        else:
            items = self.stack[-count:]
            del self.stack[-count:]
        return items

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, set):
            target.update(map(_key, values))
        else:
            items = target.items if isinstance(target, Placeholder) else target
            if not isinstance(items, list):
                raise TypeError
            items.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.items = target.items or {}
            target = target.items
        if not isinstance(target, dict):
            raise TypeError
        target.update(_pair(values))

    def find(self, names: list[Any]) -> Any:
        """Return what a module and a name stand for, or a placeholder."""
        module, name = map(str.strip, names)  # raises a TypeError if they are not text
        full = f"{PYTHON_2.get(module, module)}.{name}"
        if len(full) > MAX_NAME or not full.isprintable():
            raise RefusedPickleError("its pickle names an impossible class")
        return self.values.get(full) or _Global(full)

    def call(self, function: Any, args: Any, keywords: object = None) -> Any:
        """Return what a builder makes of the arguments, or a placeholder."""
        if not isinstance(function, Placeholder) or type(args) is not tuple:
            raise TypeError
        if type(function) is _Global and function.name in self.builders:
            for arg in args:  # a pickle may let a builder copy one argument again and again
                if isinstance(arg, (str, bytes, bytearray)):
                    self.spend(len(arg) // BYTES_PER_UNIT)
                elif isinstance(arg, (list, tuple, dict, set, frozenset)):
                    self.spend(len(arg))
            return self.builders[function.name](*args)
        return Placeholder(function.name, (*args, keywords) if keywords else args)

    def build(self) -> None:
        [state] = self.pop()
        if isinstance(self.stack[-1], Placeholder):  # the state of other objects is not needed
            self.stack[-1].state = state

    def push(self, value: Any) -> None:
        self.stack.append(value)


def dict_of_pairs(pairs: Any = ()) -> dict[Any, Any]:
    """Return a dict of a list of pairs, or a copy of a dict."""
    if type(pairs) not in (list, tuple, dict):
        raise TypeError
    return {_key(key): value for key, value in (pairs.items() if type(pairs) is dict else pairs)}


def _pair(values: list[Any]) -> dict[Any, Any]:
    return dict_of_pairs(list(zip(values[::2], values[1::2], strict=True)))


def _key(value: Any) -> Any:
    """Return a key that is hashed and compared in constant time."""
    if type(value) is int and value.bit_length() <= 64:
        return value
    simple = isinstance(value, (str, bytes, bool, float, type(None), Placeholder))
    return value if simple else Placeholder("key", (value,))


_VALUES = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE",
    "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING",
)  # fmt: skip
_PUSHES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(_VALUES, lambda argument: argument),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), lambda code: _Global(f"copyreg.extension{code}")),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "EMPTY_SET": lambda _: set(),
}
_STEPS: dict[str, Callable[[InertUnpickler, Any], object]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP", "READONLY_BUFFER"), lambda m, _: None),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, i: m.push(m.memo[i])),
    **dict.fromkeys(
        ("PUT", "BINPUT", "LONG_BINPUT"), lambda m, i: m.memo.__setitem__(i, m.stack[-1])
    ),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop(1 if m.stack else None),
    "POP_MARK": lambda m, _: m.pop(None),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "TUPLE": lambda m, _: m.push(tuple(m.pop(None))),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop(3))),
    "LIST": lambda m, _: m.push(m.pop(None)),
    "DICT": lambda m, _: m.push(_pair(m.pop(None))),
    "FROZENSET": lambda m, _: m.push(frozenset(map(_key, m.pop(None)))),
    "APPEND": lambda m, _: m.extend(m.pop()),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.extend(m.pop(None))),
    "SETITEM": lambda m, _: m.set_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop(None)),
    "GLOBAL": lambda m, names: m.push(m.find(names.split(" "))),
    "STACK_GLOBAL": lambda m, _: m.push(m.find(m.pop(2))),
    "REDUCE": lambda m, _: m.push(m.call(*m.pop(2))),
    "NEWOBJ": lambda m, _: m.push(m.call(*m.pop(2))),
    "NEWOBJ_EX": lambda m, _: m.push(m.call(*m.pop(3))),
    "OBJ": lambda m, _: m.push(m.call((items := m.pop(None))[0], tuple(items[1:]))),
    "INST": lambda m, names: m.push(m.call(m.find(names.split(" ")), tuple(m.pop(None)))),
    "BUILD": lambda m, _: m.build(),
    "PERSID": lambda m, pid: m.push(m.persistent_load(pid)),
    "BINPERSID": lambda m, _: m.push(m.persistent_load(m.pop()[0])),
}  # NEXT_BUFFER is missing: a file has no buffers outside of the pickle
