from __future__ import annotations

from pathlib import Path

import pytest
from vae_edge_kernels.analysis import roofline
from vae_edge_kernels.layout import NetworkLayout

from vae_edge.cli import main
from vae_edge.model.network import layout_for_preset

PRESETS = ("tiny", "small", "base")
PAGE = Path(__file__).parents[2] / "docs" / "kernels_tables.md"


@pytest.fixture(scope="module")
def layouts() -> dict[str, NetworkLayout]:
    return {
        f"{name}_{'int8' if int8 else 'fp16'}": layout_for_preset(name, int8=int8)
        for name in PRESETS
        for int8 in (False, True)
    }


def test_the_work_of_a_convolution_is_what_its_sizes_say(layouts: dict[str, NetworkLayout]) -> None:
    steps = {step.name: step for step in roofline.layer_costs(layouts["small_fp16"])}
    step = steps["orientation 1"]  # 28 × 28 × 16 to 14 × 14 × 32, 3 × 3
    assert (step.inputs, step.outputs) == (2 * 28 * 28 * 16, 2 * 14 * 14 * 32)
    assert (step.weights, step.macs) == (2 * 9 * 16 * 32, 14 * 14 * 9 * 16 * 32)
    assert steps["rotate"].inputs == 784 and steps["rotate"].outputs == 2 * 784
    int8 = {step.name: step for step in roofline.layer_costs(layouts["small_int8"])}
    assert int8["orientation 1"].outputs == 14 * 14 * 32
    assert int8["rotate"].outputs == int8["decoder 2"].outputs == 4 * 784  # what stays in float32


def test_the_floor_is_the_slower_of_memory_and_matrix_units() -> None:
    device = roofline.Device("made up", 90, bytes_per_s=1e9, fp16_macs_per_s=1e9, int8_macs_per_s=2e9)
    step = roofline.LayerCost("step", inputs=1000, outputs=500, weights=200, macs=4000)
    assert step.lower_bound_us(device, 1, int8=False) == pytest.approx(4.0)
    assert step.lower_bound_us(device, 1, int8=True) == pytest.approx(2.0)
    small = roofline.LayerCost("step", inputs=1000, outputs=500, weights=200, macs=40)
    assert small.lower_bound_us(device, 10, int8=False) == pytest.approx(15.2)  # weights once for the whole batch


def test_fusing_moves_fewer_bytes_and_one_launch_hardly_any(layouts: dict[str, NetworkLayout]) -> None:
    for layout in layouts.values():
        unfused, fused, single = roofline.bytes_moved(layout)
        assert unfused > 2 * fused > 50 * single


def test_the_page_has_the_tables_that_the_command_prints(
    layouts: dict[str, NetworkLayout], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", "roofline", "--networks", ",".join(PRESETS)]) == 0
    printed, page = capsys.readouterr().out, PAGE.read_text(encoding="utf-8")
    for layout in layouts.values():
        assert roofline.table(layout) in printed
        assert roofline.table(layout) in page
    assert roofline.savings(layouts) in page
