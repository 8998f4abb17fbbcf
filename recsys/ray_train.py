"""Training in the workers of a Ray cluster: the same function that processes of this machine run.

    recsys train CONFIG --engine ray --launch.nproc 8

Ray starts the workers, wherever it has room, and starts all of them again when one dies; they go on from the last
checkpoint, which is why the run's directory must be one that all machines share.
"""

from pathlib import Path
from typing import Any

import torch

from features.errors import InputError
from recsys import distributed
from recsys.console import quiet
from recsys.resume import Training
from recsys.train import train

REFUSED = "refused"


def launch(training: Training, config: distributed.Config) -> None:
    """Train with `config.nproc` workers; returns when the training is finished.

    Raises:
        InputError: see `recsys.train.train`.
        ray.train.TrainingFailedError: workers have died more than `config.restarts` times.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    folder = (training.run / "ray").resolve()
    refused = folder / REFUSED
    refused.unlink(missing_ok=True)
    on_gpu = torch.cuda.is_available()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"training": training, "refused": refused},
        scaling_config=ScalingConfig(num_workers=config.nproc, use_gpu=on_gpu),
        run_config=RunConfig(
            name=training.name.replace("/", "-"),
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=config.restarts),
        ),
        torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=int(config.timeout_s)),
    )
    try:
        trainer.fit()
    except TrainingFailedError:
        if not refused.exists():
            raise
    if refused.exists():
        raise InputError(refused.read_text(encoding="utf-8"))


def _worker(asked: dict[str, Any]) -> None:
    quiet()
    refused: Path = asked["refused"]
    if refused.exists():
        return  # what has refused its input would only refuse it again
    try:
        train(asked["training"])
    except InputError as error:
        refused.parent.mkdir(parents=True, exist_ok=True)
        refused.write_text(str(error), encoding="utf-8")
        raise
