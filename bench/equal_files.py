"""Whether two files hold the same numbers whatever the names in them: tensors, ONNX graphs, JSON, machine code."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

TIMES = ("seconds", "created", "date")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def tensors(path: Path) -> Counter[tuple[Any, ...]]:
    """How often each tensor of a safetensors file is in it: data type, shape and digest, without its name."""
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return Counter(
        (entry["dtype"], tuple(entry["shape"]), digest(content[slice(*(start + at for at in entry["data_offsets"]))]))
        for entry in header.values()
    )


def metadata(path: Path) -> Any:
    """The JSON object in a safetensors file's metadata."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    return json.loads(header.get("__metadata__", {}).get("vae_edge", "null"))


def arrays(path: Path) -> Counter[tuple[Any, ...]]:
    """The same of a NumPy archive; texts are left out, and JSON in bytes gives its numbers, but for its schema."""
    with np.load(path) as archive:
        stored = [archive[name] for name in archive.files]
    texts = [one for one in stored if one.dtype == np.uint8 and one.ndim == 1 and one[:1].tobytes() == b"{"]
    found = Counter((str(one.dtype), one.shape, digest(one.tobytes())) for one in stored
                    if one.dtype.kind in "biuf" and not any(one is text for text in texts))  # fmt: skip
    found.update(tuple(leaves(json.loads(text.tobytes()), ("schema",))) for text in texts)
    return found


def leaves(value: Any, without: Collection[str] = ()) -> Iterator[Any]:
    """Numbers of a JSON value in their order; nothing under a key of `without`, and nothing that times something."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key not in without and not any(word in key for word in TIMES):
                yield from leaves(part, without)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part, without)
    elif isinstance(value, (int, float)):
        yield value


def graph(path: Path) -> tuple[list[Any], list[Any]]:
    """An ONNX file as a list that is equal for files which differ in names alone, and the names of its outputs.

    A value's number is its place in the order in which nodes make and use it; an initializer's its content. A node that
    reads initializers alone is described by their content too: where it stands in the file depends on their names.
    """
    model = onnx.load(path)
    numbers: dict[str, Any] = {"": ""}
    for tensor in model.graph.initializer:
        content = onnx.numpy_helper.to_array(tensor)
        numbers[tensor.name] = (tensor.data_type, tuple(tensor.dims), digest(content.tobytes()))

    def number(name: str) -> Any:
        return numbers.setdefault(name, len(numbers))

    described: list[Any] = [sorted((entry.domain, entry.version) for entry in model.opset_import)]
    described += [[number(value.name), _type(value)] for value in model.graph.input]
    constants = []
    for node in model.graph.node:
        attributes = sorted((one.name, digest(_unnamed(one))) for one in node.attribute)
        inputs = [*map(number, node.input)]
        if inputs and not any(isinstance(one, int) for one in inputs):
            constants.append(repr((node.domain, node.op_type, attributes, inputs)))
            numbers.update({name: (constants[-1], place) for place, name in enumerate(node.output)})
            continue
        described.append([node.domain, node.op_type, attributes, inputs, [*map(number, node.output)]])
    described += sorted(constants)
    described += [[number(value.name), _type(value)] for value in model.graph.output]
    return described, [value.name for value in model.graph.output]


def _type(value: onnx.ValueInfoProto) -> tuple[Any, ...]:
    tensor = value.type.tensor_type
    return tensor.elem_type, tuple(side.dim_value or -1 for side in tensor.shape.dim)


def _unnamed(attribute: onnx.AttributeProto) -> bytes:
    """An attribute's bytes; a tensor's without its name."""
    if attribute.type != onnx.AttributeProto.TENSOR:
        return bytes(attribute.SerializeToString(deterministic=True))
    array = onnx.numpy_helper.to_array(attribute.t)
    return f"{attribute.name} {array.dtype} {array.shape}".encode() + array.tobytes()


def outputs(path: Path, images: np.ndarray, batch: int = 100) -> list[np.ndarray]:
    """What ONNX Runtime answers on one thread, by the outputs' places."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: images[at : at + batch]}) for at in range(0, len(images), batch)]
    return [np.concatenate(answers) for answers in zip(*parts, strict=True)]


def machine_code(ptx: Path, tools: Path, known: Path) -> dict[str, Any]:
    """A kernel's figures: what was assembled, and beside it, under the same name, the machine code and ptxas's log.

    `known` is a folder where the instructions of each code are kept: to list them takes a second.
    """
    cubin, log, text = ptx.with_suffix(".cubin"), ptx.with_suffix(".log").read_text(), ptx.read_text()
    usage = _run(tools / "cuobjdump", "--dump-resource-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", text)
    assert found is not None, usage
    architecture = _match(r"\.target\s+(sm_\d+)", text)
    code = digest(_code(cubin.read_bytes()))
    listed = known / f"{architecture}-{code}.json"
    if not listed.exists():
        names = _INSTRUCTION.findall(_run(tools / "cuobjdump", "-sass", cubin))
        part = listed.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(dict(sorted(Counter(names).items()))))
        part.replace(listed)
    instructions = json.loads(listed.read_text())
    matrix = (count for name, count in instructions.items() if re.match(r"[HIQ]G?MMA|UTC[HIQ]MMA", name))
    return {
        "entry": _match(r"\.entry\s+([\w$]+)", text),
        "architecture": architecture,
        "threads": 0 if threads is None else int(threads[1]),
        "registers": int(found[1]),
        "stack": int(found[2]),
        "shared": int(found[3]),
        "spills": [int(count) for count in re.findall(r"(\d+) bytes spill", log)],
        "instructions": sum(instructions.values()),
        "matrix": sum(matrix),
        "by_name": instructions,
        "code": code,
    }


def _run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _match(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, pattern
    return found[1]


def _code(elf: bytes) -> bytes:
    """The sections `.text.*` of a 64-bit ELF file."""
    start, size, count, names = (
        *struct.unpack_from("<Q", elf, 40),
        *struct.unpack_from("<HHH", elf, 58),
    )
    headers = [struct.unpack_from("<IIQQQQ", elf, start + number * size) for number in range(count)]
    strings = headers[names][4]
    texts: list[bytes] = []
    for name, _, _, _, at, length in headers:
        if elf.startswith(b".text.", strings + name):
            texts.append(elf[at : at + length])
    return b"".join(texts)


def differences(before: Counter[Any], after: Counter[Any]) -> str:
    """How many are only in one of the two; empty where none is."""
    lost, gained = (before - after).total(), (after - before).total()
    return f"{lost} only before, {gained} only after" if lost or gained else ""


def first_difference(before: Sequence[Any], after: Sequence[Any]) -> str:
    """Where two lists differ first; empty where they do not."""
    for at, (ours, theirs) in enumerate(zip(before, after, strict=False)):
        if ours != theirs:
            return f"number {at} of {len(before)}: {str(ours)[:60]} before, {str(theirs)[:60]} after"
    return "" if len(before) == len(after) else f"{len(before)} before, {len(after)} after"
