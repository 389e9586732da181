"""Budgets of what a whole network executes for one image, beside those of its machine code (`analysis.sass`)."""

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


def check_counts(counts: Counts, budget: CountBudget) -> None:
    """Compare a launch for one image with its budget.

    Raises:
        KernelError: it executes more than is allowed.
    """
    totals = counts.totals
    share = totals["conflicts"] / max(1, totals["wavefronts"])
    for name, found, allowed in (
        ("warp instructions", totals["instructions"], budget.instructions),
        ("barriers", totals["barriers"], budget.barriers),
        ("share of conflicts", share, budget.conflicts),
    ):
        if found > allowed:
            raise KernelError(
                f"{budget.networks} on sm_{budget.architecture} with {budget.programs} programs an image is over its "
                f"budget: {name} {found:,.4g}, at most {allowed:,.4g} allowed. Mend the kernel, or raise the budget in "
                "configs/network.json."
            )
