"""Run in a process of its own: prints as JSON what a TensorRT module offers. The argument is the module's name.

Each class with its base, methods (the signatures of the docstring), properties (whether they can be set) and the
members of an enumeration with their numbers.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from typing import Any

_SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+\(.*\) ->.*)$")


def signatures(callable_: Any) -> list[str]:
    """The lines of a pybind11 docstring that are signatures, without the generic `name(*args, **kwargs)`."""
    lines = [line.strip() for line in (callable_.__doc__ or "").splitlines()]
    found = [match[1] for line in lines if (match := _SIGNATURE.match(line))]
    return [line for line in found if "(*args, **kwargs)" not in line]


def describe(cls: type) -> dict[str, Any]:
    """What a class itself adds to its bases."""
    members = getattr(cls, "__members__", None)
    methods, properties, constants = {}, {}, {}
    for name, value in vars(cls).items():
        if members and (name in members or name in ("name", "value", "__members__")):
            continue
        if isinstance(value, property):
            properties[name] = value.fset is not None
        elif inspect.isclass(value):
            constants[name] = value.__name__
        elif callable(value) or isinstance(value, staticmethod):
            function = value.__func__ if isinstance(value, staticmethod) else value
            methods[name] = signatures(function)
    return {
        "bases": [base.__name__ for base in cls.__mro__[1:-1] if base.__name__ != "pybind11_object"],
        "methods": methods,
        "properties": properties,
        "classes": constants,
        "members": {name: int(member) for name, member in members.items()} if members else {},
    }


def classes(public: dict[str, Any]) -> dict[str, Any]:
    """Every class by its name, and those inside another as "Outer.Inner"."""
    found = {}
    for name, value in public.items():
        if inspect.isclass(value):
            found[name] = describe(value)
            inner = {key: each for key, each in vars(value).items() if inspect.isclass(each)}
            found.update({f"{name}.{key}": describe(each) for key, each in inner.items() if not key.startswith("_")})
    return found


def main() -> None:
    """Import the module and print its surface."""
    module = importlib.import_module(sys.argv[1])
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    answer = {
        "version": module.__version__,
        "file": inspect.getfile(module),
        "classes": classes(public),
        "functions": {
            name: signatures(value) or [f"{name}{inspect.signature(value)}"]
            for name, value in public.items()
            if inspect.isroutine(value)
        },
        "aliases": {name: value.name for name, value in public.items() if hasattr(type(value), "__members__")},
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
