# SPDX-License-Identifier: Apache-2.0
"""From what a training run saved to the plain state dict of a network: unwrapping, choosing, strictness.

A file may hold the weights plain, or under `state_dict`, `model`, `module.`, beside a moving average under `ema` or
`model_ema` and beside an optimizer's state. `unwrap` finds the plain dict; `require` compares it with the network and
lists everything that does not fit in one error.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ..runtime.errors import CheckpointError
from .weight_files import RenamedWeights, Weights

_GROUPS = ("state_dict", "model")
_EMA_GROUPS = ("ema", "model_ema")
_WRAPPERS = ("module", "_orig_mod", "shadow")  # data-parallel, torch.compile, the inner name of averaging libraries
# What trainers save beside weights, and the counters of averaging libraries.
_LEFTOVERS = frozenset(
    {"optimizer", "optimizers", "optim", "lr_scheduler", "scheduler", "scaler", "rng", "rng_state"}
    | {"n_averaged", "num_updates", "decay", "initted", "step", "epoch", "global_step"}
)

# How many names one error message spells out per kind; the count is always there.
_NAMES_SHOWN = 12


@dataclass(frozen=True)
class Unwrapped:
    """A plain state dict, and where in its file it was."""

    weights: Weights
    """Names as the network has them."""
    is_ema: bool
    """Whether these are the moving averages."""


def unwrap(weights: Weights, *, ema: bool) -> Unwrapped:
    """Return the plain state dict inside a file.

    With `ema` the moving averages are taken where the file has them; whether a checkpoint without any is an error is
    for the caller to say.
    """
    names = {name: name for name in weights.infos()}
    averages = next((found for group in _EMA_GROUPS if (found := _inside(names, group))), None)
    if averages is None:
        # A trainer may keep the averages next to the weights within one more level: {"state_dict": {"model_ema.…"}}.
        for outer in _GROUPS:
            inner = _inside(names, outer)
            averages = next((found for group in _EMA_GROUPS if (found := _inside(inner, group))), averages)
    chosen = averages if ema and averages is not None else names
    return Unwrapped(RenamedWeights(weights, names=_plain(chosen)), is_ema=ema and averages is not None)


def require(
    weights: Weights,
    *,
    expected: Mapping[str, tuple[int, ...]],
    ignored: Iterable[str] = (),
    what: str,
) -> Weights:
    """Return exactly the tensors that a network needs.

    Args:
        weights: the plain state dict.
        expected: every name that the network has, with its shape.
        ignored: regular expressions of names that are known and not used; anything else that is not expected is an
            error.
        what: what the weights are for, as the message calls it.

    Raises:
        CheckpointError: names are missing, not expected, or have another shape; all are in the one message.
    """
    infos = weights.infos()
    known_unused = [re.compile(pattern) for pattern in ignored]
    missing = [name for name in expected if name not in infos]
    unexpected = [
        name for name in infos if name not in expected and not any(pattern.fullmatch(name) for pattern in known_unused)
    ]
    misshaped = [
        f"{name} is {_shape(infos[name].shape)}, expected {_shape(shape)}"
        for name, shape in expected.items()
        if name in infos and infos[name].shape != tuple(shape)
    ]
    integers = [
        f"{name} is {infos[name].dtype}"
        for name in expected
        if name in infos and infos[name].dtype not in ("F64", "F32", "F16", "BF16")
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped), ("not floating", integers))
    problems = [f"{len(found)} {kind} ({_list(found)})" for kind, found in kinds if found]
    if problems:
        files = ", ".join(path.name for path in weights.files[:3]) + (" …" if len(weights.files) > 3 else "")
        raise CheckpointError(f"the weights in {files} do not fit {what}: {'; '.join(problems)}")
    return RenamedWeights(weights, names={name: name for name in expected})


def _inside(names: Mapping[str, str], group: str) -> dict[str, str]:
    """Return the names below `group.`, without it."""
    return {name[len(group) + 1 :]: source for name, source in names.items() if name.startswith(group + ".")}


def _plain(names: Mapping[str, str]) -> dict[str, str]:
    """Take wrappers off until none is left."""
    current = dict(names)
    while True:
        inner = _without_one_wrapper(current)
        if inner is None:
            return current
        current = inner


def _without_one_wrapper(names: Mapping[str, str]) -> dict[str, str] | None:
    """Return the names one level further in, or None where this is the plain dict."""
    heads = {name.partition(".")[0] for name in names}
    for group in _GROUPS:
        if group in heads and heads <= {group, *_EMA_GROUPS, *_LEFTOVERS}:
            return _inside(names, group)
    if heads & set(_EMA_GROUPS) or heads & _LEFTOVERS:
        kept = _without_heads(names, {*_EMA_GROUPS, *_LEFTOVERS})
        if kept:
            return kept
    if len(heads) == 1 and (wrapper := next(iter(heads))) in _WRAPPERS:
        return _inside(names, wrapper)
    return None


def _without_heads(names: Mapping[str, str], heads: Collection[str]) -> dict[str, str]:
    return {name: source for name, source in names.items() if name.partition(".")[0] not in heads}


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown}, … {len(names) - _NAMES_SHOWN} more"


def _shape(shape: Iterable[int]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"
