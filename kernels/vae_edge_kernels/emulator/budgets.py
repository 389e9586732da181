"""Budgets of what networks and operators execute for one image, beside those of the machine code (`analysis.sass`)."""

from __future__ import annotations

import json
from dataclasses import dataclass

from vae_edge_kernels import KernelError
from vae_edge_kernels.config import FOLDER
from vae_edge_kernels.emulator.counting import Counts


@dataclass(frozen=True)
class CountBudget:
    """At most so much of each, for one image.

    Attributes:
        networks: preset and precision: "small_int8".
        architecture: 87 is sm_87.
        programs: that work on the image.
        instructions: warp instructions of all programs.
        barriers: of all programs.
        conflicts: share of the wavefronts of shared memory.
    """

    networks: str
    architecture: int
    programs: int
    instructions: int
    barriers: int
    conflicts: float


def load_count_budgets() -> list[CountBudget]:
    """All of them, as `configs/network.json` states them."""
    stated = json.loads((FOLDER / "network.json").read_text(encoding="utf-8"))
    return [CountBudget(**budget) for budget in stated["dynamic_budgets"]]


@dataclass(frozen=True)
class OperatorBudget:
    """The same of a single operator.

    Attributes:
        file: in `configs/`, which states it.
        operator, shape: as `vae-edge kernels profile --operators` prints them.
        preset: whose layers have the shape.
        architecture, instructions, barriers, conflicts: as of `CountBudget`.
    """

    file: str
    operator: str
    shape: str
    preset: str
    architecture: int
    instructions: int
    barriers: int
    conflicts: float


def load_operator_budgets() -> list[OperatorBudget]:
    """All of them, as the operators' files in `configs/` state them."""
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        if path.stem != "network":
            stated = json.loads(path.read_text(encoding="utf-8")).get("dynamic_budgets", [])
            found += [OperatorBudget(path.name, **budget) for budget in stated]
    return found


def check_counts(counts: Counts, budget: CountBudget | OperatorBudget) -> None:
    """Compare a launch for one image with its budget.

    Raises:
        KernelError: it executes more than is allowed.
    """
    if isinstance(budget, CountBudget):
        what, programs, file = budget.networks, f" with {budget.programs} programs an image", "network.json"
    else:
        what, programs, file = f"{budget.operator} of {budget.shape}", "", budget.file
    totals = counts.totals
    share = totals["conflicts"] / max(1, totals["wavefronts"])
    for name, found, allowed in (
        ("warp instructions", totals["instructions"], budget.instructions),
        ("barriers", totals["barriers"], budget.barriers),
        ("share of conflicts", share, budget.conflicts),
    ):
        if found > allowed:
            raise KernelError(
                f"{what} on sm_{budget.architecture}{programs} is over its budget: {name} {found:,.4g}, at most "
                f"{allowed:,.4g} allowed. Mend the kernel, or raise the budget in configs/{file}."
            )
