"""Data sets in, uint8 arrays out. No torch here; augmentation on tensors is in `vae_edge.data.augment`."""

from __future__ import annotations

from vae_edge.data.copies import apart_from, check_apart, count_copies
from vae_edge.data.find import load_dataset
from vae_edge.data.labels import FewLabels, draw_labels
from vae_edge.data.sets import Dataset, LabelledImages
from vae_edge.data.split import align_classes, check_trainable, holdout, select_split
from vae_edge.data.turned import rotated, rotation_range

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
