"""One run, whatever the number of processes and the plan: the same batches, masks and initial weights.

What differs is only the order in which float32 numbers are added: in the gradients of dense layers (within a rank, then
over ranks), in those of table rows that several ranks touch, and in the losses. Measured after 26 steps of the
retriever and 88 of the ranker: losses within 1e-6, tables within 5e-7, outputs within 1e-6. The bounds leave
room for another machine's kernels; a gradient of the wrong scale, a mask that depends on the rank, or a plan that
changes the mathematics exceeds them by orders of magnitude.

Dense weights are compared by what the model answers, not one by one: attention does not depend on the bias of its keys,
whose gradient is therefore rounding alone, which Adam scales up to steps of its learning rate.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embeddings import optim, sharding, tables
from features.encoder import load_schema
from features.examples import Examples
from features.manifest import read, read_json
from recsys import checkpoint, distributed
from recsys.data import Place, RankingReader
from recsys.resume import Training
from recsys.roles import ModelConfig, RankerConfig, RankerLoop, RetrieverConfig, build_task, open_catalogue
from recsys.sequences import Candidates, SequenceReader
from recsys.tasks import RankingLoss, RankingTask, RetrievalTask
from recsys.train import train

LOSS = 2e-5
"""Most that the loss of a step may differ, nats."""

WEIGHT = 2e-5
"""Most that a table weight or an output may differ at the end."""


MIXED = {"mixed": "row_wise", "replicated": "data_parallel"}


@dataclass(frozen=True)
class Job:
    """One training run."""

    config: ModelConfig
    form: str
    """The form of all tables, or what the items' table has beside others that are whole on one rank: see MIXED."""
    weighted: bool
    """Whether its bags are."""

    @property
    def sharding(self) -> sharding.Config:
        """What the planner may do."""
        if self.form in MIXED:
            return sharding.Config.model_validate({"forms": ["table_wise"], "tables": {"item": MIXED[self.form]}})
        return sharding.Config.model_validate({"forms": [self.form]})

    def __call__(self, examples: dict[bool, Path], out: Path) -> None:
        train(
            Training(
                section=self.config,
                sharding=self.sharding,
                tables=tables.Config(),
                examples=examples[self.weighted],
                out=out,
                run=out.parent,
            )
        )


def retriever(loss: str, optimizer: dict[str, object], **more: Any) -> RetrieverConfig:
    return RetrieverConfig.model_validate(
        {
            "loss": {"kind": loss, "negatives": 64, "in_batch": "items" in more},
            "optimizer": optimizer,
            "model": {"dim": 16, "blocks": 1, "max_history": 12, "dropout": 0.3, **more.pop("model", {})},
            **more,
            # Batches of odd size: two ranks have parts of different sizes.
            "train": {"epochs": 2, "batch_size": 15},
        }
    )


SGD = {"sparse": "sgd", "sparse_lr": 1.0}
DESCRIBED = "retriever, described items"
MODELS: dict[str, ModelConfig] = {
    "retriever, full loss": retriever("full", {}),
    # Adam and Adagrad hide the scale of a gradient; SGD does not.
    "retriever, sampled loss": retriever("sampled", SGD),
    "retriever, one negative each": retriever("binary", SGD, model={"block": "gated", "temperature": 0.1}),
    DESCRIBED: retriever(
        "sampled",
        {**SGD, "eps": 1e-5},
        model={"block": "hstu", "position": "both", "time": True, "actions": 3},
        items={"content": ["categories"], "graph": {"gap": 5}, "neighbours": 6, "drawn": 3, "cold": 0.1},
    ),
    "retriever, hierarchy": retriever(
        "full", {"eps": 1e-5}, kind="hierarchical", model={"codes": [8, 4], "path_width": 8, "follow_every": 3}
    ),
    # Adam turns a gradient that is rounding alone into a step of its rate, unless eps is larger.
    "ranker": RankerConfig(train=RankerLoop(epochs=2, batch_size=255), optimizer=optim.Config(eps=1e-5)),
    "ranker, experts": RankerConfig(
        kind="dhen",
        model={"over": {"layers": (16, 8), "experts": 4}, "attention": {}},
        loss=RankingLoss(learned=True),
        train=RankerLoop(epochs=2, batch_size=255),
        optimizer=optim.Config(eps=1e-5),
    ),
    "ranker, weighted bags": RankerConfig(
        train=RankerLoop(epochs=2, batch_size=255, workers=2), optimizer=optim.Config(eps=1e-5)
    ),
}
FORMS = {
    "ranker": ("row_wise", "table_wise", "mixed"),
    "ranker, experts": ("row_wise",),
    DESCRIBED: ("row_wise", "table_wise", "mixed", "replicated"),
}
JOBS = {
    f"{name}, {form}": Job(config, form, weighted="weighted" in name)
    for name, config in MODELS.items()
    for form in FORMS.get(name, ("row_wise", "table_wise"))
}


