# SPDX-License-Identifier: Apache-2.0
"""Muon: momentum whose matrices are made orthogonal before the step; about twice as quick here as AdamW alone.

After Keller Jordan's published description (Newton-Schulz iteration of degree five); own code.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .workers import average_gradients


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum for weights with two or more axes; the first axis is the output."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters that have a gradient. There is no closure to call, so no loss to return."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                direction = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)
                rows, columns = direction.shape
                scale = max(1.0, rows / columns) ** 0.5
                parameter.add_(orthogonalised(direction).view_as(parameter), alpha=-group["lr"] * scale)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return nearly U V^T of the matrix's singular value decomposition."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = (x / (x.norm() + 1e-7)).bfloat16()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Optimisers:
    """Muon for the inner matrices, AdamW for everything else; one learning-rate factor for both."""

    def __init__(self, model: nn.Module, *, inner: set[str], muon_lr: float, adam_lr: float) -> None:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for _, parameter in named]
        matrices = [parameter for name, parameter in named if name in inner]
        others = [parameter for name, parameter in named if name not in inner]
        self._muon = Muon(matrices, lr=muon_lr)
        self._adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self._rates = (muon_lr, adam_lr)

    def step(self, loss: Tensor, *, factor: float) -> None:
        """Back-propagate the loss and take one step at `factor` times the full learning rates."""
        for optimiser, rate in zip((self._muon, self._adam), self._rates, strict=True):
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
        loss.backward()
        average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self._muon.step()
        self._adam.step()

    def state_dict(self) -> dict:
        """Return what `load_state_dict` takes."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a saved state."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])
