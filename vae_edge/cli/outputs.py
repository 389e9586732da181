"""Whether a command can write where it is told to, asked before it begins: hours of work must not end in a refusal."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vae_edge.errors import BundleError, ConfigError

_MADE_BY_EXPORT = re.compile(r"(classifier|reconstruction)\.fp32\.([0-9a-f]+\.)?onnx$|probes\.")


def check_folder(option: str, path: str | os.PathLike[str]) -> Path:
    """Refuse a folder that can neither be made nor written to.

    Args:
        option: what the user calls it, such as "--out".

    Raises:
        ConfigError: with the file or folder that is in the way.
    """
    folder = Path(path)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"{option} {folder} is a file: give a folder")
    _check_writable(option, folder, folder)
    return folder


def check_file(option: str, path: str | os.PathLike[str]) -> Path:
    """Refuse a file that cannot be written; one that is there may be replaced.

    Raises:
        ConfigError: as `check_folder`.
    """
    file = Path(path)
    if file.is_dir():
        raise ConfigError(f"{option} {file} is a folder: give the name of a file")
    _check_writable(option, file, file.absolute().parent)
    return file


def _check_writable(option: str, path: Path, folder: Path) -> None:
    """Refuse where the nearest thing that is there, of the folder and those above, is no folder that can be written."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        raise ConfigError(f"{option} {path} cannot be written, since {nearest} is a file: give another path")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path} cannot be written, since {nearest} does not allow it: give another path")


def check_bundle_place(path: str | os.PathLike[str], force: bool) -> None:
    """Refuse to replace a bundle that holds more than `export` writes: what was quantized and built would be lost.

    Raises:
        ConfigError: as `check_folder`.
        BundleError: if the folder holds something else than a bundle, or, without `force`, files that would be lost.
    """
    from vae_edge.bundle import replaced_files

    check_folder("--out", path)
    lost = [name for name in sorted(replaced_files(path)) if not _MADE_BY_EXPORT.match(name)]
    if lost and not force:
        raise BundleError(
            f"{path} also holds {', '.join(lost)}, made of the model that is there now. Exporting removes them: give "
            "--force and quantize and build again, or choose another --out."
        )


def check_bundle_writable(path: str | os.PathLike[str]) -> None:
    """Refuse to add to a bundle that cannot be written to (ConfigError)."""
    check_folder("the bundle", path)
