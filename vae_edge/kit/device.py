"""On the device: `sh build.sh` ends here. Check, build, verify, measure, pack; with NumPy and TensorRT alone.

The kit itself is only read. All work is done in one folder, `.vae-edge-kit` in `--out`, which is locked while a run
goes on and emptied before the next, so that an interrupted run leaves nothing else. The result appears in one step, at
the end. Exit codes: 0 when everything is right; 1 when something was built but not all, or an answer is wrong; 2 when
nothing could be done; 130 after Ctrl-C. Not verified on hardware.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_edge import files
from vae_edge.bundle import Bundle, load_bundle
from vae_edge.engine import gpus
from vae_edge.engine.build import build_bundle_engine
from vae_edge.engine.tensorrt import BuildConfig, discover, install_hint
from vae_edge.errors import EngineError, VaeEdgeError
from vae_edge.kit.archive import changed_file, write_archive, write_sums
from vae_edge.kit.description import (
    BUNDLE_FOLDER,
    DATA_FILE,
    KIT_FILE,
    RESULT_FILE,
    SCHEMA,
    SUMS_FILE,
    HeldOut,
    KitDescription,
    read_description,
    read_held_out,
)
from vae_edge.kit.measure import accuracy_rows, ascii_table, compared, evaluate, latency_rows
from vae_edge.spec import MAX_MANIFEST_BYTES
from vae_edge.text import json_text, printable

WORK = ".vae-edge-kit"
DEFAULT_SECONDS = 20.0
INTERRUPT_AGAIN_S = 1.0
CACHES = ("auto.json", "verified.json")
UNLIMITED = 1 << 62  # bytes of address space: a CUDA driver reserves far more than it uses


@dataclass
class Report:
    """What a run found so far.

    Attributes:
        lines: all that was printed.
        failed: by precision, why its engine could not be built.
        verification, benchmark: as their JSON files hold them; None if it came to nothing.
        accuracy: by precision, the figures on the kit's images.
        problems: sentences about what went wrong after the build.
    """

    lines: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    verification: dict[str, Any] | None = None
    benchmark: dict[str, Any] | None = None
    accuracy: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Print a line in plain ASCII, and keep it for the log."""
        plain = printable(line).encode("ascii", "replace").decode()
        self.lines.append(plain)
        print(plain, flush=True)

    @property
    def wrong_precisions(self) -> tuple[str, ...]:
        """Of the engines whose answers are wrong."""
        models = [] if self.verification is None else self.verification["models"]
        return tuple(model["precision"] for model in models if model["right"] is False)

    @property
    def right(self) -> bool:
        """Whether everything was built, is right, and was measured."""
        verified = self.verification is not None and self.verification["right"] is True
        return verified and not self.failed and not self.problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what a kit is for; the exit code."""
    parser = argparse.ArgumentParser(prog="build.sh", description="Build, verify and measure the engines of a kit.")
    parser.add_argument("kit", help=argparse.SUPPRESS)
    parser.add_argument("here", help=argparse.SUPPRESS)  # the folder that the script was started in
    parser.add_argument("--out", metavar="FOLDER", help="where the result is written (default: the kit's folder)")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="number of the GPU (default: 0)")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="time for latencies (default: 20)")
    given = parser.parse_args(arguments)
    _heed_interrupts()
    kit = Path(given.kit)
    out = kit if given.out is None else Path(given.here) / given.out
    try:
        return run(kit, out, given.device, given.seconds)
    except KeyboardInterrupt:
        _end_interrupts()
        print("build.sh: stopped; the kit is as it was", file=sys.stderr)
        return 130
    except VaeEdgeError as error:
        return _refuse(str(error))
    except OSError as error:
        where = error.filename2 or error.filename or "a file"
        return _refuse(f"{where} cannot be written or read ({error.strerror}): free some space, or give --out FOLDER.")


def _refuse(sentence: str) -> int:
    print(f"build.sh: {printable(sentence, keep=chr(10))}", file=sys.stderr)
    return 2


def _heed_interrupts() -> None:
    """Let Ctrl-C and SIGTERM end this process by a KeyboardInterrupt, also if they come at a bad moment.

    What is raised while a library calls back into Python, such as TensorRT its logger, is lost. So it is raised again
    each second until somebody cleans up.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as in a shell's background job
            signal.signal(number, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    signal.setitimer(signal.ITIMER_REAL, INTERRUPT_AGAIN_S)
    raise KeyboardInterrupt


def _end_interrupts() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)


