"""Pickles, run without calling anything.

A pickle is a program for a small stack machine whose instructions can call any function. The
machine here has only the instructions that names, numbers and arrays need. Where a pickle says
"call", it recognises the name and builds what is wanted itself: no function is ever looked up or
called. The readers of the kinds of files say which names there are.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

_MARK = object()  # where a group of values begins on the stack

# Instructions that put a value on the stack: what it is, or what makes an empty one.
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}


class RefusedError(Exception):
    """A pickle that asks for more than arrays."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A name a pickle gives; whatever it stands for is never looked up."""

    name: str


class Machine:
    """The stack machine of pickles, without the means to call anything.

    The module `pickletools` describes the instructions.

    Attributes:
        further: instructions of which only some kinds of files have need: "NEWOBJ", and those of
            bytes.
    """

    further: frozenset[str] = frozenset()

    def __init__(self):
        """Makes a machine that has run nothing yet."""
        # Values under construction, and those that the pickle keeps to use them again.
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, instructions: Iterable[tuple[str, Any]]) -> Any:
        """Returns what a program builds.

        Args:
            instructions: names of instructions and their arguments, as `pickletools` has them.

        Raises:
            ValueError: for a name or an instruction that arrays do not need, or a malformed
                program.
        """
        try:
            for opcode, argument in instructions:
                if opcode == "STOP":
                    return self.stack.pop()
                self._step(opcode, argument)
        except RefusedError as error:
            raise ValueError(str(error)) from None
        # Nothing of the file runs in here, so a failure can only be a malformed file.
        except Exception as error:
            raise ValueError(
                f"its pickle makes no sense ({type(error).__name__}: {str(error)[:200]})"
            ) from None
        raise ValueError("its pickle has no end")

    def knows(self, name: str) -> bool:
        """Whether a pickle of this kind may give a name."""
        raise NotImplementedError

    def persistent(self, description: Any) -> Any:
        """Returns an object that is stored elsewhere; here there are none."""
        raise RefusedError(f"its pickle refers to {brief(description)}: refused")

    def built(self, function: Any, arguments: Any) -> Any:
        """Returns what the function of that name would return for these arguments.

        Raises:
            RefusedError: for all others.
        """
        del arguments
        raise RefusedError(
            f"its pickle calls {brief(function)} with arguments it does not take: refused"
        )

    def set_state(self, value: Any, state: Any) -> None:
        """Does what `__setstate__` of a value would do."""
        # Attributes of a dictionary, such as the versions of modules, are nothing to an array.
        del state
        if not isinstance(value, dict):
            raise ValueError("expected a dict")

    def _step(self, opcode: str, argument: Any) -> None:
        """Executes one instruction; what it makes goes on top of the stack."""
        stack = self.stack
        match opcode:
            # Here an unpickler imports a module. This machine only keeps the name.
            case "GLOBAL":
                stack.append(self._known(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                stack.append(self._known(".".join(self._take(2))))

            # Here it asks for an object that is stored elsewhere, such as a storage in an archive.
            case "BINPERSID":
                (description,) = self._take(1)
                stack.append(self.persistent(description))

            # Here it calls a function, a class, or an object's __setstate__.
            case "REDUCE":
                function, arguments = self._take(2)
                stack.append(self.built(function, arguments))
            case "NEWOBJ" if opcode in self.further:
                cls, arguments = self._take(2)
                stack.append(self.built(cls, arguments))
            case "BUILD":
                (state,) = self._take(1)
                self.set_state(stack[-1], state)

            # All others make or rearrange values, and call nothing.
            case _:
                self._step_of_values(opcode, argument)

    def _step_of_values(self, opcode: str, argument: Any) -> None:
        """Executes an instruction that makes constants or containers, or remembers them.

        Raises:
            RefusedError: for one that arrays do not need.
        """
        stack = self.stack
        match opcode:
            # The version of the format, and the length of a chunk.
            case "PROTO" | "FRAME":
                pass

            # Constants and empty containers.
            case "MARK":
                stack.append(_MARK)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(CONSTANTS[opcode])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument)
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8" if (
                opcode in self.further
            ):
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append(CONTAINERS[opcode]())

            # The memo, for a value that occurs several times, such as the kind of a storage.
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])

            # Containers take their items from the stack, either a fixed number or all since a mark.
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._take(int(opcode[-1]))))
            case "APPEND":
                (item,) = self._take(1)
                self._top(list).append(item)
            case "APPENDS":
                items = self._since_mark()
                self._top(list).extend(items)
            case "SETITEM":
                self._set(self._take(2))
            case "SETITEMS":
                self._set(self._since_mark())

            case _:
                raise RefusedError(
                    f"its pickle has the instruction {opcode}, which tensors do not need: refused"
                )

    def _known(self, name: str) -> Name:
        """Returns a name if it is one of those that arrays need."""
        if not self.knows(name):
            raise RefusedError(
                f"its pickle asks for {brief(name)}, which tensors do not need: refused, nothing "
                "was run"
            )
        return Name(name)

    def _set(self, items: list[Any]) -> None:
        """Adds items, names and values in turn, to the dictionary on top of the stack."""
        names = items[::2]
        # Hashing anything else, such as deeply nested tuples, could take for ever.
        if not all(isinstance(name, str) for name in names):
            raise RefusedError(
                "its pickle has a dictionary whose keys are not names; save model.state_dict()"
            )
        self._top(dict).update(zip(names, items[1::2], strict=True))

    def _take(self, count: int) -> list[Any]:
        """Takes a number of values from the stack, returned in the order they were put there."""
        items = [self.stack.pop() for _ in range(count)][::-1]
        if any(item is _MARK for item in items):
            raise ValueError("a mark among the values")
        return items

    def _since_mark(self) -> list[Any]:
        """Takes all values since the last mark, and the mark."""
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _top(self, kind: type) -> Any:
        """Returns the value on top of the stack, which must be of that type."""
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"expected a {kind.__name__}")
        return self.stack[-1]


def brief(value: Any) -> str:
    """Returns a few words on a value of a pickle, for an error.

    Its repr will not do: that of a few nested tuples can have more characters than there is memory.
    """
    if isinstance(value, Name):
        return value.name[:200]
    if isinstance(value, str):
        return value[:200]
    if not isinstance(value, tuple) or not value:
        return f"a {type(value).__name__}"
    words = []
    for item in value[:5]:
        words.append(brief(item) if isinstance(item, (str, Name)) else type(item).__name__)
    return f"({', '.join(words)})"
