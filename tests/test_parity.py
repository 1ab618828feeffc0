# SPDX-License-Identifier: Apache-2.0
"""What export records of PyTorch's own bfloat16: the yardstick of every engine's low precision."""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgereels.export.graph_spec import GraphSpec, dynamic_axes
from edgereels.export.parity import Parity, compare

WIDTH = 64


class Product(nn.Module):
    """A linear layer, whose product autocast runs in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, rows: Tensor) -> tuple[Tensor]:
        return (self.linear(rows),)


class Sum(nn.Module):
    """Something that autocast leaves in float32."""

    def forward(self, rows: Tensor) -> tuple[Tensor]:
        return (rows + 1,)


def compared(module: Callable[[Tensor], Sequence[Tensor]], *, exact: nn.Module) -> Parity:
    """Compare a module with a "graph" that runs `exact`."""
    axes = {"rows": ("rows", WIDTH), "out": ("rows", WIDTH)}
    generator = torch.Generator().manual_seed(1)
    spec = GraphSpec(
        name="tried",
        subnetwork="dit",
        module=exact,
        input_names=("rows",),
        output_names=("out",),
        examples=((torch.randn(2, WIDTH, generator=generator),), (torch.randn(3, WIDTH, generator=generator),)),
        dynamic_shapes=(dynamic_axes(axes["rows"]),),
        shape_names=axes,
    )

    def run(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        with torch.no_grad():
            return {"out": exact(torch.from_numpy(np.asarray(feeds["rows"])))[0].numpy()}

    return compare(spec, run=run, module=lambda inputs: module(*inputs), precision="fp32")


def test_a_product_costs_what_seven_bits_of_mantissa_cost() -> None:
    parity = compared(Product(), exact=Product())
    # Inputs, weights and the result are rounded to 2^-8 at most, 2^-8 / sqrt(3) on average: about 0.003 together.
    assert parity.bf16_rel_l2 is not None and 1e-3 < parity.bf16_rel_l2 < 6e-3
    assert parity.record()["bf16_rel_l2"] == parity.bf16_rel_l2
    assert parity.max_abs == 0  # the comparison itself stays in float32


def test_what_has_no_product_costs_nothing_and_is_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert compared(Sum(), exact=Sum()).record()["bf16_rel_l2"] is None
    assert "graph tried: bfloat16 was not measured: nothing in it computes in bfloat16" in caplog.text


def test_an_operator_without_a_kernel_is_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    exact = Product()

    def without_kernel(rows: Tensor) -> Sequence[Tensor]:
        if torch.is_autocast_enabled("cpu"):
            torch.special.bessel_j0(rows.bfloat16())
        return exact(rows)

    assert compared(without_kernel, exact=exact).bf16_rel_l2 is None
    assert "not implemented for 'BFloat16'" in caplog.text


def test_any_other_failure_in_bfloat16_is_not_taken_for_a_missing_kernel() -> None:
    exact = Product()

    def wrong(rows: Tensor) -> Sequence[Tensor]:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("expected m1 and m2 to have the same dtype")
        return exact(rows)

    with pytest.raises(RuntimeError, match="same dtype"):
        compared(wrong, exact=exact)
