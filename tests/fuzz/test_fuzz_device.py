"""What a device reads, nearly right 2,100 times each: a right result or an error of our family, and nothing else."""

from __future__ import annotations

import json
import random
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from mutations import EACH, ODD_VALUES, archive_changed, bytes_changed, json_changed, outcome, seeds
from PIL import Image

from vae_edge import probes
from vae_edge.bundle import load_bundle
from vae_edge.engine.inspection import CAPABILITY_BITS, MAGIC, inspect_engine
from vae_edge.onnx_graph import read_graph
from vae_edge.onnx_shapes import GraphCost, check_model
from vae_edge.onnx_sizes import elements
from vae_edge.preprocess import InputSpec, open_image, prepare_image
from vae_edge.runtime import probing
from vae_edge.spec import MAX_ELEMENTS


@seeds
def test_manifests(small_bundle: Path, rng: random.Random) -> None:
    path = small_bundle / "manifest.json"
    if not path.with_name("right").exists():
        path.with_name("right").write_bytes(path.read_bytes())
    right = json.loads(path.with_name("right").read_bytes())
    for _ in range(EACH):
        path.write_bytes(json_changed(right, rng))
        bundle = outcome(lambda: load_bundle(small_bundle))
        if bundle is not None:
            assert all(1 <= side <= 512 for side in bundle.input.shape[:2])
            assert len(set(bundle.classes)) == len(bundle.classes)
            assert np.isfinite([bundle.threshold, bundle.reject_rate]).all()
            json.dumps(dict(bundle.manifest), allow_nan=False).encode("utf-8")


@seeds
def test_onnx_files_with_bytes_changed(model_file: Path, rng: random.Random) -> None:
    model_bytes = model_file.read_bytes()
    for _ in range(EACH):
        _check_totals(bytes_changed(model_bytes[:3000] if rng.random() < 0.2 else model_bytes, rng))


@seeds
def test_onnx_files_with_nodes_attributes_and_shapes_changed(model_file: Path, rng: random.Random) -> None:
    model_bytes = model_file.read_bytes()
    for _ in range(EACH):
        model = onnx.load_model_from_string(model_bytes)
        for _ in range(rng.choice((1, 1, 2, 4))):
            _change_graph(model.graph, rng)
        content = model.SerializeToString()
        totals = _check_totals(content)
        if totals is None or rng.random() > 0.3:
            continue
        for images in (1, 3):
            for name, shape in (_run(content, images) or {}).items():
                assert shape == tuple(_for_images(side, images) for side in totals.shapes[name]), name


def _check_totals(content: bytes) -> GraphCost | None:
    totals = outcome(lambda: check_model(content, "the model"))
    if totals is not None:
        computed = totals.shapes.keys() - read_graph(content, "the model").tensors.keys()
        assert max((_for_images(elements(totals.shapes[name]), 1) for name in computed), default=0) <= MAX_ELEMENTS
    return totals


def _for_images(size: Any, images: int) -> int:
    return size if isinstance(size, int) else size.fixed + size.per_image * images


def _run(content: bytes, images: int) -> dict[str, tuple[int, ...]] | None:
    """The shapes that ONNX Runtime's outputs have; None where it refuses the model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        feeds = {i.name: np.zeros((images, *i.shape[1:]), np.uint8) for i in session.get_inputs()}
        names = [output.name for output in session.get_outputs()]
        return {name: value.shape for name, value in zip(names, session.run(names, feeds), strict=True)}
    except Exception:  # its own exceptions share no base class
        return None


_OPERATORS = (
    "Add", "Concat", "ConstantOfShape", "Conv", "Expand", "Gather", "If", "Loop", "MatMul", "Pad", "Range", "Relu",
    "Reshape", "Resize", "Tile", "Where", "X",
)  # fmt: skip


def _change_graph(graph: onnx.GraphProto, rng: random.Random) -> None:
    numbers = (-1, 0, 1, 2, 7, 10**6, 2**31, 2**62, -(2**63))
    kind = rng.randrange(8)
    node = rng.choice(graph.node)
    tensor = rng.choice(graph.initializer)
    if kind == 0:
        node.op_type = rng.choice(_OPERATORS)
    elif kind == 1 and node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.i = rng.choice(numbers)
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(numbers)
    elif kind == 2 and node.input:
        names = [*(t.name for t in graph.initializer), "image", "", "x"]
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif kind == 3:
        tensor.dims.append(rng.choice(numbers))
    elif kind == 4 and tensor.data_type == onnx.TensorProto.INT64:
        values = [rng.choice(numbers) for _ in range(len(tensor.raw_data) // 8)]
        tensor.raw_data = struct.pack(f"<{len(values)}q", *values)
    elif kind == 5:
        tensor.data_location = onnx.TensorProto.EXTERNAL
    elif kind == 6:
        graph.node.append(node)
    else:
        shape = graph.input[0].type.tensor_type.shape
        shape.dim[rng.randrange(4)].dim_value = rng.choice(numbers)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small images of every format, in several modes."""
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (24, 20), dtype=np.uint8), rng.integers(0, 256, (20, 24, 4), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("pictures")
    for number, (kind, array, options) in enumerate(
        (
            ("PNG", grey, {}),
            ("PNG", colour, {}),
            ("PNG", (grey * 200).astype(np.uint16), {}),
            ("JPEG", colour[..., :3], {}),
            ("JPEG", grey, {"progressive": True}),
            ("GIF", grey, {"save_all": True, "append_images": [Image.fromarray(255 - grey)]}),
            ("BMP", colour[..., :3], {}),
            ("WEBP", colour, {}),
            ("TIFF", grey, {"compression": "tiff_lzw"}),
            ("TIFF", colour[..., :3], {}),
            ("PPM", grey, {}),
        )
    ):
        Image.fromarray(array).save(folder / f"{kind}{number}", kind, **options)
    return folder


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@seeds
def test_images(pictures: Path, tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "picture"
    spec = InputSpec(28, 1)
    for _ in range(EACH):
        picture = rng.choice(sorted(pictures.iterdir()))
        content = picture.read_bytes()
        if picture.name.startswith("PNG") and rng.random() < 0.4:
            content = _header_changed(content, rng)
        changed = 200 if rng.random() < 0.5 else len(content)
        path.write_bytes(bytes_changed(content[:changed], rng) + content[changed:])
        if outcome(lambda: open_image(path)) is not None:
            pixels, found = prepare_image(path, spec)
            assert pixels.shape == (28, 28, 1) and pixels.dtype == np.uint8 and found.sentence()


def _header_changed(content: bytes, rng: random.Random) -> bytes:
    """A PNG of other sides, depth or colour type, with a right checksum."""
    body = bytearray(content[12:29])
    at = rng.choice((4, 7, 8, 11, 12, 13, 14, 15, 16))
    body[at] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255, rng.randrange(256)))
    return content[:12] + bytes(body) + struct.pack(">I", zlib.crc32(body)) + content[33:]