def run(kit: Path, out: Path, device: int = 0, seconds: float = DEFAULT_SECONDS) -> int:
    """Build, verify and measure what a kit asks for, and pack the result in `out`; the exit code.

    Raises:
        EngineError: the kit is damaged, the device is another or lacks TensorRT, or nothing could be built.
        OSError: the disk is full.
    """
    check_kit(kit)
    description = read_description(kit)
    report = Report()
    report.say(f"{description.bundle} for {description.product} ({description.target})")
    gpu = check_machine(description, device)
    held_out = None if description.data is None else read_held_out(kit / DATA_FILE, description.data)
    with _work_folder(out) as work:
        bundle = work / "result" / BUNDLE_FOLDER
        bundle.mkdir(parents=True)
        for path in (kit / BUNDLE_FOLDER).iterdir():
            shutil.copyfile(path, bundle / path.name)
        _build(description, bundle, device, report)
        if len(report.failed) == len(description.configs):
            raise EngineError("No engine could be built. " + " ".join(report.failed.values()))
        _verify(description, bundle, device, report)
        _benchmark(description, bundle, device, seconds, report)
        if held_out is not None:
            _accuracy(description, bundle, device, held_out, report)
        for name in CACHES:
            (bundle / name).unlink(missing_ok=True)
        path = _pack(work, out, kit, description, gpu, report)
    report.say(f"result: {path}")
    report.say(f"back home: vae-edge kit {path.name} --into BUNDLE")
    return 0 if report.right else 1


def check_kit(kit: Path) -> None:
    """Check every file's SHA-256.

    Raises:
        EngineError: a file is missing or was changed.
    """
    try:
        changed = changed_file(kit, SUMS_FILE, MAX_MANIFEST_BYTES)
    except (OSError, ValueError) as error:
        raise EngineError(f"{kit / SUMS_FILE} cannot be read ({error}): copy the kit again.") from error
    if changed is not None:
        raise EngineError(f"{kit / changed} was changed or is missing: copy the kit again.")


def check_machine(description: KitDescription, device: int) -> gpus.Device:
    """The GPU to build for.

    Raises:
        EngineError: there is none, it is of another architecture, or TensorRT cannot be imported.
    """
    driver = gpus.probe()
    gpu = driver.device(device)
    if gpu is None:
        problem = driver.problem or f"there is no GPU number {device}, but {driver.sentence()}"
        raise EngineError(f"The kit needs a GPU with its driver: {problem}.")
    if gpu.target != description.target:
        raise EngineError(
            f"The kit is for {description.product} ({description.target}), but this GPU is {gpu.name} ({gpu.target}): "
            f"write one for it with `vae-edge build BUNDLE --target {gpu.target} --kit FOLDER`."
        )
    installations = discover(("tensorrt",))
    if not [each for each in installations if not each.problem]:
        raise EngineError(install_hint("tensorrt", installations))
    return gpu


