"""What TensorRT-RTX compiled for this GPU, kept beside the bundle so that the next load takes no seconds."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from vae_edge import files
from vae_edge.engine.plan import Plan, create_cache
from vae_edge.runtime import probing

log = logging.getLogger(__name__)

MAX_CACHE_BYTES = 256 << 20


class RuntimeCache:
    """A runtime cache for the contexts of an engine.

    Its file lies beside the manifest, or in the user's cache folder where that cannot be written to. The name holds
    engine, TensorRT, GPU and driver; TensorRT itself refuses a cache that does not fit, and it is made anew.

    Attributes:
        cache: TensorRT's `IRuntimeCache`, which must outlive the contexts; None for full TensorRT, which has none.
    """

    def __init__(self, plan: Plan, file: Path, content: bytes, device: str) -> None:
        """The GPU's context must be current."""
        key = hashlib.sha256(b"\0".join([content, plan.version.encode(), device.encode()])).hexdigest()[:16]
        self._path = probing.cache_path(file.parent, f".{file.stem}.{key}.rtx-cache")
        self._saved = b""
        self.cache = create_cache(plan, self._load)

    def save(self) -> None:
        """Save what was compiled since, in one step: no other process ever reads half of it."""
        if self.cache is None:
            return
        serialized = self.cache.serialize()
        content = bytes(serialized) if serialized is not None else b""
        if not content or content == self._saved or len(content) > MAX_CACHE_BYTES:
            return
        self._saved = content
        try:
            files.write_bytes(self._path, content)
        except OSError as error:
            log.info("the runtime cache %s cannot be written (%s): the next load compiles again", self._path, error)

    def close(self) -> None:
        """Save it, and let it go."""
        self.save()
        self.cache = None

    def _load(self) -> bytes | None:
        try:
            self._saved = files.read_bytes(self._path, MAX_CACHE_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.info("the runtime cache %s cannot be read (%s) and is made anew", self._path, error)
            return None
        return self._saved
