"""The angle VAE: presets, network, losses, rejection score. No files, no loops over data."""

from vae_edge.model.config import PRESETS, ModelConfig, create_config
from vae_edge.model.network import AngleVAE, LossWeights, Output, losses, mutual_information
from vae_edge.model.score import RejectionScore

__all__ = [
    "PRESETS",
    "AngleVAE",
    "LossWeights",
    "ModelConfig",
    "Output",
    "RejectionScore",
    "create_config",
    "losses",
    "mutual_information",
]
