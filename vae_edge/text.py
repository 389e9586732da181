"""Escape untrusted text for terminals and files: names of files and classes, manifests, messages.

Three things in such text must not reach a terminal or a file unchanged:

- control characters (an escape sequence can recolour, retitle or overwrite a terminal): shown as `\\x1b`, `\\n`;
- bytes of a file's name that are not UTF-8, which Python keeps as lone surrogates: shown as `\\xe9`;
- characters outside the terminal's encoding: shown as a plain word or sign (`deg` for a degree sign), or as `\\xe9`,
  `\\u2603`.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
import unicodedata
from typing import Any

SUBSTITUTE = "vae_edge.substitute"
"""The name of our handler of encoding errors, for `open(errors=…)` and `str.encode`."""

_BEYOND_C0 = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
"""DEL, C1, line and paragraph separators, the marks that reverse the direction of text, and surrogates."""
_IN_TEXT = re.compile(f"[\x00-\x1f{_BEYOND_C0}]")
_IN_JSON = re.compile(f"[{_BEYOND_C0}]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_BYTES = re.compile("[\udc80-\udcff]+")
_KEEP = "surrogateescape"
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PLAIN = {
    "\u00a0": " ",  # no-break space
    "\u00b0": " deg",  # degree sign
    "\u00b1": "+/-",  # plus-minus sign
    "\u00b2": "^2",  # superscript two
    "\u00b3": "^3",  # superscript three
    "\u00b5": "u",  # micro sign
    "\u00b7": "*",  # middle dot
    "\u00d7": "x",  # multiplication sign
    "\u03bc": "u",  # greek small letter mu
    "\u2013": "-",  # en dash
    "\u2014": "-",  # em dash
    "\u2018": "'",  # left single quotation mark
    "\u2019": "'",  # right single quotation mark
    "\u201c": '"',  # left double quotation mark
    "\u201d": '"',  # right double quotation mark
    "\u2026": "...",  # horizontal ellipsis
    "\u2192": "->",  # rightwards arrow
    "\u2212": "-",  # minus sign
    "\u2248": "~",  # almost equal to
    "\u2264": "<=",  # less-than or equal to
    "\u2265": ">=",  # greater-than or equal to
}


def printable(text: str, keep: str = "") -> str:
    """The text with control characters and lone surrogates escaped, except the characters in `keep`."""
    if text.isascii() and text.isprintable():
        return text
    return _IN_TEXT.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), _reread(text))


def encodable(text: str) -> str:
    """The text with lone surrogates escaped, and nothing else: it can be written in UTF-8."""
    return _SURROGATES.sub(lambda found: _escaped(found[0]), _reread(text))


def json_text(value: Any) -> str:
    """A value as indented JSON, safe for any reader and any terminal: no control characters, no surrogates.

    Raises:
        ValueError: NaN or infinity.
    """
    text = _reread(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
    return _IN_JSON.sub(_escaped_in_json, text)


def ascii_json(text: str) -> str:
    """A JSON text with every character beyond ASCII as its escape."""
    if text.isascii():
        return text
    return "".join(letter if letter.isascii() else json.dumps(letter)[1:-1] for letter in text)


def system_name(name: str | os.PathLike[str]) -> str:
    """A file's name or a command's argument as text: UTF-8 whatever the locale, in NFC.

    Bytes that are not UTF-8 become lone surrogates, as in `os.fsdecode`.
    """
    return normal_form(os.fsencode(name).decode("utf-8", _KEEP))


def file_name(text: str) -> str:
    """The inverse of `system_name`: a file name whose bytes are the text in UTF-8, whatever the locale."""
    return os.fsdecode(text.encode("utf-8", _KEEP))


def normal_form(name: str) -> str:
    """A name in Unicode's normal form C, where `é` is one character. macOS writes two."""
    return unicodedata.normalize("NFC", name)


def terminal() -> Any:
    """The unfiltered standard error, for our own progress bars, which send control characters on purpose."""
    return getattr(sys.stderr, "behind", sys.stderr)


def _reread(text: str) -> str:
    """Decode bytes that the locale could not as UTF-8 where possible, so that a name looks the same in every locale."""
    return _BYTES.sub(lambda found: found[0].encode("utf-8", _KEEP).decode("utf-8", _KEEP), text)


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return _SHORT.get(letter) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def _escaped_in_json(found: re.Match[str]) -> str:
    """JSON's escape of a control character. A surrogate, which JSON must not hold, becomes the text `\\xe9`."""
    code = ord(found[0])
    return "\\" + _escaped(found[0]) if 0xD800 <= code <= 0xDFFF else f"\\u{code:04x}"


def _substitute(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(each) or _shown(each) for each in letters), error.end


def _shown(letter: str) -> str:
    return f"\\U{ord(letter):08x}" if ord(letter) > 0xFFFF else _escaped(letter)


codecs.register_error(SUBSTITUTE, _substitute)
