"""What the images of a data set belong to: a maker, a font, a camera, a day.

`group_by` says where the groups come from:

- `folder`: from the sub-folder of its class's folder that an image lies in: `lamp/apple/1.png` is of the group `apple`;
- `FILE.csv`: from a table with the columns `file` and `group`, a row for each image; a file is written relative to the
  data set's folder, with slashes, and so is the path of the table if it is not found from where one is;
- a pattern of the file's name without its suffix, in which `{group}` stands for the group's name and `*` for anything:
  `{group}__*` takes `apple` from `apple__lamp-3.png`. A pattern with a slash is one of the path below the class's
  folder: `*/{group}/*`. A `*` before the group takes as much as it can, the group as little as it can.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from vae_edge import files
from vae_edge.data.dataset import Dataset, LabelledImages
from vae_edge.errors import ConfigError, DataError
from vae_edge.spec import MAX_NAME, MAX_TABLE_BYTES
from vae_edge.text import normal_form, printable, system_name

FOLDER = "folder"
GROUP = "{group}"

MAX_NAMED = 5
"""Groups and files that a sentence names."""
_MIN_COMMON_CLASSES = 0.5
"""Sub-folders are taken for groups, in a hint, if more than this fraction of the classes have two of them in common."""


def group_images(dataset: Dataset, group_by: str) -> Dataset:
    """Give the images of a data set their groups.

    The train split must have a group for each image. Another split has groups if all of its images do.

    Args:
        dataset: images that came from files.
        group_by: see the top of this module.

    Raises:
        ConfigError: `group_by` is none of the three.
        DataError: the images have no files; an image has no group; the table is not there, or damaged.
    """
    first = next(iter(dataset.splits.values()))
    if first.files is None:
        raise DataError(
            f"{dataset.source} holds arrays, and groups come from the names of files; in Python give its "
            "LabelledImages `groups`, or take a folder of images."
        )
    lookup = _Lookup(dataset, group_by)
    found: dict[str, LabelledImages] = {}
    for name, split in dataset.splits.items():
        groups = lookup.groups(split)
        without = [] if groups is None else np.flatnonzero(groups == "").tolist()
        if name == "train" and (groups is None or without):
            raise DataError(lookup.what_is_missing(split, without))
        found[name] = split if groups is None or without else replace(split, groups=groups)
    grouped = replace(dataset, train=found.get("train"), test=found.get("test"), validation=found.get("validation"))
    note = (f"groups by {printable(group_by)}: {describe_groups(grouped.train)}",) if grouped.train is not None else ()
    return replace(grouped, notes=(*dataset.notes, *note))


def describe_groups(data: LabelledImages) -> str:
    """The number of groups, and the first of them, the largest first, with their number of images."""
    assert data.groups is not None
    counts = Counter(data.groups.tolist()).most_common()
    more = ", …" if len(counts) > MAX_NAMED else ""
    return f"{len(counts)} ({', '.join(f'{name}: {count}' for name, count in counts[:MAX_NAMED])}{more})"


def hint_of_folders(data: LabelledImages) -> Iterator[str]:
    """A hint where most classes have sub-folders of the same names, which may be groups."""
    below = paths_below_class(data)
    classes_of: dict[str, set[int]] = {}
    for path, label in zip(below, data.labels.tolist(), strict=True):
        if len(path.parts) > 1:
            classes_of.setdefault(path.parts[0], set()).add(label)
    present = len(np.unique(data.labels))
    common = sorted(name for name, labels in classes_of.items() if len(labels) > _MIN_COMMON_CLASSES * present)
    if len(common) > 1:
        named = ", ".join(printable(name) for name in common[:MAX_NAMED]) + (", …" if len(common) > MAX_NAMED else "")
        yield (
            f"most classes have the sub-folders {named}: if these are makers, cameras or days, --group-by folder holds "
            "whole ones out, and the figures say how good the model is on new ones"
        )


def paths_below_class(data: LabelledImages) -> list[PurePosixPath]:
    """The path of each image's file below its class's folder."""
    assert data.files is not None
    paths = [PurePosixPath(name) for name in data.files]
    if not paths:
        return []
    shared = 0  # components that all files have in common are above the classes, as far as there is more than one
    for parts in zip(*(path.parts[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    names = {normal_form(name) for name in data.classes}
    if len(np.unique(data.labels)) == 1:
        within = [index for index in range(shared) if system_name(paths[0].parts[index]) in names]
        shared = within[-1] if within else shared
    return [PurePosixPath(*path.parts[shared + 1 :]) for path in paths]


def check_rule(group_by: str) -> None:
    """Check that `group_by` is of one of the three forms.

    Raises:
        ConfigError: it is not.
    """
    if GROUP in group_by:
        parse_pattern(group_by)
    elif group_by != FOLDER and not group_by.lower().endswith(".csv"):
        raise ConfigError(
            f"group_by is `folder`, a table FILE.csv with the columns file and group, or a pattern of the file's "
            f"name such as {GROUP}__*, but {group_by!r} came."
        )


def rule_to_store(group_by: str | None) -> str | None:
    """The rule as a run states it to others: of a table its file's name alone, since folders may be private."""
    return group_by if group_by is None or GROUP in group_by else PurePosixPath(group_by).name


