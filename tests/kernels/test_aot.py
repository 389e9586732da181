from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import triton
from vae_edge_kernels import aot, config, conv, heads
from vae_edge_kernels import reparameterize as kernels
from vae_edge_kernels.analysis import sass
from vae_edge_kernels.analysis.sass import ResourceBudget, SassStats
from vae_edge_kernels.aot import worker
from vae_edge_kernels.layout import to_json
from vae_edge_kernels.layout_builder import make_layout

from vae_edge.errors import KernelError
from vae_edge.model.network import layout_for_preset

ARCHITECTURES = (87, 90)
NEWEST = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 9)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """The float32 kernels for two architectures, with PTX, as the command writes them; and the lines of progress."""
    folder, lines = tmp_path_factory.mktemp("aot"), []
    manifest = aot.compile_all(folder, ARCHITECTURES, ptx=True, only="reparameterize_*_fp32*", progress=lines.append)
    return folder, manifest, lines


def test_the_manifest_tells_what_lies_in_the_folder(compiled: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, manifest, _ = compiled
    assert manifest == json.loads((folder / "manifest.json").read_text())
    assert [kernel["name"] for kernel in manifest["kernels"]] == [
        f"reparameterize_{direction}_fp32{quads}" for direction in ("forward", "backward") for quads in ("", "_quads")
    ]
    for kernel in manifest["kernels"]:
        assert [cubin["architecture"] for cubin in kernel["cubins"]] == list(ARCHITECTURES)
        for cubin in kernel["cubins"]:
            content = (folder / cubin["file"]).read_bytes()
            assert content[:4] == b"\x7fELF"
            assert hashlib.sha256(content).hexdigest() == cubin["sha256"]
            assert len(content) == cubin["bytes"]
            assert cubin["warps"] * 32 <= 1024 and cubin["constants"]["ROWS"] > 0
            assert str(Path.cwd()).encode() not in content
            assert b"reparameterize.py" not in content


def test_arguments_are_listed_in_order_and_end_with_two_scratch_pointers(
    compiled: tuple[Path, dict[str, Any], list[str]],
) -> None:
    folder, manifest, _ = compiled
    forward = next(kernel for kernel in manifest["kernels"] if kernel["name"] == "reparameterize_forward_fp32_quads")
    assert [(argument["name"], argument["type"], argument["aligned"]) for argument in forward["arguments"]] == [
        *((f"{name}_ptr", "*fp32", 16) for name in ("mu", "logvar", "z", "kl")),
        ("rows", "i32", 1),
        ("columns", "i32", 1),
        ("seed", "i64", 1),
        ("offset", "i64", 1),
        ("global_scratch", "*i8", 1),
        ("profile_scratch", "*i8", 1),
    ]
    ptx = (folder / "sm_87" / "reparameterize_forward_fp32_quads.ptx").read_text()
    assert ptx.split(".entry")[1].split(")")[0].count(".param") == len(forward["arguments"])


def test_progress_has_one_line_for_each_architecture(compiled: tuple[Path, dict[str, Any], list[str]]) -> None:
    assert sorted(line.split(":")[0] for line in compiled[2]) == ["sm_87", "sm_90"]


def test_compiling_again_writes_the_same_bytes(
    compiled: tuple[Path, dict[str, Any], list[str]], tmp_path: Path
) -> None:
    again = aot.compile_all(tmp_path, (87,), only="reparameterize_*_fp32*")
    for first, second in zip(compiled[1]["kernels"], again["kernels"], strict=True):
        assert first["cubins"][0] == second["cubins"][0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_is_within_its_budget(architecture: int, compiled: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, manifest, _ = compiled
    for kernel in manifest["kernels"]:
        cubin = folder / f"sm_{architecture}" / f"{kernel['name']}.cubin"
        shape = next(made for made in kernel["cubins"] if made["architecture"] == architecture)
        code = sass.read_stats(cubin.with_suffix(".ptx"), cubin, architecture, shape["warps"], shape["shared_bytes"])
        sass.check_budget(kernel["name"], code, sass.load_budget(kernel["operator"], kernel["name"]))
        assert code.spill_store_bytes == 0
        if kernel["name"].endswith("_quads"):
            loads, stores = (2, 1) if "forward" in kernel["name"] else (3, 2)
            assert (code.load_bits[128], code.store_bits[128]) == (loads, stores)


def test_a_kernel_that_spills_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    usual = next(v for v in kernels.kernel_specs(87) if v.name == "reparameterize_backward_fp32_quads")
    wide = {"constants": {"ROWS": 32, "COLUMNS": 64, "QUADS": 1}, "num_warps": 1}
    found = sass.inspect_spec(replace(usual, **wide), 87)
    assert found.code.spill_store_bytes > 0
    assert found.fault is not None
    assert re.search(r"spill_store_bytes is \d+, at most 0 allowed", found.fault)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"aligned": ()}, r"the widest global load is \d+ bits, at least 128 expected"),
        ({"constants": {"BLOCK_M": 256, "BLOCK_N": 256, "BLOCK_K": 64}}, r"spill_store_bytes is \d+, at most 0"),
    ],
)
def test_a_convolution_without_hints_and_one_with_too_large_a_tile_are_refused(
    changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    usual = next(v for v in conv.kernel_specs(87) if v.name == "conv_fp16_64_aligned")
    assert sass.inspect_spec(usual, 87).fault is None
    fault = sass.inspect_spec(replace(usual, **changes), 87).fault
    assert fault is not None and re.search(words, fault)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"registers": 129}, "registers is 129, at most 128"),
        ({"stack_bytes": 8}, "stack_bytes is 8"),
        ({"shared_bytes": 1 << 20}, "shared_bytes is 1048576"),
        ({"load_bits": {32: 8, 64: 2}}, "the widest global load is 64 bits, at least 128"),
        ({"store_bits": {}}, "the widest global store is 0 bits"),
    ],
)
def test_each_figure_over_its_budget_is_named(change: dict[str, Any], words: str) -> None:
    good: dict[str, Any] = {"registers": 40, "stack_bytes": 0, "shared_bytes": 64, "spill_store_bytes": 0}
    good |= {"load_bits": {128: 2}, "store_bits": {128: 1}}
    allowed = ResourceBudget(registers=128, stack_bytes=0, shared_bytes=4096, spill_store_bytes=0, access_bits=128)
    sass.check_budget("made_up", SassStats(**good), allowed)
    with pytest.raises(KernelError, match=words):
        sass.check_budget("made_up", SassStats(**{**good, **change}), allowed)


