"""Data sets in, uint8 arrays out. No torch here; augmentation on tensors is in `vae_edge.data.augment`."""

from __future__ import annotations

from vae_edge.data.find import load_dataset
from vae_edge.data.sets import Dataset, LabelledImages
from vae_edge.data.split import check_trainable, holdout, select_split
from vae_edge.data.turned import rotated

__all__ = ["Dataset", "LabelledImages", "check_trainable", "holdout", "load_dataset", "rotated", "select_split"]
