"""Devices by name: each name leads to its architecture, and what is no name is refused with the nearest ones."""

from __future__ import annotations

import json

import pytest

from vae_edge.engine.devices import (
    HEADINGS,
    TARGET_DEVICES,
    TargetDevice,
    find_architectures,
    find_targets,
    is_jetson,
    table_rows,
)
from vae_edge.engine.gpus import DEVICES, RTX_TARGETS
from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.errors import EngineError
from vae_edge.jetson import CHIPS, MODULES

# developer.nvidia.com/cuda-gpus, read on its own
CAPABILITIES = {
    "orin-nano": "sm_87",
    "orin-nano-super": "sm_87",
    "orin-nx": "sm_87",
    "agx-orin": "sm_87",
    "orin": "sm_87",
    "thor": "sm_110",
    "thor-t4000": "sm_110",
    "t5000": "sm_110",
    "t4": "sm_75",
    "rtx-2080": "sm_75",
    "a100": "sm_80",
    "rtx-3060": "sm_86",
    "rtx-3090": "sm_86",
    "a2": "sm_86",
    "a10": "sm_86",
    "rtx-4060": "sm_89",
    "rtx-4090": "sm_89",
    "l4": "sm_89",
    "l40s": "sm_89",
    "h100": "sm_90",
    "h200": "sm_90",
    "b200": "sm_100",
    "rtx-5060": "sm_120",
    "rtx-5090": "sm_120",
    "dgx-spark": "sm_121",
}


@pytest.mark.parametrize("name", list(CAPABILITIES))
def test_a_name_has_the_capability_that_nvidia_lists(name: str) -> None:
    assert find_architectures(name) == (CAPABILITIES[name],)
    assert find_architectures(name.upper()) == (CAPABILITIES[name],)
    assert BuildConfig("int8", targets=(name,)).targets == (CAPABILITIES[name],)


def test_names_and_architectures_stand_in_one_list_each_architecture_once() -> None:
    found = find_targets(["rtx-4090,sm_86", "l4 rtx-3060"])
    assert found.architectures == ("sm_86", "sm_89")
    assert [device.name for device in found.devices] == ["rtx-4090", "l4", "rtx-3060"]
    assert find_targets("sm_80+86").devices == ()
    assert find_targets("").architectures == ()


def test_this_is_the_machines_own_gpu_and_stands_alone() -> None:
    assert find_targets("this").architectures == ()
    with pytest.raises(EngineError, match="stands alone"):
        find_targets("this,rtx-4090")


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("orin-nan", "orin-nano"), ("rtx4090", "rtx-4090"), ("agxorin", "agx-orin"), ("h101", "h100"), ("thorr", "thor")],
)
def test_an_unknown_name_is_refused_with_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(EngineError, match=rf"neither a device's name.*Did you mean .*\b{nearest}\b.*vae-edge devices"):
        find_targets(given)


def test_a_name_unlike_any_other_is_refused_without_a_guess() -> None:
    with pytest.raises(EngineError) as error:
        find_targets("gameboy")
    assert "Did you mean" not in str(error.value) and "sm_87 (Jetson Orin)" in str(error.value)
    with pytest.raises(EngineError, match="Use sm_110"):
        find_targets("sm_101")


def test_the_table_is_plausible_and_each_device_names_its_source() -> None:
    names = [name for device in TARGET_DEVICES for name in (device.name, *device.aliases)]
    assert len(names) == len(set(names))
    for device in TARGET_DEVICES:
        assert device.target in DEVICES and device.source
        assert device.multiprocessors is None or 1 <= device.multiprocessors <= 200
        assert device.bandwidth_gb_s is None or 30 <= device.bandwidth_gb_s <= 10_000
        assert device.jetson == is_jetson(device.target)
        assert device.ahead_of_time == (device.target in set(RTX_TARGETS) - {"sm_75"})
        assert device.jetson or not device.dla_cores
        json.dumps(device.to_json(), allow_nan=False)
    assert [device.dla_cores for device in _named("orin-nano", "orin-nx-8gb", "orin-nx-16gb", "agx-orin-64gb")] == [
        *(0, 1, 2, 2)
    ]


def test_the_jetsons_agree_with_the_doctors_table_of_modules() -> None:
    """Two tables, each with its own source: the part numbers of modules, and the names that people use."""
    modules = {(m.chip, m.memory_gib, m.dla_cores) for m in MODULES.values()}
    chips = {chip.capability: name for name, chip in CHIPS.items()}
    for device in TARGET_DEVICES:
        if device.jetson:
            assert (chips[device.capability], device.memory_gb, device.dla_cores) in modules, device.name
            assert device.jetpacks and all(each.tensorrt != "8.6" for each in device.jetpacks)
        else:
            assert device.jetpacks == ()
    (nano,) = _named("orin-nano")
    assert nano.to_json()["jetpacks"]["6.2"] == "10.3"
    assert "6.1-6.2.2 (10.3), 7.2-7.2.1 (10.16)" in table_rows()[TARGET_DEVICES.index(nano)]


def _named(*names: str) -> list[TargetDevice]:
    return [device for name in names for device in TARGET_DEVICES if device.name == name]


def test_rows_have_a_cell_for_each_heading_and_a_question_mark_for_what_is_not_known() -> None:
    rows = table_rows()
    assert len(rows) == len(TARGET_DEVICES) and all(len(row) == len(HEADINGS) for row in rows)
    unknown = next(row for row, device in zip(rows, TARGET_DEVICES, strict=True) if device.multiprocessors is None)
    assert unknown[HEADINGS.index("SMs")] == "?"
