"""What every file in `recsys/models` must do; a new one is covered by being there.

Retrievers are tried with item ids alone and with all else that is known of items; where a model has variants of its
own, with those.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from embeddings.batch import Batch, Columns, Share, ranking_batch
from embeddings.catalogue import Catalogue
from embeddings.histories import Histories, retrieval_batch
from embeddings.quantized import Form, StoredTable, quantize, table_names, with_tables
from embeddings.sharding import table_parameters
from features import registry
from features.graph import Config as GraphConfig
from features.labels import FittedTask
from features.schema import FeatureSpec, Schema
from features.settings import Settings
from recsys.losses import Links
from recsys.modules.candidates import Candidates
from recsys.modules.ranker import Ranker
from recsys.scorer import LearnedScorer
from recsys.tasks import RankingLoss, RankingTask, RetrievalTask
from tests.batches import catalogue, histories, looked_up, questions

ITEMS, USERS, COLD = 30, 20, 2
"""The last COLD items have not been met in training."""


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
    tasks=(FittedTask(name="long", source="seconds", at_least=3), FittedTask(name="dwell", source="seconds")),
    items=ITEMS,
    users=USERS,
)


def described() -> Catalogue:
    """Items with content, some of them with none, neighbours and links."""
    rng = np.random.default_rng(1)
    met = [1 + rng.permutation(ITEMS - COLD)[:count] for count in (8, 9, 10, 11, 12, 7, 6)]
    return catalogue(
        ITEMS,
        [*(items.tolist() for items in met), list(range(1, ITEMS - COLD + 1))],
        content={
            "genres": [rng.integers(1, 7, item % 3).tolist() for item in range(ITEMS - COLD)] + [[1, 2]] * COLD,
            "brand": [[1 + item % 4] for item in range(ITEMS)],
        },
        graph=GraphConfig(gap=2, shrinkage=1.0),
        neighbours=3,
        recency=0.5,
        numbers=2,
    )


PLAIN, DESCRIBED = catalogue(ITEMS), described()
EVERYTHING = {"position": "both", "time": True, "actions": 3}
VARIANTS: dict[str, dict[str, tuple[Catalogue, dict[str, Any]]]] = {
    "sequential": {
        "softmax": (PLAIN, {}),
        "softmax, described": (DESCRIBED, {}),
        "relative": (PLAIN, {"position": "relative"}),
        "softmax, all": (DESCRIBED, EVERYTHING),
        "gated": (PLAIN, {"block": "gated"}),
        "gated, all": (DESCRIBED, {"block": "gated", "temperature": 0.07, **EVERYTHING}),
        "hstu": (PLAIN, {"block": "hstu", "position": "relative"}),
        "hstu, all": (DESCRIBED, {"block": "hstu", "temperature": 0.07, **EVERYTHING}),
    }
}


@dataclass(frozen=True)
class Case:
    """A model, its config, and for a retriever the catalogue that it is made for."""

    module: ModuleType
    name: str
    known: Catalogue = PLAIN
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Settings:
        return self.module.Config(**self.settings)

    def build(self, device: str) -> nn.Module:
        torch.manual_seed(0)
        made_for = SCHEMA if self.module.ROLE == "ranker" else self.known.shape
        return self.module.build(self.config, made_for, torch.device(device))

    def made(self) -> nn.Module:
        """The model, its tables filled as training fills them, no weight left at 0, where it says nothing; then seen by
        training once.
        """
        model = self.build("cpu")
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) / 20)
            for table in table_parameters(model):
                nn.init.normal_(table, std=table.shape[1] ** -0.5)
            self.task(model).train()(self.training_batch())
        return model.eval()

    def task(self, model: nn.Module) -> nn.Module:
        return (
            RetrievalTask(model)
            if self.module.ROLE == "retriever"
            else RankingTask(model, SCHEMA, RankingLoss(learned=True))
        )

    def training_batch(self, step: int = 0) -> Batch:
        """A batch small enough to be learned by heart."""
        if self.module.ROLE == "ranker":
            return ranking_batch(examples(16), SCHEMA, Share(step=step, rows=16, targets=16, tokens_before=0, tokens=0))
        rng = np.random.default_rng(0)
        # All items differ, so that every step can tell where it is.
        items = np.split(1 + rng.permutation(ITEMS - COLD)[:20], [6, 8, 12])
        windows = [window.tolist() for window in items]
        past = histories(*(window[:-1] for window in windows), actions=[[step % 4 for step in w[1:]] for w in windows])
        count = len(past.items_N)
        following = np.array([item for window in windows for item in window[1:]])
        walk = self.known.walk()
        links = None
        if walk is not None:
            lengths = np.array([len(window) for window in windows])
            links = walk.of_windows(np.concatenate(items), lengths, np.arange(ITEMS + 1) - 1)
        share = Share(step=step, rows=4, targets=count, tokens_before=0, tokens=count)
        return retrieval_batch(
            past, self.known.whole, past.items_N - 1, targets_N=following - 1, links=links, share=share
        )

    def outputs(self, model: nn.Module) -> dict[str, Tensor]:
        with torch.inference_mode():
            return model.eval()(self.training_batch())

    def users(self, model: nn.Module, past: Histories) -> list[Tensor]:
        """[T, D] of each history."""
        with torch.inference_mode():
            user_ND = model.eval()(questions(self.known, past))["user_ND"]
        return list(user_ND.split(past.lengths_B.tolist()))


def cases() -> list[Case]:
    found: list[Case] = []
    for name in registry.known("recsys.models"):
        module = registry.load("recsys.models", name, "kind")
        plain = {"plain": (PLAIN, {})}
        both = plain | {"described": (DESCRIBED, {})}
        ranked = plain | {
            "experts": (PLAIN, {"over": {"layers": (16, 8), "experts": 4, "top": 2}}),
            "attending": (PLAIN, {"attention": {"steps": 3}}),
        }
        variants = VARIANTS.get(name, ranked if module.ROLE == "ranker" else both)
        found += [Case(module, f"{name}: {variant}", *made_of) for variant, made_of in variants.items()]
    return found


CASES = cases()


def models(*roles: str):
    """Run a test for each model of these roles."""
    chosen = [case for case in CASES if roles in ((), (case.module.ROLE,))]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


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
            "label.long": np.where(np.arange(rows) % 3 == 0, np.nan, np.arange(rows) % 5 > 2),
            "label.dwell": np.where(np.arange(rows) % 4 == 0, np.nan, rng.normal(size=rows)),
        },
        schema_overrides={"history": pl.List(pl.Int64), "genres": pl.List(pl.Int64)},
    )


@models()
def test_a_model_file_has_role_config_and_build(case: Case):
    assert case.module.ROLE in ("retriever", "ranker")
    assert issubclass(case.module.Config, Settings)
    assert isinstance(case.build("meta"), nn.Module)


@models()
def test_tables_are_where_build_was_told_and_nothing_else_is(case: Case):
    model = case.build("meta")
    tables = table_parameters(model)
    assert tables
    assert all(table.is_meta for table in tables)
    rest = {*model.parameters(), *model.buffers()} - set(tables)
    assert not any(tensor.is_meta for tensor in rest)


@models()
def test_named_outputs_are_finite_and_of_the_promised_shape(case: Case):
    outputs, batch = case.outputs(case.made()), case.training_batch()
    if case.module.ROLE == "ranker":
        assert outputs["logits_BT"].shape == (16, len(SCHEMA.outcomes))
        if "gates_BTE" in outputs:
            gates_BTE = outputs["gates_BTE"]
            assert gates_BTE.shape[:2] == (16, len(SCHEMA.outcomes))
            assert ((gates_BTE > 0).sum(2) == 2).all()
            torch.testing.assert_close(gates_BTE.sum(2), torch.ones(16, len(SCHEMA.outcomes)))
    else:
        assert batch.sequences is not None
        assert outputs["user_ND"].shape[0] == 16
        assert outputs["candidates_CD"].shape == (ITEMS, outputs["user_ND"].shape[1])
        assert ("link_M" in outputs) == case.known.shape.links
        if "link_M" in outputs:
            assert outputs["link_M"].shape == batch.sequences["link_values"].shape
    assert all(tensor.isfinite().all() for tensor in outputs.values())


@models()
def test_learns_a_small_batch_by_heart(case: Case):
    training = case.task(case.made())
    optimizer = torch.optim.Adam(training.parameters(), lr=5e-3)

    def loss() -> float:
        with torch.no_grad():
            return training.eval()(case.training_batch())[0].item()

    before = loss()
    training.train()
    for step in range(150):
        optimizer.zero_grad()
        training(case.training_batch(step))[0].backward()
        optimizer.step()
    assert loss() < 0.2 * before


@models()
def test_gradients_reach_every_parameter(case: Case):
    training = case.task(case.made()).train()
    training(case.training_batch())[0].backward()
    without = [name for name, weight in training.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not without


@models()
def test_weights_come_back_from_a_file(case: Case):
    model = case.made()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = case.build("meta")
    loaded.load_state_dict(torch.load(file, weights_only=True), assign=True)
    expected, found = case.outputs(model), case.outputs(loaded)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


PAST = [3, 9, 4, 12, 7], [5, 6]
TIMES = [0, 1_000, 60_000, 90_000, 5_000_000, 5_001_000], [0, 10_000, 20_000]
ACTIONS = [0, 1, 2, 1, 0], [1, 1]


def changed_steps(case: Case, **other: Any) -> list[bool]:
    """Where the user after a step of the first history is another; that of the second never is."""
    model = case.made()
    known = {"items": PAST, "times": TIMES, "actions": ACTIONS}
    now = known | {name: (row, known[name][1]) for name, row in other.items()}
    one, other_one = (
        case.users(model, histories(*made["items"], times=made["times"], actions=made["actions"]))
        for made in (known, now)
    )
    assert torch.equal(one[1], other_one[1])
    return (one[0] != other_one[0]).any(dim=1).tolist()


@models("retriever")
def test_no_step_sees_the_items_after_it(case: Case):
    assert changed_steps(case, items=[3, 9, 4, 25, 7]) == [False, False, False, True, True]


@models("retriever")
def test_no_step_sees_what_is_done_after_it(case: Case):
    heeded = bool(case.settings.get("actions"))
    assert changed_steps(case, actions=[0, 1, 2, 0, 0]) == [False, False, False, heeded, heeded]


@models("retriever")
def test_of_what_comes_after_it_a_step_sees_the_next_ones_time_alone(case: Case):
    heeded = case.settings.get("time", False)
    # The time of a step is when it was asked for, after the step before it.
    times = [0, 1_000, 60_000, 4_000_000, 5_000_000, 5_001_000]
    assert changed_steps(case, times=times) == [False, False, heeded, heeded, heeded]
    later = [0, 1_000, 60_000, 90_000, 5_000_000, 10**9]
    assert changed_steps(case, times=later) == [False, False, False, False, heeded]


@models("retriever")
def test_a_user_does_not_depend_on_the_rest_of_the_batch(case: Case):
    model = case.made()
    alone = [[3, 9, 4], [8], [5, 6, 7, 8, 9, 10, 11, 12, 13]]
    together = case.users(model, histories(*alone))
    for items, user_TD in zip(alone, together, strict=True):
        torch.testing.assert_close(case.users(model, histories(items))[0], user_TD, atol=1e-5, rtol=0)


@models("retriever")
def test_the_catalogues_vectors_are_the_candidates_vectors(case: Case):
    model = case.made()
    with torch.inference_mode():
        candidates_CD = model(questions(case.known, histories([1, 2])))["candidates_CD"]
        vectors_ID = model.item_vectors(case.known)  # pyright: ignore[reportCallIssue]
    assert vectors_ID.shape == (ITEMS + 1, candidates_CD.shape[1])
    assert not vectors_ID[0].any()
    torch.testing.assert_close(vectors_ID[1:], candidates_CD)


@models("retriever")
@pytest.mark.parametrize("candidates", [[], [7, 2, 29]], ids=["none", "some"])
def test_any_candidates_may_be_asked_for(case: Case, candidates: list[int]):
    model, past = case.made(), histories([3, 4])
    chosen = np.array(candidates, dtype=np.int64)
    with torch.inference_mode():
        whole = model(questions(case.known, past))
        outputs = model(questions(case.known, past, candidates_C=chosen, links=None))
    assert torch.equal(outputs["user_ND"], whole["user_ND"])
    torch.testing.assert_close(outputs["candidates_CD"], whole["candidates_CD"][torch.from_numpy(chosen)])


@models("retriever")
def test_items_that_training_has_not_met_are_what_is_known_of_them(case: Case):
    with torch.inference_mode():
        vectors_ID = case.made().item_vectors(case.known)  # pyright: ignore[reportCallIssue]
    lookups = list(zip(*looked_up(case.known.whole).values(), strict=True))
    for one in range(1, ITEMS + 1):
        for other in range(1, one):
            same = lookups[one - 1] == lookups[other - 1]
            assert torch.equal(vectors_ID[one], vectors_ID[other]) == same


@models("retriever")
def test_served_scores_are_those_of_training(case: Case):
    model, past = case.made(), histories([3, 9, 4], [], [8, 1, 29, 5, 6], [30])
    served = LearnedScorer(model, case.known, max_history=3).scores(past)
    recent = past.users(past.lengths_B > 0).last(3)
    batch = questions(case.known, recent)
    with torch.inference_mode():
        outputs = model(batch)
        score_BI = outputs["user_ND"][recent.lengths_B.cumsum() - 1] @ outputs["candidates_CD"].T
        if (links := Links.of(batch, outputs)) is not None:
            links.add_to(score_BI)
    assert served.shape == (4, ITEMS + 1)
    assert not served[1].any()
    torch.testing.assert_close(torch.from_numpy(served)[[0, 2, 3], 1:], score_BI, atol=1e-5, rtol=1e-5)


@models("ranker")
def test_a_score_does_not_depend_on_the_rest_of_the_batch(case: Case):
    model = case.made()
    frame = examples(16)
    with torch.inference_mode():
        together = model(ranking_batch(frame, SCHEMA))["logits_BT"]
        alone = torch.cat([model(ranking_batch(row, SCHEMA))["logits_BT"] for row in frame.iter_slices(1)])
        backwards = model(ranking_batch(frame.reverse(), SCHEMA))["logits_BT"].flip(0)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    torch.testing.assert_close(backwards, together, atol=1e-5, rtol=0)


@models("ranker")
def test_candidates_of_one_request_need_its_history_once(case: Case):
    model = case.made()
    frame = examples(4)
    frame = pl.concat([frame[row : row + 1] for row in range(4) for _ in range(5)]).with_columns(
        item_id=np.arange(20) % (ITEMS + 1)
    )
    columns = Columns.of(frame, SCHEMA)
    with torch.inference_mode():
        alone, together = (model(columns.batch(together=count))["logits_BT"] for count in (1, 5))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@models("ranker")
@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_what_candidates_share_is_computed_once_for_them(case: Case, form: Form):
    """With stored tables, as a bundle has them: of three requests, and of one."""
    model = case.made()
    assert isinstance(model, Ranker)
    weights = dict(model.named_parameters())
    tables = {name: StoredTable(form, quantize(weights[name].detach(), form)) for name in table_names(model)}
    with_tables(model, tables)
    frame = examples(3)
    frame = pl.concat([frame[row : row + 1] for row in range(3) for _ in range(5)]).with_columns(
        item_id=np.arange(15) % (ITEMS + 1), price=np.linspace(-1, 1, 15, dtype=np.float32)
    )
    columns = Columns.of(frame, SCHEMA)
    one = Columns.of(frame[5:10], SCHEMA)
    with torch.inference_mode():
        apart, together = (model(columns.batch(together=count)) for count in (1, 5))
        alone = model(one.batch(together=5))
        assert isinstance(model.candidates(one.batch(together=5)), Candidates)
    torch.testing.assert_close(together["logits_BT"], apart["logits_BT"], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone["logits_BT"], apart["logits_BT"][5:10], atol=1e-5, rtol=0)
