"""Processes: one by default, several on this machine with `--launch.nproc`, several machines under torchrun.

gloo on CPU and NCCL on GPU, chosen by the device. Killed processes are started again, from the last checkpoint:

    recsys train CONFIG --launch.nproc 8
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m recsys.cli train CONFIG
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch.multiprocessing.spawn import ProcessContext, ProcessException, start_processes

from features.errors import InputError
from features.settings import Settings
from recsys.console import console, quiet

STOPPED = 130
"""Exit status of a process that was asked to stop, and did."""


class Config(Settings):
    """The section [launch]."""

    nproc: int = Field(default=1, ge=1)
    """Training processes on this machine; under torchrun its own numbers count."""
    restarts: int = Field(default=3, ge=0)
    """How many times in a row, without a new checkpoint in between, all processes are started again after one of
    them was killed. One process alone is not started again: give the command once more, and it goes on."""
    timeout_s: float = Field(default=1800.0, gt=0)
    """How long a process waits for the others before it gives up, seconds."""


@dataclass(frozen=True)
class Watch:
    """What a launcher needs to know of the training that it starts again."""

    progress: Callable[[], object]
    """Something that changes with every checkpoint."""
    died: Callable[[str], None]
    """Told why processes have ended, before they are started again."""


class WorkerDied(RuntimeError):
    """A process was killed, and starting all of them again has not helped."""


def launch(function: Callable[..., None], config: Config, *args: Any, watch: Watch | None = None) -> None:
    """Call `function(*args)` in every process of a group; returns when all have ended.

    Where this process is in a group already, as under torchrun, it is called here alone.

    Raises:
        InputError: a process refused its input.
        WorkerDied: a process was killed, and again and again when started anew.
        torch.multiprocessing.ProcessRaisedException: the first error of another process, with its traceback.
    """
    if dist.is_initialized():
        function(*args)
        return
    if config.nproc == 1:
        with tempfile.TemporaryDirectory() as folder, process_group(0, 1, _meeting_point(folder), config.timeout_s):
            function(*args)
        return
    attempts = 0
    while True:
        before = watch.progress() if watch else None
        cause = _run(function, config, args)
        if cause is None:
            return
        attempts = 1 if watch and watch.progress() != before else attempts + 1
        if watch:
            watch.died(cause)
        if watch is None or attempts > config.restarts:
            raise WorkerDied(f"{cause}; started again {attempts - 1} times without getting further")
        console.print(f"  {cause}; starting again from the last checkpoint", style="yellow", highlight=False)


def _run(function: Callable[..., None], config: Config, args: tuple[Any, ...]) -> str | None:
    """Start all processes and wait; None if all ended well, else which was killed and by what."""
    # A server imports everything once, and processes are forked from it in a tenth of a second.
    multiprocessing.get_context("forkserver").set_forkserver_preload(["recsys.preload"])
    threads = max(1, torch.get_num_threads() // config.nproc)
    with tempfile.TemporaryDirectory() as folder:
        refused = Path(folder, "refused")
        context = start_processes(
            _worker,
            (config.nproc, _meeting_point(folder), config.timeout_s, refused, threads, function, args),
            nprocs=config.nproc,
            join=False,
            start_method="forkserver",
        )
        assert context is not None
        try:
            with _stoppable():
                while not context.join():
                    pass
        except ProcessException:
            if refused.exists():
                raise InputError(refused.read_text(encoding="utf-8")) from None
            # The others fail too, once they miss it: what was killed is the cause, whoever is reported.
            killed = _killed(context)
            if killed is not None:
                return killed
            if STOPPED in _statuses(context):
                raise KeyboardInterrupt("stopped") from None
            raise
        except KeyboardInterrupt:
            # They save what they have learned. Ctrl-C has reached them already, a signal to this process has not.
            for process in context.processes:
                assert process is not None
                assert process.pid is not None
                if process.is_alive():
                    os.kill(process.pid, signal.SIGTERM)
                process.join(timeout=config.timeout_s)
            raise
    return None


@contextmanager
def _stoppable() -> Iterator[None]:
    """A SIGTERM is as good as Ctrl-C for the time of the block."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _killed(context: ProcessContext) -> str | None:
    for rank, code in enumerate(_statuses(context)):
        # SIGTERM is what the survivors get from the launcher.
        if code < 0 and code != -signal.SIGTERM:
            return f"rank {rank} was killed by {signal.Signals(-code).name}"
    return None


def _statuses(context: ProcessContext) -> list[int]:
    """Exit statuses by rank; minus the signal where that ended it."""
    return [process.exitcode or 0 for process in context.processes if process is not None]


def _meeting_point(folder: str) -> str:
    return f"file://{Path(folder, 'rendezvous')}"


def _worker(
    rank: int,
    world: int,
    meeting_point: str,
    timeout_s: float,
    refused: Path,
    threads: int,
    function: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    quiet()
    torch.set_num_threads(threads)
    with process_group(rank, world, meeting_point, timeout_s):
        try:
            function(*args)
        except InputError as error:
            # What crosses to the parent is a traceback as text; what a person did wrong goes beside it.
            refused.write_text(str(error), encoding="utf-8")
            raise
        except KeyboardInterrupt:
            sys.exit(STOPPED)


@contextmanager
def process_group(rank: int, world: int, meeting_point: str, timeout_s: float = 1800.0) -> Iterator[None]:
    """A process group for the time of the block."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before anything is sent
    hook = sys.excepthook  # torch puts the rank before every traceback, for good
    dist.init_process_group(
        backend, init_method=meeting_point, rank=rank, world_size=world, timeout=timedelta(seconds=timeout_s)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


@contextmanager
def joined(config: Config) -> Iterator[None]:
    """The process group of torchrun for the time of the block, where torchrun has started this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    with process_group(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "env://", config.timeout_s):
        yield


def is_restart() -> bool:
    """Whether torchrun has started this process in the place of one that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def device() -> torch.device:
    """This rank's device: its GPU where there are any."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", dist.get_rank() % torch.cuda.device_count()))
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def is_first() -> bool:
    """Whether this process is the one that writes and talks; alone it is."""
    return not dist.is_initialized() or dist.get_rank() == 0


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    summed = values.clone()
    dist.all_reduce(summed)
    return summed


def gathered(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The values of all ranks, in the order of ranks, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def from_first(value: Any) -> Any:
    """The first rank's value, on every rank; alone, the value itself."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
