"""Compiled networks with a fault planted in their PTX: how many the emulator finds, by kind.

A mutant that is not found need not be a gap: the compiler places barriers where it does not see that nothing is shared,
a wait may follow one that has waited for everything, and of a masked load the elements that are masked may be in
bounds and be thrown away later; a mask that masks nothing is not counted. Of the waits of a pipelined loop (a
configuration that is not used now) each waits for all copies, the next step's too, so that only a loop's first one is
needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from test_compiled import compiled_network, packed, run_network
from vae_edge_kernels import network
from vae_edge_kernels.config import get_config, override_config
from vae_edge_kernels.emulator.errors import Deadlock, MemoryFault

from vae_edge.emulation.launch import Compiled, compile_kernel
from vae_edge.ops.packing import PackedNetwork

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EACH = 5  # mutants of a kind and a network, spread over the text

Mutation = Callable[[str], str]
KINDS: dict[str, tuple[str, Mutation, int, float]] = {
    # kind: lines it applies to, what becomes of one, programs an image, and the fraction that has to be found
    "barrier removed": (r"bar\.sync", lambda line: "", 1, 0.6),
    "barrier removed, of two programs": (r"bar\.sync", lambda line: "", 2, 0.6),
    "wait removed": (r"cp\.async\.wait_group", lambda line: "", 2, 0.8),  # of pipelined loops
    "mask dropped": (r"@!?%p\d+ (?:ld|st)\.global", lambda line: re.sub(r"@!?%p\d+ ", "", line), 1, 0.35),
    "address in shared memory shifted": (r"(?:ld|st)\.shared", lambda line: shifted(line, 16), 1, 0.8),
    "address in global memory shifted": (
        r"(?:@!?%p\d+ )?(?:ld|st)\.global\.[bv]",
        lambda line: shifted(line, 16),
        1,
        0.7,
    ),
    "acquire made relaxed": (r".*atom\.global\.gpu\.acquire", lambda line: line.replace("acquire", "relaxed"), 2, 0.9),
    "release made relaxed": (r".*red\.global\.gpu\.release", lambda line: line.replace("release", "relaxed"), 2, 0.9),
}


def shifted(line: str, by: int) -> str:
    """The first address of a line, some bytes further."""
    return re.sub(r"\[\s*(%\w+)(?:\s*\+\s*(\d+))?\s*\]", lambda m: f"[{m[1]}+{int(m[2] or 0) + by}]", line, count=1)


def faults_where_masked(line: str) -> str:
    """The line, and before it an access out of bounds by those lanes that it masks."""
    inverted = re.sub(r"@(!?)(%p\d+)", lambda m: f"@{'' if m[1] else '!'}{m[2]}", line, count=1)
    return f"{shifted(inverted, 1 << 40)}\n{line}"


def mutants(text: str, kind: str) -> list[tuple[str, str]]:
    """Texts with one fault each; and, of masks, the same with `faults_where_masked` in its place."""
    pattern, mutate, _, _ = KINDS[kind]
    lines = text.split("\n")
    places = [number for number, line in enumerate(lines) if re.match(rf"\s*{pattern}", line)]
    made = []
    for place in places[:: max(1, len(places) // EACH)]:
        before, line, after = lines[:place], lines[place], lines[place + 1 :]
        changed = [*before, mutate(line), *after]
        if changed != lines:
            probe = [*before, faults_where_masked(line), *after] if kind == "mask dropped" else changed
            made.append(("\n".join(changed), "\n".join(probe)))
    return made


def is_found(compiled: Compiled, text: str, made: PackedNetwork, programs: int) -> bool:
    """Whether a run of a network with this text stops, or gives other answers."""
    try:
        run_network(compiled.changed(text), made, programs)
    except (MemoryFault, Deadlock, AssertionError):
        return True
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_most_mutants_are_found(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    programs, floor = KINDS[kind][2:]
    found = tried = same = 0
    for int8 in (False, True):
        made = packed("tiny", int8)
        if kind == "wait removed":
            key = "int8_multi_cta" if int8 else "fp16_multi_cta"
            with override_config("network", key, {**get_config("network", key, 87), "num_stages": 2}):
                compiled = compile_kernel(network.kernel_spec(made.layout, 87, programs), 87)
        else:
            compiled = compiled_network("tiny", int8, 87, programs)
        for text, probe in mutants(compiled.ptx, kind):
            if is_found(compiled, text, made, programs):
                found += 1
            elif kind == "mask dropped" and not is_found(compiled, probe, made, programs):
                same += 1  # it masked nothing
                continue
            tried += 1
    with capsys.disabled():
        print(f"\n{kind}: {found} of {tried} were found; {same} more change nothing")
    assert tried and found >= floor * tried
