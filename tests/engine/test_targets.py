"""Names of architectures, and what is refused before a build starts."""

from __future__ import annotations

import re

import pytest

from vae_edge.bundle_schema import check_entry
from vae_edge.engine.gpus import (
    DEVICES,
    RTX_TARGETS,
    check_local_gpu,
    check_rtx_targets,
    covers,
    parse_targets,
    target_name,
)
from vae_edge.errors import EngineError


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("sm_86", ("sm_86",)),
        ("86", ("sm_86",)),
        ("sm86", ("sm_86",)),
        ("sm_80+86+89+120", ("sm_80", "sm_86", "sm_89", "sm_120")),
        ("sm_120,sm_80 sm_80", ("sm_80", "sm_120")),
        ("sm_80_86", ("sm_80", "sm_86")),
        (["sm_120", "sm_89"], ("sm_89", "sm_120")),
        ("", ()),
        ((), ()),
    ],
)
def test_targets_are_read_in_every_usual_way(given: str | list[str], names: tuple[str, ...]) -> None:
    assert parse_targets(given) == names


@pytest.mark.parametrize("bad", ["ampere", "sm_", "sm_8", "orin", "sm_86x", "sm_-86", "8.6", "sm_1200"])
def test_what_is_no_architecture_is_refused_with_those_that_are(bad: str) -> None:
    with pytest.raises(EngineError, match=r"sm_87 \(Jetson Orin\)"):
        parse_targets(bad)


def test_an_unknown_number_is_refused_and_the_old_name_of_thor_is_explained() -> None:
    with pytest.raises(EngineError, match="sm_99 is unknown"):
        parse_targets("sm_99")
    with pytest.raises(EngineError, match=r"Jetson Thor's old name.*Use sm_110"):
        parse_targets(["sm_86", "sm_101"])


def test_the_name_of_many_targets_reads_back_and_fits_a_manifest() -> None:
    name = target_name(RTX_TARGETS)
    assert name == "sm_75_80_86_89_120_121"
    assert parse_targets(name) == RTX_TARGETS
    entry = {"file": f"classifier.int8.{name}.rtx", "role": "classifier", "format": "tensorrt_rtx", "precision": "int8"}
    check_entry(
        {**entry, "target": name, "opset": None, "sha256": "0" * 64, "bytes": 1, "accuracy": {}, "provenance": {}},
        "test",
    )


def test_an_engine_covers_the_targets_it_was_built_for_and_no_other() -> None:
    assert covers("sm_80_86", "sm_86")
    assert covers("sm_87", "sm_87")
    assert not covers("sm_80_86", "sm_89")
    assert not covers("any", "sm_86")


@pytest.mark.parametrize(
    ("target", "precision", "words"),
    [
        ("sm_87", "int8", "Jetson Orin.*on the Jetson itself.*JetPack"),
        ("sm_110", "fp16", "Jetson Thor.*on the Jetson itself.*JetPack"),
        ("sm_90", "fp16", "H100.*full TensorRT.*pip install tensorrt"),
        ("sm_100", "fp8", "B200.*full TensorRT"),
        ("sm_86", "fp8", "no fp8 arithmetic.*sm_89, sm_120, sm_121"),
        ("sm_80", "fp8", "no fp8 arithmetic"),
        ("sm_75", "fp32", "no fp32 matrix product on sm_75"),
        ("sm_75", "int8", "no fp32 matrix product on sm_75"),
    ],
)
def test_rtx_refuses_what_it_cannot_build_and_says_what_to_use_instead(target: str, precision: str, words: str) -> None:
    with pytest.raises(EngineError, match=re.compile(words, re.DOTALL)):
        check_rtx_targets((target,), precision)


def test_everything_else_is_let_through() -> None:
    check_rtx_targets(RTX_TARGETS, "fp16")
    for precision in ("fp32", "fp16", "int8"):
        check_rtx_targets(("sm_80", "sm_86", "sm_89", "sm_120", "sm_121"), precision)
    check_rtx_targets(("sm_89", "sm_120", "sm_121"), "fp8")
    for target in DEVICES:
        check_local_gpu(target, "int8")


def test_on_the_device_fp8_needs_ada_or_later_and_a_dla_takes_fp16_and_int8() -> None:
    with pytest.raises(EngineError, match=r"\(sm_87\) has no fp8"):
        check_local_gpu("sm_87", "fp8")
    check_local_gpu("sm_110", "fp8")
    check_local_gpu("sm_87", "int8", dla=True)
    with pytest.raises(EngineError, match="only in fp16 and int8"):
        check_local_gpu("sm_87", "fp32", dla=True)
