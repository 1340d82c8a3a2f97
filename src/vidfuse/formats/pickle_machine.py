"""The harmless part of the pickle language: a stack machine that can make containers, and call what it is given.

Nothing is imported, looked up or called on behalf of a file but the functions of a `Language`, and memory stays within
a small multiple of the file's size. The opcodes are described in Python's `pickletools`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Language", "Machine", "Name", "RefusedError", "dict_key"]

_SPARE: Final = 1024  # objects that even an empty pickle may make


class RefusedError(Exception):
    """The pickle asks for something that its language does not have."""


@dataclass(frozen=True)
class Name:
    """A global name, which is only ever compared with the language's lists."""

    text: str


@dataclass(frozen=True)
class Language:
    """What a pickle may name.

    Attributes:
        calls: Functions by global name; each gets the machine and the pickled arguments.
        names: Global names that may stand as arguments.
        build: Sets the state of an object that a call returned; gets the machine, the object and the state.
    """

    calls: Mapping[str, Callable[..., Any]]
    names: frozenset[str]
    build: Callable[[Machine, Any, Any], None]


class Machine:
    """The stack machine of the pickle language, without its dangerous half.

    Args:
        data: The pickle.
        language: What it may name.
        start: Where in `data` it begins; `at` says where it ended.
        nested: It describes a tensor's storage within another pickle, as a persistent object.
    """

    def __init__(self, data: memoryview, language: Language, start: int = 0, *, nested: bool = False) -> None:
        self.data, self.language, self.at, self.nested = data, language, start, nested
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        # Legitimate pickles spend many bytes on each container and memo entry, and copy each byte about once; a bomb
        # makes one byte do the work of thousands.
        self.containers_left = _SPARE + len(data) // 8
        self.memos_left = _SPARE + len(data) // 4
        self.bytes_left = 64 * _SPARE + 4 * len(data)

    def run(self) -> Any:
        """Interpret opcodes up to STOP, and return what they made."""
        data, opcodes = self.data, _OPCODES
        while True:
            opcode = data[self.at]
            self.at += 1
            if opcode == 0x2E:  # STOP
                if len(self.stack) != 1 or self.marks:
                    raise ValueError("it ends with an unfinished stack")
                return self.stack.pop()
            handler = opcodes.get(opcode)
            if handler is None:
                raise RefusedError(f"the opcode {bytes([opcode])!r}")
            handler(self)

    def _take(self, count: int) -> memoryview:
        end = self.at + count
        if count < 0 or end > len(self.data):
            raise ValueError(f"truncated: {count} bytes are due, {len(self.data) - self.at} are left")
        chunk = self.data[self.at : end]
        self.at = end
        return chunk

    def _number(self, layout: struct.Struct) -> Any:
        (value,) = layout.unpack(self._take(layout.size))
        return value

    def _line(self) -> bytes:
        end = bytes(self.data[self.at : self.at + 64]).find(b"\n")
        if end < 0:
            self.charge(5000)
            end = bytes(self.data[self.at : self.at + 5000]).find(b"\n")
        if end < 0:
            raise ValueError("a line does not end")
        text = bytes(self._take(end + 1))
        return text[:-1]

    def charge(self, size: int) -> None:
        """Account for bytes that are copied or read a second time."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise ValueError("more memory than a pickle of this size can need")

    def _container(self, value: Any) -> None:
        self._spend_container()
        self.stack.append(value)

    def _spend_container(self) -> None:
        self.containers_left -= 1
        if self.containers_left < 0:
            raise ValueError("more containers than a pickle of this size can need")

    def _remember(self, index: int) -> None:
        self.memos_left -= 1
        if self.memos_left < 0:
            raise ValueError("more memo entries than a pickle of this size can need")
        self.memo[index] = self.stack[-1]

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _mark(self) -> None:
        self._spend_container()
        self.marks.append(self.stack)
        self.stack = []

    def _tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("stack underflow")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self._container(items)

    def _text(self, count: int) -> None:
        self.stack.append(str(self._take(count), "utf-8", "surrogatepass"))

    def _blob(self, count: int) -> None:
        self.stack.append(bytes(self._take(count)))

    def _old_text(self, count: int) -> None:
        self.stack.append(str(self._take(count), "latin-1"))

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError("items are set on something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[dict_key(key)] = value

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("items are appended to something that is not a list")
        self.stack[-1].extend(items)

    def _name(self, module: Any, name: Any) -> None:
        text = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a name that is not text"
        if text not in self.language.calls and text not in self.language.names:
            raise RefusedError(repr(text[:200]))
        self.stack.append(Name(text))

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or function.text not in self.language.calls or type(arguments) is not tuple:
            raise RefusedError(repr(getattr(function, "text", "a call of something that is not a name")))
        self._container(self.language.calls[function.text](self, *arguments))

    def _build(self) -> None:
        state = self.stack.pop()
        self.language.build(self, self.stack[-1], state)

    def _persistent(self) -> None:
        pid = self.stack.pop()
        if not self.nested or not isinstance(pid, tuple) or len(pid) != 6 or pid[0] != "storage":
            raise RefusedError("a persistent object")
        self.stack.append(pid)


def dict_key(key: Any) -> Any:
    """A dict's key, limited to types whose hashing can neither recurse nor be made to collide."""
    if isinstance(key, str | bytes | bool | None) or (isinstance(key, int) and abs(key) < 1 << 60):
        return key
    raise ValueError(f"a dict's key of type {type(key).__name__}")


