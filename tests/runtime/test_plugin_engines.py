"""Engines with kernels of the toolkit: TensorRT-RTX must know their plugins before it reads such an engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import engine_bundle
from small_models import noise

import vae_edge
from vae_edge.bundle import Bundle, add_models, load_bundle
from vae_edge.engine.plugins import layered
from vae_edge.errors import BundleError, EngineError, VaeEdgeError

Gpu = Callable[..., Any]
NAME = "VaeEdgeNetwork_0123456789abcdef"


def with_plugins(bundle: Bundle, kind: str, plugins: Any) -> Bundle:
    """The bundle whose manifest says that its engine has these plugins."""
    (entry,) = bundle.select(format=kind)
    changed = dataclasses.replace(
        entry, file="", sha256="", bytes=0, provenance={**entry.provenance, "plugins": plugins}
    )
    copy = bundle.path.parent / "copy.plan"
    copy.write_bytes(bundle.file(entry).read_bytes())
    add_models(bundle.path, [(copy, changed)])
    return load_bundle(bundle.path)


@pytest.mark.parametrize(("version", "registered"), [("rtx", [(NAME,)]), ("10.13", []), ("11.4", [])])
def test_plugins_are_registered_before_the_engine_is_read(
    gpu: Gpu,
    session_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    registered: list[tuple[str, ...]],
) -> None:
    """Engines of full TensorRT have the kernels themselves."""
    double = gpu(version)
    bundle = with_plugins(engine_bundle(session_bundle, tmp_path / "bundle", double), double.kind, [NAME])
    seen: list[tuple[str, ...]] = []

    def register(module: Any, names: Any) -> None:
        assert module is double.module
        seen.append(tuple(names))
        double.fail("deserialize_cuda_engine")  # so it comes after this

    monkeypatch.setattr(layered, "register", register)
    if registered:
        with pytest.raises(VaeEdgeError, match="cannot load"):
            vae_edge.load(bundle.path, double.kind, "fp32")
        assert seen == registered
        return
    with vae_edge.load(bundle.path, double.kind, "fp32") as classifier:
        assert len(classifier(noise(2)).labels) == 2
    assert seen == registered


@pytest.mark.parametrize("plugins", ["VaeEdgeNetwork", [1], ["../x"], [None], {"a": 1}])
def test_names_that_are_none_are_refused(gpu: Gpu, session_bundle: Bundle, tmp_path: Path, plugins: Any) -> None:
    double = gpu("rtx")
    bundle = with_plugins(engine_bundle(session_bundle, tmp_path / "bundle", double), double.kind, plugins)
    with pytest.raises(BundleError, match=r"has the plugins .*, where names are expected: build it again"):
        vae_edge.load(bundle.path, double.kind, "fp32")


def test_a_name_that_another_plugin_has_is_told() -> None:
    class Registry:
        def register_creator(self, creator: Any, namespace: str) -> bool:
            return False

    class Base:
        pass

    class Module:
        __name__ = "of_this_test"
        IPluginCreatorV3One = Base

        @staticmethod
        def PluginFieldCollection(fields: list[Any]) -> list[Any]:
            return fields

        @staticmethod
        def get_plugin_registry() -> Registry:
            return Registry()

    with pytest.raises(EngineError, match=f"does not register the plugin {NAME}: another one has its name"):
        layered.register(Module(), [NAME])
