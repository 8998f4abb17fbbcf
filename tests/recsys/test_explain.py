"""Reasons of a real run's feed; DLRM is its ranker."""

import polars as pl
import pytest

from features.errors import InputError
from recsys import explain
from recsys.config import load
from recsys.explain import Explained
from recsys.inference import Recommender, Request
from tests.conftest import FinishedRun


@pytest.fixture(scope="module")
def recommender(finished_run: FinishedRun) -> Recommender:
    config = load(finished_run.config, finished_run.options)
    return explain.served(finished_run.directory / "bundle" / config.served_split, config.recommend)


@pytest.fixture(scope="module")
def request_(recommender: Recommender) -> Request:
    history = pl.read_parquet(recommender.bundle.directory / "snapshot" / "users.parquet", columns=["user_id"])
    return explain.request_of(recommender, str(history["user_id"][3]), 5, None)


@pytest.fixture(scope="module")
def explained(recommender: Recommender, request_: Request) -> list[Explained]:
    return explain.explain(recommender, request_)


def test_the_feed_that_is_explained_is_the_one_that_is_shown(recommender, request_, explained: list[Explained]):
    shown = recommender.recommend(request_).items
    assert [one.item_id for one in explained] == [item.item_id for item in shown]
    for one, item in zip(explained, shown, strict=True):
        assert one.predictions[recommender.encoder.schema.label] == pytest.approx(item.probability, abs=1e-6)
        assert one.score == pytest.approx(item.score, abs=1e-6)
    assert any(one.effects for one in explained)


def test_what_is_the_same_for_all_items_carries_none_of_them(recommender: Recommender, explained: list[Explained]):
    same = {spec.name for spec in recommender.encoder.schema.features if spec.source.startswith("user.")}
    assert same
    assert not same & {name for one in explained for name in one.effects}


def test_without_a_history_there_are_no_reasons(recommender: Recommender):
    with pytest.raises(InputError, match="nothing is known of user 10000000"):
        explain.explain(recommender, Request(user_id=10_000_000, k=3, timestamp=0))


@pytest.mark.parametrize(("user", "k", "message"), [("anna", 3, "users of this log are numbers"), ("1", 0, "--k 0")])
def test_what_cannot_be_asked_is_one_line(recommender: Recommender, user: str, k: int, message: str):
    with pytest.raises(InputError, match=message):
        explain.request_of(recommender, user, k, None)
