"""The ground that all models are compared on: whose images they train on and are judged by, and how long they train."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property

import numpy as np
import torch
from torch import nn

from vae_edge.data import Dataset, LabelledImages, check_trainable, holdout
from vae_edge.errors import DataError
from vae_edge.images import measure_input
from vae_edge.model import AngleVAE, ModelConfig, create_config
from vae_edge.training import baselines, effort
from vae_edge.training.checkpoint import RunConfig
from vae_edge.training.compare_settings import HELD, INNER, LEAST_IMAGES, POSE, Cell, Settings
from vae_edge.training.config import TrainConfig
from vae_edge.training.fit import plan


class Ground:
    """A data set and settings; from them the images of each seed, the networks, and their budgets.

    Raises:
        DataError: if there is no training half, or one class alone.
    """

    def __init__(self, dataset: Dataset, settings: Settings) -> None:
        if dataset.train is None:
            raise DataError(
                f"{dataset.source} has no training half; give a data set with training images to compare on"
            )
        check_trainable(dataset.train)
        self.dataset, self.settings, self.train = dataset, settings, dataset.train
        self._parts: dict[int, tuple[LabelledImages, LabelledImages]] = {}
        self._costs: dict[str, effort.Cost] = {}

    def parts(self, seed: int) -> tuple[LabelledImages, LabelledImages]:
        """The images that training may use, and those that judge; both drawn by the seed, the same share of classes."""
        if seed not in self._parts:
            rest, held = holdout(self.train, HELD, seed)
            self._parts = {seed: (self._drawn(rest, seed), held)}
        return self._parts[seed]

    def _drawn(self, rest: LabelledImages, seed: int) -> LabelledImages:
        wanted = self.settings.train_images
        most = int(len(rest) * (1 - INNER))
        if wanted is not None and wanted > most:
            raise DataError(
                f"{wanted} images to train on were asked for, but {self.dataset.source} has {most} "
                f"(the others are held out); ask for fewer, or for all of them"
            )
        pool = rest
        if wanted is not None and round(wanted / (1 - INNER)) < len(rest):
            pool = holdout(rest, wanted / (1 - INNER) / len(rest), seed + 1)[1]
        counts = np.bincount(pool.labels, minlength=len(pool.classes))
        alone = [name for name, count in zip(pool.classes, counts, strict=True) if count == 1]
        if alone or len(pool) < LEAST_IMAGES:
            what = f"class {alone[0]} has one of them" if alone else f"at least {LEAST_IMAGES} are needed"
            raise DataError(f"{len(pool)} images of {self.dataset.source} to train on are too few: {what}")
        return pool

    @cached_property
    def fill(self) -> int:
        """What comes in from outside the frame when an image is turned, 0 to 255."""
        return measure_input(self.train.images).fill

    def config(self, pose: bool) -> ModelConfig:
        """The shape of our network on these images."""
        _, size, _, channels = self.train.images.shape
        shape = {"classes": len(self.dataset.classes), "size": size, "channels": channels}
        return create_config(self.settings.preset, **shape, pose=pose, fill=self.fill / 255)

    @cached_property
    def angle_vae_macs(self) -> float:
        """Multiply-accumulates of training the angle VAE on one image."""
        return self.training_macs(AngleVAE(self.config(pose=True)))

    def training_macs(self, network: nn.Module) -> float:
        """Multiply-accumulates of training a network on one image."""
        config = self.config(pose=True)
        loss = effort.our_loss if isinstance(network, AngleVAE) else baselines.cross_entropy_of_anything
        return effort.training_macs(network, loss, config.size, config.channels)

    def cost(self, name: str, network: nn.Module) -> dict[str, int]:
        """Parameters and multiply-accumulates for one image of a network that takes pixels; `name` names its form."""
        config = self.config(pose=True)
        return self._cost(name, network, torch.zeros(1, config.channels, config.size, config.size))

    def graph_cost(self, name: str, graph: nn.Module) -> dict[str, int]:
        """The same of a graph that takes bytes."""
        config = self.config(pose=True)
        return self._cost(name, graph, torch.zeros(1, config.size, config.size, config.channels, dtype=torch.uint8))

    def _cost(self, name: str, network: nn.Module, image: torch.Tensor) -> dict[str, int]:
        if name not in self._costs:
            self._costs[name] = effort.inference_cost(network, image)
        return asdict(self._costs[name])

    def network(self, model: str, seed: int) -> nn.Module:
        """A baseline's network; the seed fixes its first weights."""
        config = self.config(pose=True)
        ours = self.cost("angle-vae", effort.Decision(AngleVAE(config))) if model == "cnn-equal" else {}
        torch.manual_seed(seed)
        if model == "cnn-equal":
            return baselines.cnn_of_size(config, ours["parameters"])
        return {"mlp": baselines.mlp, "cnn": baselines.cnn}[model](config)

    def plan(self, cell: Cell, images: LabelledImages, kept: int) -> RunConfig:
        """What our own training would be told for these images, `kept` of which it keeps; all networks follow it."""
        dataset = Dataset(self.dataset.name, self.dataset.source, images, None)
        pose = POSE.get(cell.model, False)
        return plan(dataset, self.settings.preset, self.training_config(cell, kept), pose=pose)

    def training_config(self, cell: Cell, images: int) -> TrainConfig:
        """The recipe for so many images: whole epochs that show about as many images as the settings say.

        Batch and augmentation are those of training on the real images alone, so that a cell with generated ones takes
        as many steps and changes its images alike.
        """
        rotation = "full" if cell.images == "turned" else "none"
        real = round((1 - INNER) * len(self.parts(cell.seed)[0]))
        batch, augment = TrainConfig().batch_for(real), TrainConfig().augmentation_kind(real)
        epochs = max(1, round(self.settings.images_seen / (images // batch * batch)))
        return TrainConfig(
            rotation=rotation, epochs=epochs, batch=batch, augment=augment, holdout=INNER, seed=cell.seed
        )

    def steps(self, cell: Cell, images: int) -> int:
        """Steps of the angle VAE on so many images; every network but cnn-equal takes as many."""
        settings = self.training_config(cell, images)
        return images // settings.batch_for(images) * settings.epochs_for(images)

    def steps_of(self, cell: Cell, images: int, network: nn.Module) -> tuple[int, float]:
        """A baseline's steps, and its multiply-accumulates for one image: cnn-equal's product is the angle VAE's."""
        macs, steps = self.training_macs(network), self.steps(cell, images)
        return (steps if cell.model != "cnn-equal" else max(1, round(steps * self.angle_vae_macs / macs))), macs
