"""`vae-edge build`: its options become a build's configuration, and a device that must build itself gets a kit."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from small_models import make_bundle

from vae_edge import deployment
from vae_edge.cli import main
from vae_edge.cli.deploy import build_options
from vae_edge.cli.parser import build_parser
from vae_edge.engine import gpus
from vae_edge.engine.devices import TARGET_DEVICES, find_targets
from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.errors import ConfigError

NO_GPU = gpus.Driver(None, (), "no NVIDIA driver is installed")
ORIN = gpus.Driver((12, 6), (gpus.Device(0, "Orin", (8, 7), 8, 8 << 30, True),))


def config(*words: str) -> BuildConfig:
    arguments = build_parser().parse_args(["build", "bundle", *words])
    return BuildConfig("int8", **build_options(arguments))


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ((), {}),
        (("--batch", "1,4,16"), {"batch": (1, 4, 16)}),
        (("--batch", "8"), {"batch": (8, 8, 8)}),
        (("--dla", "1"), {"dla_core": 1, "batch": (1, 1, 1)}),
        (("--dla", "0", "--batch", "4"), {"dla_core": 0, "batch": (4, 4, 4)}),
        (("--workspace", "64"), {"workspace_bytes": 64 << 20}),
        (("--optimization-level", "5"), {"optimization_level": 5}),
        (("--no-tf32",), {"tf32": False}),
        (("--tf32",), {"tf32": True}),
        (("--timing-cache", "times"), {"timing_cache": "times"}),
        (("--hardware-compatibility", "ampere_plus"), {"hardware_compatibility": "ampere_plus"}),
        (("--version-compatible",), {"version_compatible": True}),
        (("--refit",), {"refit": True}),
        (("--strip-weights",), {"strip_weights": True}),
    ],
)
def test_each_option_sets_its_value_and_no_other(words: tuple[str, ...], values: dict[str, Any]) -> None:
    default = BuildConfig("int8")
    changed = {
        field.name: getattr(config(*words), field.name)
        for field in dataclasses.fields(BuildConfig)
        if getattr(config(*words), field.name) != getattr(default, field.name)
    }
    assert changed == {name: value for name, value in values.items() if value != getattr(default, name)}


def test_a_batch_of_two_numbers_is_refused_with_the_three_words() -> None:
    with pytest.raises(
        ConfigError, match=r"--batch 1,8: expected three whole numbers such as 1,8,64 \(min, opt, max\)"
    ):
        config("--batch", "1,8")


@pytest.fixture
def nothing_builds(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would be built here, instead of building it."""
    asked: list[dict[str, Any]] = []

    class Built:
        def to_json(self) -> dict[str, Any]:
            return {"built": True}

    def build_engine(bundle: str, **options: Any) -> Built:
        asked.append(options)
        return Built()

    monkeypatch.setattr(deployment, "build_engine", build_engine)
    monkeypatch.setattr(gpus, "probe", lambda *_: NO_GPU)
    return asked


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    return make_bundle(folder / "bundle", folder / "work", widths=(16,), precisions=("fp32", "int8")).path


def test_targets_are_divided_into_what_is_built_here_and_what_gets_a_kit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpus, "probe", lambda *_: NO_GPU)
    plan = deployment.plan_build(find_targets("rtx-4090,orin-nano,sm_86,h100,t4"))
    assert plan.here == ("sm_86", "sm_89") and [d.name for d in plan.on_device] == ["orin-nano", "h100", "t4"]
    assert deployment.plan_build(find_targets("sm_87")).on_device == ()
    assert deployment.plan_build(find_targets("orin-nano"), "tensorrt_rtx").here == ("sm_87",)
    assert deployment.plan_build(find_targets("this")).builds_here
    monkeypatch.setattr(gpus, "probe", lambda *_: ORIN)
    assert deployment.plan_build(find_targets("orin-nano")).here == ("sm_87",), "on the Orin itself it is built here"


