"""A pretrained encoder all the way: trained, resumed, exported, quantized, verified, and run by the runtime."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from doubles.torchvision_operators import make_torchvision_importable

import vae_edge
from vae_edge import api
from vae_edge.cli import main
from vae_edge.data import Dataset, LabelledImages
from vae_edge.deployment import build_engine
from vae_edge.errors import CheckpointError, ConfigError, EngineError
from vae_edge.model.backbone import create_network, import_library
from vae_edge.training.checkpoint import load_checkpoint, read_tensors
from vae_edge.training.config import TrainConfig
from vae_edge.training.evaluate import predict
from vae_edge.training.run_file import run_arguments

NAME = "timm/mobilenetv2_035"  # depthwise convolutions, ReLU6, residual additions
SMALLER = "timm/test_efficientnet"  # SiLU; with rotation a graph runs its network twice
SIZE = 40
SETTINGS = {"rotation": "none", "epochs": 2, "batch": 20}

make_torchvision_importable()
try:
    import_library("timm")
except ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)


def textures(count: int, seed: int) -> LabelledImages:
    """Coloured stripes along rows, along columns, and checks, with noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    place = np.arange(SIZE)
    images = np.empty((count, SIZE, SIZE, 3))
    for k, label in enumerate(labels):
        wave = np.sin(place * 2 * np.pi / rng.uniform(6, 9) + rng.uniform(0, 6))
        rows, columns = wave[:, None] + 0 * wave, wave[None, :] + 0 * wave[:, None]
        pattern = (rows, columns, rows * columns)[label]
        images[k] = 128 + 80 * pattern[..., None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 10, (SIZE, SIZE, 3))
    return LabelledImages(images.clip(0, 255).astype(np.uint8), labels.astype(np.int64), ("rows", "columns", "checks"))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset("textures", "made up", textures(180, 0), textures(60, 1))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(NAME, tmp_path_factory.mktemp("weights") / "weights.pt")


def make_weights(name: str, path: Path) -> Path:
    """A file of weights whose batch normalization has seen images, as pretrained ones have."""
    torch.manual_seed(0)
    network = create_network(name).train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.rand(16, 3, SIZE, SIZE))
    torch.save(network.state_dict(), path)
    return path


def fit(dataset: Dataset, out: Path, weights: Path | None, name=NAME, progress=None, resume: bool = False, **changes):
    config = TrainConfig(**{**SETTINGS, "backbone_weights": None if weights is None else str(weights), **changes})
    return api.train(dataset, out, config, backbone=name, preset="tiny", progress=progress, resume=resume)


