"""A row's results file: an entry for each seed, means and deviations over the seeds, and the lines of the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model_rows import GAIN, ROWS, Goal, Row
from model_training import settings_of

from vae_edge.errors import DataError
from vae_edge.experiments.setup import spread
from vae_edge.files import write_json

SCHEMA = 1
DIGITS = 6  # decimals that are kept of a figure
OURS, CONTROL, GAINS = "turned", "equal-cnn", "gain"
Entry = dict[str, Any]


def results_file(results: Path, name: str) -> Path:
    """Where the results of a row are."""
    return results / f"model-{name}.json"


def read_entries(path: Path, expected: Callable[[Entry], dict[str, Any]]) -> dict[int, Entry]:
    """A file's entries by seed: those whose settings and data are what `expected` gives for them.

    Raises:
        DataError: the file is damaged or of another version.
    """
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise DataError(f"{path} has schema {record['schema']!r}; this version reads {SCHEMA}: remove the file.")
        entries = {int(entry["seed"]): entry for entry in record["seeds"]}
        return {seed: entry for seed, entry in entries.items() if identity(entry) == expected(entry)}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): remove it, and what is missing is measured again.") from error


def identity(entry: Entry) -> dict[str, Any]:
    """What an entry's figures depend on."""
    return {"settings": entry["settings"], "data": entry["data"]}


def write_entries(path: Path, name: str, what: str, goals: Sequence[Goal], entries: dict[int, Entry]) -> None:
    """Write a row's file; every entry has the same settings but for the seed."""
    seeds = [entries[seed] for seed in sorted(entries)]
    figures = rounded(over_seeds([entry["figures"] for entry in seeds]))
    record = {
        "schema": SCHEMA,
        "row": name,
        "what": what,
        "goals": rounded([line(goal, figures) for goal in goals]),
        "figures": figures,
        "seeds": seeds,
    }
    write_json(path, record)


def over_seeds(trees: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, sample standard deviation and values of each number that all have, in the form of the trees."""
    result: dict[str, Any] = {}
    for name, first in trees[0].items():
        values = [tree[name] for tree in trees if name in tree]
        if len(values) < len(trees):
            continue
        if isinstance(first, dict):
            result[name] = over_seeds(values)
        elif isinstance(first, (int, float)) and not isinstance(first, bool):
            result[name] = spread(values)
    return result


def line(goal: Goal, figures: dict[str, Any]) -> dict[str, Any]:
    """A line of the table: what is wanted and, in the same unit, what was reached; `n` is 0 where nothing was."""
    found: Any = figures
    for name in goal.figure:
        found = found.get(name, {})
    wanted = {"what": goal.what, "unit": goal.unit, "reach": goal.reach, "aim": goal.aim}
    form = {"lower": goal.lower, "decimals": goal.decimals}
    if not found:
        return {**wanted, "mean": None, "std": None, "n": 0, **form}
    deviation = None if found["std"] is None else goal.scale * found["std"]
    return {**wanted, "mean": goal.scale * found["mean"], "std": deviation, "n": len(found["by_seed"]), **form}


def rounded(value: Any) -> Any:
    """The same tree with numbers of six decimals."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(part) for part in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def write_gain(results: Path, ours: dict[int, Entry], control: dict[int, Entry]) -> bool:
    """What the angle encoder is worth, seed by seed, of entries with the same recipe and images; whether there are any.

    A file of an earlier recipe is removed.
    """
    path = results_file(results, GAINS)
    pairs = {}
    for seed in sorted(set(ours) & set(control)):
        pair = ours[seed], control[seed]
        first, second = ({**entry["settings"], "control_of": None} for entry in pair)
        if first == second and pair[0]["data"]["fingerprint"] == pair[1]["data"]["fingerprint"]:
            one, other = (entry["figures"]["accuracy"] for entry in pair)
            figures = {OURS: one, CONTROL: other, "gain": one - other}
            pairs[seed] = {"seed": seed, **identity(pair[0]), "figures": figures, "date": pair[1]["date"]}
    if pairs:
        write_entries(path, GAINS, ROWS[OURS].what, (GAIN,), pairs)
    else:
        path.unlink(missing_ok=True)
    return bool(pairs)


def table(results: Path, rows: Mapping[str, Row]) -> str:
    """The Markdown table of the rows that have a file; it says where they were measured with other settings."""
    lines = ["| what | images | reach | aim for | reached |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        lines += _lines(results_file(results, name), row)
        if name == CONTROL:
            lines += _lines(results_file(results, GAINS), rows[OURS])
    return "\n".join(lines)


def _lines(path: Path, row: Row) -> Iterator[str]:
    if not path.is_file():
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    current = all(entry["settings"] == settings_of(row, entry["seed"]) for entry in record["seeds"])
    for goal in record["goals"]:
        reached = _reached(goal) + ("" if current else ", with other settings")
        yield f"| {' | '.join((goal['what'], record['what'], _wanted(goal, 'reach'), _wanted(goal, 'aim'), reached))} |"


def _wanted(goal: dict[str, Any], which: str) -> str:
    if goal[which] is None:
        return "–"
    return f"{'≤' if goal['lower'] else '≥'} {goal[which]:,.10g}{goal['unit']}"


def _reached(goal: dict[str, Any]) -> str:
    if not goal["n"]:
        return "not measured"
    places = goal["decimals"]
    deviation = "" if goal["std"] is None else f" ± {goal['std']:,.{places}f}"
    mean = round(goal["mean"], places) + 0.0  # of a small negative number it is -0
    return f"{mean:,.{places}f}{goal['unit']}{deviation}, {goal['n']} seed{'s' if goal['n'] > 1 else ''}"
