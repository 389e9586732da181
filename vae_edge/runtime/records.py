"""What the runtime remembers beside a bundle's manifest: lists of records, each under the key that it holds for.

They are no part of what the bundle verifies. Of a bundle that cannot be written to they lie in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vae_edge import files
from vae_edge.limits import MAX_RECORD_BYTES

log = logging.getLogger(__name__)

MOST_RECORDS = 64


def place(bundle: Path, name: str) -> Path:
    """Where a file of records of a bundle lies: in its folder, or in the user's cache if that is not writable."""
    if os.access(bundle, os.W_OK):
        return bundle / name
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home, as in containers
        return bundle / name
    digest = hashlib.sha256(os.fsencode(bundle.resolve())).hexdigest()[:16]
    return cache / "vae-edge" / digest / name


def read(path: Path, fields: set[str]) -> list[dict[str, Any]]:
    """The records, or none where the file is missing or damaged; each has `key` and these fields."""
    try:
        stored = files.read_json(path, MAX_RECORD_BYTES)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s) and will be written anew.", path, error)
        return []
    records = stored.get("records") if isinstance(stored, dict) else None
    if isinstance(records, list) and all(_is_record(record, fields) for record in records):
        return records
    log.warning("%s is damaged and will be written anew.", path)
    return []


def _is_record(record: Any, fields: set[str]) -> bool:
    return isinstance(record, dict) and isinstance(record.get("key"), dict) and fields <= record.keys()


def find(path: Path, key: dict[str, Any], fields: set[str]) -> dict[str, Any] | None:
    """The record of this key."""
    return next((record for record in read(path, fields) if record["key"] == key), None)


def remember(path: Path, record: dict[str, Any], fields: set[str]) -> None:
    """Put a record first, in place of one with the same key; where that cannot be written, it is logged."""
    records = [record, *(r for r in read(path, fields) if r["key"] != record["key"])][:MOST_RECORDS]
    try:
        files.write_json(path, {"schema": 1, "records": records})
    except (OSError, ValueError) as error:
        log.warning("%s cannot be remembered (%s): it will be found out again at the next load.", path, error)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes that look for the same answer; without a lock where there is none.

    The lock is the one that writers of the bundle hold. It goes with the process, however that ends.
    """
    descriptor = None
    try:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            log.info("%s cannot be locked (%s)", folder, error)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