@pytest.fixture(scope="module", params=["none", "full"])
def run(request, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, without and with rotation; the file of weights is away when it is read."""
    folder, name = tmp_path_factory.mktemp(request.param), NAME if request.param == "none" else SMALLER
    own = make_weights(name, folder / "own.pt")
    fit(dataset, folder / "run", own, name, rotation=request.param)
    own.unlink()
    return folder / "run"


@pytest.fixture(scope="module")
def bundle(run: Path, dataset: Dataset) -> Path:
    path = run.with_name("bundle")
    api.export(run, path)
    api.quantize(path, "fp16", dataset, force=True)
    api.quantize(path, "int8", dataset, force=True)
    return path


def test_a_run_begins_with_the_files_weights_and_learns(dataset: Dataset, weights: Path, tmp_path: Path):
    fit(dataset, tmp_path / "run", weights)
    trained = load_checkpoint(tmp_path / "run").model.encoder.network.state_dict()
    given = torch.load(weights, weights_only=True)
    assert torch.equal(trained["bn1.running_mean"], given["bn1.running_mean"])
    change = (trained["conv_stem.weight"] - given["conv_stem.weight"]).abs().max()
    assert 0 < change < 0.05  # it was trained, by a lower learning rate, from there


def test_pretrained_weights_learn_by_their_own_rate(dataset: Dataset, weights: Path, tmp_path: Path):
    fit(dataset, tmp_path / "run", weights, backbone_lr_ratio=0.0)
    network = load_checkpoint(tmp_path / "run").model.encoder.network.state_dict()
    given = torch.load(weights, weights_only=True)
    same = [name for name in network if not name.endswith("num_batches_tracked")]
    assert len(same) > 200
    for name in same:  # AdamW's decay is in proportion to the learning rate too
        torch.testing.assert_close(network[name], given[name], atol=1e-6, rtol=1e-6, msg=name)


def test_a_run_that_died_resumes_without_the_file_to_the_same_weights(dataset: Dataset, weights: Path, tmp_path: Path):
    own = tmp_path / "own.pt"
    shutil.copy(weights, own)
    fit(dataset, tmp_path / "whole", own)

    class StopError(Exception):
        pass

    def die(step: int, steps: int, terms: dict[str, float]) -> None:
        if step == steps // 2 + 2:
            raise StopError

    with pytest.raises(StopError):
        fit(dataset, tmp_path / "died", own, progress=die)
    own.unlink()
    with pytest.raises(CheckpointError, match="other settings"):
        fit(dataset, tmp_path / "died", None, resume=True)
    with pytest.raises(CheckpointError, match=rf"model\.backbone: '{NAME}' then, None now"):
        vae_edge.train(dataset, tmp_path / "died", TrainConfig(**SETTINGS), preset="tiny", resume=True, progress=None)
    fit(dataset, tmp_path / "died", own, resume=True)
    one, other = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("whole", "died"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_runs_file_repeats_the_backbone(run: Path):
    arguments = run_arguments(run / "run.toml")
    assert arguments["backbone"] in (NAME, SMALLER)
    assert Path(arguments["config"].backbone_weights).is_absolute()
    assert arguments["config"].backbone_lr_ratio == TrainConfig().backbone_lr_ratio
    assert load_checkpoint(run).config.model.backbone == arguments["backbone"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_runtime_says_what_pytorch_says(run: Path, bundle: Path, dataset: Dataset, precision: str, backend: str):
    checkpoint = load_checkpoint(run)
    reference = predict(checkpoint.model, dataset.test.images)
    with vae_edge.load(bundle, backend, precision) as classifier:
        found = classifier(dataset.test.images, color="rgb")
    atol = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.15}[precision]
    assert np.mean(np.abs(found.probabilities - reference.probabilities)) < atol
    if precision == "fp32":
        np.testing.assert_allclose(found.scores, reference.scores, atol=0.01, rtol=1e-3)
    assert np.isfinite(found.scores).all() and np.std(found.scores) > 0
    if checkpoint.config.model.orientation:
        assert found.angles_deg.shape == (60,)
        apart = np.abs((found.angles_deg - reference.angles_deg + 180) % 360 - 180)
        assert np.median(apart) < {"fp32": 0.01, "fp16": 2, "int8": 15}[precision]


def test_every_file_gives_the_exact_answers_to_the_probe_images(bundle: Path):
    found = vae_edge.verify(bundle, ["onnxruntime"])
    assert found.right
    assert {model.precision for model in found.models} >= {"fp32", "fp16", "int8"}


def test_no_network_file_is_made(bundle: Path):
    with pytest.raises(EngineError, match=r"pretrained network timm/.*TensorRT.*onnxruntime"):
        build_engine(bundle, kind="native", targets=("sm_87",), precision="int8")


def test_the_command_trains_and_refuses(dataset: Dataset, weights: Path, tmp_path: Path, capsys, caplog):
    folder = tmp_path / "data"
    np.savez(folder.with_suffix(".npz"), x_train=dataset.train.images[:90], y_train=dataset.train.labels[:90])
    data = ["train", "--data", str(folder.with_suffix(".npz")), "--rotation", "none", "--epochs", "1"]
    out, given = str(tmp_path / "run"), ["--backbone-weights", str(weights)]
    assert main([*data, "--out", out, *given]) == 2
    assert "--backbone-weights belongs to --backbone" in capsys.readouterr().err
    assert main([*data, "--out", out, "--backbone", "timm/nothing", *given]) == 2
    assert "cannot build the backbone nothing" in capsys.readouterr().err
    assert main([*data, "--out", out, "--backbone", NAME, "--backbone-weights", str(tmp_path / "absent")]) == 2
    assert "absent is missing" in capsys.readouterr().err
    with caplog.at_level(logging.INFO, "vae_edge"):
        assert main([*data, "--out", out, "--backbone", NAME, *given]) == 0
    assert "matched by name" in caplog.text
