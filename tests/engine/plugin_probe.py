"""Run in a process of its own, with one version's bindings and the stubs: plugins through TensorRT's own Python code.

The argument is a folder of kernel files. They are registered; then each is created and asked what TensorRT asks while
it builds, in that order, by the real classes of `tensorrt.plugin`. What the stub library cannot give is a double: the
registry, and symbolic integers, which are trees here. The answer goes to standard output as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import tensorrt_bindings as trt

sys.modules["tensorrt"] = trt  # as the package of that name, which is no wheel, does

from vae_edge.engine.plugins import quick  # noqa: E402
from vae_edge.engine.plugins.kernel_file import Kernel, read_folder  # noqa: E402

BATCHES = (1, 3, 300)


class Expr(trt.IDimensionExpr):  # type: ignore[misc]
    """A symbolic integer: a number, the batch ("N"), or (operation, left, right)."""

    tree: Any

    def is_constant(self) -> bool:
        """Whether it is a number."""
        return isinstance(self.tree, int)

    def get_constant_value(self) -> int:
        """The number."""
        return int(self.tree)


def expr(tree: Any) -> Expr:
    """An `Expr`; the class has no constructor in Python."""
    made: Expr = Expr.__new__(Expr)
    made.tree = tree
    return made


class Builder:
    """In place of TensorRT's IExprBuilder."""

    def constant(self, value: int) -> Expr:
        """A number."""
        return expr(value)

    def operation(self, kind: Any, left: Expr, right: Expr) -> Expr:
        """Two integers."""
        return expr((kind.name, left.tree, right.tree))


def value(tree: Any, batch: int) -> int:
    """A tree with this batch."""
    if tree == "N":
        return batch
    if isinstance(tree, int):
        return tree
    kind, left, right = tree[0], value(tree[1], batch), value(tree[2], batch)
    operations = {"SUM": left + right, "SUB": left - right, "PROD": left * right, "MIN": min(left, right)}
    if kind in operations:
        return operations[kind]
    return {"FLOOR_DIV": left // right, "CEIL_DIV": -(-left // right)}[kind]


class Registry:
    """In place of TensorRT's plugin registry."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        """Keep it, under its name."""
        self.creators[namespace, creator.name] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        """The one of a name."""
        assert version == "1"
        return self.creators[namespace, name]


class Setter:
    """In place of what takes an engine's launch parameters and scalars."""

    nbSymExprs: int

    def __init__(self) -> None:
        self.items: dict[int, Any] = {}

    def __setitem__(self, index: int, item: Any) -> None:
        self.items[index] = item


class Dims(list[Any]):
    """In place of DimsExprs, which wants symbolic integers of the library's own."""

    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


def tensor(dtype: Any, shape: list[int], most: list[int] | None = None) -> Any:
    """A description of a tensor with a dynamic batch, as TensorRT hands it out."""
    desc = trt.PluginTensorDesc()
    desc.dims, desc.type, desc.format = trt.Dims(shape), dtype, trt.TensorFormat.LINEAR
    made = trt.DynamicPluginTensorDesc()
    made.desc = desc
    made.min = made.max = made.opt = trt.Dims(most or shape)
    return made


def probe(registry: Registry, name: str, kernel: Kernel, shapes: list[list[Any]]) -> dict[str, Any]:
    """All that TensorRT learns of one node."""
    creator = registry.creators["vae_edge", name]
    assert not list(creator.field_names)
    fields, request = trt.PluginFieldCollection([]), trt.QuickPluginCreationRequest.UNKNOWN
    plugin = creator.create_plugin(name, "vae_edge", fields, trt.TensorRTPhase.BUILD, request)

    dtypes = [getattr(trt.DataType, quick.TRT_DTYPES[dtype]) for dtype in kernel.inputs]
    made = plugin.get_output_data_types(dtypes, [len(shape) for shape in shapes])
    inputs = [[expr("N" if side is None else side) for side in shape] for shape in shapes]
    outputs = plugin.get_output_shapes(inputs, [], Builder())

    concrete = [[-1 if side is None else side for side in shape] for shape in shapes]
    tensors = [tensor(dtype, shape) for dtype, shape in zip(dtypes, concrete, strict=True)]
    tensors += [
        tensor(dtype, [side.tree if isinstance(side.tree, int) else -1 for side in shape])
        for dtype, shape in zip(made, outputs, strict=True)
    ]
    combination = plugin.get_supported_format_combinations(tensors, len(shapes))
    plugin.configure_plugin(tensors[: len(shapes)], tensors[len(shapes) :])
    kernels = []
    for tactic in sorted(plugin.get_valid_tactics()):
        clone = plugin.clone()
        clone.set_tactic(tactic)
        launch, scalars = Setter(), Setter()
        clone.get_launch_params(inputs, tensors, len(shapes), launch, scalars, Builder())
        descriptions = [each.desc for each in tensors]
        entry, ptx = clone.get_kernel(descriptions[: len(shapes)], descriptions[len(shapes) :])
        assert scalars.nbSymExprs == len(scalars.items)
        sides = [getattr(launch, f"{part}_{axis}") for part in ("grid", "block") for axis in "xyz"]
        kernels.append(
            {
                "tactic": tactic,
                "entry": entry,
                "ptx": ptx.decode(),
                "grid": [[value(side.tree, batch) for side in sides[:3]] for batch in BATCHES],
                "block": [value(side.tree, 1) for side in sides[3:]],
                "shared": value(launch.shared_mem.tree, 1),
                "scalars": [[value(each.tree, batch) for each in scalars.items.values()] for batch in BATCHES],
            }
        )
    return {
        "class": type(plugin).__name__,
        "dtypes": [dtype.name for dtype in made],
        "shapes": [[[value(side.tree, batch) for side in shape] for shape in outputs] for batch in BATCHES],
        "combination": [(each.type.name, each.format.name) for each in combination],
        "kernels": kernels,
    }


def main() -> None:
    """Register, probe, and print."""
    registry = Registry()
    trt.get_plugin_registry = lambda: registry
    kernels = read_folder(Path(sys.argv[1]))
    shapes = json.loads((Path(sys.argv[1]) / "shapes.json").read_text())
    quick.register(trt, kernels, trt.__version__)
    quick.register(trt, kernels, trt.__version__)  # again: nothing happens

    from tensorrt_bindings.plugin import _plugin_class, _tensor

    real = _tensor.SymExprImpl

    class Seen(real):  # type: ignore[valid-type, misc]
        """The real one takes the expression, and gives it to nobody in Python."""

        def __init__(self, given: Any) -> None:
            super().__init__(given)
            self.tree = given._expr.tree

    _tensor.SymExprImpl = Seen
    _plugin_class.trt.DimsExprs = Dims
    answer = {name: probe(registry, name, kernel, shapes[name]) for name, kernel in kernels.items()}
    names = sorted(name for _, name in registry.creators)
    print(json.dumps({"version": trt.__version__, "creators": names, "plugins": answer}))


main()
