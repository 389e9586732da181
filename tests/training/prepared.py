"""The splits and the run config of a short run with the preset `tiny`."""

from __future__ import annotations

from vae_edge.data import Dataset
from vae_edge.training.config import RunConfig, TrainConfig
from vae_edge.training.data import DataSplits, make_run_config, make_splits


def prepare(dataset: Dataset, settings: TrainConfig) -> tuple[DataSplits, RunConfig]:
    """What `train` takes."""
    splits = make_splits(dataset, settings)
    return splits, make_run_config(dataset, splits, "tiny", settings)
