# SPDX-License-Identifier: Apache-2.0
"""Several processes train one network: each takes batches of its own, and all step by the mean of their gradients.

On a CPU this uses cores better than threads do. Everything here does nothing in a process that works alone.
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn


def rank() -> int:
    """Return this process's number; 0 saves and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over all processes."""
    if not dist.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def run_together(run: Callable[..., None], folder: Path, *, steps: int, workers: int) -> None:
    """Call `run(folder, steps=steps)` in so many processes."""
    with tempfile.TemporaryDirectory() as meeting:
        spawn(_work, (run, folder, steps, workers, f"{meeting}/processes"), nprocs=workers)


def _work(number: int, run: Callable[..., None], folder: Path, steps: int, workers: int, meeting: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=workers)
    run(folder, steps=steps)
    dist.barrier()
    dist.destroy_process_group()