@contextlib.contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """An empty folder in `out`, locked against other runs, and removed at the end however that comes.

    Raises:
        EngineError: `out` cannot be written, or another run is going on there.
    """
    work = out / WORK
    try:
        out.mkdir(parents=True, exist_ok=True)
        work.mkdir(exist_ok=True)
        descriptor = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise EngineError(
            f"{out} cannot be written to ({error.strerror}): name another folder, `sh build.sh --out FOLDER`."
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EngineError(
                f"Another run is going on in {out}: wait for it, or name another folder with --out."
            ) from error
        _empty(work)
        try:
            yield work
        finally:
            _end_interrupts()
            _empty(work)
            work.rmdir()
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


# Building and measuring


def _build(description: KitDescription, bundle: Path, device: int, report: Report) -> None:
    for config in description.configs:
        report.say(f"building the {config.precision} engine ...")
        here = BuildConfig.from_json({**config.to_json(), "device": device, "kind": "tensorrt"})
        try:
            built = build_bundle_engine(bundle, here, progress=_progress(), notice=report.say)
        except EngineError as error:
            report.failed[config.precision] = str(error)
            report.say(f"  {error}")
            continue
        report.say(f"  {built.build.summary()}")
        for line in (*built.build.reasons, *built.build.warnings):
            report.say(f"  {line}")
        if built.build.dla is not None:
            for line in built.build.dla.sentences():
                report.say(f"  {line}")


def _progress() -> Callable[[str, int, int], None] | None:
    """A line that overwrites itself, on a terminal."""
    if not sys.stdout.isatty():
        return None

    def show(phase: str, step: int, steps: int) -> None:
        print(f"\r  {printable(phase)[:60]:<60} {step}/{steps}\033[K\r", end="", flush=True)

    return show


def _verify(description: KitDescription, bundle: Path, device: int, report: Report) -> None:
    from vae_edge.runtime import verification

    report.say("verifying the answers with the probe images ...")
    try:
        found = verification.verify_in_subprocess(
            bundle, ["tensorrt"], max_bytes=UNLIMITED, device=device, trusted=_trusted(description)
        )
    except VaeEdgeError as error:
        report.problems.append(str(error))
        report.say(f"  {error}")
        return
    report.verification = found.to_json()
    for sentence in dict.fromkeys(model.sentence for model in found.models):
        report.say(f"  {sentence}")
    if found.right is None:
        report.problems.append("The answers of the engines could not be verified: the bundle has no probes for them.")
    files.write_text(bundle.parent / "verification.md", verification.to_markdown(found))


def _trusted(description: KitDescription) -> bool:
    """A version-compatible engine brings code for the processor; these were built here."""
    return any(config.version_compatible for config in description.configs)


def _benchmark(description: KitDescription, bundle: Path, device: int, seconds: float, report: Report) -> None:
    from vae_edge.benchmarking import run_benchmark

    report.say(f"measuring latency, for about {seconds:g} s ...")
    wrong = report.wrong_precisions
    built = [c for c in description.configs if c.precision not in report.failed and c.precision not in wrong]
    for precision in wrong:
        report.say(f"  not of the {precision} engine, whose answers are wrong")
    try:
        for config in built:
            found = run_benchmark(
                bundle,
                ["tensorrt"],
                [config.precision],
                batches=sorted(set(config.batch)),
                seconds=seconds / len(built),
                device=device,
                trusted=_trusted(description),
            ).to_json()
            found["bundle"].pop("models")
            for sentence in found["left_out"]:
                report.say(f"  {sentence}")
            if report.benchmark is None:
                report.benchmark = found
            else:
                report.benchmark["results"] += found["results"]
    except VaeEdgeError as error:
        report.problems.append(str(error))
        report.say(f"  {error}")
    if report.benchmark is not None:
        for line in ascii_table(latency_rows(report.benchmark["results"])):
            report.say(f"  {line}")


def _accuracy(description: KitDescription, bundle: Path, device: int, held_out: HeldOut, report: Report) -> None:
    from vae_edge.runtime import load

    report.say(f"measuring accuracy on {len(held_out)} images of {held_out.name} ({held_out.split}) ...")
    opened: Bundle = load_bundle(bundle)
    for config in description.configs:
        precision = config.precision
        if precision in report.failed:
            continue
        options: Mapping[str, Any] = {"device": device, "trusted": _trusted(description), "verify": "off"}
        try:
            with load(bundle, "tensorrt", precision, **options) as classifier:
                report.accuracy[precision] = evaluate(classifier, held_out, opened)
        except VaeEdgeError as error:
            report.problems.append(str(error))
            report.say(f"  {error}")
            continue
        if compared(report.accuracy[precision], description.measured.get(precision)) is False:
            report.problems.append(
                f"The accuracy of the {precision} engine lies outside the 95% interval of that of its ONNX file on the "
                "same images."
            )
            report.say(f"  {report.problems[-1]}")
    if report.accuracy:
        for line in ascii_table(accuracy_rows(report.accuracy, description.measured)):
            report.say(f"  {line}")


# Packing


def _pack(work: Path, out: Path, kit: Path, description: KitDescription, gpu: gpus.Device, report: Report) -> Path:
    """Write the result, in one step, under a name that nothing has."""
    from vae_edge.benchmarking import describe_machine

    folder = work / "result"
    scrub = _scrubber(kit, out, work)
    now = datetime.datetime.now(datetime.timezone.utc)
    machine = describe_machine()
    shutil.copyfile(kit / KIT_FILE, folder / KIT_FILE)
    values = {
        RESULT_FILE: {
            "schema": SCHEMA,
            "device": description.device,
            "product": description.product,
            "target": description.target,
            "date": now.isoformat(timespec="seconds"),
            "right": report.right,
            "failed": report.failed,
            "problems": report.problems,
            "gpu": {"name": gpu.name, "multiprocessors": gpu.multiprocessors, "memory_bytes": gpu.memory_bytes},
            "machine": machine,
        },
        "verification.json": report.verification,
        "benchmark.json": report.benchmark,
        "accuracy.json": {"here": report.accuracy, "at_home": dict(description.measured)} if report.accuracy else None,
    }
    for name, value in values.items():
        if value is not None:
            files.write_text(folder / name, scrub(json_text(value)) + "\n")
    page = folder / "verification.md"
    if page.is_file():
        files.write_text(page, scrub(page.read_text(encoding="utf-8")))
    files.write_text(folder / "log.txt", scrub("\n".join(report.lines)) + "\n")
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    write_sums(folder, names, SUMS_FILE)
    path = _free_name(out, f"result-{description.device}-{now:%Y-%m-%d}")
    write_archive(path, folder, path.name.removesuffix(".tar.gz"))
    return path


def _free_name(out: Path, stem: str) -> Path:
    """The first of `stem.tar.gz`, `stem-2.tar.gz`, ... that is not there."""
    path, number = out / f"{stem}.tar.gz", 1
    while path.exists():
        number += 1
        path = out / f"{stem}-{number}.tar.gz"
    return path


def _scrubber(kit: Path, out: Path, work: Path) -> Callable[[str], str]:
    """Takes folders of this machine, the home folder and the host's name out of text."""
    places = {str(path): name for name, path in (("KIT", kit), ("OUT", out), ("WORK", work))}
    places |= {str(path.resolve()): name for name, path in (("KIT", kit), ("OUT", out), ("WORK", work))}
    places[os.path.expanduser("~")] = "HOME"  # noqa: PTH111 (a Path's raises for a user without one)
    host = socket.gethostname()
    pairs = sorted(((place, name) for place, name in places.items() if len(place) > 1), key=lambda p: -len(p[0]))

    def scrub(text: str) -> str:
        for place, name in pairs:
            text = text.replace(place, name)
        return re.sub(rf"(?<!\w){re.escape(host)}(?!\w)", "HOST", text) if len(host) > 2 else text

    return scrub


if __name__ == "__main__":
    sys.exit(main())
