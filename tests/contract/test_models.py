"""What every file in `recsys/models` must do; a new one is covered by being there."""

import io
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from embeddings.batch import Batch, Share, ranking_batch, sequence_batch
from embeddings.sharding import table_parameters
from features import registry
from features.schema import FeatureSpec, Schema
from features.settings import Settings
from recsys.tasks import RankingTask, RetrievalLoss, RetrievalTask

ITEMS, USERS = 30, 20


def feature(name: str, kind: Any, rows: int | None = None, table: str | None = None) -> FeatureSpec:
    """A feature as it is after fitting; where it comes from does not matter here."""
    transform = "numeric" if kind == "dense" else "lookup"
    return FeatureSpec(
        name=name, kind=kind, source=f"request.{name}", transform=transform, table=table, rows=rows, dim=8
    )


SCHEMA = Schema(
    features=(
        feature("user_id", "sparse", USERS + 1),
        feature("item_id", "sparse", ITEMS + 1, "item"),
        feature("price", "dense"),
        feature("history", "bag", ITEMS + 1, "item"),
        feature("genres", "bag", 7),
        feature("idle", "dense"),
    ),
    label="like",
    items=ITEMS,
    users=USERS,
)

MODELS = [registry.load("recsys.models", name, "kind") for name in registry.known("recsys.models")]


def modules(*roles: str):
    """Run a test for each model of these roles."""
    chosen = [module for module in MODELS if roles in ((), (module.ROLE,))]
    return pytest.mark.parametrize("module", chosen, ids=lambda module: module.__name__.rsplit(".", 1)[1])


def built(module: ModuleType) -> nn.Module:
    """The model with its default config, its tables filled as training fills them."""
    torch.manual_seed(0)
    model = module.build(module.Config(), SCHEMA, torch.device("cpu"))
    for table in table_parameters(model):
        nn.init.normal_(table, std=table.shape[1] ** -0.5)
    return model


def task(module: ModuleType, model: nn.Module) -> nn.Module:
    if module.ROLE == "retriever":
        return RetrievalTask(model, RetrievalLoss(), SCHEMA)
    return RankingTask(model, SCHEMA.label)


def histories(*items: list[int]) -> Batch:
    """Histories to be asked about, with the whole catalogue as candidates."""
    return sequence_batch(
        np.array([item for history in items for item in history], dtype=np.int64),
        np.array([len(history) for history in items]),
        np.arange(1, ITEMS + 1),
    )


def examples(rows: int) -> pl.DataFrame:
    """Encoded examples, some with empty bags and unknown ids."""
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "user_id": rng.integers(0, USERS + 1, rows),
            "item_id": rng.integers(0, ITEMS + 1, rows),
            "price": rng.normal(size=rows),
            "history": [rng.integers(0, ITEMS + 1, count).tolist() for count in rng.integers(0, 6, rows)],
            "genres": [rng.integers(0, 7, count).tolist() for count in rng.integers(0, 3, rows)],
            "idle": rng.normal(size=rows),
            "label": (np.arange(rows) % 2).astype(np.float32),
        },
        schema_overrides={"history": pl.List(pl.Int64), "genres": pl.List(pl.Int64)},
    )


def training_batch(module: ModuleType, step: int = 0) -> Batch:
    """A batch small enough to be learned by heart."""
    if module.ROLE == "ranker":
        return ranking_batch(examples(16), SCHEMA, Share(step=step, rows=16, targets=16, tokens_before=0, tokens=0))
    rng = np.random.default_rng(0)
    lengths_B = np.array([5, 1, 3, 7])
    count = int(lengths_B.sum())
    share = Share(step=step, rows=4, targets=count, tokens_before=0, tokens=count)
    # All items differ, so that every step can tell where it is.
    items_N = 1 + rng.permutation(ITEMS)[:count]
    return sequence_batch(items_N, lengths_B, np.arange(1, ITEMS + 1), rng.integers(0, ITEMS, count), share)


def outputs_of(module: ModuleType, model: nn.Module) -> dict[str, Tensor]:
    with torch.inference_mode():
        return model.eval()(training_batch(module))


@modules()
def test_a_model_file_has_role_config_and_build(module: ModuleType):
    assert module.ROLE in ("retriever", "ranker")
    assert issubclass(module.Config, Settings)
    assert isinstance(module.build(module.Config(), SCHEMA, torch.device("meta")), nn.Module)


