"""The backend `native`, over a double of the driver: what it answers, what it refuses, how calls run beside each other.

In place of a GPU, each launch runs the operators' CPU references on the weights that the library uploaded
(`native_double`). So an answer is right only if images, weights and outputs all went where they belong.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from native_double import ON_DEVICE, NativeBuild, place, resign

from vae_edge.errors import BackendError
from vae_edge.runtime import native_library

pytestmark = pytest.mark.slow

BEFORE = """
import gc, os, sys, threading
from pathlib import Path
import numpy as np
import vae_edge
from native_double import double, faults, held, probe_kernel, reference_kernel, run_with
from vae_edge.bundle import ModelEntry, load_bundle
from vae_edge.errors import VaeEdgeError
from vae_edge.probes import compare, load as load_probes
from vae_edge.runtime import native
from vae_edge.runtime.backends import LoadOptions
BUNDLE = Path({bundle!r})

def same(outputs):
    return outputs

def told(*arguments, **options):
    try:
        vae_edge.load(BUNDLE, "native", *arguments, **options).close()
    except VaeEdgeError as error:
        return type(error).__name__ + " " + str(error)
    return "loaded"
"""


@pytest.fixture
def bundle(native_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own, with a name of its own in every sentence."""
    ignored = shutil.ignore_patterns("verified.json", "auto.json")
    return Path(shutil.copytree(native_bundle, tmp_path / "own.bundle", ignore=ignored))


def run(
    native: NativeBuild, bundle: Path, code: str, driver: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    done = native.run(BEFORE.format(bundle=str(bundle)) + code, driver, **more)
    assert done.returncode == 0, done.stderr
    return done


# ---- Answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_answers_are_the_exact_ones_of_the_onnx_file(
    native: NativeBuild, native_bundle: Path, precision: str
) -> None:
    code = f"""
run_with(reference_kernel(BUNDLE, {precision!r}, same))
bundle = load_bundle(BUNDLE)
probes = load_probes(bundle.file(bundle.probes))
exact = probes.models[bundle.find(precision={precision!r}).sha256]
with vae_edge.load(BUNDLE, "native", {precision!r}, verify="off") as classify:
    found = classify.session.infer(probes.images)
    print(compare(exact, dict(zip([info.name for info in classify.outputs], found))))
print(held())
"""
    assert run(native, native_bundle, code).stdout.splitlines() == ["[]", "0"]


def test_each_output_of_each_image_is_in_its_place_in_every_batch_size(
    native: NativeBuild, native_bundle: Path
) -> None:
    code = """
run_with(probe_kernel(BUNDLE, "int8"))
bundle = load_bundle(BUNDLE)
probes = load_probes(bundle.file(bundle.probes))
exact = probes.models[bundle.find(precision="int8").sha256].outputs
images = np.concatenate([probes.images] * 7)[:300]
expected = {name: np.nan_to_num(np.concatenate([values] * 7)[:300]) for name, values in exact.items()}
with vae_edge.load(BUNDLE, "native", "int8") as classify:
    for n in (1, 2, 3, 16, 17, 63, 64, 65, 128, 200, 300):
        found = dict(zip([info.name for info in classify.outputs], classify.session.infer(images[:n])))
        print(n, sorted(found) == sorted(expected), all(np.array_equal(found[k], expected[k][:n]) for k in found))
    found, backwards = classify(images), classify(images[::-1])  # the second one is not contiguous
    print(np.array_equal(found.scores[::-1], backwards.scores), len(set(found.scores.tolist())) > 30)
    for wrong in (images[:, :, :14], images.astype(np.float32), images[0]):
        try:
            classify.session.infer(wrong)
        except ValueError as error:
            print("images should be uint8" in str(error))
"""
    lines = run(native, native_bundle, code).stdout.splitlines()
    assert [line.split()[1:] for line in lines[:11]] == [["True", "True"]] * 11, lines
    assert lines[11:] == ["True True", "True", "True", "True"]


def test_neither_torch_nor_triton_nor_onnx_is_imported(native: NativeBuild, native_bundle: Path) -> None:
    code = """
run_with(probe_kernel(BUNDLE, "int8"))
with vae_edge.load(BUNDLE, "native", "int8") as classify:
    print(classify.backend, classify.precision, classify.session.device)
print([name for name in ("torch", "triton", "onnx", "onnxruntime") if name in sys.modules])
"""
    lines = run(native, native_bundle, code).stdout.splitlines()
    assert lines == ["native int8 0: Orin (sm_87)", "[]"]


