"""The angle VAE: presets, network, losses, anomaly score. No files, no loops over data."""

from vae_edge.model.config import PRESETS, ModelConfig, create_config
from vae_edge.model.network import AngleVAE, LossWeights, Output, compute_losses, mutual_information
from vae_edge.model.score import AnomalyScore

__all__ = [
    "PRESETS",
    "AngleVAE",
    "AnomalyScore",
    "LossWeights",
    "ModelConfig",
    "Output",
    "compute_losses",
    "create_config",
    "mutual_information",
]
