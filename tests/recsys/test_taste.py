"""Feeds that follow what people say, reasons, candidates of others, and forgetting; on a real bundle."""

from dataclasses import replace

import numpy as np
import pytest

from features.errors import InputError
from features.online import Event, MemoryStore
from features.taste import NOTHING, Taste
from recsys import bundle as bundles
from recsys import state
from recsys.bundle import Bundle
from recsys.inference import Config, Recommender, Request
from recsys.reasons import STEPS, speaking
from tests.conftest import FinishedRun

NOW = 1_900_000_000_000
NEW = 10**9
INDICES = ["exact", "tree"]


@pytest.fixture(scope="module")
def bundle(finished_run: FinishedRun) -> Bundle:
    return bundles.load(finished_run.directory / "bundle" / "time")


@pytest.fixture
def feed(bundle: Bundle, request: pytest.FixtureRequest) -> Recommender:
    return opened(bundle, getattr(request, "param", "exact"))


def opened(bundle: Bundle, index: str = "exact", **config: object) -> Recommender:
    made = Recommender(bundle, MemoryStore(), Config.model_validate({"index": index, "retrieved": 100, **config}))
    made.seed()
    return made


def ask(user: int, k: int = 20, **more: object) -> Request:
    return replace(Request(user_id=user, k=k, timestamp=NOW), **more)  # pyright: ignore[reportArgumentType]


def shown(feed: Recommender, user: int, k: int = 20) -> list[object]:
    return [item.item_id for item in feed.recommend(ask(user, k)).items]


@pytest.mark.parametrize("feed", INDICES, indirect=True)
def test_who_says_nothing_gets_the_same_numbers_whoever_else_says_something(feed: Recommender) -> None:
    requests = [ask(user) for user in (1, 2, NEW)]
    before = [feed.recommend(request).items for request in requests]
    feed.set_taste(3, Taste(tuple(feed.item_ids[7:8]), tuple(feed.item_ids[8:9]), tuple(feed.tastes.members)[:1]))
    together = feed.recommend_many([*requests, ask(3)])
    for alone, response in zip(before, together, strict=False):
        np.testing.assert_allclose(
            [item.score for item in response.items], [item.score for item in alone], rtol=1e-4, atol=1e-4
        )
    feed.set_taste(1, Taste(tuple(feed.item_ids[7:8])))
    assert feed.recommend(requests[0]).items != before[0]
    feed.set_taste(1, NOTHING)
    assert [feed.recommend(request).items for request in requests] == before


@pytest.mark.parametrize("feed", INDICES, indirect=True)
def test_a_liked_item_is_an_interaction_of_its_moment(feed: Recommender, bundle: Bundle) -> None:
    """But for the counters, which count what is done."""
    liked = feed.item_ids[5:8]
    feed.set_taste(NEW, Taste(tuple(liked)), timestamp=NOW - 1000)
    said = feed.recommend(ask(NEW))
    assert said.source == "taste"
    assert not set(liked) & {item.item_id for item in said.items}
    other = opened(bundle, feed.config.index)
    other.observe([Event(NEW, item, NOW - 1000, *feed.tastes.like) for item in liked])
    did = other.recommend(ask(NEW))
    assert did.source == "model"
    scores = [{item.item_id: item.retrieval_score for item in one.items} for one in (said, did)]
    both = scores[0].keys() & scores[1].keys()
    assert len(both) > 10
    assert [scores[0][item] for item in both] == [scores[1][item] for item in both]


def test_what_is_done_after_a_like_comes_after_it(feed: Recommender) -> None:
    before, liked, after = feed.item_ids[5:8]
    feed.observe([Event(NEW, item, time, *feed.tastes.like) for item, time in ((before, NOW - 9), (after, NOW - 3))])
    feed.set_taste(NEW, Taste((liked,)), timestamp=NOW - 6)
    feed.set_taste(NEW, Taste((liked,), liked_categories=tuple(feed.tastes.members)[:1]), timestamp=NOW - 1)
    assert [event.item_id for event in feed.person(ask(NEW)).history] == [before, liked, after]
    feed.set_taste(NEW, Taste(disliked_items=(after,)), timestamp=NOW - 1)
    assert [event.item_id for event in feed.person(ask(NEW)).history] == [before]
    assert [event.item_id for event in feed.store.history(NEW)] == [before, after]


@pytest.mark.parametrize("feed", INDICES, indirect=True)
@pytest.mark.parametrize("user", [1, NEW])
def test_what_is_disliked_is_not_shown(feed: Recommender, user: int) -> None:
    first, *_ = shown(feed, user)
    category, members = next(iter(feed.tastes.members.items()))
    feed.set_taste(user, Taste(disliked_items=(first,), disliked_categories=(category,)))
    for exclude_seen in (True, False):
        items = feed.recommend(ask(user, 200, exclude_seen=exclude_seen)).items
        assert items
        assert not {item.item_id for item in items} & {first, *(feed.item_ids[item] for item in members)}


