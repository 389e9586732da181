import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vae_edge.cli import main
from vae_edge.cli.compare import to_files
from vae_edge.data import Dataset, LabelledImages, holdout
from vae_edge.errors import CheckpointError, ConfigError, DataError
from vae_edge.experiments import baselines
from vae_edge.experiments.baselines import Decision, inference_cost, training_macs
from vae_edge.experiments.setup import INNER, KINDS, MODELS, Cell, Ground, Settings, list_cells, summarize_cells
from vae_edge.experiments.trials import Comparison, estimate
from vae_edge.export.onnx_file import run as run_onnx
from vae_edge.model import AngleVAE, create_config
from vae_edge.training.checkpoint import Checkpoint
from vae_edge.training.config import TrainConfig
from vae_edge.training.evaluate import predict

TINY = Settings(preset="tiny", images_seen=400)
SOME = ("svm", "cnn-equal", "angle-vae")
COMMAND = ("compare", "--preset", "tiny", "--images-seen", "400", "--seconds", "0.2", "--models", ",".join(SOME))


@pytest.fixture(scope="session")
def few_file(few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hundred digits as a file."""
    path = tmp_path_factory.mktemp("few") / "few.npz"
    half = few_digits.train
    np.savez(path, x_train=half.images, y_train=half.labels)
    return path


@pytest.fixture(scope="session")
def compared(few_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some models on turned images, with and without generated ones, by the command."""
    out = tmp_path_factory.mktemp("compared") / "out"
    assert main([*COMMAND, "--data", str(few_file), "--seeds", "1", "--only", "turned", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def result(compared: Path) -> dict:
    return json.loads((compared / "compare.json").read_text())


def test_every_row_is_there_with_all_that_is_said_of_it(result: dict):
    assert [(row["model"], row["generated"]) for row in result["rows"]] == [
        (name, mix) for mix in (False, True) for name in SOME
    ]
    for row in result["rows"]:
        assert 0 <= row["accuracy"]["mean"] <= 1 and row["judged_on"] == 40
        assert row["wall_seconds"] > 0 and row["images_seen"] > 0
        for name in ("parameters", "macs", "bytes", "latency_us"):
            assert row["decision"][name] > 0, (row["model"], name)
    assert {gain["of"] for gain in result["gains"]} == {"angle-vae"}
    assert {gain["over"] for gain in result["gains"]} == {"cnn-equal"}
    assert result["machine"]["cpu"] and result["versions"]["scikit-learn"]


def test_ours_costs_more_with_all_that_it_gives(result: dict):
    ours = [row for row in result["rows"] if row["model"] == "angle-vae"]
    assert len(ours) == 2
    for row in ours:
        assert all(row["whole"][name] > row["decision"][name] for name in ("parameters", "macs", "bytes"))


def test_the_table_says_what_the_json_says(compared: Path, result: dict):
    text = (compared / "compare.md").read_text()
    for row in result["rows"]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['model']} |"))
        assert f"{100 * row['accuracy']['mean']:.2f}%" in line
        if not row["generated"]:
            assert f"{row['decision']['parameters']:,}" in line and f"{row['decision']['macs']:,}" in line
    assert result["sentence"] in text
    assert (compared / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (compared / "compare.svg").read_bytes()


def test_generated_images_come_from_one_generator_and_make_the_wanted_share(result: dict):
    mixed = [cell for cell in result["cells"] if cell["cell"]["generated"]]
    assert {cell["generator"]["cell"] for cell in mixed} == {"turned-angle-vae-real-0"}
    assert len(result["generators"]) == 1
    for cell in mixed:
        share = cell["images"]["drawn"] / (cell["images"]["drawn"] + 360)
        assert share == pytest.approx(0.3, abs=0.02)
        assert cell["images"]["trained_on"] == pytest.approx((1 - INNER) * (360 + cell["images"]["drawn"]), rel=0.02)


def test_a_second_run_trains_nothing(compared: Path, few_file: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in (compared / "cells").iterdir()}
    again = [*COMMAND, "--data", str(few_file), "--seeds", "1", "--only", "turned", "--out", str(compared)]
    assert main(again) == 0
    assert {path: path.stat().st_mtime_ns for path in (compared / "cells").iterdir()} == before
    assert "0 are to be trained" in capsys.readouterr().err


def test_other_settings_and_other_images_are_another_comparison(
    compared: Path, few_file: Path, few_digits: Dataset, capsys: pytest.CaptureFixture[str]
):
    other = [*COMMAND[:3], "--data", str(few_file), "--images-seen", "500", "--out", str(compared)]
    assert main(other) == 2
    assert "images_seen: 400 then, 500 now" in capsys.readouterr().err
    changed = few_digits.train.images.copy()
    changed[0, 0, 0, 0] ^= 1
    with pytest.raises(ConfigError, match="images: '"):
        Comparison(Dataset("few", "few", replace(few_digits.train, images=changed), None), TINY, compared)
    assert len(list((compared / "cells").glob("*.json"))) == 6


@pytest.mark.parametrize("model", sorted(set(MODELS) - set(SOME)))
def test_every_other_model_runs_too(few_digits: Dataset, tmp_path: Path, model: str):
    record = Comparison(few_digits, TINY, tmp_path).finish(Cell(model, "upright", False, 0))
    assert record["accuracy"] > 0.05 and record["inference"]["decision"]["parameters"] > 7000
    assert record["files"] == {}  # nobody asked for them


def test_a_cell_whose_file_is_damaged_or_gone_is_noticed(few_digits: Dataset, tmp_path: Path):
    comparison = Comparison(few_digits, TINY, tmp_path)
    cell = Cell("logistic", "upright", False, 0)
    comparison.finish(cell)
    assert comparison.needed([cell]) == []
    comparison.cell_file(cell).write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        comparison.finished(cell)
    comparison.cell_file(cell).unlink()
    assert comparison.needed([cell]) == [cell]


def test_cells_that_were_done_before_a_stop_stay_done(few_digits: Dataset, tmp_path: Path):
    comparison = Comparison(few_digits, TINY, tmp_path)
    first, second = list_cells(["logistic", "mlp"], ["upright"], False, [0])
    comparison.finish(first)

    class Stopped:
        def __enter__(self):
            def stop(step: int, steps: int, terms: dict) -> None:
                raise KeyboardInterrupt

            return stop

        def __exit__(self, *error: object) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        comparison.finish(second, lambda name: Stopped())
    assert Comparison(few_digits, TINY, tmp_path).needed([first, second]) == [second]


def test_the_same_seed_gives_the_same_network_and_another_one_does_not(few_digits: Dataset, tmp_path: Path):
    ground = Ground(few_digits, TINY)
    estimate(ground, [Cell("cnn-equal", "upright", False, 0)])  # must not move any random number
    first, again, other = (ground.network("cnn-equal", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_judges_are_never_trained_on_and_are_others_with_each_seed(few_digits: Dataset):
    ground = Ground(few_digits, TINY)
    parts = [ground.parts(seed) for seed in (0, 1)]
    for pool, held in parts:
        assert len(pool) == 360 and len(held) == 40
        assert not {image.tobytes() for image in pool.images} & {image.tobytes() for image in held.images}
    first, second = ({image.tobytes() for image in held.images} for _, held in parts)
    assert first != second


def test_generated_images_change_neither_batch_nor_augmentation(digits: Dataset):
    ground = Ground(digits, replace(TINY, train_images=1900))
    real, mixed = (
        ground.training_config(Cell("cnn", "upright", kind, 0), count) for kind, count in ((0, 1900), (1, 2700))
    )
    assert real.augment == mixed.augment == "strong" and real.batch == mixed.batch


def test_ours_trains_on_the_images_that_the_others_train_on(few_digits: Dataset, tmp_path: Path):
    """`train` holds images out by itself: they must be the ones that no other model is given."""
    comparison = Comparison(few_digits, TINY, tmp_path)
    ours = comparison.finish(Cell("vae", "upright", False, 0))
    others = comparison.finish(Cell("logistic", "upright", False, 0))
    assert ours["images"] == others["images"]
    config = json.loads((comparison.run_folder(Cell("vae", "upright", False, 0)) / "config.json").read_text())
    assert config["data"]["trained_on"] == ours["images"]["trained_on"]
    assert (config["data"]["holdout_fraction"], config["data"]["seed"]) == (INNER, 0)


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_the_control_is_as_large_and_trains_as_much_as_the_angle_vae(digits: Dataset, preset: str):
    ground = Ground(digits, Settings(preset=preset))
    cell = Cell("cnn-equal", "turned", False, 0)
    network = ground.network("cnn-equal", 0)
    ours = ground.cost("angle-vae", Decision(AngleVAE(ground.config(orientation=True))))
    theirs = ground.cost("cnn-equal", network)
    assert theirs["parameters"] == pytest.approx(ours["parameters"], rel=0.03)
    assert theirs["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    steps, macs = ground.steps_of(cell, 3420, network)
    assert steps * macs == pytest.approx(ground.steps(cell, 3420) * ground.angle_vae_macs, rel=0.03)
    plain = ground.steps_of(replace(cell, model="cnn"), 3420, ground.network("cnn", 0))[0]
    assert plain == ground.steps(cell, 3420)


def test_the_small_network_is_small():
    parameters = sum(p.numel() for p in baselines.cnn(create_config("small")).parameters())
    assert 70_000 <= parameters <= 90_000
    assert f"{parameters:,} parameters" in (Path(__file__).parents[2] / "docs" / "compare.md").read_text()


class Known(nn.Module):
    """Four 3×3 filters with stride 2 on 28×28 pixels, ten classes; and a branch that nobody asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.last, self.unused = nn.Conv2d(1, 4, 3, 2, 1), nn.Linear(784, 10), nn.Linear(784, 99)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.convolution(image).relu().flatten(1)
        self.unused(features)
        return self.last(features)


def test_counts_are_those_of_a_network_counted_by_hand():
    convolution, last = 14 * 14 * 4 * 9, 784 * 10
    cost = inference_cost(Known(), torch.zeros(1, 1, 28, 28))
    assert cost.macs == convolution + last
    assert cost.parameters == 4 * 9 + 4 + 784 * 10 + 10
    macs = training_macs(Known(), lambda network, pixels: network(pixels).sum(), 28, 1)
    # forward, and to the weights; to the input too, but for the first layer. The unused branch runs forward.
    assert macs == 2 * convolution + 3 * last + 784 * 99


def test_counting_leaves_the_network_as_it_was():
    network = baselines.cnn(create_config("tiny"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    training_macs(network, baselines.cross_entropy_of_anything, 28, 1)
    inference_cost(network, torch.zeros(1, 1, 28, 28))
    assert network.training and all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def outputs(model: object, images: np.ndarray) -> np.ndarray:
    import onnx

    return run_onnx(onnx.load_from_string(to_files(model, 28, 1)["decision"]), images)["probabilities"]


@pytest.mark.parametrize("name", ["mlp", "cnn", "cnn-equal"])
def test_a_networks_file_gives_its_probabilities(few_digits: Dataset, name: str):
    ground = Ground(few_digits, TINY)
    images = few_digits.train.images[::7]
    network = ground.network(name, 0).eval()
    np.testing.assert_allclose(outputs(network, images), baselines.network_probabilities(network, images), atol=1e-4)
    other = baselines.network_probabilities(ground.network(name, 1), images)
    assert np.abs(outputs(network, images) - other).max() > 1e-3  # the check can fail


def test_our_file_gives_our_probabilities(checkpoint: Checkpoint, few_digits: Dataset):
    images = few_digits.train.images[::7]
    expected = predict(checkpoint.model, images).probabilities
    np.testing.assert_allclose(outputs(checkpoint.model, images), expected, atol=1e-4)


@pytest.mark.parametrize("kept", [range(10), (3, 5), (0, 4, 9)])
def test_files_of_scikit_learn_give_its_numbers(few_digits: Dataset, kept: tuple[int, ...]):
    """With two classes, and with classes that have no images, as well."""
    half = few_digits.train.take(np.flatnonzero(np.isin(few_digits.train.labels, kept)))
    pixels = baselines.flat(half.images)
    svm, logistic = baselines.fit_svm(half), baselines.fit_logistic(half)
    np.testing.assert_allclose(outputs(logistic, half.images), logistic.predict_proba(pixels), atol=1e-4)
    scores = outputs(svm, half.images)
    decision = svm.decision_function(pixels)
    np.testing.assert_allclose(scores if len(kept) > 2 else scores[:, 1], decision, atol=1e-4)
    np.testing.assert_array_equal(svm.classes_[scores.argmax(1)], svm.predict(pixels))


def test_the_networks_learn(digits: Dataset):
    kept, held = holdout(digits.train, 0.5, 0)
    settings = TrainConfig(rotation="none", batch=64, seed=0)
    torch.manual_seed(0)
    network = baselines.fit_network(baselines.mlp(create_config("tiny")), kept, settings, 200, 0.0)
    assert (baselines.network_probabilities(network, held.images).argmax(1) == held.labels).mean() > 0.85


def test_a_turned_svm_sees_each_image_once(few_digits: Dataset, tmp_path: Path):
    record = Comparison(few_digits, TINY, tmp_path).finish(Cell("svm", "turned", False, 0))
    assert record["training"]["images_seen"] == record["images"]["trained_on"]
    vectors = record["details"]["support_vectors"]
    assert record["inference"]["decision"]["macs"] == vectors * 784 + vectors * 9


def test_the_estimate_counts_every_model(few_digits: Dataset):
    cells = list_cells(list(MODELS), KINDS, True, [0, 1])
    seconds = estimate(Ground(few_digits, TINY), cells)
    assert seconds.keys() == MODELS.keys() and all(value > 0 for value in seconds.values())
    longer = estimate(Ground(few_digits, replace(TINY, images_seen=4_000_000)), cells[-1:])
    assert longer["angle-vae"] > seconds["angle-vae"]  # of one cell, against eight


def fake(model: str, seed: int, accuracy: float, generated: bool = False) -> dict:
    cell = {"model": model, "images": "turned", "generated": generated, "seed": seed}
    training = {"wall_seconds": 2.0 + seed, "processor_seconds": 3.0, "images_seen": 10, "macs": 5.0}
    decision = {"parameters": 3, "macs": 4}
    images = {"judged_on": 100, "trained_on": 50}
    files = {"decision": {"file": f"{model}.onnx", "bytes": 2048}} if seed == 0 else {}
    common = {"images": images, "training": training, "inference": {"decision": decision}, "files": files}
    return {"cell": cell, "accuracy": accuracy, **common}


def test_the_gain_is_paired_by_seed():
    ours, theirs = [0.98, 0.99, 0.985], [0.97, 0.985, 0.97]
    records = [fake("angle-vae", k, a) for k, a in enumerate(ours)]
    records += [fake("cnn-equal", k, a) for k, a in enumerate(theirs)]
    result = summarize_cells(records[::-1], {"angle-vae.onnx": 12.5})
    points = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    (gain,) = result["gains"]
    assert gain["points"]["by_seed"] == pytest.approx(points)
    assert gain["points"]["std"] == pytest.approx(statistics.stdev(points))
    row = next(row for row in result["rows"] if row["model"] == "angle-vae")
    assert row["accuracy"]["std"] == pytest.approx(statistics.stdev(ours)) and row["wall_seconds"] == 3.0
    assert row["decision"] == {"parameters": 3, "macs": 4, "bytes": 2048, "latency_us": 12.5}
    mean, deviation = statistics.fmean(points), statistics.stdev(points)
    assert "the gain of angle-vae over cnn-equal" in result["sentence"]
    assert f"{mean:+.2f} ± {deviation:.2f} points" in result["sentence"] and "3 seeds" in result["sentence"]


@pytest.mark.parametrize(
    ("theirs", "words"),
    [((0.99, 0.97), "no clear gain"), ((0.99, 0.995), "the loss of"), ((0.9,), r"\+8\.00 points, with a single seed")],
)
def test_the_sentence_claims_no_more_than_the_figures_do(theirs: tuple[float, ...], words: str):
    records = [fake("cnn-equal", k, a) for k, a in enumerate(theirs)]
    records += [fake("angle-vae", k, 0.98) for k in range(len(theirs))]
    assert re.search(words, summarize_cells(records, {})["sentence"])
    assert "not known" in summarize_cells(records[:1], {})["sentence"]


def test_what_generated_images_change_is_paired_too():
    records = [fake("cnn", 0, 0.9), fake("cnn", 1, 0.8), fake("cnn", 0, 0.91, True), fake("cnn", 1, 0.82, True)]
    (helps,) = summarize_cells(records, {})["generated_helps"]
    assert helps["points"]["by_seed"] == pytest.approx([1.0, 2.0])


def test_mistakes_are_sentences(
    few_digits: Dataset, few_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(ConfigError, match="unknown model tree: expected some of svm, logistic"):
        list_cells(["svm", "tree"], KINDS, True, [0])
    with pytest.raises(DataError, match="no training half"):
        Ground(Dataset("t", "test.npz", None, few_digits.train), TINY)
    one = few_digits.train.take(np.flatnonzero(few_digits.train.labels == 3))
    with pytest.raises(DataError, match="one class"):
        Ground(Dataset("one", "one", one, None), TINY)
    with pytest.raises(DataError, match="342"):
        Ground(few_digits, replace(TINY, train_images=400)).parts(0)
    with pytest.raises(ConfigError, match="at least 32"):
        replace(TINY, train_images=5)
    tiny = few_digits.train.take(np.arange(0, 400, 20))
    with pytest.raises(DataError, match="too few"):
        Ground(Dataset("t", "t", tiny, None), TINY).parts(0)
    for options, words in (
        (("--train-images", "some"), "whole number, or all"),
        (("--generated", "1.5"), "share 1.5"),
        (("--models", "cnn,forest"), "unknown model forest"),
        (("--preset", "huge"), "unknown preset"),
    ):
        assert main(["compare", "--data", str(few_file), "--out", str(tmp_path / "out"), *options]) == 2
        errors = capsys.readouterr().err
        assert words in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_images_of_a_light_background_are_turned_on_light_ground(few_digits: Dataset):
    light = replace(few_digits.train, images=255 - few_digits.train.images)
    ground = Ground(Dataset("light", "light", light, None), TINY)
    assert ground.fill == 255 and ground.config(orientation=True).fill == 1.0


def test_colour_works_as_grey_does(tmp_path: Path):
    rng = np.random.default_rng(0)
    labels = np.arange(80, dtype=np.int64) % 2
    images = rng.integers(0, 60, (80, 32, 32, 3), dtype=np.uint8)
    images[labels == 1, :, :, 0] += 150
    data = Dataset("colours", "colours", LabelledImages(images, labels, ("dull", "red")), None)
    comparison = Comparison(data, TINY, tmp_path)
    for name in ("svm", "cnn-equal", "angle-vae"):
        record = comparison.finish(Cell(name, "upright", False, 0))
        assert record["images"]["judged_on"] == 8
    assert comparison.finish(Cell("svm", "upright", False, 0))["accuracy"] == 1.0
