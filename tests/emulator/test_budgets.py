"""What networks and operators execute stays within the budgets that are stated for it."""

from __future__ import annotations

import dataclasses

import pytest
from vae_edge_kernels import KernelError
from vae_edge_kernels.emulator.budgets import (
    CountBudget,
    OperatorBudget,
    check_counts,
    load_count_budgets,
    load_operator_budgets,
)
from vae_edge_kernels.emulator.counting import Counts
from vae_edge_kernels.emulator.timing import MODELS

from vae_edge.emulation.networks import profile_network
from vae_edge.emulation.operators import operator_cases, profile_case
from vae_edge.model.network import layout_for_preset

BUDGETS = load_count_budgets()
OPERATORS = load_operator_budgets()


def counts_of(budget: CountBudget) -> Counts:
    preset, precision = budget.networks.rsplit("_", 1)
    layout = layout_for_preset(preset, int8=precision == "int8")
    # With the model the programs take turns by its time: how often they ask for one another is what it would be.
    return profile_network(layout, budget.architecture, MODELS["orin"], budget.programs)[1].counts


@pytest.mark.parametrize(
    "budget",
    [
        pytest.param(
            each,
            id=f"{each.networks}-{each.programs}",
            marks=[pytest.mark.slow] if each.programs > 1 or "base" in each.networks else [],
        )
        for each in BUDGETS
    ],
)
def test_a_network_executes_no_more_than_its_budget_allows(budget: CountBudget) -> None:
    counts = counts_of(budget)
    check_counts(counts, budget)
    # A budget that is far above what is found would not see a change.
    assert counts.totals["instructions"] > 0.9 * budget.instructions


@pytest.mark.parametrize(
    "budget",
    [
        pytest.param(
            each,
            id=f"{each.operator}-{each.shape}",
            marks=[pytest.mark.slow] if each.instructions > 100_000 else [],
        )
        for each in OPERATORS
    ],
)
def test_an_operator_executes_no_more_than_its_budget_allows(budget: OperatorBudget) -> None:
    layouts = {int8: layout_for_preset(budget.preset, int8=int8) for int8 in (False, True)}
    (case,) = (each for each in operator_cases(layouts, budget.operator) if each.shape == budget.shape)
    model = next(each for each in MODELS.values() if each.architecture == budget.architecture)
    counts = profile_case(case, model).device.counts
    check_counts(counts, budget)
    assert counts.totals["instructions"] > 0.9 * budget.instructions


def test_what_an_operator_executes_over_its_budget_is_named() -> None:
    budget = next(each for each in OPERATORS if each.operator == "conv_int8")
    counts = Counts()
    counts.totals.update({"instructions": budget.instructions + 1})
    with pytest.raises(KernelError, match=r"conv_int8 of 28x28x16 .* on sm_87 is over .* in configs/conv\.json"):
        check_counts(counts, budget)


def test_what_is_over_a_budget_is_named() -> None:
    budget = next(each for each in BUDGETS if each.networks == "tiny_fp16")
    counts = Counts()
    counts.totals.update({"instructions": budget.instructions, "barriers": 3, "wavefronts": 1000, "conflicts": 1})
    check_counts(counts, budget)
    with pytest.raises(KernelError, match=r"tiny_fp16 on sm_87 with 1 programs .* warp instructions"):
        check_counts(counts, dataclasses.replace(budget, instructions=budget.instructions - 1))
    with pytest.raises(KernelError, match=r"share of conflicts 0\.001, at most 0 allowed"):
        check_counts(counts, dataclasses.replace(budget, conflicts=0.0))
