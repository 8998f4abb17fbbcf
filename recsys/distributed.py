"""Processes: one by default, several on this machine with `--launch.nproc`.

gloo on CPU and NCCL on GPU, chosen by the device.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch.multiprocessing.spawn import ProcessRaisedException, spawn

from features.errors import InputError
from features.settings import Settings
from recsys.console import quiet


class Config(Settings):
    """The section [launch]."""

    nproc: int = Field(default=1, ge=1)
    """Training processes on this machine."""


def launch(function: Callable[..., None], config: Config, *args: Any) -> None:
    """Call `function(*args)` in every process of a group; returns when all have ended.

    Raises:
        InputError: a process refused its input.
        torch.multiprocessing.ProcessRaisedException: the first error of a spawned process, with its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = f"file://{Path(folder, 'rendezvous')}"
        if config.nproc == 1:
            with process_group(0, 1, meeting_point):
                function(*args)
        else:
            threads = max(1, torch.get_num_threads() // config.nproc)
            refused = Path(folder, "refused")
            try:
                spawn(_worker, (config.nproc, meeting_point, refused, threads, function, args), nprocs=config.nproc)
            except ProcessRaisedException:
                if refused.exists():
                    raise InputError(refused.read_text(encoding="utf-8")) from None
                raise


def _worker(
    rank: int,
    world: int,
    meeting_point: str,
    refused: Path,
    threads: int,
    function: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    quiet()
    torch.set_num_threads(threads)
    with process_group(rank, world, meeting_point):
        try:
            function(*args)
        except InputError as error:
            # What crosses to the parent is a traceback as text; what a person did wrong goes beside it.
            refused.write_text(str(error), encoding="utf-8")
            raise


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
    local = dist.get_rank() % torch.cuda.device_count()
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
