"""How long a comparison will take, from a few steps of each network and small fits of the others on this machine.

The comparison with what a user would use instead: one cell for each model, kind of image, mixture and seed.

A finished cell is a file `cells/<name>.json` in the comparison's folder and is taken as it is by the next run, as long
as settings and data agree. The ONNX files of the first seed stay beside it, to be timed together at the end.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vae_edge.data import Dataset, LabelledImages, holdout, rotated
from vae_edge.data.dataset import join
from vae_edge.errors import ConfigError, DataError
from vae_edge.experiments import baselines
from vae_edge.experiments.baselines import Decision, our_loss
from vae_edge.experiments.setup import ESTIMATORS, GENERATORS, INNER, POSE, SCHEMA, Cell, Ground, Settings, read_cell
from vae_edge.files import sha256, write_bytes, write_json
from vae_edge.model import AngleVAE
from vae_edge.training.checkpoint import MODEL, load_checkpoint
from vae_edge.training.evaluate import predict
from vae_edge.training.generate import CONFIDENCE, generate
from vae_edge.training.trainer import Progress, fast_bf16, train

TRIED_IMAGES = 1000  # for the fits whose time is then scaled: by the square of the number for a kernel machine
TRIED_STEPS = 3
AROUND_A_STEP = 1.3  # augmentation, optimizer and average, as a part of forward and backward
AROUND_A_CELL = 6.0  # seconds: tracing, ONNX, judging


def estimate(ground: Ground, cells: Sequence[Cell]) -> dict[str, float]:
    """Seconds that these cells will take, by model: rough, for a person to decide whether to wait."""
    seconds: dict[str, float] = {}
    known: dict[str, Callable[[int, int], float]] = {}
    for cell in cells:
        if cell.model not in known:
            known[cell.model] = _by_fit(ground, cell) if cell.model in ESTIMATORS else _by_steps(ground, cell)
        pool, held = ground.parts(cells[0].seed)
        images = round((1 - INNER) * len(pool) / (1 - (ground.settings.generated if cell.generated else 0.0)))
        first = Cell(cell.model, cell.images, cell.generated, cells[0].seed)
        steps = ground.steps(first, images)
        seconds[cell.model] = seconds.get(cell.model, 0.0) + known[cell.model](
            images if cell.model in ESTIMATORS else steps, len(held)
        )
    return seconds


def _by_steps(ground: Ground, cell: Cell) -> Callable[[int, int], float]:
    """Seconds of a number of steps of the angle VAE's, from a few timed ones of this network."""
    config = ground.config(orientation=POSE.get(cell.model, True))
    network = AngleVAE(config) if cell.model in POSE else ground.network(cell.model, 0)
    loss = our_loss if cell.model in POSE else baselines.cross_entropy_of_anything
    settings = ground.training_config(cell, round((1 - INNER) * len(ground.parts(cell.seed)[0])))
    device = baselines.training_device()
    pixels = torch.zeros(settings.batch or 1, config.channels, config.size, config.size, device=device)
    bf16 = settings.bf16 if settings.bf16 is not None else fast_bf16(device)
    longer = ground.angle_vae_macs / ground.training_macs(network) if cell.model == "cnn-equal" else 1.0
    network.to(device).train()
    times = []
    for _ in range(TRIED_STEPS):
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            value = loss(network, pixels)
        value.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return lambda steps, held: AROUND_A_CELL + AROUND_A_STEP * min(times) * steps * longer