def test_what_is_like_the_disliked_falls_and_liked_categories_rise(feed: Recommender) -> None:
    """By how much, the config says: a factor's logarithm is added."""
    plain = {item.item_id: item.score for item in feed.recommend(ask(1, 100)).items}
    first = next(iter(plain))
    near = {one.item_id: one.score for one in feed.similar(first, 200)}
    category = feed.tastes.of_item[feed.item_index[list(plain)[9]]][0]
    feed.set_taste(1, Taste(disliked_items=(first,), liked_categories=(category,)))
    # Without the history's own change, which a disliked item that was not in it does not make.
    now = {item.item_id: item.score for item in feed.recommend(ask(1, 100)).items}
    both = plain.keys() & now.keys()
    assert len(both) > 50
    for item in both:
        raised = np.log(3.0) * (category in feed.tastes.of_item[feed.item_index[item]])
        assert now[item] - plain[item] == pytest.approx(raised - np.log(20.0) * max(near[item], 0), abs=1e-4)


def test_what_nobody_knows_is_refused_unless_it_was_said_before(feed: Recommender) -> None:
    with pytest.raises(InputError, match="liked_items: 987654321 is no item of this model"):
        feed.set_taste(1, Taste(liked_items=(987654321,)))
    with pytest.raises(InputError, match="disliked_categories: 'nonsense' is no category"):
        feed.set_taste(1, Taste(disliked_categories=("nonsense",)))
    assert feed.taste(1) == NOTHING
    feed.store.set_taste(1, Taste(liked_items=(987654321,), liked_at=(1,)))  # As a former model has known it.
    assert feed.set_taste(1, Taste((987654321, feed.item_ids[3])), NOW) == Taste(
        (987654321, feed.item_ids[3]), liked_at=(1, NOW)
    )
    assert feed.recommend(ask(1)).items


@pytest.mark.parametrize("feed", INDICES, indirect=True)
def test_candidates_come_in_the_order_of_the_feed(feed: Recommender) -> None:
    expected = feed.recommend(ask(1, 30)).items
    seen = feed.store.history(1)[0].item_id
    ids = sorted(item.item_id for item in expected)
    ranked = feed.rank(ask(1, 5), [*ids, "nobody's", seen, ids[0]])
    assert ranked.unknown == ("nobody's",)
    assert seen in [item.item_id for item in ranked.items]
    rest = [item for item in ranked.items if item.item_id != seen]
    assert [item.item_id for item in rest] == [item.item_id for item in expected]
    assert [item.score for item in rest] == pytest.approx([item.score for item in expected], abs=1e-4)
    feed.set_taste(1, Taste(disliked_items=(rest[0].item_id,)))
    assert feed.rank(ask(1), ids).items[-1].item_id == rest[0].item_id
    assert feed.rank(ask(1), ["nobody's"]).items == ()


def test_similar_items(feed: Recommender) -> None:
    vectors = feed.scorer.item_vectors_ID.numpy()  # pyright: ignore[reportAttributeAccessIssue]
    everything = feed.similar(feed.item_ids[4], 10**6)
    assert {one.item_id for one in everything} == set(feed.item_ids[1:]) - {feed.item_ids[4]}
    assert [one.score for one in everything] == sorted((one.score for one in everything), reverse=True)
    best = feed.item_index[everything[0].item_id]
    cosine = vectors[best] @ vectors[4] / np.linalg.norm(vectors[best]) / np.linalg.norm(vectors[4])
    assert everything[0].score == pytest.approx(cosine, abs=1e-5)
    assert feed.similar(feed.item_ids[4], 3) == everything[:3]
    assert feed.similar(feed.item_ids[4], 0) == ()
    with pytest.raises(InputError, match="item_id = 'x' is not in this model's catalogue"):
        feed.similar("x", 3)


def test_the_fallback_asks_nobody(feed: Recommender) -> None:
    """And is what a stranger is shown."""
    _, score_BR = feed.retrieve([ask(NEW)], [[]])
    feed.store = None  # pyright: ignore[reportAttributeAccessIssue]
    popular = feed.popular(ask(1, 30, explain=True))
    assert popular.source == "popularity"
    assert [item.score for item in popular.items] == score_BR[0, :30].tolist()
    assert {item.reason.source for item in popular.items if item.reason} == {"popular"}
    assert feed.popular(ask(1, 0)).items == ()
    assert min(feed.popular(ask(1)).latency_ms["popular"] for _ in range(20)) < 1


