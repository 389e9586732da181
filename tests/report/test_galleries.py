"""The pictures of a trained model carry the numbers of the predictions that they show."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from vae_edge.report import galleries
from vae_edge.report.plots import wilson_interval
from vae_edge.training.data import make_run_config, make_splits

NAMES = ("derotated", "traversal", "generated", "roc", "reliability", "angles")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "bench" / "render_images.py"
    spec = importlib.util.spec_from_file_location("bench_render_images", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_render_images"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another data set: stripes of two directions."""
    path = tmp_path_factory.mktemp("data") / "stripes.npz"
    lying = np.zeros((28, 28, 1), np.uint8)
    lying[::4] = 255
    images = np.stack([lying, lying.transpose(1, 0, 2)] * 30)
    np.savez(path, images=images, labels=np.tile([0, 1], 30), classes=np.array(["lying", "standing"]))
    return path


@pytest.fixture(scope="module")
def evaluated(script: ModuleType, run: Path, stripes: Path) -> Any:
    return script.evaluate(run, "digits", [str(stripes)], 0)


@pytest.fixture(scope="module")
def figures(script: ModuleType, evaluated: Any) -> dict[str, Any]:
    return script.plot_all(evaluated)


def texts(figure: Any) -> list[str]:
    """Everything that is written in a figure."""
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def test_every_picture_is_small_light_and_the_same_each_time(
    script: ModuleType, evaluated: Any, tmp_path: Path
) -> None:
    once, again = script.plot_all(evaluated), script.plot_all(evaluated)
    assert tuple(once) == NAMES
    for name, figure in once.items():
        first = galleries.write_png(figure, tmp_path / f"{name}.png")
        second = galleries.write_png(again[name], tmp_path / f"{name}-again.png")
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size < 150 * 1024, name
        with Image.open(first) as image:
            assert image.width == 1350 and not image.info.keys() & {"Software", "date", "Creation Time"}
            assert image.convert("RGB").getpixel((0, image.height - 1)) == (255, 255, 255)


def test_legends_give_the_auroc_of_every_kind(figures: dict[str, Any], evaluated: Any) -> None:
    assert set(evaluated.unknown) == {*sys.modules["bench_render_images"].OOD_KINDS, "stripes"}
    for axes, measure in zip(figures["roc"].axes, ("scores", "fast_scores"), strict=True):
        known = getattr(evaluated.outputs, measure)
        written = {text.get_text() for text in axes.get_legend().get_texts()}
        expected = set()
        for kind, outputs in evaluated.unknown.items():
            unknown = getattr(outputs, measure)
            labels = np.repeat([0, 1], [len(known), len(unknown)])
            expected.add(f"{roc_auc_score(labels, np.concatenate([known, unknown])):.4f}  {kind}")
        assert written == expected