@seeds
def test_probe_images(tmp_path: Path, rng: random.Random) -> None:
    path, right = tmp_path / "probes.npz", tmp_path / "right.npz"
    if not right.exists():
        images = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 1), dtype=np.uint8)
        outputs = {"probabilities": np.zeros((8, 10), np.float32), "score": np.zeros(8, np.float32)}
        tolerance = {name: probes.Tolerance(1e-3, 1e-2) for name in outputs}
        inner = {"a": np.zeros((4, 5), np.float32)}
        probes.save(right, probes.Probes(images, {"0" * 64: probes.Expected(outputs, tolerance, inner, {"a": 0.1})}))
    content = right.read_bytes()
    about = json.loads(np.load(right)["about"].tobytes())
    for _ in range(EACH):
        said = rng.random() < 0.5
        path.write_bytes(_with_about(right, json_changed(about, rng)) if said else archive_changed(content, rng))
        found = outcome(lambda: probes.load(path))
        for expected in found.models.values() if found is not None else ():
            probes.compare(expected, expected.outputs)
            probes.first_inner_mismatch(expected, {"a": np.zeros((len(next(iter(expected.inner.values()), [])), 3))})


def _with_about(path: Path, about: bytes) -> bytes:
    with np.load(path) as arrays:
        made = {name: arrays[name] for name in arrays.files}
    buffer = BytesIO()
    np.savez(buffer, **{**made, "about": np.frombuffer(about, np.uint8)})
    return buffer.getvalue()


@seeds
def test_records_of_the_runtime(tmp_path: Path, rng: random.Random) -> None:
    path, fields = tmp_path / "auto.json", {"backend", "precision"}
    key = {"cpu": "x", "threads": 1, "versions": {"a": "1"}}
    record: dict[str, Any] = {"key": key, "backend": "onnxruntime", "precision": "fp32", "median_us": {"a": 1.0}}
    for _ in range(EACH):
        path.write_bytes(json_changed({"schema": 1, "records": [record, {**record, "key": {}}]}, rng))
        found = probing.find_cached(path, key, fields)
        assert found is None or (found["key"] == key and fields <= found.keys())
        if rng.random() < 0.1:
            probing.save_cached(path, record, fields)
            assert probing.find_cached(path, key, fields) == record


@seeds
def test_engine_headers(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "a.rtx"
    right = bytearray(200)
    right[:4] = right[28:32] = MAGIC
    right[16:24], right[24:28], right[32:36] = struct.pack("<Q", 200), bytes([1, 7, 0, 0]), struct.pack("<I", 5)
    for _ in range(EACH):
        changed = 40 if rng.random() < 0.5 else len(right)
        path.write_bytes(bytes_changed(bytes(right[:changed]), rng) + right[changed:])
        found = outcome(lambda: inspect_engine(path))
        if found is not None:
            assert found.header.size == path.stat().st_size and set(found.header.targets) <= set(CAPABILITY_BITS)


def test_the_odd_values_are_refused_somewhere(small_bundle: Path) -> None:
    """The mutations reach the reader: each odd value in the place of the input's size is refused, but the right one."""
    right = json.loads((small_bundle / "manifest.json").read_bytes())
    taken = []
    for value in ODD_VALUES:
        right["input"]["size"] = value
        (small_bundle / "manifest.json").write_text(json.dumps(right), encoding="utf-8")
        if outcome(lambda: load_bundle(small_bundle)) is not None:
            taken.append(value)
    assert taken == [1, 2, 3, 28]