def train_all(examples: dict[bool, Path], out: Path) -> None:
    """Every job; started once in each process, for starting costs more than training."""
    for name, job in JOBS.items():
        job(examples, out / name)


@pytest.fixture(scope="module")
def splits(examples: Path, weighted_examples: Path) -> dict[bool, Path]:
    """Whether bags are weighted → the examples."""
    return {False: examples, True: weighted_examples}


@pytest.fixture(scope="module")
def runs(splits: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the checkpoints are of one process, of one process again, and of two."""
    folder = tmp_path_factory.mktemp("runs")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other take most of the time
    for name, processes in (("one", 1), ("again", 1), ("two", 2)):
        distributed.launch(train_all, distributed.Config(nproc=processes), splits, folder / name)
    torch.set_num_threads(threads)
    return {name: folder / name for name in ("one", "again", "two")}


def losses(directory: Path) -> np.ndarray:
    return np.array(read_json(directory / "history.json")["loss"])


def trained(directory: Path, config: ModelConfig, examples: Path) -> RetrievalTask | RankingTask:
    """The checkpoint's model, loaded without any sharding."""
    task = build_task(config, load_schema(examples), torch.device("cpu"), {})
    checkpoint.load_model(directory, task)
    return task


def outputs(task: RetrievalTask | RankingTask, config: ModelConfig, examples: Path) -> dict[str, torch.Tensor]:
    """What a model says of a batch of its training part."""
    if isinstance(config, RetrieverConfig):
        windows, known = examples / "sequences" / "train.parquet", open_catalogue(config, examples)
        reader = SequenceReader(windows, known, 64, 0, Candidates(None), Place())
    else:
        reader = RankingReader(Examples.open(examples).of_part(0), 256, 0, Place())
    with torch.inference_mode():
        return task.eval().model(next(iter(reader.epoch(0))))


@pytest.mark.parametrize("name", JOBS)
def test_one_process_twice_is_bit_identical(runs: dict[str, Path], splits: dict[bool, Path], name: str):
    config, examples = JOBS[name].config, splits[JOBS[name].weighted]
    assert losses(runs["one"] / name).tolist() == losses(runs["again"] / name).tolist()
    one, again = (trained(runs[run] / name, config, examples).state_dict() for run in ("one", "again"))
    assert all(torch.equal(one[key], again[key]) for key in one)


@pytest.mark.parametrize("name", JOBS)
def test_two_processes_repeat_one(runs: dict[str, Path], splits: dict[bool, Path], name: str):
    job, examples = JOBS[name], splits[JOBS[name].weighted]
    form_of = [
        table["form"] for tables in (read(runs["two"] / name) or {})["plan"].values() for table in tables.values()
    ]
    assert form_of
    assert set(form_of) == ({MIXED[job.form], "table_wise"} if job.form in MIXED else {job.form})

    one, two = losses(runs["one"] / name), losses(runs["two"] / name)
    assert len(one) > 20
    assert np.mean(one[-5:]) < np.mean(one[:5])
    np.testing.assert_allclose(two, one, atol=LOSS, rtol=0)

    alone, shared = (trained(runs[run] / name, job.config, examples) for run in ("one", "two"))
    for ours, theirs in zip(sharding.table_parameters(alone), sharding.table_parameters(shared), strict=True):
        torch.testing.assert_close(theirs, ours, atol=WEIGHT, rtol=0)
    ours, theirs = (outputs(task, job.config, examples) for task in (alone, shared))
    assert ("link_M" in ours) == name.startswith(DESCRIBED)
    torch.testing.assert_close(theirs, ours, atol=WEIGHT, rtol=0)


@pytest.mark.parametrize("model", MODELS)
def test_the_plan_changes_nothing(runs: dict[str, Path], model: str):
    """But for a replicated table, which the dense optimizer trains."""
    names = [name for name, job in JOBS.items() if job.config is MODELS[model] and job.form != "replicated"]
    found = [losses(runs["two"] / name) for name in names]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=LOSS, rtol=0)