def test_the_verdict_is_remembered_and_verify_reports_it(native: NativeBuild, bundle: Path) -> None:
    code = """
run_with(reference_kernel(BUNDLE, "int8", same))
from vae_edge.runtime.verification import verify
print(told("int8"))
(model,) = [m for m in verify(BUNDLE, ["native"]).models if m.precision == "int8"]
print(model.right, sorted(model.outputs), [row.compared > 0 for row in model.outputs["score"]])
"""
    lines = run(native, bundle, code).stdout.splitlines()
    outputs = ["angle", "angle_confidence", "probabilities", "score", "second_angle", "second_angle_probability"]
    assert lines == ["loaded", f"True {outputs} [True, True]"]
    (record,) = [r for r in json.loads((bundle / "verified.json").read_text())["records"] if "int8" in r["sentence"]]
    assert record["right"] is True and record["key"]["backend"] == "native"
    assert "Orin (sm_87)" in record["key"]["cpu"]


WRONG = {
    "swapped outputs": "lambda o: [o[0], o[2], o[1], o[3]]",
    "classes in another order": "lambda o: [o[0][:, ::-1].copy(), *o[1:]]",
    "images in another order": "lambda o: [part[::-1].copy() for part in o]",
    "angles of the other sign": "lambda o: [o[0], -o[1], *o[2:]]",
    "uncertainty in another order": "lambda o: [*o[:3], np.ascontiguousarray(o[3][:, ::-1])]",
    "no numbers": "lambda o: [o[0], o[1], o[2] * np.nan, o[3]]",
}


def test_wrong_answers_are_refused_by_the_probes(native: NativeBuild, bundle: Path) -> None:
    code = f"""
from vae_edge.runtime.verification import verify
for change in ({", ".join(WRONG.values())}):
    run_with(reference_kernel(BUNDLE, "int8", change))
    print(told("int8"))
    print([m.right for m in verify(BUNDLE, ["native"]).models if m.precision == "int8"], held())
    (BUNDLE / "verified.json").unlink()
"""
    lines = run(native, bundle, code).stdout.splitlines()
    assert len(lines) == 2 * len(WRONG)
    for fault, loaded, verified in zip(WRONG, lines[::2], lines[1::2], strict=True):
        assert loaded.startswith("VerificationError native 0.1.0 with "), fault
        assert "gives wrong answers" in loaded
        assert verified == "[False] 0", fault


def test_one_changed_weight_is_refused_by_the_probes(native: NativeBuild, bundle: Path) -> None:
    """A network file whose digest and sum are right, and one weight of which is another: somebody else's build."""
    file = bundle / "classifier.int8.sm_87.ve"
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    offsets = json.loads(content[8:start])["weights"]["data_offsets"]
    weights = content[start + offsets[0] : start + offsets[1]]
    largest = max(range(144), key=lambda k: abs(int.from_bytes(weights[k : k + 1], "little", signed=True)))
    content[start + offsets[0] + largest] ^= 0x80  # of the first layer
    resign(bundle, "classifier.int8.sm_87.ve", bytes(content))
    code = """
run_with(reference_kernel(BUNDLE, "int8", same))
print(told("int8"))
"""
    assert "VerificationError" in (out := run(native, bundle, code).stdout) and "gives wrong answers" in out, out


# ---- What is refused --------------------------------------------------------------------------------------------


def test_a_file_for_another_gpu_is_refused(native: NativeBuild, native_bundle: Path) -> None:
    code = """
print(told("int8"))
entry = load_bundle(BUNDLE).find(format="native", precision="int8", target="sm_87")
try:
    native.NativeBackend(BUNDLE / entry.file, entry, LoadOptions())
except VaeEdgeError as error:
    print(type(error).__name__, error)
print(told("int8", device=3))
"""
    first, second, third = run(native, native_bundle, code, DOUBLE_CC="90").stdout.splitlines()
    assert first.startswith("BundleError") and "no int8 network file for this GPU" in first
    assert "it has: fp16 for sm_87, int8 for sm_87" in first or "it has: int8 for sm_87, fp16 for sm_87" in first
    assert "--kind native --precision int8" in first
    assert second.startswith("BackendError ve_open: ") and "has machine code for sm_87; the device is sm_90" in second
    assert f"{native_bundle}/classifier.int8.sm_87.ve" in second and "/proc/self" not in second
    assert third.startswith("BackendError There is no GPU number 3")