def test_a_file_that_is_no_machine_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.cubin").write_bytes(b"nothing")
    with pytest.raises(KernelError, match="cuobjdump"):
        sass.read_stats(tmp_path / "x.ptx", tmp_path / "x.cubin", 87)


def test_a_kernel_without_a_budget_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "made_up.json").write_text('{"budgets": [{"kernels": "other_*"}]}')
    monkeypatch.setattr(config, "FOLDER", tmp_path)
    with pytest.raises(KernelError, match="has no budget"):
        sass.load_budget("made_up", "made_up_forward")


@pytest.mark.parametrize("text", ["80,87", "sm_87;sm_80", " 87, 80,87"])
def test_architectures_are_read_in_any_spelling(text: str) -> None:
    assert aot.parse_architectures(text) == (80, 87)


@pytest.mark.parametrize(
    "text, words",
    [("101", "sm_110 since CUDA 13"), ("55", "known are 80, 86"), ("", "known are"), ("87,best", "'best' is refused")],
)
def test_unknown_architectures_are_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(KernelError, match=words):
        aot.parse_architectures(text)


@pytest.mark.skipif(not NEWEST, reason="older compilers know sm_101")
def test_a_compiler_that_dies_is_told_and_what_stood_there_stands(tmp_path: Path) -> None:
    (tmp_path / "sm_101").mkdir()
    (tmp_path / "sm_101" / "old.cubin").write_bytes(b"old")
    with pytest.raises(
        KernelError, match=r"Compiling for sm_101 failed: the compiler's process ended with (signal|code)"
    ):
        aot._compile_architecture(tmp_path, 101, False, "reparameterize_forward_fp32")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["old.cubin"]


def test_a_missing_ptxas_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "ptxas"
    old.write_text("#!/bin/sh\necho \"'sm_50','sm_60' release 11.0\"\n")
    old.chmod(0o755)
    monkeypatch.setenv("TRITON_PTXAS_BLACKWELL_PATH", str(old))
    with pytest.raises(KernelError, match=r"does not know sm_110; install Triton 3\.9"):
        aot.check_tools([110])
    old.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(KernelError, match="no working ptxas for sm_110"):
        aot.check_tools([110])


def test_the_command_prints_a_sentence_and_gives_2_on_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert aot.main(["--out", str(tmp_path), "--arch", "101"]) == 2
    assert "sm_110 since CUDA 13" in capsys.readouterr().err
    assert aot.main(["--out", str(tmp_path), "--arch", "87", "--only", "nothing*"]) == 2
    assert "No kernel's name fits 'nothing*'" in capsys.readouterr().err
    assert not (tmp_path / "manifest.json").exists()


def test_a_kernel_with_other_scratch_is_not_embedded(compiled: tuple[Path, dict[str, Any], list[str]]) -> None:
    kernel = compiled[1]["kernels"][0]
    assert "reparameterize_forward" in aot.table_source([kernel])
    with pytest.raises(KernelError, match="global_scratch"):
        aot.table_source([{**kernel, "arguments": kernel["arguments"][:-1]}])


def test_an_architecture_without_its_own_configuration_has_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = {"kernels": {"forward": {"default": {"ROWS": 16}, "87": {"ROWS": 8}}}}
    (tmp_path / "made_up.json").write_text(json.dumps(table))
    monkeypatch.setattr(config, "FOLDER", tmp_path)
    assert config.get_config("made_up", "forward", 87) == {"ROWS": 8}
    assert config.get_config("made_up", "forward", 90) == {"ROWS": 16}
    assert config.get_config("made_up", "forward", None) == {"ROWS": 16}


