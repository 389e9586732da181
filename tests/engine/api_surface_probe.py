"""Run in a process of its own, with one version's bindings and the stubs: prints as JSON what the adapter picks.

The arguments are names such as "BuilderFlag.TF32"; the answer says which of them the module has.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

from vae_edge.engine.builder import _progress_monitor
from vae_edge.engine.tensorrt import Adapter, BuildConfig, Log, discover, make_logger
from vae_edge.errors import EngineError


def refusal(call: object) -> str:
    """What the call is refused with; empty if it is not."""
    try:
        call()  # type: ignore[operator]
    except EngineError as error:
        return str(error)
    return ""


def config_calls(adapter: Adapter, config: BuildConfig) -> list[list[object]]:
    """The calls, each name of an enumeration looked up in the real module."""
    calls = adapter.config_calls(config)
    for call in calls:
        if isinstance(call.value, str):
            adapter.get(call.value)
    return [[call.action, call.name, call.value] for call in calls]


def main() -> None:
    """Open the one TensorRT that is there and ask it everything that the adapter asks."""
    installation = discover(("tensorrt",))[0]
    assert not installation.problem, installation.problem
    adapter = Adapter(sys.modules[installation.module], installation)
    module = adapter.module
    log = Log()
    logger = make_logger(module, log)
    logger.log(module.ILogger.Severity.ERROR, "one line")
    seen: list[list[object]] = []
    monitor = _progress_monitor(adapter, lambda *step: seen.append(list(step)))
    monitor.phase_start("Building", None, 2)
    monitor.step_complete("Building", 0)
    monitor.phase_finish("Building")
    everything = BuildConfig(
        "int8",
        batch=(8, 8, 8),
        optimization_level=4,
        tf32=False,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
        dla_core=0,
        strip_weights=True,
    )
    same = BuildConfig("int8", hardware_compatibility="same_compute_capability")
    answer = {
        "module": installation.module,
        "version": installation.version,
        "file": str(Path(inspect.getfile(module)).resolve()),
        "features": {name: adapter.has(name) for name in sys.argv[1:]},
        "network_flags": adapter.network_flag_names(),
        "network_bits": adapter.network_flags(),
        "members": sorted(module.NetworkDefinitionCreationFlag.__members__),
        "config_calls": config_calls(adapter, BuildConfig("fp16")),
        "everything": config_calls(adapter, everything),
        "same_compute_capability": refusal(lambda: adapter.config_calls(same)),
        "builder": refusal(lambda: adapter.builder(Log())),
        "log": log.messages,
        "progress": seen,
        "calls": {
            name: str(adapter.get(name).__doc__).replace("typing.SupportsInt", "int")
            for name in (
                "Builder.create_network",
                "Builder.build_serialized_network",
                "IBuilderConfig.set_memory_pool_limit",
                "IBuilderConfig.create_timing_cache",
                "IBuilderConfig.set_timing_cache",
                "IBuilderConfig.add_optimization_profile",
                "IOptimizationProfile.set_shape",
                "OnnxParser.parse",
                "OnnxParser.supports_model_v2",
                "ITimingCache.serialize",
                "IBuilderConfig.can_run_on_DLA",
                "INetworkDefinition.add_cast",
                "INetworkDefinition.mark_output",
                "Refitter.__init__",
                "Refitter.refit_cuda_engine",
                "Refitter.get_missing_weights",
                "OnnxParserRefitter.__init__",
                "OnnxParserRefitter.refit_from_bytes",
            )
        },
    }
    print(json.dumps(answer))


main()
