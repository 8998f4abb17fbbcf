"""torch.distributed.checkpoint directories: saved by every rank, loaded at any world size, finished or absent."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from features import manifest
from features.errors import InputError
from recsys.data import Position

STATE = "state"
"""The folder of the checkpoint that holds torch's own files."""

POSITION = "position.json"
"""The file beside it that says where training was to go on: a `Position`."""


def unfinished(directory: Path) -> Path:
    """Where a checkpoint is written until it is finished."""
    return directory.with_name(directory.name + ".unfinished")


@contextmanager
def cleared_on_error(directory: Path) -> Iterator[None]:
    """Begin with no unfinished checkpoint, and leave none if the block fails."""
    if dist.get_rank() == 0:
        shutil.rmtree(unfinished(directory), ignore_errors=True)
    try:
        yield
    except BaseException:
        if dist.get_rank() == 0:
            shutil.rmtree(unfinished(directory), ignore_errors=True)
        raise


def save_state(
    directory: Path, model: DistributedModelParallel, optimizer: CombinedOptimizer, position: Position
) -> None:
    """Replace the state of the unfinished checkpoint, which is that before `position`; every rank calls it."""
    aside = unfinished(directory) / STATE
    if dist.get_rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint_id=aside)
    if dist.get_rank() == 0:
        manifest.write_json(unfinished(directory) / POSITION, asdict(position))


def finish(directory: Path, facts: dict[str, Any]) -> None:
    """Write the manifest and give the checkpoint its name; the first rank calls it."""
    aside = unfinished(directory)
    manifest.write_json(aside / manifest.MANIFEST, facts)
    shutil.rmtree(directory, ignore_errors=True)
    aside.rename(directory)


def load_model(directory: Path, task: nn.Module) -> None:
    """Fill an unsharded module from a checkpoint of any world size and plan.

    Raises:
        InputError: there is no finished checkpoint.
    """
    if manifest.read(directory) is None:
        raise InputError(f"{directory}: no finished checkpoint; run `recsys train` first")
    state = task.state_dict()
    load({"model": state}, checkpoint_id=directory / STATE, no_dist=True)
    task.load_state_dict(state)
