"""A build's configuration is checked as a whole, before any process starts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.errors import EngineError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "int4"}, "'int4' is unknown: choose one of fp32, fp16, int8, fp8"),
        ({"precision": "INT8"}, "'INT8' is unknown"),
        ({"role": "decoder"}, "'decoder' is unknown"),
        ({"targets": ("sm_101",)}, "Use sm_110"),
        ({"batch": (1, 8)}, "three whole numbers"),
        ({"batch": (1, 8.0, 64)}, "three whole numbers"),
        ({"batch": (True, 8, 64)}, "three whole numbers"),
        ({"batch": (0, 8, 64)}, "from at least 1"),
        ({"batch": (1, 65, 64)}, "should rise"),
        ({"batch": (1, 1, 65_537)}, "at most 65536"),
        ({"workspace_bytes": 1000}, "at least 1 MiB"),
        ({"workspace_bytes": 1e9}, "at least 1 MiB"),
        ({"optimization_level": 6}, "0 to 5"),
        ({"optimization_level": -1}, "0 to 5"),
        ({"hardware_compatibility": "all"}, "'all' is unknown"),
        ({"dla_core": -1}, "0 or more"),
        ({"dla_core": 0}, r"one fixed batch.*\(8, 8, 8\)"),
        ({"kind": "trt"}, "'trt' is unknown: choose auto, tensorrt or tensorrt_rtx"),
    ],
)
def test_values_that_no_tensorrt_takes_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        BuildConfig(**{"precision": "int8", **changes})


def test_a_good_configuration_passes_and_survives_the_way_through_json() -> None:
    config = BuildConfig("fp16", batch=(8, 8, 8), targets=("sm_87",), optimization_level=0, dla_core=1)
    assert BuildConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_manifest_keeps_no_path_of_this_machine() -> None:
    kept = BuildConfig("fp16", timing_cache="/home/somebody/cache").for_manifest()
    assert kept["timing_cache"] is True and kept["batch"] == [1, 8, 64] and "kind" not in kept
