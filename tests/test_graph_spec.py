# SPDX-License-Identifier: Apache-2.0
"""What a network file may not offer for export, and how its dynamic axes reach torch."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from edgereels.export.graph_spec import GraphSpec, dynamic_axes, times


class Sum(nn.Module):
    def forward(self, start: Tensor, *others: Tensor) -> tuple[Tensor]:
        return (start + sum(others),)


def spec_of(others: int) -> GraphSpec:
    names = ("start", *(f"other_{index}" for index in range(others)))
    example = tuple(torch.zeros(2, 4) for _ in names)
    return GraphSpec(
        name="sum",
        subnetwork="sum",
        module=Sum(),
        input_names=names,
        output_names=("total",),
        examples=(example, example),
        dynamic_shapes=tuple(dynamic_axes(("rows", 4)) for _ in names),
        shape_names={name: ("rows", 4) for name in (*names, "total")},
    )


def test_inputs_gathered_by_a_star_are_one_nested_entry() -> None:
    spec = spec_of(2)
    assert spec.nested_dynamic_shapes() == (spec.dynamic_shapes[0], spec.dynamic_shapes[1:])


def test_a_star_that_gathers_nothing_has_no_entry() -> None:
    assert len(spec_of(0).nested_dynamic_shapes()) == 1


def test_a_name_used_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="used twice"):
        dataclasses.replace(spec_of(1), output_names=("start",))


def test_a_tensor_without_a_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in \\['total'\\]"):
        dataclasses.replace(spec_of(0), shape_names={"start": ("rows", 4)})


def test_an_example_with_an_input_missing_is_refused() -> None:
    spec = spec_of(1)
    with pytest.raises(ValueError, match="2 input names"):
        dataclasses.replace(spec, examples=(spec.examples[0], spec.examples[1][:1]))


def test_products_and_names_become_dims_and_sizes_do_not() -> None:
    axes = dynamic_axes((1, times(8, "h"), times(1, "w")))
    assert {index: dim.__name__ for index, dim in axes.items()} == {1: "8*h", 2: "w"}
