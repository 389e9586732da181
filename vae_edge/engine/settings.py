"""What a build is asked to do: one frozen record, checked as a whole, that travels to the worker as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vae_edge.engine.targets import check_precision, parse_targets
from vae_edge.errors import EngineError

DEFAULT_BATCH = (1, 8, 64)
DEFAULT_WORKSPACE = 256 << 20
HARDWARE_COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")
LARGEST_BATCH = 65_536


@dataclass(frozen=True)
class Settings:
    """One build. `batch`: smallest, the one to be fastest at, largest; `targets`: empty for this machine's own GPU."""

    precision: str
    role: str = "classifier"
    batch: tuple[int, int, int] = DEFAULT_BATCH
    targets: tuple[str, ...] = ()
    workspace_bytes: int = DEFAULT_WORKSPACE
    optimization_level: int | None = None  # None leaves it to TensorRT (3); 0..5
    tf32: bool = True
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    dla_core: int | None = None
    timing_cache: bool = False

    def to_json(self) -> dict[str, Any]:
        """The record as a dict fit for JSON."""
        values = dataclasses.asdict(self)
        return {**values, "batch": list(self.batch), "targets": list(self.targets)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Settings:
        """The inverse of `to_json`."""
        return cls(**{**value, "batch": tuple(value["batch"]), "targets": tuple(value["targets"])})

    def check(self) -> None:
        """Raise EngineError for a value that no TensorRT takes."""
        check_precision(self.precision)
        parse_targets(self.targets)
        if self.role not in ("classifier", "reconstruction"):
            raise EngineError(f"The role {self.role!r} is unknown: it is classifier or reconstruction.")
        if not _is_int(self.workspace_bytes) or self.workspace_bytes < 1 << 20:
            raise EngineError(
                f"The workspace should be at least 1 MiB (1048576 bytes), but {self.workspace_bytes!r} came."
            )
        if self.optimization_level is not None and (
            not _is_int(self.optimization_level) or not 0 <= self.optimization_level <= 5
        ):
            raise EngineError(f"The optimization level should be 0 to 5, but {self.optimization_level!r} came.")
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise EngineError(
                f"The hardware compatibility {self.hardware_compatibility!r} is unknown: choose one of "
                f"{', '.join(HARDWARE_COMPATIBILITY)}."
            )
        if self.dla_core is not None and (not _is_int(self.dla_core) or self.dla_core < 0):
            raise EngineError(f"The DLA core should be 0 or more, but {self.dla_core!r} came.")
        self._check_batch()

    def _check_batch(self) -> None:
        batch = self.batch
        if len(batch) != 3 or not all(_is_int(size) for size in batch):
            raise EngineError(f"The batch should be three whole numbers (smallest, best, largest), but {batch!r} came.")
        if not 1 <= batch[0] <= batch[1] <= batch[2] <= LARGEST_BATCH:
            raise EngineError(
                f"The batch should rise from at least 1 to at most {LARGEST_BATCH} (smallest, best, largest), but "
                f"{batch!r} came."
            )
        if self.dla_core is not None and len(set(batch)) != 1:
            raise EngineError(
                f"A DLA runs one fixed batch, so all three numbers must be equal, but {batch!r} came: give (8, 8, 8)."
            )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