def test_no_kernel_file_imports_torch() -> None:
    for path in config.FOLDER.parent.rglob("*.py"):
        assert "import torch" not in path.read_text(), path
        assert "from torch" not in path.read_text(), path


def test_the_build_and_the_command_have_the_same_default_architectures() -> None:
    build = (Path(__file__).parents[2] / "CMakeLists.txt").read_text()
    assert f'set(VAE_EDGE_ARCHITECTURES "{";".join(map(str, aot.DEFAULT_ARCHITECTURES))}"' in build


@pytest.mark.slow
def test_the_command_finds_every_kernel_within_its_budget(capsys: pytest.CaptureFixture[str]) -> None:
    from vae_edge.cli import main

    networks = "small" if NEWEST else "none"  # older compilers' whole networks are some registers over the budget
    done = main(["kernels", "check", "--arch", "87,90", "--networks", networks, "--json"])
    findings = json.loads(capsys.readouterr().out)
    over = {finding["kernel"] for finding in findings if finding["fault"]}
    # Triton 3.6 makes a little more of these than the budget allows: four bytes spilled for sm_90, some registers.
    spilled = {"reconstruction_error_fp16", "reconstruction_error_fp32"}
    known = set() if NEWEST else {*spilled, "stem_conv_int8_i8_32_aligned"}
    assert over <= known and done == (2 if over else 0)
    library = {spec.name for spec in worker.kernel_specs(90)}
    names = {finding["kernel"] for finding in findings if finding["architecture"] == 90}
    assert library <= names
    whole = {f"{kernel}_small_{dtype}" for kernel in ("network", "content_head") for dtype in ("fp16", "int8")}
    assert not NEWEST or whole <= names
    for finding in findings:
        code = finding["code"]
        assert code["spill_store_bytes"] == 0 or finding["kernel"] in known
        if "conv" in finding["kernel"] or finding["operator"] == "network":
            assert code["matrix"]
        if finding["kernel"].endswith("_aligned") and "stem" not in finding["kernel"]:
            assert code["occupancy"] >= 0.25


@pytest.mark.slow
@pytest.mark.skipif(not NEWEST, reason="older compilers take some registers more")
@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_the_heads_of_every_preset_are_within_their_budget(preset: str) -> None:
    for architecture in (86, 90, 110, 120):
        for int8 in (False, True):
            for spec in heads.network_variants(layout_for_preset(preset, int8=int8), architecture):
                assert sass.inspect_spec(spec, architecture).fault is None


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not NEWEST, reason="older compilers take some registers more")
@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
@pytest.mark.parametrize("architecture", aot.DEFAULT_ARCHITECTURES)
def test_every_network_is_within_its_budget(preset: str, architecture: int) -> None:
    for int8 in (False, True):
        layout = to_json(layout_for_preset(preset, int8=int8))
        label = f"_{preset}_{'int8' if int8 else 'fp16'}"  # budgets are by name
        for spec in worker.kernel_specs(architecture, layout, label):
            assert sass.inspect_spec(spec, architecture).fault is None


def test_a_network_is_compiled_to_the_same_bytes_again(tmp_path: Path) -> None:
    layout = small_layout()
    made = [aot.compile_all(tmp_path / name, (87,), only="network", network=layout) for name in ("one", "two")]
    first, second = (manifest["kernels"][0]["cubins"][0]["sha256"] for manifest in made)
    assert first == second


@pytest.mark.parametrize("architecture", [87, 90, 120])
def test_all_threads_wait_before_a_program_releases_and_after_it_acquires(architecture: int) -> None:
    (spec,) = (
        each
        for each in worker.kernel_specs(architecture, small_layout(), ctas_per_image=4)
        if each.name.startswith("network_multi_cta")
    )
    _, _, ptx = worker.compile_spec(spec, architecture)
    told = re.findall(r"\bbar\.sync\b|\b(?:red|atom)\.global\.gpu\.(?:release|acquire)\b|\.visible|\.func", ptx)
    places = [number for number, word in enumerate(told) if word.endswith(("release", "acquire"))]
    assert len(places) >= 10
    for place in places:
        if told[place].endswith("release"):
            assert told[place - 1] == "bar.sync"
        else:
            assert told[place].startswith("atom") and told[place + 1] == "bar.sync"


def small_layout() -> str:
    """The layout of a network without orientation encoder and decoder, which compiles fast."""
    layout = make_layout(
        size=(8, 8), channels=1, classes=3, bins=0, latent=4, hidden=4, fill=0.0, circular_mask=False,
        orientation=(), encoder=[(16, 1), (16, 2), (16, 1), (16, 2), (16, 1), (16, 2)], feature_layer=2, components=4,
        clusters=3, decoder=None, reduction=1, int8=False,
    )  # fmt: skip
    return to_json(layout)