def test_the_dashed_line_stands_at_the_fraction_that_the_threshold_rejects(
    figures: dict[str, Any], evaluated: Any
) -> None:
    axes = figures["roc"].axes[0]
    places = [line.get_xdata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 2]
    threshold = evaluated.checkpoint.result.threshold
    assert places == [pytest.approx((evaluated.outputs.scores > threshold).mean())]


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Bin by bin, as Guo et al. 2017, eq. 5, has it."""
    top, right = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for k in range(15):
        inside = (top > k / 15) & (top <= (k + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(top[inside].mean() - right[inside].mean())
    return total


def test_the_reliability_diagram_is_of_images_that_the_temperature_was_not_fitted_on(
    script: ModuleType, figures: dict[str, Any], evaluated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[np.ndarray] = []
    shown: list[Any] = []
    fit = script.fit_temperature
    monkeypatch.setattr(script, "fit_temperature", lambda logits, labels: fitted.append(logits) or fit(logits, labels))
    monkeypatch.setattr(script.galleries, "reliability_diagram", lambda *given: shown.append(given))
    script.reliability(evaluated)
    (before, after, labels, temperature), logits = shown[0], evaluated.outputs.logits.astype(np.float64)
    assert len(fitted[0]) + len(labels) == len(evaluated.images) and temperature != 1
    everything = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    tested = {row.tobytes() for row in before.round(9)}
    of_fitted = np.exp(fitted[0]) / np.exp(fitted[0]).sum(1, keepdims=True)
    kept_apart = sum(row.tobytes() not in tested for row in of_fitted.round(9))
    assert kept_apart >= 0.95 * len(fitted[0])  # some images may have the same probabilities to nine places
    assert tested <= {row.tobytes() for row in everything.round(9)}
    cooled = before ** (1 / temperature)
    np.testing.assert_allclose(after, cooled / cooled.sum(1, keepdims=True), atol=1e-9)


def test_titles_give_the_calibration_error_and_bars_all_images(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 5)) * 3
    labels = np.where(rng.random(400) < 0.6, logits.argmax(1), rng.integers(0, 5, 400))
    before, after = script.softmax(logits), script.softmax(logits / 2)
    figure = galleries.reliability_diagram(before, after, labels, 2.0)
    titles = [axes.get_title() for axes in figure.axes[:2]]
    assert titles == [
        f"without temperature: ECE {100 * calibration_error(before, labels):.2f}%",
        f"with temperature 2.00: ECE {100 * calibration_error(after, labels):.2f}%",
    ]
    for axes in figure.axes[2:]:
        assert sum(int(text.get_text()) for text in axes.texts) == 400
        assert sum(bar.get_height() for bar in axes.patches) == 400


def test_intervals_are_those_of_the_textbook() -> None:
    low, high = wilson_interval(np.array([0.0, 8.0, 10.0]), np.array([10.0, 10.0, 10.0]))
    np.testing.assert_allclose(low, [0.0, 0.4902, 0.7225], atol=1e-4)
    np.testing.assert_allclose(high, [0.2775, 0.9433, 1.0], atol=1e-4)


def test_wrong_answers_and_far_angles_are_marked_and_no_others(script: ModuleType, evaluated: Any) -> None:
    found = evaluated.outputs.probabilities.argmax(1)
    wrong = np.flatnonzero(found != evaluated.images.labels)
    far = np.flatnonzero((found == evaluated.images.labels) & (evaluated.errors_deg > 90))
    right = np.flatnonzero((found == evaluated.images.labels) & (evaluated.errors_deg < 90))[:5]
    for chosen, marked in ((wrong[:5], True), (far[:5], True), (right, False)):
        columns = script.columns(evaluated, chosen)
        assert len(chosen) and all(column.wrong is marked for column in columns)
    name = evaluated.images.classes
    for k, column in zip(wrong[:5], script.columns(evaluated, wrong[:5]), strict=True):
        assert f"{name[evaluated.images.labels[k]]} read as {name[found[k]]}" in column.caption
        assert f"is {galleries.degrees(evaluated.true_deg[k])}" in column.caption
        np.testing.assert_array_equal(column.images[0], evaluated.images.images[k])


def test_every_caption_is_in_the_picture(script: ModuleType, figures: dict[str, Any], evaluated: Any) -> None:
    written = texts(figures["derotated"])
    lines = script.derotated_lines(evaluated)
    assert len(lines[0][0].columns) == 10 and len(lines[1]) == 2
    for block in (block for line in lines for block in line):
        assert block.title in written and set(block.rows) <= set(written)
        assert {column.caption for column in block.columns} <= set(written)
    assert "2nd" in lines[1][1].columns[0].caption


def test_the_class_with_two_angles_is_the_same_when_rotated_by_180(script: ModuleType, evaluated: Any) -> None:
    assert script.two_angles(evaluated).title[0] in "018" and evaluated.checkpoint.ambiguous == {}
    result = replace(evaluated.checkpoint.result, symmetry={"8": 2, "7": 2})
    symmetric = replace(evaluated, checkpoint=replace(evaluated.checkpoint, result=result))
    assert script.two_angles(symmetric).title == "8 looks the same rotated by 180°: two angles"
    assert script.symmetry(evaluated, 0) > script.symmetry(evaluated, 7)


def test_rows_and_columns_have_their_names(figures: dict[str, Any], evaluated: Any) -> None:
    assert {"−150°", "0°", "+180°", *evaluated.images.classes} <= set(texts(figures["generated"]))
    assert {"−2.0", "0", "+2.0"} <= set(texts(figures["traversal"]))
    median, mean = np.median(evaluated.errors_deg), evaluated.errors_deg.mean()
    assert f"all: median {median:.1f}°, mean {mean:.1f}°" in texts(figures["angles"])


def test_a_class_without_generated_images_says_so() -> None:
    figure = galleries.generated({"a": np.zeros((3, 28, 28, 1), np.uint8), "b": None}, [0.0, 90.0, 180.0])
    assert sum("recognizes too few" in text for text in texts(figure)) == 1
    assert sum("recognizes too few" in text for text in texts(galleries.generated({"a": None}, None))) == 1


def test_angles_are_written_with_a_sign_and_never_as_minus_180() -> None:
    assert [galleries.degrees(angle) for angle in (-179.9, 180, -0.3, 7.4)] == ["+180°", "+180°", "0°", "+7°"]
    assert galleries.signed(-1.27, ".1f") == "−1.3"


def test_a_model_without_angles_has_its_pictures_too(script: ModuleType, few_digits: Any, tmp_path: Path) -> None:
    from vae_edge.training.config import TrainConfig
    from vae_edge.training.trainer import train

    settings = TrainConfig(rotation="none", epochs=1, batch=64)
    splits = make_splits(few_digits, settings)
    train(splits, make_run_config(few_digits, splits, "tiny", settings), tmp_path / "run")
    evaluated = script.evaluate(tmp_path / "run", "digits", [], 0)
    figures = script.plot_all(evaluated)
    assert tuple(figures) == NAMES[:-1]
    assert not {"derotated", "by the second"} & set(texts(figures["derotated"]))
    assert evaluated.angles_deg is None


def test_the_script_writes_what_it_draws_and_refuses_what_is_no_run(
    script: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["render_images", str(run), "--data", "digits", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert script.main() == 0
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == sorted(NAMES)
    monkeypatch.setattr(sys, "argv", ["render_images", str(tmp_path), *arguments[2:]])
    assert script.main() == 2
    assert "is not a training run" in capsys.readouterr().err