def test_a_damaged_file_is_refused_before_and_behind_its_sum(native: NativeBuild, bundle: Path) -> None:
    name = "classifier.int8.sm_87.ve"
    whole = (bundle / name).read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    code = "print(told('int8'))"

    (bundle / name).write_bytes(bytes(flipped))
    assert "BundleError" in (out := run(native, bundle, code).stdout) and "SHA-256" in out, out
    place(bundle, name, bytes(flipped))  # a manifest that lies
    assert f"BundleError ve_open: {bundle}/{name} is damaged: its SHA-256 is" in run(native, bundle, code).stdout
    place(bundle, name, whole[:5000])
    assert f"BundleError ve_open: {bundle}/{name} is damaged" in run(native, bundle, code).stdout
    place(bundle, name, b"not a network file at all")
    assert f"BundleError ve_open: {bundle}/{name} is no network file" in run(native, bundle, code).stdout
    resign(bundle, name, whole.replace(b"vae-edge-network-3", b"vae-edge-network-9"))
    assert "is no network file of this version" in run(native, bundle, code).stdout


def test_a_file_of_another_bundle_is_refused(native: NativeBuild, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (entry,) = [m for m in manifest["models"] if m["format"] == "native" and m["precision"] == "int8"]
    entry["threshold"] += 1.0
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    out = run(native, bundle, "print(told('int8'), held())").stdout
    assert re.search(r"BundleError .* has the threshold \S+, and the bundle says \S+ for it: build it again", out), out

    entry["threshold"] -= 1.0
    manifest["classes"] = ["cat", "dog", "wedge"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    out = run(native, bundle, "print(told('int8'), held())").stdout
    assert "its classes are ell, tee, wedge, and those of the bundle are cat, dog, wedge; build it again" in out
    assert out.endswith(" 0\n")

    manifest["classes"] = ["cat", "dog"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    out = run(native, bundle, "print(told('int8'), held())").stdout
    assert "BundleError" in out and "is not a model of ours: its outputs should be" in out and out.endswith(" 0\n")


def test_each_kind_of_missing_driver_has_its_sentence(native: NativeBuild, native_bundle: Path, tmp_path: Path) -> None:
    code = """
print(told("int8"))
try:
    native.NativeBackend(BUNDLE / "classifier.int8.sm_87.ve", ModelEntry("classifier", "int8", "native"), LoadOptions())
except VaeEdgeError as error:
    print(type(error).__name__, error)
"""
    (tmp_path / "none").mkdir()
    for driver, options, words in (
        (native.old_driver, {}, "the NVIDIA driver is too old: it lacks cuDeviceGet"),
        (native.broken_driver, {}, "no NVIDIA driver on this machine"),
        (native.driver, {"DOUBLE_FAIL": "cuInit:0:100"}, "the NVIDIA driver finds no GPU on this machine"),
        (native.driver, {"DOUBLE_FAIL": "cuInit:0:999"}, "the NVIDIA driver does not start: error 999"),
    ):
        first, second = run(native, native_bundle, code, driver, **options).stdout.splitlines()
        assert first.startswith("BackendError The backend 'native' needs an NVIDIA GPU, and there is none here")
        assert second.startswith("BackendError ve_open: "), second
        assert words in second, second


def test_a_gpu_without_memory_is_told_at_each_allocation_and_nothing_stays(
    native: NativeBuild, native_bundle: Path
) -> None:
    code = """
run_with(probe_kernel(BUNDLE, "int8"))
calls_of = {b"cuMemAlloc_v2": 8, b"cuMemAllocHost_v2": 2, b"cuStreamCreate": 1, b"cuLibraryLoadData": 1}
for function, calls in calls_of.items():
    for nth in range(1, calls + 1):
        double().double_fail(function, nth, 2)
        print(told("int8"), held())
print(told("int8"), held(), faults())
"""
    lines = run(native, native_bundle, code).stdout.splitlines()
    assert len(lines) == 13 and lines[12] == "loaded 0 []"
    for line in lines[:12]:
        assert re.search(r"BackendError ve_open: the driver does not .*: error 2, .* 0$", line), line


# ---- Calls and threads ------------------------------------------------------------------------------------------

THREADS = """
bundle = load_bundle(BUNDLE)
images = load_probes(bundle.file(bundle.probes)).images
run_with(probe_kernel(BUNDLE, "int8"))
classify = vae_edge.load(BUNDLE, "native", "int8")
expected = classify(images)
wrong, ended, most = [], [], []

def work(number, calls):
    draw = np.random.default_rng(number)
    for _ in range(calls):
        chosen = draw.integers(0, len(images), draw.integers(1, 40))
        try:
            found = classify(images[chosen])
        except VaeEdgeError as error:
            ended.append(str(error))
            return
        if not np.array_equal(found.scores, expected.scores[chosen]) or not np.array_equal(
            found.probabilities, expected.probabilities[chosen]
        ):
            wrong.append(chosen)
        most.append(double().double_count(b"streams"))  # one a handle
"""


def test_eight_threads_get_their_own_answers_from_a_few_handles(native: NativeBuild, native_bundle: Path) -> None:
    code = """
threads = [threading.Thread(target=work, args=(k, 150)) for k in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(wrong), len(ended), len(most), max(most) <= native.MAX_HANDLES, max(most) > 1)
classify.close()
print(held())
"""
    lines = run(native, native_bundle, THREADS + code).stdout.splitlines()
    assert lines == ["0 0 1200 True True", "0"]


def test_calls_share_a_handle_where_the_gpu_has_no_memory_for_more(native: NativeBuild, native_bundle: Path) -> None:
    code = """
double().double_fail(b"cuMemAlloc_v2", 0, 2)
threads = [threading.Thread(target=work, args=(k, 60)) for k in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(wrong), len(ended), len(most), double().double_count(b"streams"))
classify.close()
print(held())
"""
    lines = run(native, native_bundle, THREADS + code).stdout.splitlines()
    assert lines == ["0 0 480 1", "0"]


def test_closing_during_calls_ends_them_with_a_sentence_and_frees_everything(
    native: NativeBuild, native_bundle: Path
) -> None:
    code = """
import time
for round in range(20):
    wrong, ended, most = [], [], []
    classify = vae_edge.load(BUNDLE, "native", "int8")
    threads = [threading.Thread(target=work, args=(k, 10**6)) for k in range(6)]
    [t.start() for t in threads]
    time.sleep(0.02 * (round % 5))
    classify.close(); classify.close()
    [t.join(60) for t in threads]
    if any(t.is_alive() for t in threads) or wrong or len(ended) != 6 or held() != 0:
        print("round", round, [t.is_alive() for t in threads], len(wrong), len(ended), held())
    if not all("was closed" in sentence for sentence in ended):
        print(set(ended))
print("done")
"""
    code = (
        THREADS.replace("wrong, ended, most = [], [], []", "classify.close()\nwrong, ended, most = [], [], []") + code
    )
    assert run(native, native_bundle, code).stdout.splitlines() == ["done"]


def test_twenty_thousand_calls_grow_nothing(native: NativeBuild, native_bundle: Path) -> None:
    code = """
import resource, tracemalloc
session, batches = classify.session, [images[:1], images[:3], images[:17]]
d = double()
d.double_run_with(None)
for batch in batches * 100:
    session.infer(batch)
before, peak = d.double_held(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
gc.collect(); tracemalloc.start()
first = tracemalloc.get_traced_memory()[0]
for number in range(20_000):
    session.infer(batches[number % 3])
gc.collect()
grown = tracemalloc.get_traced_memory()[0] - first  # an object a call would be 320,000 bytes and more
print(d.double_held() - before, grown < 65536, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2048)
classify.close()
"""
    lines = run(native, native_bundle, THREADS + code).stdout.splitlines()
    assert lines == ["0 True True"]


def test_a_classifier_that_nobody_closes_gives_its_memory_back(native: NativeBuild, native_bundle: Path) -> None:
    code = "before = held()\ndel classify, expected\ngc.collect()\nprint(before > 0, held())\n"
    assert run(native, native_bundle, THREADS + code).stdout.splitlines() == ["True 0"]


# ---- The copy that is opened ------------------------------------------------------------------------------------


def test_the_verified_bytes_are_opened_whatever_happens_to_the_file(native: NativeBuild, bundle: Path) -> None:
    code = """
file = BUNDLE / "classifier.int8.sm_87.ve"
file.write_bytes(b"something else")
file.unlink()
threads = [threading.Thread(target=work, args=(k, 100)) for k in range(6)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(wrong), ended, max(most) > 1)  # more handles were opened
descriptors = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if
               os.path.exists(f"/proc/self/fd/{name}")]
(copy,) = [name for name in os.listdir("/proc/self/fd")
           if os.path.exists(f"/proc/self/fd/{name}") and "vae-edge-network" in os.readlink(f"/proc/self/fd/{name}")]
for attempt in ((os.pwrite, int(copy), b"x", 0), (os.ftruncate, int(copy), 0)):
    try:
        attempt[0](*attempt[1:])
        print("written")
    except PermissionError:
        print("sealed")
classify.close()
print([n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")
       and "vae-edge-network" in os.readlink(f"/proc/self/fd/{n}")], held())
"""
    lines = run(native, bundle, THREADS + code).stdout.splitlines()
    assert lines == ["0 [] True", "sealed", "sealed", "[] 0"]


def test_without_memory_files_the_copy_is_in_a_folder_of_ones_own(
    native: NativeBuild, native_bundle: Path, tmp_path: Path
) -> None:
    code = f"""
import errno, stat, tempfile
tempfile.tempdir = {str(tmp_path)!r}
def refuse(*_):
    raise OSError(errno.ENOSYS, "not here")
os.memfd_create = refuse
seen = []
library = native.load_library()
def open_and_look(path, device, handle, real=library.ve_open):
    folder = Path(os.fsdecode(path)).parent
    seen.append((folder.parent == Path(tempfile.tempdir), stat.S_IMODE(folder.stat().st_mode) == 0o700))
    return real(path, device, handle)
class Library:
    def __getattr__(self, name):
        return open_and_look if name == "ve_open" else getattr(library, name)
native.load_library = Library
"""
    more = """
print(len(classify(images)), seen, os.listdir(tempfile.tempdir))
classify.close()
print(held())
"""
    lines = run(native, native_bundle, code + THREADS + more).stdout.splitlines()
    assert lines[0].endswith("[(True, True)] []") and lines[1] == "0"


# ---- Images on the GPU ------------------------------------------------------------------------------------------


def test_images_on_the_gpu_are_read_where_they_are(native: NativeBuild, native_bundle: Path) -> None:
    code = """
for n, stream in ((1, 1), (16, own.value), (len(images), own.value)):
    found = classify(OnDevice(images[:n], stream=stream))
    print(np.array_equal(found.probabilities, expected.probabilities[:n]), faults())
print(refused(OnDevice(images[:2], padding=4)))
print(refused(OnDevice(images[:2].reshape(2, 14, 56, 1))))
bad = OnDevice(images[:1]); bad.__cuda_array_interface__["typestr"] = "<f4"
print(refused(bad))
"""
    lines = run(native, native_bundle, THREADS + ON_DEVICE + code).stdout.splitlines()
    assert lines[:3] == ["True []"] * 3
    assert lines[3].startswith("DataError The images on the GPU have rows of 32 bytes, of which 28 are pixels")
    assert lines[4].startswith("DataError The images on the GPU should be uint8 [N, 28, 28, 1]")
    assert lines[5].startswith("DataError The images on the GPU should be uint8, but their type is <f4")


# ---- The library ------------------------------------------------------------------------------------------------


def test_what_the_user_names_comes_first_then_the_wheel_then_the_loader(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native_library, "PACKAGED", tmp_path / "packaged.so")
    monkeypatch.delenv(native_library.VARIABLE, raising=False)
    native_library._loads.cache_clear()
    assert native_library.find_library() == native_library.LIBRARY
    assert not native_library.has_library()
    with pytest.raises(BackendError, match=r"cannot be loaded .* install the wheel .* `make native`"):
        native_library.load_library()
    (tmp_path / "packaged.so").touch()
    assert native_library.find_library() == tmp_path / "packaged.so" and native_library.has_library()
    monkeypatch.setenv(native_library.VARIABLE, str(tmp_path / "named.so"))
    assert native_library.find_library() == str(tmp_path / "named.so") and native_library.has_library()
    with pytest.raises(BackendError, match=r"named\.so: cannot open shared object file"):
        native_library.load_library()
    monkeypatch.setenv(native_library.VARIABLE, "libc.so.6")
    with pytest.raises(BackendError, match="not a native library of this version"):
        native_library.load_library()


def test_a_backend_without_a_library_says_how_to_get_one(native: NativeBuild, native_bundle: Path) -> None:
    code = """
from vae_edge.runtime import installed_backends
del os.environ["VAE_EDGE_NATIVE"]
print(told("int8"))
print("native" in installed_backends())
"""
    first, second = run(native, native_bundle, code).stdout.splitlines()
    assert first.startswith("BackendError The backend 'native' has no library here")
    assert "`make wheels`" in first and "$VAE_EDGE_NATIVE" in first and second == "False"
