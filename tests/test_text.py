"""Names and messages made fit for terminals, files and JSON."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import pytest

from vae_edge.files import parse_json, read_json, write_json, write_text
from vae_edge.text import SUBSTITUTE, ascii_json, encodable, file_name, json_text, normal_form, printable, system_name

EVERY = "".join(map(chr, range(sys.maxunicode + 1)))
FLIPS = {"RLE", "LRE", "RLO", "LRO", "PDF", "RLI", "LRI", "FSI", "PDI"}
"""Directional formatting characters (UAX #9)."""


def dangerous(text: str) -> list[str]:
    """What no terminal may get: controls (category Cc), surrogates, and what turns the direction of text."""
    return [
        letter
        for letter in text
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in FLIPS
    ]


def test_no_control_character_and_no_surrogate_is_left_of_all_of_unicode() -> None:
    assert dangerous(printable(EVERY)) == [] and len(dangerous(EVERY)) > 2000
    assert dangerous(printable(EVERY, keep="\n\t")) == ["\t", "\n"]
    assert dangerous(json_text([EVERY])) == ["\n", "\n"]  # between the brackets of the list


def test_all_else_stays_as_it_is() -> None:
    text = "cat 1 \\ é ☃ 漢字 \U0001f600 ° ×"
    assert printable(text) == text and json.loads(json_text({text: [text]})) == {text: [text]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("two\nlines\tand\r", "two\\nlines\\tand\\r"),
        ("\x9b2J", "\\x9b2J"),
        ("caf\udce9.png", "caf\\xe9.png"),
        ("caf\udcc3\udca9.png", "café.png"),  # as a locale without UTF-8 gives the name
        ("\udcc2\udc9b2J", "\\x9b2J"),  # a control character in bytes
        ("\ud800", "\\ud800"),
        ("png.\u202egnp", "png.\\u202egnp"),
    ],
)
def test_what_cannot_be_shown_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    as_json = json_text(text)
    assert not dangerous(as_json) and not any("\ud800" <= letter <= "\udfff" for letter in json.loads(as_json))
    if "\\x" not in shown and "\\u" not in shown and "\\n" not in shown:
        assert json.loads(as_json) == shown


def test_json_is_what_json_reads_back_and_ascii_where_asked() -> None:
    value = {"name": "a\x1b\x9b\u202e\u2028é\U0001f600", "numbers": [1, 2.5, None, True]}
    for ascii_only in (False, True):
        text = ascii_json(json_text(value)) if ascii_only else json_text(value)
        assert json.loads(text) == value and text.isascii() == ascii_only
        text.encode("utf-8")
    with pytest.raises(ValueError, match="JSON compliant"):
        json_text([float("nan")])


def test_what_an_encoding_lacks_is_a_plain_word_or_an_escape() -> None:
    assert "turned 12° 28×28 … é ☃ \U0001f600 \udce9".encode("ascii", SUBSTITUTE) == (
        b"turned 12 deg 28x28 ... \\xe9 \\u2603 \\U0001f600 \\xe9"
    )
    assert "12° é ☃".encode("latin-1", SUBSTITUTE) == b"12\xb0 \xe9 \\u2603"
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("ascii", SUBSTITUTE)
    for encoding in ("ascii", "latin-1", "cp437", "utf-8"):
        EVERY[:0x10100].encode(encoding, SUBSTITUTE)


def test_files_take_names_that_are_no_utf8(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"data": "caf\udce9", "é": "\x9b"})
    assert read_json(tmp_path / "a.json") == {"data": "caf\\xe9", "é": "\x9b"}
    assert parse_json((tmp_path / "a.json").read_bytes()) == json.loads((tmp_path / "a.json").read_bytes())
    write_text(tmp_path / "a.md", "caf\udce9 é ☃")
    assert (tmp_path / "a.md").read_bytes() == "caf\\xe9 é ☃".encode()


def test_names_of_the_system_are_utf8_in_normal_form_c() -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    assert decomposed != "café" and system_name(decomposed) == normal_form(decomposed) == "café"
    assert system_name("caf\udce9") == "caf\udce9"
    for name in ("café", "caf\udce9", "☃"):
        assert system_name(file_name(name)) == name


def test_text_for_a_utf8_file_keeps_everything_but_what_utf8_cannot_hold() -> None:
    odd = 'a\x1b\r\n\t"é\u202e\u2028'
    assert encodable(odd) == odd
    assert encodable("x\udce9\ud800") == "x\\xe9\\ud800"
    assert encodable("caf\udcc3\udca9") == "café"  # bytes of UTF-8 that the locale could not read
