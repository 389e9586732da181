"""What the command line makes of its words: lists in every form, suggestions, and help where nothing was asked."""

from __future__ import annotations

import pytest

from vae_edge.cli import main
from vae_edge.cli.parser import build_parser


def parse(line: str, *more: str) -> dict:
    return vars(build_parser().parse_args([*line.split(), *more]))


@pytest.mark.parametrize(
    "words",
    [
        ["--batch", "1,8"],
        ["--batch", "1", "8"],
        ["--batch", "1 8"],
        ["--batch=1,8"],
        ["--batch=1", "8"],
        ["--batch", "1", "--batch", "8"],
        ["--batch", "1,", "8"],
        ["--batch", "1, 8"],
    ],
    ids=" ".join,
)
def test_a_list_of_numbers_has_one_meaning_in_every_form(words: list[str]) -> None:
    for behind in ([*words, "bundle"], ["bundle", *words]):
        parsed = vars(build_parser().parse_args(["bench", *behind]))
        assert (parsed["batch"], parsed["bundle"]) == ([1, 8], "bundle")


@pytest.mark.parametrize(
    ("line", "name", "expected"),
    [
        ("bench b --backend openvino,onnxruntime", "backend", ["openvino", "onnxruntime"]),
        ("bench b --precision fp32 --precision int8", "precision", ["fp32", "int8"]),
        ("verify b --backend openvino,onnxruntime", "backend", ["openvino", "onnxruntime"]),
        ("build b --batch 1 4 16", "batch", [1, 4, 16]),
        ("build b --target sm_86,sm_89 --target sm_120", "target", ["sm_86", "sm_89", "sm_120"]),
        ("generate r --out o --angles -90,0", "angles", [-90.0, 0.0]),
        ("generate r --out o --angles -90 0 45.5", "angles", [-90.0, 0.0, 45.5]),
        ("generate r --out o --angles=-90,0", "angles", [-90.0, 0.0]),
        ("compare --data d --models svm,cnn", "models", ["svm", "cnn"]),
        ("kernels check --arch 87,sm_90", "arch", ["87", "sm_90"]),
    ],
)
def test_every_list_takes_commas_or_is_repeated(line: str, name: str, expected: list) -> None:
    assert parse(line)[name] == expected


def test_names_with_blanks_are_one_name() -> None:
    assert parse("generate r --out o --class", "arrow, blue")["classes"] == ["arrow, blue"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("trian --data x", "there is no command 'trian' (did you mean train?); there are quickstart, data, train"),
        ("xyzzy", "there is no command 'xyzzy'; there are quickstart"),
        ("data fecth mnist", "there is no command 'fecth' (did you mean fetch?); there are fetch, show"),
        ("train --data x --out y --epohcs 3", "unrecognized arguments: --epohcs (did you mean --epochs?)"),
        ("bench b --secnds=3", "unrecognized arguments: --secnds=3 (did you mean --seconds?)"),
        ("bench b --batch 1,many", "argument --batch: many: expected a whole number from 1 on"),
        ("bench b --batch 0", "argument --batch: 0: expected a whole number from 1 on"),
        ("bench b --batch ,", "argument --batch: ',': expected one or more, such as 1,8 or 1 8"),
        ("generate r --out o --angles north", "argument --angles: north: expected a number"),
    ],
)
def test_what_is_mistyped_gets_a_sentence_and_exit_code_2(
    line: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(line.split())
    assert stop.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["data"], ["kernels"]])
def test_where_nothing_is_asked_the_help_is_the_answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    out, err = capsys.readouterr()
    assert stop.value.code == 0 and err == ""
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert out == capsys.readouterr().out


def test_an_unknown_option_alone_is_still_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--verbose"])
    assert stop.value.code == 2 and "error" in capsys.readouterr().err
