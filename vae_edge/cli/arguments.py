"""How the command line reads its words: suggestions for what is mistyped, help where nothing is given, and lists.

A list is written with commas or blanks, or its option is repeated; all of these together as well:
`--batch 1,8 64`, `--batch "1 8 64"`, `--batch 1 --batch 8`.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from vae_edge.spec import PRECISIONS, Size, parse_size
from vae_edge.text import printable

_NUMBERS = re.compile(r"[-+.\d][-+.,\d]*$")


def listed(item: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """For argparse, with the action "extend": the parts of a text, each read by `item`.

    Raises:
        argparse.ArgumentTypeError: if there is none, or `item` refuses one.
    """

    def read(text: str) -> list[Any]:
        parts = text.replace(",", " ").split()
        if not parts:
            raise argparse.ArgumentTypeError(f"{text!r}: expected one or more, such as 1,8 or 1 8")
        return [item(part) for part in parts]

    read.numbers = item is not str  # type: ignore[attr-defined]  # whose blanks need no quotes
    return read


class Parser(argparse.ArgumentParser):
    """A parser that suggests the nearest word, prints its help where a command is missing, and takes lists."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; numbers behind an option for a list are one value with it. Where nothing is given, but a
        command is needed, the help is printed, which is what a user wants to see then, and no mistake."""
        words = sys.argv[1:] if args is None else list(args)
        if not words and any(isinstance(action, argparse._SubParsersAction) for action in self._actions):
            self.print_help()
            self.exit(0)
        return super().parse_known_args(self._joined(words), namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; options that are unknown are told with the nearest one that is known."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser: argparse.ArgumentParser = getattr(parsed, "parser", self)
            known = [name for action in parser._actions for name in action.option_strings]
            told = [f"{word}{suggestion(word.split('=')[0], known)}" for word in unknown if word.startswith("-")]
            parser.error(f"unrecognized arguments: {' '.join(told or unknown)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Print the usage and the complaint, on one line whatever was typed, and exit with 2."""
        super().error(printable(message))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            names = ", ".join(action.choices)
            near = suggestion(str(value), action.choices)
            raise argparse.ArgumentError(None, f"there is no command {value!r}{near}; there are {names}")
        super()._check_value(action, value)

    def _joined(self, words: Sequence[str]) -> list[str]:
        """The words, where the numbers behind an option for a list of numbers are one with it: `--batch=1,8`."""
        options = {name for a in self._actions if getattr(a.type, "numbers", False) for name in a.option_strings}
        joined: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                return [*joined, word, *rest]
            option, _, first = word.partition("=")
            if option in options:
                numbers = [first] if first else []
                while rest and _NUMBERS.match(rest[0]):
                    numbers.append(rest.pop(0))
                word = f"{option}={','.join(numbers)}" if numbers else word
            joined.append(word)
        return joined


def only_what_is_given(parser: argparse.ArgumentParser) -> None:
    """Leave options that are not given out of the namespace, so that a file may give them."""
    for action in parser._actions:
        action.default = argparse.SUPPRESS


def suggestion(word: str, known: Iterable[str]) -> str:
    """ " (did you mean …?)", or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def number(text: str) -> float:
    """A finite number, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}: expected a number")
    return value


def tolerance(text: str) -> float:
    """A finite number from 0 on, for argparse."""
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 on")
    return value


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 1 on")
    return int(text)


def size(text: str) -> Size:
    """A size in pixels, for argparse: the side of a square, or HEIGHTxWIDTH."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole(text: str) -> int:
    """A whole number from 0 on, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 0 on")
    return int(text)


def precision(text: str) -> str:
    """A precision of a model file, for argparse."""
    if text not in PRECISIONS:
        raise argparse.ArgumentTypeError(f"{text}: expected {', '.join(PRECISIONS)}")
    return text


def seed(text: str) -> int:
    """A whole number that every generator of random numbers takes, for argparse."""
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 0 to {2**31 - 1}")
    return int(text)
