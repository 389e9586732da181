"""What a comparison compares: its trials, what they have in common, and the images, networks and budgets of each seed.

A trial is one model, trained once, on one kind of images, with or without generated ones. All trials of a seed train on
the same images and are evaluated on the same test set, and all networks see the same number of images, but for
`cnn-equal`, whose training costs as many multiply-accumulates as the angle VAE's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from vae_edge.data import Dataset, LabelledImages, check_trainable, holdout
from vae_edge.errors import ConfigError, DataError
from vae_edge.experiments import baselines
from vae_edge.experiments.baselines import Cost, LogitsOnly, inference_cost, loss_of, training_macs
from vae_edge.model import AngleVAE, ModelConfig, create_config
from vae_edge.preprocess import measure_background, measure_input
from vae_edge.training.config import RunConfig, TrainConfig
from vae_edge.training.data import make_run_config, make_splits

MODELS = {
    "svm": "support vector machine, radial kernel (scikit-learn)",
    "logistic": "logistic regression (scikit-learn)",
    "mlp": "perceptron with 256 hidden units",
    "cnn": "small convolutional network",
    "cnn-equal": "convolutional network of the angle VAE's size and training compute",
    "vae": "VAE classifier without angle encoder",
    "angle-vae": "angle VAE",
}
OURS, CONTROL = "angle-vae", "cnn-equal"
VAES = {"vae": False, "angle-vae": True}  # our models, and whether they have an angle encoder
ESTIMATORS = {"svm": baselines.fit_svm, "logistic": baselines.fit_logistic}  # scikit-learn's
IMAGE_KINDS = ("upright", "rotated")
GENERATORS = {"upright": "vae", "rotated": "angle-vae"}  # the model that generates images of each kind
TEST_FRACTION = 0.1  # of the training split: the test set, which nothing is trained on
THRESHOLD_FRACTION = 0.05  # of the rest: sets the threshold of our models' anomaly score; no model trains on it
MIN_IMAGES = 32
RECIPE = (
    "batch",
    "augment",
    "mirror",
    "learning_rate",
    "weight_decay",
    "warmup",
    "ema",
    "gradient_clip",
    "bf16",
    "weights",
)
"""Fields of `TrainConfig` that all networks are trained by, and that a record therefore names."""


@dataclass(frozen=True)
class Trial:
    """One model, trained once. `images` is one of `IMAGE_KINDS`; `generated`: generated images are among them."""

    model: str
    images: str
    generated: bool
    seed: int

    @property
    def name(self) -> str:
        """The stem of its files."""
        return f"{self.images}-{self.model}-{'generated' if self.generated else 'real'}-{self.seed}"

    @property
    def generator(self) -> Trial:
        """The trial whose model generates images for this one."""
        return Trial(GENERATORS[self.images], self.images, False, self.seed)


@dataclass(frozen=True)
class ExperimentConfig:
    """What all trials have in common.

    Attributes:
        preset: of our models.
        train_images: real images to train on; None: all that are not held out.
        images_seen: images shown to a network in training, rounded to whole epochs.
        generated: fraction of the training images that is generated, in trials with generated images.

    Raises:
        ConfigError: if a value is out of range.
    """

    preset: str = "small"
    train_images: int | None = None
    images_seen: int = 240_000
    generated: float = 0.3

    def __post_init__(self) -> None:
        if self.train_images is not None and self.train_images < MIN_IMAGES:
            raise ConfigError(f"{self.train_images} images to train on: a comparison needs at least {MIN_IMAGES}")
        if self.images_seen < 1:
            raise ConfigError(f"{self.images_seen} images seen in training: expected at least 1")
        if not 0 < self.generated < 0.95:
            raise ConfigError(f"fraction {self.generated} of generated images: expected above 0 and below 0.95")

    def settings(self, trial: Trial) -> dict[str, Any]:
        """Everything that the trial's result depends on but the images, as its record stores it."""
        defaults = TrainConfig().to_dict()
        common = {**asdict(self), "generated": self.generated if trial.generated else None}
        return {**common, "training": {name: defaults[name] for name in RECIPE}}