_U1, _U2, _U4, _U8 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")


def _integer(text: bytes) -> int | bool:
    return {b"00": False, b"01": True}.get(text) if text in (b"00", b"01") else int(text.rstrip(b"L"))  # type: ignore[return-value]


def _quoted(text: bytes) -> str:
    if len(text) < 2 or text[:1] not in b"'\"" or text[-1:] != text[:1]:
        raise ValueError("a string without quotes")
    return text[1:-1].decode("unicode_escape").encode("latin-1").decode("latin-1")


def _stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine._name(module, name)


def _dict_of_mark(machine: Machine) -> None:
    items = machine._pop_mark()
    machine._container({})
    machine._set_items(items)


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine._pop_mark()


_OPCODES: Final[dict[int, Callable[[Machine], Any]]] = {
    ord(opcode): handler
    for opcode, handler in {
        "\x80": lambda m: m._take(1),  # PROTO
        "\x95": lambda m: m._take(8),  # FRAME
        "(": lambda m: m._mark(),
        "0": _pop,
        "1": lambda m: m._pop_mark(),
        "2": lambda m: m.stack.append(m.stack[-1]),
        "N": lambda m: m.stack.append(None),
        "\x88": lambda m: m.stack.append(True),
        "\x89": lambda m: m.stack.append(False),
        "I": lambda m: m.stack.append(_integer(m._line())),
        "L": lambda m: m.stack.append(_integer(m._line())),
        "J": lambda m: m.stack.append(m._number(_I4)),
        "K": lambda m: m.stack.append(m._number(_U1)),
        "M": lambda m: m.stack.append(m._number(_U2)),
        "\x8a": lambda m: m.stack.append(int.from_bytes(m._take(m._number(_U1)), "little", signed=True)),
        "F": lambda m: m.stack.append(float(m._line())),
        "G": lambda m: m.stack.append(m._number(_F8)),
        "S": lambda m: m.stack.append(_quoted(m._line())),
        "T": lambda m: m._old_text(m._number(_I4)),
        "U": lambda m: m._old_text(m._number(_U1)),
        "V": lambda m: m.stack.append(m._line().decode("raw_unicode_escape")),
        "X": lambda m: m._text(m._number(_U4)),
        "\x8c": lambda m: m._text(m._number(_U1)),
        "\x8d": lambda m: m._text(m._number(_U8)),
        "B": lambda m: m._blob(m._number(_U4)),
        "C": lambda m: m._blob(m._number(_U1)),
        "\x8e": lambda m: m._blob(m._number(_U8)),
        "\x96": lambda m: m._blob(m._number(_U8)),
        "]": lambda m: m._container([]),
        "l": lambda m: m._container(m._pop_mark()),
        "a": lambda m: m._extend([m.stack.pop()]),
        "e": lambda m: m._extend(m._pop_mark()),
        "}": lambda m: m._container({}),
        "d": _dict_of_mark,
        "s": lambda m: m._set_items([m.stack.pop(), m.stack.pop()][::-1]),
        "u": lambda m: m._set_items(m._pop_mark()),
        ")": lambda m: m.stack.append(()),
        "t": lambda m: m._container(tuple(m._pop_mark())),
        "\x85": lambda m: m._tuple_of(1),
        "\x86": lambda m: m._tuple_of(2),
        "\x87": lambda m: m._tuple_of(3),
        "p": lambda m: m._remember(_integer(m._line())),
        "q": lambda m: m._remember(m._number(_U1)),
        "r": lambda m: m._remember(m._number(_U4)),
        "\x94": lambda m: m._remember(len(m.memo)),
        "g": lambda m: m.stack.append(m.memo[_integer(m._line())]),
        "h": lambda m: m.stack.append(m.memo[m._number(_U1)]),
        "j": lambda m: m.stack.append(m.memo[m._number(_U4)]),
        "c": lambda m: m._name(m._line().decode(), m._line().decode()),
        "\x93": _stack_global,
        "R": lambda m: m._reduce(),
        "b": lambda m: m._build(),
        "Q": lambda m: m._persistent(),
    }.items()
}
