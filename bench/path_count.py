"""How far a reader must go: the source files of ours on the way from one call to another, and how often they change.

    python bench/path_count.py BUNDLE                             # from `vae_edge.load` to the engine's call
    python bench/path_count.py --code "..." --until backward      # from any code to the first call of that name

Counted by `sys.setprofile`: each function of ours that is called in this thread, in order; comprehensions, lambdas and
module bodies do not count. A change is a function in another file than the function before it. The second count leaves
out leaf modules, which many packages call for one answer: `LEAVES`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import vae_edge

ROOT = Path(vae_edge.__file__).parent
LEAVES = {
    "files.py", "environment.py", "spec.py", "text.py", "errors.py", "preprocess.py", "onnx_graph.py",
    "onnx_shapes.py", "onnx_sizes.py", "__init__.py",
    "optional.py", "processors.py", "limits.py", "array_file.py", "images.py", "runtime/machine.py",  # before
}  # fmt: skip


class _Reached(BaseException):
    """The function named by `until` is called."""


def trace(call: Callable[[], Any], until: str = "") -> tuple[list[str], Any]:
    """The functions that a call goes through, as "file.py:function", and its result.

    Args:
        until: the name of a function, of ours or not, whose first call ends the trace; the result is then None.
    """
    steps: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or code.co_name.startswith("<"):
            return
        if code.co_filename.startswith(str(ROOT)):
            steps.append(f"{Path(code.co_filename).relative_to(ROOT)}:{code.co_name}")
        if until and code.co_name == until:
            sys.setprofile(None)
            raise _Reached

    sys.setprofile(note)
    try:
        return steps, call()
    except _Reached:
        return steps, None
    finally:
        sys.setprofile(None)


def show(what: str, steps: list[str], listed: bool = False) -> None:
    """Print both counts, and each change of file if `listed`."""
    own = [step for step in steps if step.split(":")[0] not in LEAVES]
    for name, some in (("all", steps), ("without leaf modules", own)):
        files = [step.split(":")[0] for step in some]
        changes = sum(before != after for before, after in pairwise(files))
        print(f"{what}, {name}: {len(set(files))} files, {changes} changes")
    for before, step in zip(["", *steps], steps, strict=False):
        if listed and before.split(":")[0] != step.split(":")[0]:
            print(f"    {step}")


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--code", help="Python code to count instead")
    parser.add_argument("--until", default="", help="with --code: the function whose first call ends the count")
    parser.add_argument("--list", action="store_true", help="print each change of file")
    given = parser.parse_args()

    if given.code:
        code = compile(given.code, "<code>", "exec")
        steps, _ = trace(lambda: exec(code, {}), given.until)
        show("code", steps, given.list)
        return

    load = vae_edge.load
    load(given.bundle, "onnxruntime", "fp32").close()  # everything is imported, and the verdict is cached
    loading, classifier = trace(lambda: load(given.bundle, "onnxruntime", "fp32"))
    size, channels = classifier.input.size, classifier.input.channels
    images = np.zeros((1, size, size, channels), np.uint8)
    first, _ = trace(lambda: classifier(images))
    later, _ = trace(lambda: classifier(images))
    engine = next(k for k, step in enumerate(first) if step.endswith("onnxruntime_backend.py:run"))
    show("from load to the engine's call", loading + first[: engine + 1], given.list)
    show("a later call", later, given.list)


if __name__ == "__main__":
    main()
