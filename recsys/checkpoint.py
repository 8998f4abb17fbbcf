"""Checkpoints: torch.distributed.checkpoint directories, saved while training goes on, whole or absent.

<training>.unfinished/              while it is trained; renamed to <training> at the end
    step-00001200/
        state/                      torch's own files: tables and optimizers as sharded tensors, the dense rest, RNG
        progress.json, losses.npy   where training was to go on, and all that was measured so far
        manifest.json               every file and its fingerprint; written last
    step-00001300.unfinished/       being written; never looked at again after a crash

A checkpoint loads at any world size and under any plan. What has been tampered with by a crash, a full disk or a cosmic
ray has another fingerprint, and the one before it is taken.
"""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from features import manifest
from features.errors import InputError
from features.manifest import file_fingerprint
from recsys import distributed

STATE, PROGRESS, LOSSES = "state", "progress.json", "losses.npy"
_ASIDE = ".unfinished"


def unfinished(directory: Path) -> Path:
    """Where a training's checkpoints are until it has ended."""
    return directory.with_name(directory.name + _ASIDE)


def name_of(step: int) -> str:
    """The folder of the checkpoint after so many steps."""
    return f"step-{step:08}"


def names(folder: Path) -> list[str]:
    """Whole checkpoints, oldest first; they may be damaged."""
    return sorted(path.parent.name for path in folder.glob(f"step-*/{manifest.MANIFEST}"))


class Checkpoints:
    """The checkpoints of one training; every rank has one and calls its methods at the same step."""

    def __init__(self, folder: Path, keep: int, *, asynchronous: bool) -> None:
        """`keep`: how many to keep beside the best. `asynchronous`: write a copy while training goes on."""
        timeout = dist.distributed_c10d._get_default_timeout(dist.Backend(dist.get_backend()))
        self.folder, self.keep, self.asynchronous = folder, keep, asynchronous
        # Written in a thread, whose messages must not mix with those of training: a group of its own.
        group = dist.new_group(backend="gloo", timeout=timeout)
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[str] | None = None
        if distributed.is_first():
            for left in folder.glob(f"step-*{_ASIDE}"):
                shutil.rmtree(left)

    def close(self) -> None:
        """Let the last write end, whatever comes of it."""
        self._thread.shutdown()

    def save(self, state: dict[str, Any], progress: dict[str, Any], losses: np.ndarray, best_step: int) -> None:
        """Begin to write; the copy that is written is made before this returns.

        Beside tables and optimizers a rank needs memory for that copy, unless it waits for the disk.

        Args:
            state: tensors, sharded or replicated, by name.
            progress: as JSON, with `step`.
            losses: float64 [steps].
            best_step: step of the best checkpoint so far, which is kept.
        """
        assert self._pending is None, "wait for the checkpoint before"
        if self.asynchronous:
            state = BlockingAsyncStager(cache_staged_state_dict=False).stage(state)
        self._pending = self._thread.submit(self._write, state, progress, losses, best_step)
        if not self.asynchronous:
            self._pending.exception()

    def wait(self) -> str | None:
        """Until what was begun is whole.

        Returns:
            Its name; None if nothing was begun since the last time.

        Raises:
            OSError: it has failed on some rank, and nothing of it is left.
        """
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()

    def _write(self, state: dict[str, Any], progress: dict[str, Any], losses: np.ndarray, best_step: int) -> str:
        place = self.folder / name_of(progress["step"])
        aside = place.with_name(place.name + _ASIDE)
        error: str | None = None
        try:
            # The first rank's mkdir fails at once where the disk is full or closed; then all hear of it below.
            if dist.get_rank() == 0:
                shutil.rmtree(aside, ignore_errors=True)
                (aside / STATE).mkdir(parents=True)
        except OSError as failed:
            error = str(failed)
        error = self._first_error(error)
        if error is None:
            try:
                self._write_aside(aside, state, progress, losses)
            except (OSError, CheckpointException) as failed:
                # All ranks have the same summary; what is not about files is a defect, and is raised on all.
                if isinstance(failed, CheckpointException) and not all(map(_is_about_files, failed.failures.values())):
                    raise
                error = _cause(failed)
            error = self._first_error(error)
        try:
            if dist.get_rank() == 0:
                if error is None:
                    _to_disk(aside)
                    shutil.rmtree(place, ignore_errors=True)
                    aside.rename(place)
                    self._prune(best_step)
                else:
                    shutil.rmtree(aside, ignore_errors=True)
        except OSError as failed:
            error = str(failed)
        error = self._first_error(error)
        if error is not None:
            raise OSError(error)
        return place.name

    def _write_aside(self, aside: Path, state: dict[str, Any], progress: dict[str, Any], losses: np.ndarray) -> None:
        save(state, checkpoint_id=aside / STATE, process_group=self._group)
        own = sorted((aside / STATE).glob(f"__{dist.get_rank()}_*"))
        error, found = None, {}
        try:
            found = {path.name: file_fingerprint(path) for path in own}
        except (InputError, OSError) as failed:
            error = str(failed)
        parts = distributed.gathered(found, self._group)
        error = self._first_error(error)
        if error is not None:
            raise OSError(error)
        if dist.get_rank() != 0:
            return
        manifest.write_json(aside / PROGRESS, progress)
        np.save(aside / LOSSES, losses)
        files = {f"{STATE}/{name}": found for part in parts for name, found in part.items()}
        for name in (f"{STATE}/.metadata", PROGRESS, LOSSES):
            files[name] = file_fingerprint(aside / name)
        manifest.write_json(aside / manifest.MANIFEST, {"files": files})

    def _first_error(self, error: str | None) -> str | None:
        return next((found for found in distributed.gathered(error, self._group) if found is not None), None)

    def _prune(self, best_step: int) -> None:
        there = names(self.folder)
        if best_step and name_of(best_step) not in there:
            return  # the later ones are of no use without it
        for name in there[: -self.keep]:
            if name != name_of(best_step):
                shutil.rmtree(self.folder / name)


