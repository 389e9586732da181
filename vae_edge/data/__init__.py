"""Load, split and rotate data sets: uint8 arrays in NumPy, without torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vae_edge.data.dataset import Dataset, LabelledImages, join
from vae_edge.data.load import load_dataset
from vae_edge.data.splits import (
    LabelSubset,
    align_classes,
    check_no_leakage,
    check_trainable,
    count_duplicates,
    drop_duplicates_of,
    duplicates_of,
    holdout,
    select_split,
    subsample_labels,
)
from vae_edge.data.transforms import OOD_KINDS, contact_sheet, make_ood_images, rotate_dataset, rotation_range

if TYPE_CHECKING:
    from vae_edge.data.fetch import fetch_dataset

_LAZY = {"fetch_dataset": "vae_edge.data.fetch"}
"""Imported at first use: urllib with TLS."""

__all__ = [
    "OOD_KINDS",
    "Dataset",
    "LabelSubset",
    "LabelledImages",
    "align_classes",
    "check_no_leakage",
    "check_trainable",
    "contact_sheet",
    "count_duplicates",
    "drop_duplicates_of",
    "duplicates_of",
    "fetch_dataset",
    "holdout",
    "join",
    "load_dataset",
    "make_ood_images",
    "rotate_dataset",
    "rotation_range",
    "select_split",
    "subsample_labels",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