def list_trials(models: Sequence[str], images: Sequence[str], generated: bool, seeds: Sequence[int]) -> list[Trial]:
    """All trials, seed by seed, so that a comparison that was stopped has complete seeds.

    Args:
        models: some of `MODELS`; images: some of `IMAGE_KINDS`.
        generated: with and without generated images; otherwise without alone.

    Raises:
        ConfigError: for an unknown model or kind of images, or an empty list.
    """
    for names, known, what in ((models, MODELS, "model"), (images, IMAGE_KINDS, "kind of image")):
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise ConfigError(f"unknown {what} {', '.join(unknown) or '(none)'}: expected some of {', '.join(known)}")
    if not seeds:
        raise ConfigError("no seed was given: expected at least one")
    mixtures = (False, True) if generated else (False,)
    order = [name for name in MODELS if name in models]
    return [Trial(model, kind, mix, seed) for seed in seeds for kind in images for mix in mixtures for model in order]


class ExperimentSetup:
    """A data set and an experiment's configuration; from them the splits of each seed, the networks, their budgets.

    Raises:
        DataError: if the data set has no training split, or one class alone.
    """

    def __init__(self, dataset: Dataset, config: ExperimentConfig) -> None:
        if dataset.train is None:
            raise DataError(
                f"{dataset.source} has no training split; give a data set with training images to compare on"
            )
        check_trainable(dataset.train)
        self.dataset, self.config, self.train = dataset, config, dataset.train
        self._splits: dict[int, tuple[LabelledImages, LabelledImages]] = {}  # of the last seed alone
        self._costs: dict[str, Cost] = {}

    # -------------------------------------------------------------------------------------------------- images

    def splits(self, seed: int) -> tuple[LabelledImages, LabelledImages]:
        """The images that training may use, and the test set, both stratified by class and drawn by the seed."""
        if seed not in self._splits:
            rest, test = holdout(self.train, TEST_FRACTION, seed)
            self._splits = {seed: (self._subsample(rest, seed), test)}
        return self._splits[seed]

    def _subsample(self, rest: LabelledImages, seed: int) -> LabelledImages:
        """As many images as leave `train_images` to train on, once the threshold's are set aside.

        Raises:
            DataError: if there are fewer, or too few.
        """
        requested = self.config.train_images
        available = int(len(rest) * (1 - THRESHOLD_FRACTION))
        if requested is not None and requested > available:
            raise DataError(
                f"{requested} images to train on were asked for, but {self.dataset.source} has {available} "
                f"(the others are held out); ask for fewer, or for all of them"
            )
        pool = rest
        if requested is not None and round(requested / (1 - THRESHOLD_FRACTION)) < len(rest):
            pool = holdout(rest, requested / (1 - THRESHOLD_FRACTION) / len(rest), seed + 1)[1]
        counts = np.bincount(pool.labels, minlength=len(pool.classes))
        single = [name for name, count in zip(pool.classes, counts, strict=True) if count == 1]
        if single or len(pool) < MIN_IMAGES:
            what = f"class {single[0]} has one of them" if single else f"at least {MIN_IMAGES} are needed"
            raise DataError(f"{len(pool)} images of {self.dataset.source} to train on are too few: {what}")
        return pool

    @cached_property
    def fill(self) -> int:
        """The value of pixels from outside the frame when an image is rotated, 0 to 255."""
        return measure_input(self.train.images).fill

    # ------------------------------------------------------------------------------------------------ networks

    def model_config(self, orientation: bool = True) -> ModelConfig:
        """The configuration of our model on these images, with or without an angle encoder."""
        _, height, width, channels = self.train.images.shape
        shape = {"classes": len(self.dataset.classes), "size": (height, width), "channels": channels}
        return create_config(self.config.preset, **shape, orientation=orientation, fill=self.fill / 255)

    def network(self, model: str, seed: int) -> nn.Module:
        """A baseline network; the seed fixes its first weights."""
        config = self.model_config()
        parameters = self.inference_cost(OURS, AngleVAE(config)).parameters if model == CONTROL else 0
        torch.manual_seed(seed)
        if model == CONTROL:
            return baselines.cnn_of_size(config, parameters)
        return {"mlp": baselines.mlp, "cnn": baselines.cnn}[model](config)

    def inference_cost(self, model: str, network: nn.Module) -> Cost:
        """What the class of one image costs, from float32 pixels to logits; counted once for each model."""
        config = self.model_config()
        decision = LogitsOnly(network) if isinstance(network, AngleVAE) else network
        return self._cost(model, decision, torch.zeros(1, config.channels, config.height, config.width))

    def graph_cost(self, model: str, graph: nn.Module) -> Cost:
        """What all outputs of the exported graph cost for one image, from uint8 pixels; counted once for each model."""
        config = self.model_config()
        image = torch.zeros(1, config.height, config.width, config.channels, dtype=torch.uint8)
        return self._cost(f"{model}, full graph", graph, image)

    def _cost(self, name: str, network: nn.Module, image: torch.Tensor) -> Cost:
        if name not in self._costs:
            self._costs[name] = inference_cost(network, image)
        return self._costs[name]

    # ------------------------------------------------------------------------------------------------- budgets

    def training_macs(self, network: nn.Module) -> float:
        """Multiply-accumulates of training a network on one image."""
        config = self.model_config()
        return training_macs(network, loss_of(network), config.size, config.channels)

    @cached_property
    def angle_vae_macs(self) -> float:
        """Multiply-accumulates of training the angle VAE on one image."""
        return self.training_macs(AngleVAE(self.model_config()))

    def run_config(self, trial: Trial, images: LabelledImages, kept: int) -> RunConfig:
        """The run configuration of our own training on these images, `kept` of which it trains on.

        The baseline networks follow it too.
        """
        dataset = Dataset(self.dataset.name, self.dataset.source, images, None)
        orientation = VAES.get(trial.model, False)
        training = self.training_config(trial, kept)
        splits = make_splits(dataset, training)
        return make_run_config(dataset, splits, self.config.preset, training, orientation=orientation)

    def training_config(self, trial: Trial, images: int) -> TrainConfig:
        """The recipe for a number of training images: the epochs that come nearest to `images_seen`.

        Batch size and augmentation are those of the real images alone: a trial with generated images takes as many
        steps, and augments alike.
        """
        rotation = "full" if trial.images == "rotated" else "none"
        real = round((1 - THRESHOLD_FRACTION) * len(self.splits(trial.seed)[0]))
        background = measure_background(self.splits(trial.seed)[0].images)
        batch, augment = TrainConfig().batch_for(real), TrainConfig().augmentation_kind(real, background=background)
        epochs = max(1, round(self.config.images_seen / (images // batch * batch)))
        return TrainConfig(
            rotation=rotation, epochs=epochs, batch=batch, augment=augment, holdout=THRESHOLD_FRACTION, seed=trial.seed
        )

    def steps(self, trial: Trial, images: int) -> int:
        """Steps of the angle VAE on a number of images; every network but `cnn-equal` takes as many."""
        settings = self.training_config(trial, images)
        return images // settings.batch_for(images) * settings.epochs_for(images)

    def baseline_steps(self, trial: Trial, images: int, network: nn.Module) -> tuple[int, float]:
        """A baseline's steps, and its multiply-accumulates for one image."""
        macs, steps = self.training_macs(network), self.steps(trial, images)
        if trial.model == CONTROL:
            steps = baselines.equal_compute_steps(steps, self.angle_vae_macs, macs)
        return steps, macs
