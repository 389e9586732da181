"""Data sets in, uint8 arrays out. No torch here; augmentation on tensors is in `vae_edge.data.augment`."""

from __future__ import annotations

from vae_edge.data.dataset import Dataset, LabelledImages
from vae_edge.data.load import load_dataset
from vae_edge.data.splits import (
    FewLabels,
    align_classes,
    apart_from,
    check_apart,
    check_trainable,
    count_copies,
    draw_labels,
    holdout,
    select_split,
)
from vae_edge.data.transforms import rotated, rotation_range

__all__ = [
    "Dataset",
    "FewLabels",
    "LabelledImages",
    "align_classes",
    "apart_from",
    "check_apart",
    "check_trainable",
    "count_copies",
    "draw_labels",
    "holdout",
    "load_dataset",
    "rotated",
    "rotation_range",
    "select_split",
]
