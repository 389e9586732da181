"""`--help`: groups, one-line summaries that start with a verb, and examples that run word for word."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from vae_edge.cli import main
from vae_edge.cli.commands import EXAMPLES, GROUPS, SUMMARIES
from vae_edge.cli.parser import build_parser

pytestmark = pytest.mark.filterwarnings("ignore")
NEEDS_NETWORK_OR_GPU = ("data fetch", "build", "kit")
QUICKSTART_OF_EXAMPLE = "vae-edge quickstart --preset tiny --epochs 5 --out runs/tiny"


def test_every_command_is_in_one_group_with_a_summary_and_an_example() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert set(SUMMARIES) - {name for name in SUMMARIES if " " in name} == set(grouped)
    assert set(EXAMPLES) == set(SUMMARIES) - {"data", "kernels"}
    shown = build_parser().format_help()
    for group, names in GROUPS.items():
        assert f"\n{group}:\n" in shown
        for name in names:
            assert f"\n  {name:<11} {SUMMARIES[name]}\n" in shown


def test_help_fits_80_to_100_columns_and_shows_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for name, examples in EXAMPLES.items():
        with pytest.raises(SystemExit) as end:
            main([*name.split(), "--help"])
        assert end.value.code == 0
        shown = capsys.readouterr().out
        assert f"usage: vae-edge {name} " in shown
        for example in examples:
            assert f"  {example}\n" in shown
    assert all(len(line) <= 100 for line in build_parser().format_help().splitlines())


@pytest.mark.parametrize("example", [line for lines in EXAMPLES.values() for line in lines])
def test_every_example_is_understood(example: str) -> None:
    program, *words = shlex.split(example)
    assert program == "vae-edge"
    assert callable(build_parser().parse_args(words).run)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_example_runs_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which they stand, in an empty folder; a shell would expand the wildcards."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parents[1] / "fixtures/softmax.py", tmp_path)
    for name, examples in EXAMPLES.items():
        if name in NEEDS_NETWORK_OR_GPU:
            continue
        for example in examples if name != "quickstart" else [QUICKSTART_OF_EXAMPLE]:
            words = [
                path for word in shlex.split(example)[1:] for path in sorted(map(str, Path().glob(word))) or [word]
            ]
            assert main(words) == 0, example
