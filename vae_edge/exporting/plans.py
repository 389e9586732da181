"""The plans of the presets: what kernels are compiled for before there is a trained network."""

from __future__ import annotations

import torch
from vae_edge_kernels.plan import Plan

from vae_edge.model import AngleVAE, create_config
from vae_edge.ops.packing import plan_of


def plan_of_preset(name: str, light: bool = False, int8: bool = False) -> Plan:
    """The plan of a preset, its rejection score with as many clusters as training may find.

    Raises:
        ConfigError: for an unknown preset.
    """
    model = AngleVAE(create_config(name))
    size = model.score.components
    model.score.cluster_whitening = torch.zeros((model.config.classes * model.score.max_clusters(), size, size))
    return plan_of(model, light, int8)
