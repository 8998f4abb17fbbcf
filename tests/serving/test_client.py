"""The client speaks the wire's messages, and comes again when it is asked to."""

import time
from pathlib import Path

import pytest

from serving.client import Feedline, Refused
from serving.protocol import EventMessage, RankRequest, RecommendRequest, SimilarRequest, TasteMessage
from tests.conftest import FinishedRun
from tests.serving.conftest import serving


def test_every_call_comes_back_as_its_message(finished_run: FinishedRun, tmp_path: Path) -> None:
    with serving(finished_run, tmp_path) as client, Feedline("http://testserver", retries=0) as feedline:
        feedline._client = client
        feed = feedline.recommend(RecommendRequest(user_id=1, k=3, explain=True))
        first = feed.items[0].item_id
        assert len(feed.items) == 3
        assert feedline.recommend(RecommendRequest(user_id=1), deadline_ms=0.001).fallback == "deadline"
        assert feedline.rank(RankRequest(user_id=1, candidates=[first])).items[0].item_id == first
        assert len(feedline.similar(SimilarRequest(item_id=first, k=2)).items) == 2
        assert feedline.events([EventMessage(user_id=1, item_id=first, action="click")]).applied == 1
        assert feedline.history(1).events[-1].item_id == first
        assert feedline.set_taste(1, TasteMessage(liked_items=[first])).liked_items == [first]
        assert feedline.taste(1).liked_items == [first]
        assert feedline.model().variants[0].model == feed.model
        assert feedline.erase(1).erased
        with pytest.raises(Refused, match="422: item_id = 1000000000 is not in") as refused:
            feedline.similar(SimilarRequest(item_id=10**9))
        assert refused.value.request_id


def test_it_comes_again_when_it_is_told_to_and_gives_up_at_last(finished_run: FinishedRun, tmp_path: Path) -> None:
    with serving(finished_run, tmp_path, limits={"rate": 1, "burst_s": 1}) as client:
        patient, hasty = Feedline("http://testserver"), Feedline("http://testserver", retries=0)
        patient._client = hasty._client = client
        patient.model()
        with pytest.raises(Refused, match="429: more requests"):
            hasty.model()
        began = time.monotonic()
        patient.model()
        assert time.monotonic() - began > 0.9
