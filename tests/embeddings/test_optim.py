"""Sharded training against plain torch: the same batches, the same rates, every optimizer, on one rank and on two.

Measured after 12 steps: weights and norms within 1.2e-7 of the reference, on one rank and on two. The bounds leave room
for another machine's kernels.
"""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from small_model import CPU, FORMS, ROWS, STEPS, Model, batch, initial, sharded, steps, whole
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from embeddings import optim, precision
from embeddings.schedules import Schedule
from recsys import distributed

CASES = {
    "sgd": optim.Config(sparse="sgd", sparse_lr=0.5, dense="sgd", dense_lr=0.1, momentum=0.9),
    "adagrad": optim.Config(sparse="adagrad", dense="adagrad", dense_lr=0.05, accumulate=2),
    "rowwise": optim.Config(
        dense_lr=0.02,
        weight_decay=0.1,
        clip_norm=0.05,
        schedule=Schedule(warmup_steps=3, decay="cosine", floor=0.1),
    ),
}


def train_cases(out: Path) -> None:
    """Every case, leaving weights, norms and, half-way, a checkpoint; then the tables' changes under SGD."""
    for name, config in CASES.items():
        model = sharded(config)
        optimizer = optim.combine(model, config)
        norms = list(steps(model, optimizer, config, range(STEPS // 2)))
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.save(state, checkpoint_id=out / f"{name}.checkpoint")
        norms += steps(model, optimizer, config, range(STEPS // 2, STEPS))
        if distributed.is_first():
            torch.save((whole(model), torch.tensor(norms)), out / f"{name}.pt")
        else:
            whole(model)
    changes = rates_used()
    if distributed.is_first():
        torch.save(changes, out / "rates.pt")


RATES = optim.Config(
    sparse="sgd", sparse_lr=0.5, dense_lr=0.01, schedule=Schedule(warmup_steps=2, decay="linear", floor=0.2, steps=6)
)
FACTORS = [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]
"""Of its schedule, by hand."""


def rates_used() -> dict[str, list[float]]:
    """By how much every weight of a fused table falls in each step if its gradient is 1."""
    model = sharded(RATES)
    optimizer = optim.combine(model, RATES)
    ids = torch.arange(ROWS).repeat(len(FORMS))
    bags = KeyedJaggedTensor(keys=[f"{name}_ids" for name in FORMS], values=ids, lengths=torch.ones_like(ids))
    changes: dict[str, list[float]] = {"whole": [], "cut": []}
    before = whole(model)
    for step in range(len(FACTORS)):
        optim.set_rate(optimizer, RATES, step, None)
        optimizer.zero_grad(set_to_none=True)
        found = model.module.tables(bags)  # pyright: ignore
        torch.stack([value.sum() for value in found.to_dict().values()]).sum().backward()
        optimizer.step()
        after = whole(model)
        for table, change in changes.items():
            fall = before[f"tables.embedding_bags.{table}.weight"] - after[f"tables.embedding_bags.{table}.weight"]
            change.append(fall.mean().item() if torch.allclose(fall, fall.mean(), atol=1e-6) else math.nan)
        before = after
    return changes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Processes → what they left."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for processes in (1, 2):
        found[processes] = tmp_path_factory.mktemp(f"processes{processes}")
        distributed.launch(train_cases, distributed.Config(nproc=processes), found[processes])
    torch.set_num_threads(threads)
    return found


def reference(config: optim.Config) -> tuple[dict[str, Tensor], Tensor]:
    """The same training without TorchRec's sharding or any of our functions: plain optimizers, dense gradients."""
    model = Model(CPU)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(initial(name, value.shape))
    named = dict(model.named_parameters())
    fused = [named[f"tables.embedding_bags.{table}.weight"] for table in ("whole", "cut")]
    others = [value for value in named.values() if not any(value is table for table in fused)]
    sparse = {
        "sgd": lambda: torch.optim.SGD(fused, lr=1.0),
        "adagrad": lambda: torch.optim.Adagrad(fused, lr=1.0, eps=config.eps),
        "rowwise_adagrad": lambda: RowWiseAdagrad(fused, lr=1.0, eps=config.eps),
    }[config.sparse]()
    dense = {
        "sgd": lambda: torch.optim.SGD(others, lr=1.0, momentum=config.momentum),
        "adagrad": lambda: torch.optim.Adagrad(others, lr=1.0, eps=config.eps),
        "adamw": lambda: torch.optim.AdamW(others, lr=1.0, weight_decay=config.weight_decay),
    }[config.dense]()
    norms = []
    for step in range(STEPS):
        dense.zero_grad()
        factor = 1.0
        if config.schedule.warmup_steps:
            turn = math.pi * (step - 3) / (STEPS - 3)
            factor = (step + 1) / 3 if step < 3 else 0.1 + 0.9 * (1 + math.cos(turn)) / 2
        sparse.param_groups[0]["lr"], dense.param_groups[0]["lr"] = config.sparse_lr * factor, config.dense_lr * factor
        for micro in range(config.accumulate):
            bags, target = batch(step * config.accumulate + micro)
            sparse.zero_grad()
            (model(bags) - target).square().mean().backward()
            sparse.step()
        for value in others:
            assert value.grad is not None
            value.grad /= config.accumulate
        norms.append(nn.utils.clip_grad_norm_(others, config.clip_norm or math.inf))
        dense.step()
    return model.state_dict(), torch.stack(norms)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_training_is_that_of_plain_torch(runs: dict[int, Path], case: str, processes: int):
    weights, norms = torch.load(runs[processes] / f"{case}.pt", weights_only=True)
    expected, expected_norms = reference(CASES[case])
    torch.testing.assert_close(weights, expected, atol=5e-6, rtol=0)
    torch.testing.assert_close(norms, expected_norms, atol=5e-6, rtol=1e-5)
    for name, value in weights.items():
        assert (value - initial(name, value.shape)).abs().max() > 0.01, f"{name} has not been trained"


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("table", ["whole", "cut"])
def test_kernels_use_the_rate_of_the_step(runs: dict[int, Path], table: str, processes: int):
    falls = torch.load(runs[processes] / "rates.pt", weights_only=True)[table]
    assert falls == pytest.approx([RATES.sparse_lr * factor for factor in FACTORS], abs=1e-6)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_two_processes_goes_on_on_one(runs: dict[int, Path], case: str):
    config = CASES[case]
    model = sharded(config)
    optimizer = optim.combine(model, config)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.load(state, checkpoint_id=runs[2] / f"{case}.checkpoint")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    norms = list(steps(model, optimizer, config, range(STEPS // 2, STEPS)))
    weights, expected = torch.load(runs[2] / f"{case}.pt", weights_only=True)
    torch.testing.assert_close(whole(model), weights, atol=5e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(norms), expected[STEPS // 2 :], atol=5e-6, rtol=1e-5)


@pytest.mark.usefixtures("alone")
def test_making_the_state_changes_no_weight():
    config = optim.Config(weight_decay=0.5, dense_lr=1.0)
    model = sharded(config)
    before = whole(model)
    optimizer = optim.combine(model, config)
    assert all(torch.equal(value, before[name]) for name, value in whole(model).items())
    state = [value for state in dict(optimizer.optimizers)["dense"].state.values() for value in state.values()]
    assert state
    assert not any(value.any() for value in state)


@pytest.mark.usefixtures("alone")
def test_clip_scales_all_dense_gradients_by_one_number():
    config = optim.Config(clip_norm=1.0)
    model = sharded(config)
    optimizer = optim.combine(model, config)
    parameters = dict(model.named_parameters())
    layer = parameters["layer.weight"]
    layer.grad, parameters["layer.bias"].grad = torch.zeros_like(layer), torch.tensor([4.0])
    layer.grad[0, 0] = 3.0
    assert optim.clip(optimizer, config).item() == pytest.approx(5.0)
    assert layer.grad[0, 0].item() == pytest.approx(0.6)
    assert parameters["layer.bias"].grad.item() == pytest.approx(0.8)
    assert optim.clip(optimizer, config).item() == pytest.approx(1.0)
    assert optim.clip(optimizer, config, micro_batches=4).item() == pytest.approx(0.25, abs=1e-5)
    parameters["layer.bias"].grad[0] = math.inf
    assert not optim.clip(optimizer, config).isfinite()


@pytest.mark.usefixtures("alone")
def test_a_kernel_counts_the_steps_of_training(monkeypatch: pytest.MonkeyPatch):
    # Kernels of Adam are for GPUs; those of row-wise Adagrad count in the same way and make no use of it.
    config = optim.Config(accumulate=3)
    monkeypatch.setattr(optim, "_WITH_MOMENTS", ("rowwise_adagrad",))
    model = sharded(config)
    optimizer = optim.combine(model, config)
    kernels = [fused._emb_module for fused in optim._fused(dict(optimizer.optimizers)["tables"])]
    assert len(kernels) == 2
    for step in (0, 1, 7):
        with torch.no_grad():
            model(batch(0)[0])
        optim.set_rate(optimizer, config, step, None)
        model(batch(0)[0])
        assert [kernel.iter_cpu.item() for kernel in kernels] == [3 * step + 1] * 2


def check(
    config: optim.Config | None = None,
    tables: precision.Config | None = None,
    device: str = "cpu",
    total_steps: int | None = 100,
) -> None:
    optim.check(
        config or optim.Config(), tables or precision.Config(), torch.device(device), total_steps, "ranker.optimizer"
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: check(optim.Config(sparse="adam")), "ranker.optimizer.sparse = 'adam' .*GPUs only; use"),
        (lambda: check(optim.Config(sparse="lamb")), "ranker.optimizer.sparse = 'lamb' .*GPUs only; use"),
        (lambda: check(tables=precision.Config(precision="fp16")), "tables.precision = 'fp16': on CPU .*; use fp32"),
        (lambda: check(tables=precision.Config(overrides={"user": "fp16"})), "tables.overrides.user = 'fp16'"),
        (lambda: check(tables=precision.Config(precision="bf16"), device="cuda"), "'bf16': the kernels .*; use fp32"),
        (
            lambda: check(optim.Config(schedule=Schedule(decay="linear")), total_steps=None),
            "no last step; set ranker.optimizer.schedule.steps",
        ),
        (
            lambda: check(optim.Config(schedule=Schedule(decay="cosine", warmup_steps=100))),
            "warmup_steps = 100 leaves nothing of the 100 steps",
        ),
        (lambda: optim.Config(dense="sgd", weight_decay=0.1), "weight_decay = 0.1 is used by no optimizer"),
        (lambda: optim.Config(momentum=0.9), "momentum = 0.9 is used by no optimizer"),
        (lambda: optim.Config(dense="sgd", beta2=0.9), "beta2 = 0.9 is used by no optimizer"),
        (lambda: Schedule(floor=0.1), "floor = 0.1 says where a decay ends; choose a decay"),
        (lambda: Schedule(decay="linear", warmup_steps=5, steps=5), "steps = 5 leaves no step after warmup_steps = 5"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], None], says: str):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("sparse", ["adam", "partial_rowwise_adam", "lamb", "rowwise_adagrad", "adagrad", "sgd"])
def test_gpus_are_given_what_their_kernels_have(sparse: str):
    check(optim.Config.model_validate({"sparse": sparse}), precision.Config(precision="fp16"), "cuda")