def test_a_refused_kit_builds_nothing_either(
    small: Path, tmp_path: Path, nothing_builds: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kit"
    for words, says in (
        (("--target", "orin-nano", "--dla", "0"), "has no DLA cores, and core 0 was asked for"),
        (("--target", "agx-orin,rtx-4090", "--dla", "1", "--precision", "fp32"), "only in fp16 and int8"),
        (("--target", "orin-nano", "--timing-cache", "x"), "A timing cache holds what one GPU measured"),
        (("--target", "orin-nano,thor"), "a kit is for one device, but orin-nano, thor were named"),
        (("--target", "orin-nano", "--precision", "fp16"), "has no fp16 ONNX classifier to put into a kit"),
        (("--target", "orin-nano", "--mark-outputs"), "has no probes"),
        (("--target", "orin-nan"), "Did you mean orin-nano"),
    ):
        assert main(["build", str(small), "--precision", "int8", *words, "--kit", str(out)]) == 2
        assert says in capsys.readouterr().err, words
    assert main(["build", str(small), "--target", "rtx-4090", "--data", "digits"]) == 2
    assert "--data travels in a kit" in capsys.readouterr().err
    assert not out.exists() and nothing_builds == []


def test_results_of_several_are_one_list_and_of_one_are_plain(
    small: Path, tmp_path: Path, nothing_builds: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kit"
    words = ["--precision", "int8", "--target", "rtx-4090,orin-nano", "--kit", str(out), "--json", "--batch", "4"]
    assert main(["build", str(small), *words]) == 0
    engine, kit = json.loads(capsys.readouterr().out)
    assert engine == {"built": True} and kit["device"] == "orin-nano" and kit["precisions"] == ["int8"]
    (asked,) = nothing_builds
    assert asked["targets"] == ("sm_89",) and asked["precision"] == "int8" and asked["batch"] == (4, 4, 4)
    assert json.loads((out / "kit.json").read_text())["configs"][0]["batch"] == [4, 4, 4]
    assert main(["build", str(small), "--precision", "int8", "--target", "rtx-4090", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"built": True}


def test_without_a_place_the_kit_stands_beside_the_bundle(small: Path, nothing_builds: list[dict[str, Any]]) -> None:
    assert main(["build", str(small), "--precision", "int8", "--target", "thor"]) == 0
    made = small.parent / f"{small.name}-thor.tar.gz"
    assert made.is_file()
    made.unlink()
    assert nothing_builds == []


def test_an_architecture_gets_a_kit_where_one_is_asked_for(small: Path, tmp_path: Path) -> None:
    assert main(["build", str(small), "--precision", "int8", "--target", "sm_87", "--kit", str(tmp_path / "kit")]) == 0
    about = json.loads((tmp_path / "kit" / "kit.json").read_text())
    assert (about["device"], about["target"], about["jetson"]) == ("sm_87", "sm_87", True)


def test_devices_lists_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == [each.name for each in TARGET_DEVICES]
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(TARGET_DEVICES) and lines[0].split()[0] == "device"


def test_the_api_takes_a_configuration_its_values_or_both(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vae_edge
    from vae_edge.engine import build

    seen: list[BuildConfig] = []
    monkeypatch.setattr(build, "build_bundle_engine", lambda bundle, config, **_: seen.append(config))
    vae_edge.build_engine(small, precision="int8", targets=("rtx-4090",), batch=(1, 2, 4))
    vae_edge.build_engine(small, BuildConfig("fp16", batch=(2, 2, 2)))
    vae_edge.build_engine(small, BuildConfig("fp16"), optimization_level=2, mark_outputs=["x"])
    assert seen == [
        BuildConfig("int8", targets=("sm_89",), batch=(1, 2, 4)),
        BuildConfig("fp16", batch=(2, 2, 2)),
        BuildConfig("fp16", optimization_level=2, mark_outputs=("x",)),
    ]
    with pytest.raises(ConfigError, match="no option 'batches'; it has precision, role, batch"):
        vae_edge.build_engine(small, precision="int8", batches=(1, 2, 4))
    with pytest.raises(ConfigError, match='precision="int8"'):
        vae_edge.build_engine(small)
