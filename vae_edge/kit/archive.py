"""tar.gz files: written with the same bytes for the same content, and unpacked without trust.

An archive from elsewhere may hold absolute paths, `..`, links, devices, or far more than it seems. Only regular files
with plain names, at most one folder deep, are unpacked, up to limits on their number and size.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from vae_edge import files
from vae_edge.errors import BundleError
from vae_edge.spec import MAX_RESULT_BYTES, MAX_RESULT_FILES

_PLAIN = re.compile(r"[A-Za-z0-9_][\w.+-]{0,199}", re.ASCII)
_DEPTH = 3  # the archive's own folder, a folder in it, a file
_CHUNK = 1 << 20
_MAX_TAIL_CHUNKS = 4


def write_archive(path: str | os.PathLike[str], folder: Path, top: str) -> None:
    """Write the files of a folder as a tar.gz, under the folder name `top`, atomically; without owners and dates.

    Raises:
        OSError: the disk is full, or `path` cannot be written; what was there before is still there.
    """
    with (
        files.atomic_path(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for each in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(f"{top}/{each.relative_to(folder).as_posix()}")
            member.size = each.stat().st_size
            member.mode = 0o755 if os.access(each, os.X_OK) else 0o644
            with each.open("rb") as file:
                archive.addfile(member, file)


def unpack(path: str | os.PathLike[str], into: Path) -> None:
    """Unpack an archive that `write_archive` wrote, without its own folder, into an empty folder.

    Raises:
        BundleError: it cannot be read, is damaged, or holds what no archive of ours does.
    """
    left = MAX_RESULT_BYTES
    try:
        with (
            files.open_regular(path) as raw,
            gzip.GzipFile(fileobj=raw) as plain,
            tarfile.open(fileobj=plain, mode="r|") as archive,
        ):
            for count, member in enumerate(archive):
                if count >= MAX_RESULT_FILES:
                    raise ValueError(f"it holds more than {MAX_RESULT_FILES} files")
                if member.isdir():
                    continue
                target = into.joinpath(*_checked(member))
                left -= member.size
                if left < 0:
                    raise ValueError(f"it unpacks to more than {MAX_RESULT_BYTES >> 20} MiB")
                source = archive.extractfile(member)
                assert source is not None, "it is a regular file"
                target.parent.mkdir(exist_ok=True)
                with target.open("xb") as file:
                    _copy(source, file, member.size)
            for _ in range(_MAX_TAIL_CHUNKS):  # gzip verifies its sum at its end
                if not plain.read(_CHUNK):
                    break
            else:
                raise ValueError("much follows its last file")
    except FileExistsError as error:
        raise BundleError(f"{path} is no result of a kit: it holds a file twice.") from error
    except OSError as error:
        if error.errno is None:  # gzip's own, of damage
            raise BundleError(_damaged(path, error)) from error
        where = error.filename or path
        raise BundleError(f"{path} cannot be unpacked ({where}: {error.strerror}): nothing was added.") from error
    except (ValueError, EOFError, tarfile.TarError, ArithmeticError) as error:
        raise BundleError(_damaged(path, error)) from error


def _damaged(path: str | os.PathLike[str], error: Exception) -> str:
    return f"{path} is no result of a kit, or is damaged ({error}): copy it again from the device."


def _checked(member: tarfile.TarInfo) -> tuple[str, ...]:
    """Where a member goes, below the folder that the archive is unpacked to."""
    shown = ascii(member.name[:80])
    if not member.isreg():
        raise ValueError(f"it holds {shown}, which is no regular file")
    parts = tuple(member.name.split("/"))
    if not 2 <= len(parts) <= _DEPTH or not all(_PLAIN.fullmatch(part) and ".." not in part for part in parts):
        raise ValueError(f"it holds {shown}, which is no file of a result")
    return parts[1:]


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    left = size
    while left:
        chunk = source.read(min(left, _CHUNK))
        if not chunk:
            raise ValueError("it is cut short")
        target.write(chunk)
        left -= len(chunk)


def write_sums(folder: Path, names: Iterable[str], file: str) -> None:
    """Write the SHA-256 of files of a folder as `sha256sum` does."""
    lines = [f"{files.sha256(folder / name)}  {name}\n" for name in names]
    files.write_text(folder / file, "".join(lines))


def changed_file(folder: Path, sums: str, max_bytes: int) -> str | None:
    """The first file whose SHA-256 is not the one in `sums`, or that is missing; None if all are right.

    Raises:
        OSError, ValueError: `sums` cannot be read, or has another form.
    """
    text = files.read_bytes(folder / sums, max_bytes).decode("ascii")
    for line in text.splitlines():
        digest, blanks, name = line[:64], line[64:66], line[66:]
        if blanks != "  " or not re.fullmatch(r"[0-9a-f]{64}", digest) or not name:
            raise ValueError(f"its line {line[:80]!a} is not a sum and a name")
        try:
            same = hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        except OSError:
            same = False
        if not same:
            return name
    return None