def _files(directory: Path) -> dict[str, str] | None:
    """File → fingerprint, of a checkpoint; None where its manifest is not what was written."""
    try:
        return (manifest.read(directory) or {})["files"]
    except (ValueError, KeyError, OSError):
        return None


def damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint; None for nothing. Ranks share the reading, and all hear of it."""
    files = distributed.from_first(_files(directory))
    if files is None:
        return f"{directory.name}/{manifest.MANIFEST} cannot be read"
    found = None
    for name in sorted(files)[dist.get_rank() :: dist.get_world_size()]:
        path = directory / name
        try:
            if file_fingerprint(path) != files[name]:
                found = f"{directory.name}/{name} has another content than was written"
        except (InputError, OSError):
            found = f"{directory.name}/{name} is missing or cannot be read"
    return next((bad for bad in distributed.gathered(found) if bad is not None), None)


def read(directory: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The progress and the losses of a whole checkpoint."""
    return manifest.read_json(directory / PROGRESS), np.load(directory / LOSSES)


def restore(directory: Path, state: dict[str, Any]) -> None:
    """Fill the tensors of `state` in place, and replace its plain values; every rank calls it.

    What is missing in the checkpoint, such as the RNG of a rank that did not exist, must not be asked for: see `has`.
    """
    load(state, checkpoint_id=directory / STATE)


def has(directory: Path, *keys: str) -> bool:
    """Whether the checkpoint holds anything under these keys, one inside of the other."""
    name = ".".join(keys)
    known = FileSystemReader(directory / STATE).read_metadata().state_dict_metadata
    return any(found == name or found.startswith(f"{name}.") for found in known)


def clear(folder: Path, after: str = "") -> None:
    """Remove the checkpoints of an unfinished training that are later than one, or all; the first rank calls it."""
    for name in names(folder):
        if name > after:
            shutil.rmtree(folder / name)


def finish(directory: Path, facts: dict[str, Any]) -> None:
    """Write the manifest and give the training its name; the first rank calls it.

    Args:
        directory: of the finished training; one that is there is replaced.
        facts: `best`, the name of the checkpoint that is to be used, and what else there is to say.
    """
    aside = unfinished(directory)
    manifest.write_json(aside / manifest.MANIFEST, facts)
    # The old one goes by renaming, so that at no moment half of it stands under its name.
    old = directory.with_name(directory.name + ".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    aside.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def choice(directory: Path) -> Path:
    """Where the training goes whose number of epochs the one at `directory` repeats, on more data."""
    return directory.with_name(f"{directory.name}-chosen")


def best_state(directory: Path) -> Path:
    """Torch's files of the best checkpoint of a finished training.

    Raises:
        InputError: the training has not ended.
    """
    facts = manifest.read(directory)
    if facts is None:
        raise InputError(f"{directory}: no finished checkpoint; run `recsys train` first")
    return directory / facts["best"] / STATE


def load_model(directory: Path, task: nn.Module) -> None:
    """Fill an unsharded module from the best checkpoint, of any world size and plan.

    Raises:
        InputError: there is no finished checkpoint.
    """
    state = task.state_dict()
    load({"model": state}, checkpoint_id=best_state(directory), no_dist=True)
    task.load_state_dict(state)


@contextmanager
def opened(folder: Path, keep: int, *, asynchronous: bool) -> Iterator[Checkpoints]:
    """`Checkpoints`, closed at the end of the block."""
    checkpoints = Checkpoints(folder, keep, asynchronous=asynchronous)
    try:
        yield checkpoints
    finally:
        checkpoints.close()


def _to_disk(aside: Path) -> None:
    """See what the first rank has written to the disk, and the folders that name it; torch has seen to its own."""
    for path in (*(aside / name for name in (PROGRESS, LOSSES, manifest.MANIFEST)), aside / STATE, aside):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _is_about_files(failure: Any) -> bool:
    """Whether a rank's failure is the system's; torch's own writer of files tells of it in a RuntimeError."""
    error = failure[0]
    return isinstance(error, OSError) or (type(error) is RuntimeError and "PytorchStreamWriter" in str(error))


def _cause(error: OSError | CheckpointException) -> str:
    """The first rank's own error inside of torch's summary of all ranks'."""
    if isinstance(error, CheckpointException):
        return "; ".join(f"rank {rank}: {failed[0]}" for rank, failed in sorted(error.failures.items()))
    return str(error)