def _by_fit(ground: Ground, cell: Cell) -> Callable[[int, int], float]:
    """Seconds for a number of training images and of judged ones, from a fit on at most a thousand."""
    pool, held = ground.parts(cell.seed)
    baselines.import_estimators()
    tried, judged = _spread(pool, TRIED_IMAGES), _spread(held, TRIED_IMAGES // 2)
    began = time.perf_counter()
    estimator = ESTIMATORS[cell.model](tried)
    fitted = time.perf_counter()
    estimator.predict(baselines.flat(judged.images))
    fit_s, judge_s = fitted - began, time.perf_counter() - fitted
    power = 2 if cell.model == "svm" else 1

    def scaled(images: int, held_images: int) -> float:
        more = images / len(tried)
        return fit_s * more**power + judge_s * held_images / len(judged) * more ** (power - 1)

    return scaled


def _spread(data: LabelledImages, count: int) -> LabelledImages:
    """At most so many images, from all over."""
    return data.take(torch.linspace(0, len(data) - 1, min(count, len(data))).long().unique().numpy())


JUDGES, ONCE = 1000, 2000  # added to the seed, for the angles of held-out images and of training images seen once

Watch = Callable[[str], AbstractContextManager[Progress | None]]  # a progress bar for a cell


@dataclass(frozen=True)
class Exporter:
    """How models become files, which is another room's affair.

    `files`: a fitted model, the images' size and their channels, to ONNX files: `decision`, and of ours `whole`.
    `whole`: our model to the graph, from uint8 [N, S, S, C], with all that we give.
    """

    files: Callable[[Any, int, int], dict[str, bytes]]
    whole: Callable[[AngleVAE], nn.Module]


@dataclass(frozen=True)
class Fitted:
    """A trained model, how it names the classes of uint8 images, and what went into it."""

    model: Any
    classify: Callable[[NDArray[np.uint8]], NDArray[np.int64]]
    seconds: dict[str, float]
    images_seen: int
    training_macs: float | None  # for one image
    details: dict[str, Any] = field(default_factory=dict)


class Clock:
    """Wall and processor seconds since it was made; the processor's are those of all threads of this process."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Both, rounded."""
        wall, processor = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        return {"wall_seconds": round(wall, 3), "processor_seconds": round(processor, 3)}


class Comparison:
    """A data set, settings and a folder; `finish` brings a cell's record about, by training or from its file.

    Args:
        first_seed: the seed whose models are kept as ONNX files.
        exporter: makes these files; without it there are none.

    Raises:
        ConfigError: if the folder holds cells of another comparison.
        DataError: if there is too little to train on or to judge with.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: Settings,
        out: Path,
        first_seed: int = 0,
        exporter: Exporter | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> None:
        self.ground, self.where = Ground(dataset, settings), dict(where or {})
        self.out, self.first_seed, self.exporter = out, first_seed, exporter
        self.fingerprint = dataset.fingerprint()
        self._drawn: dict[Cell, tuple[LabelledImages, dict[str, Any]]] = {}
        self._check_folder()
        self.ground.parts(first_seed)

    def run_folder(self, cell: Cell) -> Path:
        """Where the training run of a model of ours is."""
        return self.out / "runs" / cell.name

    def cell_file(self, cell: Cell) -> Path:
        """The file that says that a cell is finished."""
        return self.out / "cells" / f"{cell.name}.json"

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """A cell's record, if its files are all there."""
        path = self.cell_file(cell)
        if not path.is_file() or (cell.model in POSE and not (self.run_folder(cell) / MODEL).is_file()):
            return None
        record = read_cell(path)
        if cell.seed == self.first_seed and self.exporter is not None:
            whole = [_sum_of(path.parent / file["file"]) == file["sha256"] for file in record["files"].values()]
            if not whole or not all(whole):
                return None
        return record

    def needed(self, cells: list[Cell]) -> list[Cell]:
        """The cells that are still to be trained, with the generators that they need before them."""
        wanted: dict[Cell, None] = {}
        for cell in cells:
            if self.finished(cell) is None:
                for part in (*([_generator(cell)] if cell.generated else []), cell):
                    if self.finished(part) is None:
                        wanted[part] = None
        return list(wanted)

    def finish(self, cell: Cell, watch: Watch | None = None) -> dict[str, Any]:
        """A cell's record; the cell, and the generator that it needs, are trained where that is not done yet."""
        record = self.finished(cell)
        if record is not None:
            return record
        pool, held = self.ground.parts(cell.seed)
        images, generator = self._mixed(cell, pool, watch) if cell.generated else (pool, None)
        kept, _ = holdout(images, INNER, cell.seed)
        if cell.model in ESTIMATORS:
            baselines.import_estimators()
        with (watch or _unwatched)(cell.name) as progress:
            fitted = self._fit(cell, images, kept, progress)
        fill = self.ground.fill
        judges = rotated(held, 180.0, JUDGES + cell.seed, fill) if cell.images == "turned" else held
        right = fitted.classify(judges.images) == judges.labels
        macs = None if fitted.training_macs is None else fitted.training_macs * fitted.images_seen
        record = {
            "schema": SCHEMA,
            "cell": asdict(cell),
            "settings": self.ground.settings.of(cell),
            "fingerprint": self.fingerprint,
            "images": {"trained_on": len(kept), "drawn": len(images) - len(pool), "judged_on": len(judges)},
            "accuracy": float(right.mean()),
            "training": {**fitted.seconds, "images_seen": fitted.images_seen, "macs": macs},
            "inference": self._inference(cell, fitted),
            "generator": generator,
            "files": self._write_files(cell, fitted),
            "details": fitted.details,
            "where": self.where,
        }
        write_json(self.cell_file(cell), record)
        return record

    def _mixed(self, cell: Cell, pool: LabelledImages, watch: Watch | None) -> tuple[LabelledImages, dict[str, Any]]:
        """The pool with the wanted share of generated images, upright and as many of each class; how they were made."""
        drawer = _generator(cell)
        if drawer not in self._drawn:
            training = self.finish(drawer, watch)["training"]
            clock = Clock()
            checkpoint = load_checkpoint(self.run_folder(drawer))
            share, absent = self.ground.settings.generated, checkpoint.config.data.absent
            per_class = max(1, round(share / (1 - share) * len(pool) / (len(pool.classes) - len(absent))))
            known, _ = holdout(pool, INNER, cell.seed)
            drawn, confidence = draw(checkpoint.model, known, per_class, cell.seed, absent)
            about = {"cell": drawer.name, "training": training, "drawing": clock.read(), "confidence": confidence}
            self._drawn = {drawer: (drawn, about)}  # the cells that follow use the same ones
        drawn, about = self._drawn[drawer]
        return join([pool, drawn]), about

    def _fit(self, cell: Cell, images: LabelledImages, kept: LabelledImages, progress: Progress | None) -> Fitted:
        if cell.model in POSE:
            return self._fit_ours(cell, images, len(kept), progress)
        if cell.model in ESTIMATORS:
            return self._fit_estimator(cell, kept)
        network = self.ground.network(cell.model, cell.seed)
        steps, macs = self.ground.steps_of(cell, len(kept), network)
        _, config = self.ground.plan(cell, images, len(kept))
        settings = config.training
        clock = Clock()
        fitted = baselines.fit_network(network, kept, settings, steps, config.model.fill, progress)
        seconds = clock.read()

        def classify(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
            return baselines.network_probabilities(fitted, pixels).argmax(1)

        return Fitted(fitted, classify, seconds, steps * settings.batch_for(len(kept)), macs, {"steps": steps})

    def _fit_estimator(self, cell: Cell, kept: LabelledImages) -> Fitted:
        """Each image once: as it came, or turned by one angle of its own."""
        turned = cell.images == "turned"
        seen = rotated(kept, 180.0, ONCE + cell.seed, self.ground.fill) if turned else kept
        clock = Clock()
        estimator = ESTIMATORS[cell.model](seen)
        seconds = clock.read()
        vectors = getattr(estimator, "support_vectors_", None)

        def classify(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
            return np.asarray(estimator.predict(baselines.flat(pixels)), np.int64)

        details = {} if vectors is None else {"support_vectors": len(vectors)}
        return Fitted(estimator, classify, seconds, len(seen), None, details)

    def _fit_ours(self, cell: Cell, images: LabelledImages, kept: int, progress: Progress | None) -> Fitted:
        """By the same functions as `vae-edge train`; an unfinished run of an earlier attempt is begun anew."""
        folder, ground = self.run_folder(cell), self.ground
        shutil.rmtree(folder, ignore_errors=True)
        splits, config = ground.plan(cell, images, kept)
        clock = Clock()
        train(splits, config, folder, progress=progress)
        seconds = clock.read()
        checkpoint = load_checkpoint(folder)

        def classify(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
            return predict(checkpoint.model, pixels).probabilities.argmax(1)

        steps = checkpoint.result.step
        macs = ground.training_macs(AngleVAE(config.model))
        return Fitted(
            checkpoint.model, classify, seconds, steps * config.training.batch_for(kept), macs, {"steps": steps}
        )

    def _inference(self, cell: Cell, fitted: Fitted) -> dict[str, Any]:
        """What a decision costs; of ours also with all that the exported graph gives (`whole`)."""
        if cell.model in ESTIMATORS:
            parameters, macs = baselines.estimator_cost(fitted.model)
            return {"decision": {"parameters": parameters, "macs": macs}}
        if cell.model in POSE:
            costs = {"decision": self.ground.cost(cell.model, Decision(fitted.model))}
            if self.exporter is not None:
                costs["whole"] = self.ground.graph_cost(f"{cell.model}, whole", self.exporter.whole(fitted.model))
            return costs
        return {"decision": self.ground.cost(cell.model, fitted.model)}

    def _write_files(self, cell: Cell, fitted: Fitted) -> dict[str, dict[str, Any]]:
        """The ONNX files of the first seed; a network's of another seed would only differ in the weights."""
        if cell.seed != self.first_seed or self.exporter is None:
            return {}
        config = self.ground.config(orientation=True)
        files = {}
        for name, content in self.exporter.files(fitted.model, config.size, config.channels).items():
            path = self.cell_file(cell).with_suffix(f".{name}.onnx")
            write_bytes(path, content)
            files[name] = {"file": path.name, "bytes": len(content), "sha256": sha256(path)}
        return files

    def _check_folder(self) -> None:
        """Refuse a folder with a cell of other settings or other images."""
        for path in sorted((self.out / "cells").glob("*.json")):
            record = read_cell(path)
            now = {**self.ground.settings.of(Cell(**record["cell"])), "images": self.fingerprint[:12]}
            before = {**record["settings"], "images": record["fingerprint"][:12]}
            odd = [
                f"{name}: {before.get(name)!r} then, {now.get(name)!r} now"
                for name in {**before, **now}
                if before.get(name) != now.get(name)
            ]
            if odd:
                raise ConfigError(
                    f"{self.out} holds another comparison ({'; '.join(odd)}); use the same settings, or another --out"
                )


def draw(
    model: AngleVAE, known: LabelledImages, per_class: int, seed: int, absent: Sequence[str] = ()
) -> tuple[LabelledImages, float]:
    """Upright images decoded between codes of one class of the known images, and the confidence that they reach.

    That is 0.9 where the model recognizes enough of what it draws, and 0, all that it draws, where it does not.
    """
    codes = predict(model, known.images).codes

    def drawn(confidence: float) -> LabelledImages:
        return generate(
            model,
            known.classes,
            per_class,
            seed=seed,
            absent=absent,
            codes=codes,
            code_labels=known.labels,
            confidence=confidence,
        )

    try:
        return drawn(CONFIDENCE), CONFIDENCE
    except DataError:  # too few were recognized
        return drawn(0.0), 0.0


def _generator(cell: Cell) -> Cell:
    """The cell whose model draws the generated images of this one."""
    return Cell(GENERATORS[cell.images], cell.images, False, cell.seed)


def _sum_of(path: Path) -> str:
    """The sum of a file's bytes; empty where there is none."""
    return sha256(path) if path.is_file() else ""


def _unwatched(name: str) -> AbstractContextManager[Progress | None]:
    return nullcontext()
