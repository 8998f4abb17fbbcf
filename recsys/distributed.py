"""Processes: one by default, several on this machine with `--launch.nproc`, more machines under torchrun.

gloo on CPU and NCCL on GPU, chosen by the device.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pydantic import Field

from features.settings import Settings


class Config(Settings):
    """The section [launch]."""

    nproc: int = Field(default=1, ge=1)
    """Training processes on this machine; ignored under torchrun, which has started them already."""


def launch(function: Callable[..., None], config: Config, *args: Any) -> None:
    """Call `function(*args)` in every process of a group; returns when all have ended.

    Raises:
        torch.multiprocessing.ProcessRaisedException: the first error of a spawned process, with its traceback.
    """
    if "RANK" in os.environ:
        with process_group(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "env://"):
            function(*args)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = f"file://{Path(folder, 'rendezvous')}"
        if config.nproc == 1:
            with process_group(0, 1, meeting_point):
                function(*args)
        else:
            threads = max(1, torch.get_num_threads() // config.nproc)
            mp.spawn(_worker, (config.nproc, meeting_point, threads, function, args), nprocs=config.nproc)


def _worker(
    rank: int, world: int, meeting_point: str, threads: int, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(threads)
    with process_group(rank, world, meeting_point):
        function(*args)


@contextmanager
def process_group(rank: int, world: int, meeting_point: str) -> Iterator[None]:
    """A process group for the time of the block."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    hook = sys.excepthook  # torch puts the rank before every traceback, for good
    dist.init_process_group(backend, init_method=meeting_point, rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


def device() -> torch.device:
    """This rank's device: its GPU where there are any."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", dist.get_rank())) % torch.cuda.device_count()
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def is_first() -> bool:
    """Whether this process is the one that writes and talks."""
    return dist.get_rank() == 0


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, on every rank."""
    summed = values.clone()
    dist.all_reduce(summed)
    return summed


def gathered(value: Any) -> list[Any]:
    """The values of all ranks, in the order of ranks, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
