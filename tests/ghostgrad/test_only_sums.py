"""Where only sums over the rows are asked for, autograd's own gradient serves where the rules find another."""

from __future__ import annotations

import pytest
import torch
from silent import inputs, made, row_losses

from ghostgrad import GradientEngine, WeightedSum


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("name", ["weight used outside its module", "weight used inside and outside"])
def test_a_sum_that_no_rule_finds_is_autograds_own_where_only_sums_are_asked_for(name: str, frozen: bool) -> None:
    model, values, total = made(name), inputs(), WeightedSum()
    row_losses(model, values).sum().backward()
    expected = {parameter: p.grad.clone() for parameter, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.requires_grad_(not frozen)
    select = ["conv.*"] if hasattr(model, "conv") else ["table.*"]
    engine = GradientEngine(model, select=select, verify="sums", unsupported="exact")
    for _ in range(3):
        with engine.observe(total, frozen=True):
            row_losses(model, values).sum().backward()
        for parameter, found in total.values.items():
            torch.testing.assert_close(found, expected[parameter], rtol=1e-10, atol=1e-12)
        assert total.values.keys() == engine.parameters.keys()
        assert all((p.grad is None) == frozen for p in engine.parameters.values())
    assert any(parameter.endswith("weight") for parameter in engine.verification.summed)
