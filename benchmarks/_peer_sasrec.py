"""The peer of the retriever's training speed: RecTools' own SASRec on the same events, on the CPU.

RecTools needs an older numpy than Feedline, so it is never installed beside it. `run` starts this file with `uv` in an
environment of its own that is thrown away; the packages stay in uv's cache. By hand:

    uv run --no-project --isolated --with 'rectools[torch]==0.19.*' --with 'pyarrow<20' \
        benchmarks/_peer_sasrec.py events.parquet --threads 2

The model is as large as its authors' table has it for Amazon Beauty (RecSys 2025, "eSASRec"), with RecTools' defaults
for the rest: Adam 1e-3, dropout 0.2, batches of 128 made by the training process itself.
"""

# pyright: reportMissingImports=false

import argparse
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("rectools[torch]==0.19.*", "pyarrow<20")
"""RecTools, and the last pyarrow that is sure to take its numpy."""
LOSSES = ("sampled_softmax", "softmax")
EPOCHS = 2
"""The last is the one that is timed."""


def run(path: Path, threads: int, loss: str = "sampled_softmax") -> dict[str, Any]:
    """Train RecTools' SASRec in an environment of its own, with the torch of this one.

    Args:
        path: Events to train on, all of them: Parquet or CSV with `user_id`, `item_id` and `timestamp` (ms).
        threads: Threads of torch.
        loss: `sampled_softmax`, 256 uniform negatives a position, or `softmax` over the catalogue.

    Returns:
        `seconds_per_epoch` of training alone; `windows` (sequences) and `targets` (next items) of an epoch;
        `train_loss` of the last; `versions`.

    Raises:
        InputError: uv or RecTools cannot be had.
    """
    from features.errors import InputError

    here = Path(sys.executable).parent
    uv = shutil.which("uv", path=f"{here}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if uv is None:
        raise InputError("uv is not on the PATH, and RecTools runs in an environment that it makes; pip install uv")
    packages = (*PACKAGES, f"torch=={metadata.version('torch').split('+')[0]}")
    command = [uv, "run", "--quiet", "--no-project", "--isolated"]
    command += ["--python", f"{sys.version_info.major}.{sys.version_info.minor}"]
    command += [word for package in packages for word in ("--with", package)]
    command += ["python"]
    # Apart from the training, so that what cannot be installed is told from what cannot be trained.
    tried = subprocess.run([*command, "-c", "import pyarrow, rectools.models"], capture_output=True, text=True)
    if tried.returncode != 0:
        reason = textwrap.shorten(tried.stderr, 400) or "it does not say why"
        raise InputError(
            f"uv cannot make an environment of {', '.join(packages)}: {reason}; "
            "see that its package index is reachable and that 6 GB of disk are free, or leave the peer out"
        )
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command += [__file__, str(path), "--threads", str(threads), "--loss", loss]
    said = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(said.stdout.splitlines()[-1])


def train(path: Path, threads: int, loss: str) -> dict[str, Any]:
    """What `run` starts; nothing of Feedline is imported here."""
    import logging
    import warnings

    import pandas as pd
    import torch
    from pytorch_lightning import Callback, Trainer, seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    # Advice of its libraries to each other, and to load batches in other processes: there are no other cores.
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Clock(Callback):
        """Seconds of every epoch, from its first batch to its last."""

        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.started = time.perf_counter()

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.seconds.append(time.perf_counter() - self.started)

    def trainer() -> Trainer:
        """As RecTools makes it by default, with the clock."""
        return Trainer(
            max_epochs=EPOCHS,
            min_epochs=EPOCHS,
            accelerator="cpu",
            devices=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            callbacks=[Clock()],
        )

    torch.set_num_threads(threads)
    seed_everything(0)
    events = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    dataset = Dataset.construct(
        pd.DataFrame(
            {
                Columns.User: events["user_id"],
                Columns.Item: events["item_id"],
                Columns.Weight: 1.0,
                Columns.Datetime: pd.to_datetime(events["timestamp"], unit="ms"),
            }
        )
    )
    model = SASRecModel(
        n_factors=64,
        n_blocks=1,
        n_heads=1,
        dropout_rate=0.2,
        session_max_len=50,
        loss=loss,
        n_negatives=256,
        batch_size=128,
        lr=1e-3,
        get_trainer_func=trainer,
    )
    model.fit(dataset)
    # RecTools trains with a copy of the trainer.
    fitted = model.fit_trainer
    assert fitted is not None
    clock = next(part for part in fitted.callbacks if isinstance(part, Clock))
    trained = model.data_preparator.train_dataset.interactions.df
    windows = int(trained[Columns.User].nunique())
    names = ("rectools", "torch", "pytorch-lightning", "numpy")
    return {
        "seconds_per_epoch": clock.seconds[-1],
        "windows": windows,
        "targets": len(trained) - windows,
        "train_loss": float(fitted.callback_metrics["train_loss"]),
        "versions": {name: metadata.version(name) for name in names},
    }


def main() -> None:
    """Parse, train, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="events: Parquet or CSV with user_id, item_id, timestamp (ms)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--loss", choices=LOSSES, default=LOSSES[0])
    asked = parser.parse_args()
    print(json.dumps(train(asked.path, asked.threads, asked.loss)))


if __name__ == "__main__":
    main()
