"""Which TensorRT this is, and how a class is cut down to what that version has."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Personality:
    """One version of TensorRT.

    Attributes:
        name: as tests ask for it, such as "10.3".
        letter: its letter in the tables of the double.
        version: what `__version__` says.
        module: the name under which it is imported.
        tag: number of the serialization format, which messages name.
    """

    name: str
    letter: str
    version: str
    module: str
    tag: int

    @property
    def flavour(self) -> str:
        """ "tensorrt" or "tensorrt_rtx"."""
        return self.module

    @property
    def version_bytes(self) -> bytes:
        """Major, minor, patch and build, as the header of an engine has them."""
        return bytes([*(int(part) & 255 for part in self.version.split(".")), 0])[:4]


PERSONALITIES = {
    each.name: each
    for each in (
        Personality("10.3", "a", "10.3.0", "tensorrt", 239),
        Personality("10.13", "b", "10.13.3.9", "tensorrt", 243),
        Personality("11.4", "c", "11.4.0.106", "tensorrt", 251),
        Personality("rtx", "r", "1.7.1.116", "tensorrt_rtx", 1007),
    )
}

# This package is loaded once for each personality, under a name of its own; the loader sets PERSONALITY before.
HERE = PERSONALITIES[getattr(sys.modules[__package__], "PERSONALITY", "10.3")]

EXPORTS: dict[str, Any] = {}
"""What the module offers: names and values."""


def only(letters: str) -> Callable[[Any], Any]:
    """Marks a method or property that only the versions with these letters have; goes above `@property`."""

    def mark(member: Any) -> Any:
        target = member.fget if isinstance(member, property) else member
        target._only = letters
        return member

    return mark


def offered(letters: str = "abcr") -> Callable[[type], type]:
    """A class of the module, in the versions with these letters, without the members that this version lacks."""

    def cut(cls: type) -> type:
        for name, member in list(vars(cls).items()):
            target = member.fget if isinstance(member, property) else member
            if HERE.letter not in getattr(target, "_only", "abcr"):
                delattr(cls, name)
        cls.__setattr__ = _set_known
        if HERE.letter in letters:
            EXPORTS[cls.__name__] = cls
        return cls

    return cut


def _set_known(self: Any, name: str, value: Any) -> None:
    """Objects of pybind11 take no attributes that their class does not have; those of a derived class do."""
    if type(self) is EXPORTS.get(type(self).__name__) and not name.startswith("_") and not hasattr(type(self), name):
        raise AttributeError(f"'{HERE.module}.{type(self).__name__}' object has no attribute '{name}'")
    object.__setattr__(self, name, value)


def overloads(*signatures: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A method with several signatures, each written "name, other=None" and letters of versions after a slash.

    The method gets the arguments by name; the caller may give them by place, which takes the first signature that
    fits in number, or by name.
    """
    offered_here = []
    for text in signatures:
        names, _, letters = text.partition("/")
        if not letters or HERE.letter in letters:
            offered_here.append([name.strip() for name in names.split(",") if name.strip()])

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            for names in offered_here:
                plain = [name.partition("=")[0] for name in names]
                if len(args) > len(plain) or not set(kwargs) <= set(plain[len(args) :]):
                    continue
                given = {**dict(zip(plain, args, strict=False)), **kwargs}
                if all(name.partition("=")[0] in given for name in names if "=" not in name):
                    return method(self, **given)
            raise TypeError(f"{method.__name__}(): incompatible function arguments: {args!r}, {kwargs!r}.")

        call._overloads = offered_here
        return call

    return wrap


def parameters(function: Callable[..., Any]) -> list[list[str]]:
    """The signatures of a method or function: the names of the arguments, without self, each with "=" if optional."""
    declared = getattr(function, "_overloads", None)
    if declared is not None:
        return [[name.partition("=")[0] + ("=" if "=" in name else "") for name in names] for names in declared]
    found = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        optional = "=" if parameter.default is not parameter.empty else ""
        positional = parameter.kind is parameter.POSITIONAL_ONLY
        found.append(("arg" if positional else parameter.name) + optional)
    return [found]


def handle(value: Any, what: str) -> int:
    """An integer argument: 10.x wants a plain int, 11 and RTX also take what has `__int__`.

    Raises:
        TypeError: as pybind11 raises it.
    """
    if isinstance(value, int):
        return value
    if HERE.letter in "cr" and not isinstance(value, (float, str)) and hasattr(value, "__int__"):
        return int(value)
    raise TypeError(f"incompatible function arguments: {what} is {type(value).__name__}, and int was expected.")


def text(value: Any, what: str) -> str:
    """A string argument.

    Raises:
        TypeError: as pybind11 raises it.
    """
    if not isinstance(value, str):
        raise TypeError(f"incompatible function arguments: {what} is {type(value).__name__}, and str was expected.")
    return value


def member(value: Any, enum: Any, what: str) -> Any:
    """An argument of an enumeration.

    Raises:
        TypeError: as pybind11 raises it.
    """
    if type(value) is not enum:
        raise TypeError(
            f"incompatible function arguments: {what} is {type(value).__name__}, and {enum.__name__} was expected."
        )
    return value