@pytest.mark.parametrize("feed", INDICES, indirect=True)
def test_reasons_are_what_the_score_loses(feed: Recommender) -> None:
    user = max(range(1, 50), key=lambda user: len(feed.store.history(user)))
    response = feed.recommend(ask(user, explain=True))
    assert [item.reason for item in feed.recommend(ask(user)).items] == [None] * 20
    history = feed.store.history(user)[-feed.bundle.config["prepare"]["max_history"] :]
    asked = ask(user, exclude_seen=False)
    index_K = [feed.item_index[item.item_id] for item in response.items]
    whole_K = feed.retrieval.scores([asked], [history])[0, index_K]
    lost: dict[object, np.ndarray] = {}
    for place in range(max(0, len(history) - STEPS), len(history)):
        left = feed.retrieval.scores([asked], [[*history[:place], *history[place + 1 :]]])[0, index_K]
        lost[history[place].item_id] = lost.get(history[place].item_id, 0) + np.maximum(whole_K - left, 0)
    for k, item in enumerate(response.items):
        assert item.reason is not None
        if not any(lost_K[k] > 1e-4 for lost_K in lost.values()):
            continue
        assert item.reason.source == "history"
        assert 1 <= len(item.reason.because) <= 3
        shares = [share for _, share in item.reason.because]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1 + 1e-6
        own = {name: lost_K[k] / sum(each[k] for each in lost.values()) for name, lost_K in lost.items()}
        for name, share in item.reason.because:
            assert share == pytest.approx(own[name], abs=1e-3)
        assert shares == pytest.approx(sorted(own.values(), reverse=True)[: len(shares)], abs=1e-3)


def test_reasons_name_what_was_said(feed: Recommender) -> None:
    liked, category = feed.item_ids[5], list(feed.tastes.members)[1]
    feed.set_taste(NEW, Taste((liked,)))
    reasons = [item.reason for item in feed.recommend(ask(NEW, explain=True)).items]
    assert {(reason.because, reason.source) for reason in reasons if reason} == {(((liked, 1.0),), "taste")}
    feed.set_taste(NEW, Taste(liked_categories=(category,)))
    for item in feed.recommend(ask(NEW, explain=True)).items:
        assert item.reason is not None
        has = category in feed.tastes.of_item[feed.item_index[item.item_id]]
        assert (item.reason.liked_category, item.reason.source) == ((category, "taste") if has else (None, "popular"))


def test_who_is_erased_is_a_stranger(feed: Recommender) -> None:
    stranger = feed.recommend(ask(NEW))
    event = Event(1, feed.item_ids[3], NOW - 10, *feed.tastes.like, event_id="a")
    assert feed.observe([event, event, Event(1, feed.item_ids[3], NOW, "impression")]) == [
        "applied",
        "repeated",
        "ignored",
    ]
    feed.set_taste(1, Taste((feed.item_ids[4],)))
    own = [one.key for event in feed.store.history(1) for one in feed.moment.increments(event)]
    others = [one.key for event in feed.store.history(1) for one in feed.moment.increments(replace(event, user_id=NEW))]
    mine = np.setdiff1d(np.array(own, dtype=np.uint64), np.array(others, dtype=np.uint64))
    assert feed.store.counts(mine).events.min() > 0
    items = feed.store.counts(np.array(others, dtype=np.uint64)).events
    assert feed.erase(1)
    assert not feed.erase(1)
    assert len(feed.store.counts(mine).events) == 0
    np.testing.assert_array_equal(feed.store.counts(np.array(others, dtype=np.uint64)).events, items)
    after = feed.recommend(ask(1))
    assert after.source == "popularity"
    assert [item.retrieval_score for item in after.items][:1] == [stranger.items[0].retrieval_score]


def test_a_store_is_tied_to_what_its_counters_mean(bundle: Bundle) -> None:
    store = MemoryStore()
    assert state.misfit(bundle, store) is None
    assert Recommender(bundle, store, Config()).seed()
    assert not Recommender(bundle, store, Config()).seed()
    assert state.misfit(bundle, store) is None
    counters = [{"name": "recent", "by": ["item"], "window": "7d"}]
    other = replace(bundle, config={**bundle.config, "prepare": {**bundle.config["prepare"], "counters": counters}})
    assert state.misfit(other, store) is not None
    with pytest.raises(
        InputError, match=r"they differ in counters of \[prepare\]; serve a bundle .* or set another store"
    ):
        Recommender(other, store, Config()).seed()


def test_one_step_speaks_for_everything(feed: Recommender) -> None:
    past = feed.retrieval.past([ask(NEW)], [[Event(NEW, feed.item_ids[9], NOW)]])
    assert speaking(feed.scorer, past, np.array([1, 2])) == [[(9, 1.0)]] * 2
