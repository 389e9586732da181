"""How long a run takes on this machine: a few steps are timed, and the number of epochs that fits a time is chosen."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from vae_edge.errors import ConfigError
from vae_edge.progress import duration_words
from vae_edge.training.config import PRETRAINED_EPOCHS, SMALL_SET, RunConfig, Schedule
from vae_edge.training.data import DataSplits
from vae_edge.training.distributed import keep_freed_memory, make_accelerator, mean_over_processes, use_threads
from vae_edge.training.trainer import Trainer

WARM_STEPS, MEASURED_STEPS = 3, 10
MEASURE_S = 3.0  # no more steps are timed after this time
DEFAULT_MINUTES = 10.0  # that training on a small set takes at most, where neither epochs nor minutes are given
MIN_EPOCHS = 10  # but for a time that was asked for
VALIDATION_RATIO = 0.03  # of the steps' time


@dataclass(frozen=True)
class Duration:
    """The epochs of a run, and how long they take."""

    epochs: int
    steps: int
    step_s: float
    why: str
    """Why it is so many epochs."""

    @property
    def seconds(self) -> float:
        """Of the training, about."""
        return self.steps * self.step_s * (1 + VALIDATION_RATIO)

    def __str__(self) -> str:
        """One sentence."""
        return (
            f"{self.steps:,} steps of {1000 * self.step_s:.0f} ms: about {duration_words(self.seconds)}; "
            f"{self.epochs} epochs, {self.why}; --epochs N for fewer or more, --minutes M to set the time"
        )


def choose_epochs(splits: DataSplits, config: RunConfig, minutes: float | None = None) -> Duration:
    """Choose the number of epochs by the time of a step on this machine.

    Without `minutes` it is the documented number (`TrainConfig.epochs_for`), with a pretrained backbone at most 8; but
    of sets under 10,000 images no more than fit into 10 minutes or than 10. All processes of a run choose the same.

    Args:
        splits: of `make_splits`.
        config: of `make_run_config`. Its number of epochs does not count.
        minutes: time that training may take.

    Raises:
        ConfigError: `minutes` is not above 0.
    """
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ConfigError(f"--minutes {minutes}: expected a number above 0")
    images = len(splits.train) + len(splits.unlabelled)
    schedule = Schedule.from_config(config.training, images)
    step_s = measure_step(splits, config)
    epoch_s = schedule.per_epoch * step_s * (1 + VALIDATION_RATIO)
    documented = config.training.documented_epochs(images)
    if config.model.backbone is not None:
        documented = min(documented, PRETRAINED_EPOCHS)

    fitting = max(MIN_EPOCHS, int(60 * DEFAULT_MINUTES / epoch_s))
    epochs, why = documented, f"the default for {images:,} images"
    if minutes is not None:
        epochs = max(1, int(60 * minutes / epoch_s))
        why = f"what fits into {minutes:g} minutes"
    elif images < SMALL_SET and fitting < documented:
        epochs = fitting
        why = f"not {documented}, since a small set shall take about {DEFAULT_MINUTES:g} minutes"
    return Duration(epochs, epochs * schedule.per_epoch, step_s, why)


def measure_step(splits: DataSplits, config: RunConfig, steps: int = MEASURED_STEPS) -> float:
    """Median seconds of a training step on this machine, a mean over processes. The trained weights are thrown away.

    Args:
        splits: of `make_splits`.
        config: of `make_run_config`.
        steps: number of timed steps; where these take long, fewer are.

    Raises:
        as `train`.
    """
    use_threads()
    accelerator = make_accelerator()
    with tempfile.TemporaryDirectory(prefix="vae-edge-measure-") as folder, keep_freed_memory():
        trainer = Trainer(splits, config, Path(folder), accelerator, pretrained=False)
        seconds: list[float] = []
        began = time.perf_counter()
        while len(seconds) < WARM_STEPS + steps:
            start = time.perf_counter()
            trainer.step()
            seconds.append(time.perf_counter() - start)
            late = mean_over_processes({"late": float(time.perf_counter() - began > MEASURE_S)}, accelerator)["late"]
            if late and len(seconds) >= 2:
                break
    measured = statistics.median(seconds[min(WARM_STEPS, len(seconds) // 2) :])
    return mean_over_processes({"step": measured}, accelerator)["step"]
