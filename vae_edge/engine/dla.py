"""Which layers a DLA takes: what TensorRT says before a build, and what its log says after it.

A DLA is asked layer by layer (`can_run_on_DLA`); what it does not take runs on the GPU. TensorRT's log lists what runs
where once it has divided the network, several layers of the network as one. Not verified on hardware.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_PLACED = re.compile(r"\[(DlaLayer|GpuLayer)\]\s*(.+)")
_MAX_NAME = 96


@dataclass(frozen=True)
class DlaLayers:
    """Layers by where they run.

    Attributes:
        possible: of the parsed network by its type, how many layers a DLA takes, and how many there are.
        on_dla, on_gpu: layers of the built engine, as TensorRT's log names them; empty where it names none.
    """

    possible: Mapping[str, tuple[int, int]]
    on_dla: tuple[str, ...] = ()
    on_gpu: tuple[str, ...] = ()

    def table(self) -> list[str]:
        """Before the build: what a DLA takes, a line for each type of layer."""
        taken, whole = (sum(counts[k] for counts in self.possible.values()) for k in (0, 1))
        width = max((len(name) for name in self.possible), default=0)
        rows = [f"  {name:<{width}}  {part:>3} of {count}" for name, (part, count) in sorted(self.possible.items())]
        return [f"A DLA takes {taken} of {whole} layers; the others run on the GPU:", *rows]

    def after(self, messages: Iterable[str]) -> DlaLayers:
        """With what the log of the build says."""
        on_dla: list[str] = []
        on_gpu: list[str] = []
        for text in messages:
            found = _PLACED.search(text)
            if found:
                (on_dla if found[1] == "DlaLayer" else on_gpu).append(found[2].strip())
        return dataclasses.replace(self, on_dla=tuple(on_dla), on_gpu=tuple(on_gpu))

    def sentences(self) -> list[str]:
        """After the build: what runs on the DLA."""
        if not self.on_dla and not self.on_gpu:
            return ["The builder's log does not tell which layers run on the DLA."]
        parts = [f"{len(self.on_dla)} parts of the engine run on the DLA, {len(self.on_gpu)} on the GPU."]
        return parts + [f"on the DLA: {name[:_MAX_NAME]}" for name in self.on_dla]

    def to_json(self) -> dict[str, Any]:
        """As a manifest and the worker's answer hold it."""
        possible = {name: list(counts) for name, counts in self.possible.items()}
        return {"possible": possible, "on_dla": list(self.on_dla), "on_gpu": list(self.on_gpu)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DlaLayers:
        """The inverse of `to_json`."""
        possible = {name: (part, whole) for name, (part, whole) in value["possible"].items()}
        return cls(possible, tuple(value["on_dla"]), tuple(value["on_gpu"]))


def ask_dla(network: Any, builder_config: Any) -> DlaLayers:
    """Ask TensorRT of each layer of a parsed network whether a DLA can run it."""
    taken: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for k in range(network.num_layers):
        layer = network.get_layer(k)
        name = layer.type.name
        whole[name] += 1
        taken[name] += bool(builder_config.can_run_on_DLA(layer))
    return DlaLayers({name: (taken[name], count) for name, count in whole.items()})
