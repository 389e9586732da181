"""The double cannot drift: what it offers is what the real bindings of that version offer, name by name.

The bindings are imported in a process of their own over a stub of TensorRT's libraries in which nothing works. They
come by `tests/engine/fetch_bindings.sh FOLDER`; VAE_EDGE_TENSORRT_WHEELS=FOLDER then runs these tests.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from doubles.loading import load_tensorrt

HERE = Path(__file__).parent
STUB = HERE.parent / "engine" / "stubs" / "tensorrt_stub.c"
WHEELS = os.environ.get("VAE_EDGE_TENSORRT_WHEELS", "")
VERSIONS = ("10.3", "10.13", "11.4", "rtx")
LIBRARIES = {
    "10.3": [f"lib{name}.so.10" for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser")],
    "10.13": [f"lib{name}.so.10" for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser")],
    "11.4": [f"lib{name}.so.11" for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser")],
    "rtx": ["libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"],
}
# Names that the bindings of the runtime have and the double does not, because nothing of ours uses them. One that a
# version adds is in no list: then decide.
LEFT_OUT = {
    "Runtime": "get_plugin_registry load_runtime gpu_allocator error_recorder max_threads temporary_directory "
    "tempfile_control_flags dla_workspace_allocation_strategy defer_weights_loading",
    "ICudaEngine": "create_serialization_config serialize_with_config get_tensor_profile_values "
    "get_weight_streaming_automatic_budget is_debug_tensor get_aliased_input_tensor create_weights_manager "
    "load_weights load_weights_async unload_weights has_implicit_batch_dimension error_recorder tactic_sources "
    "weight_streaming_budget minimum_weight_streaming_budget weight_streaming_scratch_memory_size weights_loaded",
    "IExecutionContext": "execute_v2 set_output_allocator get_output_allocator report_to_profiler set_aux_streams "
    "set_debug_listener get_debug_listener set_tensor_debug_state get_debug_state set_all_tensors_debug_state "
    "set_communicator debug_sync profiler device_memory temporary_allocator error_recorder persistent_cache_limit "
    "unfused_tensors_debug_state",
    "EngineInspector": "error_recorder",
    "IRuntimeConfig": "",
    "IRuntimeCache": "",
    "IHostMemory": "",
    "Dims": "",
    "ILogger": "",
    "Logger": "",
}

pytestmark = pytest.mark.skipif(
    not WHEELS or shutil.which("cc") is None,
    reason="set VAE_EDGE_TENSORRT_WHEELS to a folder filled by tests/engine/fetch_bindings.sh (and have a C compiler)",
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Give what the real bindings of a version offer."""
    answers: dict[str, dict[str, Any]] = {}

    def answer(version: str) -> dict[str, Any]:
        if version not in answers:
            answers[version] = ask(version, tmp_path_factory.mktemp("bindings"))
        return answers[version]

    return answer