class _Lookup:
    """Finds the groups of a data set's images by one rule."""

    def __init__(self, dataset: Dataset, group_by: str) -> None:
        self._dataset, self._rule = dataset, group_by
        self._table: dict[str, str] | None = None
        self._pattern: re.Pattern[str] | None = None
        check_rule(group_by)
        if GROUP in group_by:
            self._pattern = parse_pattern(group_by)
        elif group_by != FOLDER:
            self._table = read_table(self._table_path(group_by))

    def _table_path(self, name: str) -> Path:
        path = Path(name).expanduser()
        beside = Path(self._dataset.source) / name
        return beside if not path.exists() and beside.exists() else path

    def groups(self, data: LabelledImages) -> np.ndarray | None:
        """object [N]: the group of each image, empty where it has none. None: the images have no files."""
        if data.files is None:
            return None
        if self._table is not None:
            found = [self._table.get(_key(name), "") for name in data.files]
        elif self._pattern is not None:
            found = [self._matched(path) for path in paths_below_class(data)]
        else:
            found = [path.parts[0] if len(path.parts) > 1 else "" for path in paths_below_class(data)]
        groups = np.empty(len(found), dtype=object)
        shared: dict[str, str] = {}  # one text a group, not one an image
        groups[:] = [shared.setdefault(name, printable(system_name(name))) for name in found]
        return groups

    def _matched(self, path: PurePosixPath) -> str:
        assert self._pattern is not None
        whole = path.with_suffix("").as_posix() if "/" in self._rule else path.stem
        match = self._pattern.fullmatch(system_name(whole))
        return match[1] if match else ""

    def what_is_missing(self, data: LabelledImages, without: Sequence[int]) -> str:
        """A sentence about images without a group."""
        if data.files is None:
            return f"{self._dataset.source}: the images of the train split came as arrays, and have no groups."
        named = ", ".join(printable(data.files[index]) for index in without[:MAX_NAMED])
        more = ", …" if len(without) > MAX_NAMED else ""
        about = f"{self._dataset.source}: {len(without)} of {len(data)} images have no group ({named}{more})"
        if self._table is not None:
            return f"{about}: {self._rule} has no row for them; add rows, or take the images away."
        if self._pattern is not None:
            what = "path below the class's folder" if "/" in self._rule else "name"
            return f"{about}: their {what} without its suffix does not match {self._rule}; change the pattern."
        return f"{about}: they lie directly in their class's folder; put them into a sub-folder, as others are."


def parse_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern; its first group is the group's name.

    Raises:
        ConfigError: `{group}` does not stand in it exactly once, or another brace does.
    """
    before, _, after = pattern.partition(GROUP)
    if GROUP in after or set(before + after) & set("{}"):
        raise ConfigError(f"group_by {pattern!r}: expected {GROUP} once, and no other braces.")
    if before.endswith("*") or after.startswith("*") or not before + after:
        raise ConfigError(
            f"group_by {pattern!r}: expected something that the group's name begins or ends at, as in {GROUP}__*."
        )

    def expression(text: str) -> str:
        return "[^/]*".join(re.escape(part) for part in normal_form(text).split("*"))

    return re.compile(f"{expression(before)}([^/]+?){expression(after)}", re.DOTALL)


def read_table(path: Path) -> dict[str, str]:
    """The group of each file, of a CSV table with the columns `file` and `group`; further columns are left out.

    Raises:
        DataError: the table is not there, too large, or no such table; it gives a file two groups, or an empty one.
    """
    try:
        text = files.read_bytes(path, MAX_TABLE_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"The table of groups {path} cannot be read as UTF-8 text: {error}.") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: dict[str, str] = {}
    try:
        head = [name.strip().lower() for name in next(rows, [])]
        if head.count("file") != 1 or head.count("group") != 1:
            raise DataError(
                f"{path}: expected a first line with the columns file and group, separated by a comma, but it is "
                f"{printable(','.join(head))[:80]!r}."
            )
        file_at, group_at = head.index("file"), head.index("group")
        for row in rows:
            if not row:
                continue
            if len(row) <= max(file_at, group_at):
                raise DataError(f"{path}, line {rows.line_num}: expected {len(head)} values, but it has {len(row)}.")
            name, group = row[file_at].strip(), row[group_at].strip()
            if not name or not group or len(group) > MAX_NAME:
                raise DataError(
                    f"{path}, line {rows.line_num}: expected a file and a group of at most {MAX_NAME} characters."
                )
            if found.setdefault(_key(name), group) != group:
                raise DataError(
                    f"{path}, line {rows.line_num}: {printable(name)} has another group on an earlier line."
                )
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: it is damaged as a CSV table: {error}.") from error
    return found


def _key(name: str) -> str:
    """A file's name as tables are searched for it."""
    return PurePosixPath(system_name(name)).as_posix()
