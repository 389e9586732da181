"""A run's configuration file: every option of `vae_edge.train` in TOML. One is written beside each run and repeats it.

    data = "photos"             # arguments of `vae_edge.train`
    preset = "small"

    [training]                  # fields of `vae_edge.TrainConfig`
    rotation = "none"
    epochs = 40

    [training.weights]          # of the loss
    beta = 1.0

    [model]                     # numbers of the network that differ from the preset
    latent = 32

What a file leaves out has its default.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from vae_edge.errors import ConfigError
from vae_edge.files import read_bytes, write_text
from vae_edge.model import LossWeights, ModelConfig
from vae_edge.model.config import checked_fields
from vae_edge.spec import MAX_JSON_BYTES
from vae_edge.training.config import RunConfig, TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RUN_FILE = "run.toml"

ARGUMENTS: dict[str, tuple[type, ...]] = {
    "data": (str,),
    "out": (str,),
    "preset": (str,),
    "backbone": (str,),
    "size": (int, list),
    "channels": (int,),
    "fit": (str,),
    "alpha_background": (str,),
    "val": (str,),
    "minutes": (int, float),
    "strict": (bool,),
    "cache": (bool,),
    "tensorboard": (bool,),
    "threads": (int,),
}
"""Arguments of `vae_edge.train` that a file may give, and their types."""
TRAINING = tuple(field.name for field in fields(TrainConfig) if field.name != "weights")
WEIGHTS = tuple(field.name for field in fields(LossWeights))
OF_DATA = ("preset", "classes", "size", "channels", "orientation", "fill", "circular_mask", "backbone")
"""Fields of `ModelConfig` that are given otherwise, or follow from the data."""
MODEL = tuple(field.name for field in fields(ModelConfig) if field.name not in OF_DATA)
TABLES = {"": tuple(ARGUMENTS), "training": TRAINING, "training.weights": WEIGHTS, "model": MODEL}
"""The keys of each table."""


def run_arguments(path: str | os.PathLike[str] | None = None, **changes: Any) -> dict[str, Any]:
    """Keyword arguments of `vae_edge.train` from a configuration file and from single options, which win.

        vae_edge.train(**vae_edge.run_arguments("runs/a/run.toml", out="runs/b", epochs=20))

    Args:
        path: the file. None: only the options.
        changes: options by name: arguments of `train`, fields of `TrainConfig` and of its loss weights, and `model`.

    Raises:
        ConfigError: the file cannot be read; an option is unknown, of the wrong type or out of range.
    """
    content = {} if path is None else _read(path)
    tables = {name: dict(table) for name, table in _split(content).items()}
    for name, value in changes.items():
        if name == "model":
            tables["model"].update(value)
            continue
        home = next((table for table, keys in TABLES.items() if name in keys and table != "model"), None)
        if home is None:
            raise ConfigError(f"unknown option {name}{_nearest(name, _all_keys())}")
        tables[home][name] = value
        other = {"epochs": ("", "minutes"), "minutes": ("training", "epochs")}.get(name)
        if other is not None and other[1] not in changes:  # the file's is another way to say the same
            tables[other[0]].pop(other[1], None)
    source = "the options" if path is None else os.fspath(path)
    training: dict[str, Any] = tables["training"]
    if type(training.get("rotation")) in (int, float):
        training["rotation"] = f"{training['rotation']:g}"
    if tables["training.weights"]:
        training = {**training, "weights": tables["training.weights"]}
    if isinstance(tables[""].get("size"), list):
        tables[""]["size"] = _height_and_width(tables[""]["size"], source)
    config = TrainConfig(**checked_fields(TrainConfig, training, f"{source}, training", complete=False))
    model = checked_fields(ModelConfig, tables["model"], f"{source}, model", complete=False)
    return {**tables[""], "config": config, **({"model": model} if model else {})}


def _height_and_width(size: list[Any], source: str) -> tuple[int, int]:
    if len(size) != 2 or any(type(side) is not int for side in size):
        raise ConfigError(f"{source}: size is {str(size)[:40]}: expected the side of a square, or [height, width]")
    return size[0], size[1]


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a file, its keys and the types of train's arguments checked."""
    try:
        content = tomllib.loads(read_bytes(path, MAX_JSON_BYTES).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a configuration file in TOML: {error}") from error
    for name, table in _split(content).items():
        where = f" in [{name}]" if name else ""
        for key, value in table.items():
            if key not in TABLES[name]:
                raise ConfigError(f"{path}: unknown key {key}{where}{_hint(key, name)}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{path}: {key}{where} is {value}: expected a finite number")
            if not name and (
                not isinstance(value, ARGUMENTS[key]) or isinstance(value, bool) != (ARGUMENTS[key] == (bool,))
            ):
                raise ConfigError(f"{path}: {key} is {str(value)[:40]!r}: expected {_type_words(ARGUMENTS[key])}")
    return content


def _split(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tables by name. A table's place may hold something else, which is then an unknown key."""
    tables: dict[str, dict[str, Any]] = {name: {} for name in TABLES}
    for key, value in content.items():
        if key in ("training", "model") and isinstance(value, dict):
            tables[key] = dict(value)
        else:
            tables[""][key] = value
    if isinstance(tables["training"].get("weights"), dict):
        tables["training.weights"] = tables["training"].pop("weights")
    return tables


def _hint(key: str, table: str) -> str:
    """Where an unknown key belongs, or the nearest one that is known."""
    if not table and key in ("training", "model"):
        return f": expected the table [{key}]"
    for name, keys in TABLES.items():
        if key in keys:
            return f": it belongs {f'in the table [{name}]' if name else 'before the first table'}"
    if table == "model" and key in OF_DATA:
        return ": it follows from the images or from another option"
    return _nearest(key, TABLES[table]) or _nearest(key, _all_keys())


def _all_keys() -> list[str]:
    return [key for keys in TABLES.values() for key in keys]


def _nearest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _type_words(types: tuple[type, ...]) -> str:
    if list in types:
        return "a whole number, or two in brackets"
    return {str: "a text", bool: "true or false", int: "a whole number"}[types[0]] if len(types) == 1 else "a number"


def write_run_file(folder: Path, config: RunConfig, arguments: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
    """Write `run.toml` into a run's folder: the whole configuration, defaults included, so that it repeats the run.

    Args:
        folder: of the run.
        config: of the run, its number of epochs chosen.
        arguments: of `vae_edge.train`, by name; those that are None are left out.
        notes: written as comments.
    """
    given = {name: arguments[name] for name in ARGUMENTS if arguments.get(name) is not None}
    training = config.training.to_dict()
    weights = training.pop("weights")
    model = {name: value for name, value in asdict(config.model).items() if name in MODEL}
    tables = {"": given, "training": training, "training.weights": weights, "model": model}
    write_text(folder / RUN_FILE, "\n".join(_lines(tables, notes)) + "\n")


def _lines(tables: Mapping[str, Mapping[str, Any]], notes: Sequence[str]) -> Iterator[str]:
    from vae_edge import __version__

    yield f"# Written by vae-edge {__version__}. `vae-edge train --config THIS_FILE --out OTHER` repeats the run:"
    yield "# bit for bit on the same machine with the same versions."
    yield from (f"# {note}" for note in notes)
    for name, table in tables.items():
        if name:
            yield ""
            yield f"[{name}]"
        yield from (f"{key} = {_toml(value)}" for key, value in table.items() if value is not None)


def _toml(value: Any) -> str:
    """A value in TOML, whose strings, numbers and lists are JSON's but for one character."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