def ask(version: str, folder: Path) -> dict[str, Any]:
    double = load_tensorrt(version)
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    pattern = f"{double.kind}_cu*_bindings-{double.version}-{tag}-*.whl"
    fitting = sorted(Path(WHEELS).glob(pattern))
    if not fitting:
        pytest.skip(f"{WHEELS} has no {pattern}")
    with zipfile.ZipFile(fitting[0]) as wheel:
        wheel.extractall(folder)
    for library in LIBRARIES[version]:
        command = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", f"-Wl,-soname,{library}", "-o", str(folder / library)]
        subprocess.run([*command, str(STUB)], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    command = [sys.executable, str(HERE / "bindings_probe.py"), f"{double.kind}_bindings"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert Path(answer["file"]).is_relative_to(folder), "another TensorRT was imported than the one under test"
    assert answer["version"] == double.version
    return dict(answer)


# What the double offers


def public(cls: type) -> Iterator[tuple[str, Any]]:
    """The members that a class of the double itself offers."""
    for name, value in vars(cls).items():
        special = name in ("__len__", "__getitem__", "__setitem__", "__bool__", "__eq__", "__str__", "__repr__")
        if (not name.startswith("_") or special) and not getattr(value, "_guard", False):
            yield name, value


def arguments(signature: str) -> list[str]:
    """The names of a pybind11 signature without self, "arg" for those without a name, "=" after optional ones."""
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    found = []
    for part in split(inside):
        name, _, rest = part.strip().partition(":")
        if name and name != "self":
            name = "arg" if re.fullmatch(r"arg\d+", name) else name
            found.append(name + ("=" if "=" in rest else ""))
    return found


def split(text: str) -> list[str]:
    """At commas that are not inside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def differences(version: str, real: dict[str, Any], exports: dict[str, Any] | None = None) -> list[str]:
    """Sentences: what the double offers and the real bindings do not, or otherwise."""
    double = load_tensorrt(version)
    parameters = double.part("personality").parameters
    found: list[str] = []
    for name, value in (double.exports() if exports is None else exports).items():
        if inspect.isclass(value):
            if name not in real["classes"]:
                found.append(f"there is no {name}")
                continue
            found += class_differences(name, value, real["classes"], parameters)
        elif hasattr(type(value), "__members__"):
            if real["aliases"].get(name) != value.name:
                found.append(f"{name} is {real['aliases'].get(name)}, not {value.name}")
        elif callable(value):
            signatures = real["functions"].get(name)
            if signatures is None:
                found.append(f"there is no {name}()")
            else:
                found += signature_differences(name, value, [s + " -> " for s in signatures], parameters)
        elif name != "__version__":
            found.append(f"there is no {name}")
    return found


def class_differences(name: str, cls: type, classes: dict[str, Any], parameters: Any) -> list[str]:
    true = classes[name]
    found = []
    members = getattr(cls, "__members__", None)
    if members is not None:
        numbers = {key: member.value for key, member in members.items()}
        return [] if numbers == true["members"] else [f"{name} has {true['members']}, not {numbers}"]
    bases = [base.__name__ for base in cls.__mro__[1:-1] if base.__module__.startswith("_tensorrt_double")]
    if bases != true["bases"]:
        found.append(f"{name} derives from {true['bases']}, not {bases}")
    for key, value in public(cls):
        path = f"{name}.{key}"
        if hasattr(type(value), "__members__"):
            continue  # Logger.ERROR, which is a member of Severity
        if inspect.isclass(value):
            if key not in true["classes"]:
                found.append(f"there is no {path}")
            elif name == "ILogger":
                found += class_differences(path, value, classes, parameters)
        elif isinstance(value, int):
            if key not in true["properties"]:
                found.append(f"there is no {path}")
        elif isinstance(value, property):
            if key not in true["properties"]:
                found.append(f"there is no property {path}")
            elif value.fset is not None and not true["properties"][key]:
                found.append(f"{path} cannot be set")
        elif key not in true["methods"]:
            found.append(f"there is no {path}()")
        else:
            found += signature_differences(path, value, true["methods"][key], parameters)
    if "__init__" in vars(cls) and true["methods"]["__init__"] and name != "Dims":
        found += signature_differences(
            f"{name}.__init__", vars(cls)["__init__"], true["methods"]["__init__"], parameters
        )
    return found


def signature_differences(path: str, function: Any, signatures: list[str], parameters: Any) -> list[str]:
    """Each signature of the double must be one of the real ones."""
    true = [arguments(signature) for signature in signatures]
    return [f"{path}{tuple(given)} is none of {true}" for given in parameters(function) if given not in true]


# The comparison, and that it can fail

versions = pytest.mark.parametrize("version", VERSIONS)


@versions
def test_everything_that_the_double_offers_is_in_the_real_bindings(
    real: Callable[[str], dict[str, Any]], version: str
) -> None:
    assert differences(version, real(version)) == []


@versions
def test_what_the_runtime_classes_have_is_offered_or_left_out_by_name(
    real: Callable[[str], dict[str, Any]], version: str
) -> None:
    module = load_tensorrt(version).module
    missing = []
    for name, left_out in LEFT_OUT.items():
        true = real(version)["classes"].get(name)
        if true is None:
            assert not hasattr(module, name)
            continue
        offered = set(dir(getattr(module, name))) | set(left_out.split())
        names = [*true["methods"], *true["properties"]]
        missing += [f"{name}.{key}" for key in names if not key.startswith("_") and key not in offered]
    assert missing == []


def test_hasattr_tells_the_versions_apart_as_the_real_ones_do(real: Callable[[str], dict[str, Any]]) -> None:
    for path in (
        "ICudaEngine.create_runtime_config",
        "IRuntimeConfig.create_runtime_cache",
        "Runtime.get_engine_validity",
        "ICudaEngine.device_memory_size",
        "ICudaEngine.device_memory_size_v2",
        "OnnxParser.supports_model",
        "IBuilderConfig.set_compute_capability",
        "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY",
        "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
        "BuilderFlag.FP16",
    ):
        name, _, key = path.partition(".")
        for version in VERSIONS:
            true = real(version)["classes"].get(name, {"methods": {}, "properties": {}, "members": {}})
            has = key in true["methods"] or key in true["properties"] or key in true["members"]
            assert hasattr(getattr(load_tensorrt(version).module, name, None), key) == has, (path, version)


def changed_value(cls: Any) -> type:
    """An enumeration of which one member has another number."""
    member = object.__new__(cls)
    member.name, member.value = "HALF", 17
    return type("DataType", cls.__bases__, {**vars(cls), "__members__": {**cls.__members__, "HALF": member}})


def with_member(cls: Any, name: str, value: Any) -> type:
    """A class with one more member, or another one."""
    made = type(cls.__name__, cls.__bases__, {**vars(cls), name: value})
    made.__module__ = cls.__module__
    return made


def wrong_name(self: Any, stream: int) -> bool:
    return True


def one_more(self: Any, stream_handle: int, flags: int = 0) -> bool:
    return True


def now_required(self: Any, flags: int) -> None:
    return None


@versions
@pytest.mark.parametrize(
    ("name", "mutate", "says"),
    [
        ("ICudaEngine", lambda c: with_member(c, "get_nb_bindings", wrong_name), "no ICudaEngine.get_nb"),
        ("IExecutionContext", lambda c: with_member(c, "execute_async_v3", wrong_name), r"execute_async_v3\('stream'"),
        ("IExecutionContext", lambda c: with_member(c, "execute_async_v3", one_more), "is none of .*stream_handle"),
        ("Builder", lambda c: with_member(c, "create_network", now_required), r"create_network\('flags',\) is none"),
        ("ICudaEngine", lambda c: with_member(c, "num_bindings", property(wrong_name)), "no property ICudaEngine.num"),
        ("ICudaEngine", lambda c: with_member(c, "name", property(wrong_name, one_more)), "ICudaEngine.name cannot be"),
        ("DataType", changed_value, "DataType has .*'HALF': 1.* not .*'HALF': 17"),
        ("Logger", lambda c: with_member(c, "Verbosity", int), "there is no Logger.Verbosity"),
        ("IVolume", lambda cls: type("IVolume", (), {}), "there is no IVolume"),
        ("float32", lambda value: load_tensorrt("10.3").module.DataType.HALF, "float32 is FLOAT, not HALF"),
        ("nptype", lambda value: wrong_name, r"nptype\('stream',\) is none of \[\['trt_type'\]\]"),
        ("make_plan", lambda value: wrong_name, r"there is no make_plan\(\)"),
    ],
)  # fmt: skip
def test_a_double_that_differs_is_found_out(
    real: Callable[[str], dict[str, Any]], version: str, name: str, mutate: Callable[[Any], Any], says: str
) -> None:
    exports = load_tensorrt(version).exports()
    found = differences(version, real(version), {name: mutate(exports.get(name))})
    assert len(found) == 1 and re.search(says, found[0]), found