@modules()
def test_tables_are_where_build_was_told_and_nothing_else_is(module: ModuleType):
    model = module.build(module.Config(), SCHEMA, torch.device("meta"))
    tables = table_parameters(model)
    assert tables
    assert all(table.is_meta for table in tables)
    rest = {*model.parameters(), *model.buffers()} - set(tables)
    assert not any(tensor.is_meta for tensor in rest)


@modules()
def test_named_outputs_are_finite_and_of_the_promised_shape(module: ModuleType):
    outputs = outputs_of(module, built(module))
    if module.ROLE == "ranker":
        assert outputs["logits_B"].shape == (16,)
    else:
        assert outputs["user_ND"].shape[0] == 16
        assert outputs["candidates_CD"].shape == (ITEMS, outputs["user_ND"].shape[1])
    assert all(tensor.isfinite().all() for tensor in outputs.values())


@modules()
def test_learns_a_small_batch_by_heart(module: ModuleType):
    training = task(module, built(module))
    optimizer = torch.optim.Adam(training.parameters(), lr=5e-3)

    def loss() -> float:
        with torch.no_grad():
            return training.eval()(training_batch(module))[0].item()

    before = loss()
    training.train()
    for step in range(150):
        optimizer.zero_grad()
        training(training_batch(module, step))[0].backward()
        optimizer.step()
    assert loss() < 0.2 * before


@modules()
def test_gradients_reach_every_parameter(module: ModuleType):
    training = task(module, built(module)).train()
    training(training_batch(module))[0].backward()
    without = [name for name, weight in training.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not without


@modules()
def test_weights_come_back_from_a_file(module: ModuleType):
    model = built(module)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = module.build(module.Config(), SCHEMA, torch.device("meta"))
    loaded.load_state_dict(torch.load(file, weights_only=True), assign=True)
    expected, found = outputs_of(module, model), outputs_of(module, loaded)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@modules("retriever")
def test_no_step_sees_what_comes_after_it(module: ModuleType):
    model = built(module).eval()
    with torch.inference_mode():
        one = model(histories([3, 9, 4, 12, 7], [5, 6]))["user_ND"]
        other = model(histories([3, 9, 4, 25, 7], [5, 6]))["user_ND"]
    changed = (one != other).any(dim=1)
    assert changed.tolist() == [False, False, False, True, True, False, False]


@modules("retriever")
def test_a_user_does_not_depend_on_the_rest_of_the_batch(module: ModuleType):
    model = built(module).eval()
    alone = [[3, 9, 4], [8], [5, 6, 7, 8, 9, 10, 11, 12, 13]]
    with torch.inference_mode():
        together = model(histories(*alone))["user_ND"].split([len(items) for items in alone])
        for items, user_TD in zip(alone, together, strict=True):
            torch.testing.assert_close(model(histories(items))["user_ND"], user_TD, atol=1e-5, rtol=0)


@modules("retriever")
def test_the_catalogues_vectors_are_the_candidates_vectors(module: ModuleType):
    model = built(module).eval()
    with torch.inference_mode():
        candidates_CD = model(histories([1, 2]))["candidates_CD"]
        vectors_ID = model.item_vectors()  # pyright: ignore[reportCallIssue]
    assert vectors_ID.shape == (ITEMS + 1, candidates_CD.shape[1])
    torch.testing.assert_close(vectors_ID[1:], candidates_CD)


@modules("retriever")
def test_no_candidates_may_be_asked_for(module: ModuleType):
    model = built(module).eval()
    with torch.inference_mode():
        outputs = model(sequence_batch(np.array([3, 4]), np.array([2])))
        expected = model(histories([3, 4]))["user_ND"]
    assert outputs["candidates_CD"].shape == (0, expected.shape[1])
    assert torch.equal(outputs["user_ND"], expected)


@modules("ranker")
def test_a_score_does_not_depend_on_the_rest_of_the_batch(module: ModuleType):
    model = built(module).eval()
    frame = examples(16)
    with torch.inference_mode():
        together = model(ranking_batch(frame, SCHEMA))["logits_B"]
        alone = torch.cat([model(ranking_batch(row, SCHEMA))["logits_B"] for row in frame.iter_slices(1)])
        backwards = model(ranking_batch(frame.reverse(), SCHEMA))["logits_B"].flip(0)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    torch.testing.assert_close(backwards, together, atol=1e-5, rtol=0)
