"""A ranker of what is retrieved: its lists against the recommender that serves, and against the log."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tomli_w
import torch
from polars.testing import assert_frame_equal

from features.errors import InputError
from features.examples import Examples
from features.instant import Instant
from features.manifest import read
from features.moment import Asked
from features.online import MemoryStore
from recsys import bundle as bundles
from recsys import candidates, checkpoint, config, plan
from recsys.candidates import LISTS, _asked
from recsys.config_file import read_toml
from recsys.inference import Recommender, Request, requests_of
from recsys.roles import list_metrics
from recsys.stages import Run
from serving.deploy import require_schema

SMALL = Path(__file__).parents[2] / "configs" / "synthetic" / "small.toml"

RETRIEVED = 20

OPTIONS = {
    "dataset.users": 400,
    "dataset.items": 150,
    "dataset.events": 30_000,
    "prepare.valid_share": 0.2,
    "retriever.train.epochs": 2,
    "ranker.train.epochs": 2,
    "ranker.train.batch_size": 200,
    "ranker.loss.kind": "listwise",
    "recommend.retrieved": RETRIEVED,
    "export.calibrate": True,
    "recommend.blend.retriever_weight": 0.0,
}


def dense(name: str, source: str, **params: Any) -> dict[str, Any]:
    return {"name": name, "kind": "dense", "source": source, "transform": "numeric", "params": params}


FEATURES = [
    dense("score", "retrieved.score", standardise=False),
    dense("graph", "retrieved.graph", standardise=False),
    dense("place", "retrieved.place", standardise=False),
    dense("neighbours", "retrieved.item_knn", standardise=False),
    dense("met", "request.item_events", standardise=False),
    {
        "name": "who",
        "kind": "vector",
        "source": "retrieved.user",
        "transform": "vector",
        "params": {"normalise": False},
    },
]


def write_config(path: Path, features: list[dict[str, Any]], **options: Any) -> Path:
    """The small simulated world, with features of what was retrieved beside its own."""
    words = {**OPTIONS, "run.directory": str(path.parent), **options}
    given = [word for name, value in words.items() for word in (f"--{name}", json.dumps(value).strip('"'))]
    tree = read_toml(SMALL, given)
    tree["features"] += features
    path.write_text(tomli_w.dumps(tree), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Trained:
    """A run of both splits, exported."""

    run: Run
    time: Recommender
    """Of the split by time, as it serves."""

    def lists(self, split: Any) -> tuple[pl.DataFrame, Examples]:
        """Request frames of a split's lists, and the same as examples."""
        directory = self.run.candidates(split)
        return pl.read_parquet(directory / "frames" / "*.parquet"), Examples.open(directory / LISTS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    path = write_config(tmp_path_factory.mktemp("lists") / "lists.toml", FEATURES)
    run = Run(config.load(path, []), path)
    run.prepare()
    run.train()
    run.export()
    bundle = bundles.load(run.bundle("time"))
    recommender = Recommender(bundle, MemoryStore(), run.config.recommend)
    recommender.seed()
    return Trained(run, recommender)


@pytest.mark.parametrize("split", ["leave_one_out", "time"])
def test_a_list_has_what_came_next_once(trained: Trained, split: Any):
    frames, examples = trained.lists(split)
    rows = frames.with_columns(list=pl.int_range(pl.len()) // RETRIEVED)
    lists = rows.group_by("list", maintain_order=True).agg(
        pl.col("label").sum(), pl.len(), pl.col("user_code").n_unique(), pl.col("item_code").n_unique().alias("items")
    )
    assert lists.select("label", "len", "user_code", "items").unique().rows() == [(1.0, RETRIEVED, 1, RETRIEVED)]
    valid = pl.read_parquet(trained.run.examples(split) / "sequences" / "valid.parquet")
    first = valid.filter((pl.col("item_index") > 0) & (pl.col("user_index") > 0)).unique(
        "user_index", keep="first", maintain_order=True
    )
    right = rows.filter(pl.col("label") == 1).join(first, left_on="user_code", right_on="user_index")
    assert right.height == lists.height
    assert (right["item_code"] == right["item_index"]).all()
    facts = read(trained.run.candidates(split))
    assert facts is not None
    assert facts["lists"]["train"] + facts["lists"]["valid"] == lists.height
    assert (examples.part == np.repeat(examples.part[::RETRIEVED], RETRIEVED)).all()


def test_lists_know_what_the_training_part_has_told(trained: Trained):
    """Events of an item, as counted for its candidates, are those of the training part."""
    frames, _ = trained.lists("leave_one_out")
    split = Examples.open(trained.run.examples("leave_one_out"))
    of_item = np.bincount(split.interactions(0)["item_index"].to_numpy(), minlength=split.schema.items + 1)
    np.testing.assert_array_equal(frames["item_events"].to_numpy(), of_item[frames["item_code"].to_numpy()])
    whole = np.bincount(split.interactions(0, 1)["item_index"].to_numpy(), minlength=split.schema.items + 1)
    assert (whole != of_item).any()


def test_what_is_served_is_what_was_learned(trained: Trained):
    """A request's columns are those that its list would have had, and its feed is in the ranker's order."""
    recommender = trained.time
    questions = pl.read_parquet(trained.run.examples("time") / "sequences" / "test.parquet")
    part = questions.unique("user_id", keep="first", maintain_order=True).head(5)
    requests = requests_of(part, recommender.context_columns, RETRIEVED)
    histories = [recommender.store.history(request.user_id) for request in requests]
    items_BR, score_BR = recommender.retrieve(requests, histories)
    columns = recommender.encode(requests, histories, items_BR, score_BR)
    assert columns.dense is not None
    names = [feature.name for feature in recommender.encoder.schema.dense]
    column = {name: columns.dense[:, names.index(name)].reshape(items_BR.shape) for name in ("score", "graph", "place")}
    np.testing.assert_array_equal(column["score"], score_BR)
    np.testing.assert_array_equal(column["place"], np.tile(1.0 + np.arange(RETRIEVED), (len(requests), 1)))
    past = recommender.retrieval.past(requests, histories)
    learned = recommender._learned
    with torch.inference_mode():
        asked = learned.ask(past)
        vector_BR = np.take_along_axis((asked.user_BD @ learned.item_vectors_ID.T).numpy(), items_BR, axis=1)
    np.testing.assert_allclose(column["score"] - column["graph"], vector_BR, atol=1e-5)
    user_BD = asked.user_BD.repeat_interleave(RETRIEVED, 0).numpy()
    np.testing.assert_array_equal(columns.dense[:, -user_BD.shape[1] :], user_BD)
    assert column["graph"].any()

    response = recommender.recommend(requests[0])
    with torch.inference_mode():
        logit_R = recommender.bundle.ranker(columns.take(np.arange(RETRIEVED)).batch())["logits_BT"][:, 0].numpy()
    expected = [recommender.item_ids[item] for item in items_BR[0, np.argsort(-logit_R, kind="stable")]]
    assert [item.item_id for item in response.items] == expected


def test_columns_of_lists_are_those_of_requests(trained: Trained, tmp_path: Path):
    """All features of lists, encoded by expressions, against the same questions asked of a recommender."""
    split: Any = "time"
    frames, examples = trained.lists(split)
    run, section = trained.run, trained.run.config.retriever
    retriever = (section, checkpoint.choice(run.checkpoint(split, "retriever")))
    sections = {name: run.sections[name] for name in ("prepare", "retriever", "tables")}
    recommender = _asked(
        run.examples(split), retriever, {}, run._sources, run.config.recommend, sections, tmp_path, {"has_clock": True}
    )
    valid = pl.read_parquet(run.examples(split) / "sequences" / "valid.parquet")
    lists = frames.gather_every(RETRIEVED).select("user_code", "timestamp")
    part = lists.join(valid, left_on=["user_code", "timestamp"], right_on=["user_index", "timestamp"], how="left")
    part = part.unique(["user_code", "timestamp"], keep="first", maintain_order=True)
    requests = requests_of(part, recommender.context_columns, RETRIEVED)
    histories = [recommender.store.history(request.user_id) for request in requests]
    items_BR, score_BR = recommender.retrieve(requests, histories)
    np.testing.assert_array_equal(items_BR.ravel(), frames["item_code"].to_numpy())
    asked = [Asked(request.user_id, int(request.timestamp or 0), request.context) for request in requests]
    said = {spec.source for spec in examples.schema.features if spec.retrieved}
    retrieved = recommender.retrieved(requests, histories, items_BR, score_BR, said)
    instant = Instant(examples.encoder, recommender.moment)
    found = instant.encode(asked, histories, items_BR, recommender.store, retrieved)
    block = examples.encoder.encode(examples.vocabulary.resolve(frames))
    assert_frame_equal(found.frame(dict(block.schema)), block, rel_tol=1e-6)


def test_a_list_metric_of_known_value():
    predicted_B = np.array([0.1, 0.9, 0.5, 0.3, 0.2, 0.1])
    found = list_metrics(predicted_B, np.array([0.0, 0, 1, 0, 0, 0]), 3)
    assert found["recall@10"] == 0.5
    assert found["ndcg@10"] == pytest.approx(1 / np.log2(3) / 2)


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ([], {}, "no feature is of what was retrieved"),
        ([dense("score", "retrieved.score")], {"prepare.tasks": [{"name": "x", "source": "value"}]}, "take the tasks"),
        ([dense("score", "retrieved.vector")], {}, "is none of retrieved.score"),
        ([dense("score", "retrieved.score")], {"export.calibrate": False}, "set it"),
        ([dense("score", "retrieved.score")], {"ranker.loss": {"kind": "listwise", "learned": True}}, "one task"),
        (
            [dense("score", "retrieved.score"), dense("share", "request.item_events", per="retrieved.place")],
            {},
            "made of what was retrieved",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    features: list[dict[str, Any]], options: dict[str, Any], message: str, tmp_path: Path
):
    path = write_config(tmp_path / "wrong.toml", features)
    tree = read_toml(path, [])
    for name, value in options.items():
        section, _, field = name.partition(".")
        tree[section][field] = value
    path.write_text(tomli_w.dumps(tree), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        config.load(path, [])


def test_somebody_unknown_gets_what_is_popular_in_its_order(trained: Trained):
    request = Request(user_id=10**9, k=RETRIEVED, timestamp=0)
    response = trained.time.recommend(request)
    items_1R, _ = trained.time.retrieve([request], [()])
    assert response.source == "popularity"
    assert [item.item_id for item in response.items] == [trained.time.item_ids[item] for item in items_1R[0]]


def test_a_server_and_a_plan_know_its_schema(trained: Trained):
    run = trained.run
    require_schema(run.config, run.path, trained.time.bundle)
    planned = plan.plan_run(run.config, run.path, None, None, None)
    assert planned["ranker"]


def test_too_few_lists_are_refused(trained: Trained, tmp_path: Path):
    split: Any = "leave_one_out"
    run = trained.run
    for retrieved, message in ((1, "raise it"), (151, "not so many items")):
        config = run.config.recommend.model_copy(update={"retrieved": retrieved})
        with pytest.raises(InputError, match=message):
            candidates.write(
                run.examples(split),
                (run.config.retriever, checkpoint.choice(run.checkpoint(split, "retriever"))),
                {},
                run.config.features,
                run._sources,
                config,
                1e-9,
                {name: run.sections[name] for name in ("prepare", "retriever", "tables")},
                tmp_path / "lists",
                {"has_clock": True},
            )
        assert not (tmp_path / "lists").exists()
