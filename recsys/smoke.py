"""Questions whose answers are recorded in a bundle: whoever loads it asks them again before anybody is served.

Export asks the bundle that it has just written, of a store that holds the snapshot alone: people drawn by the hash of
their id, and strangers. The same bundle must give the same answers wherever it is loaded, whatever else has changed:
the machine, the versions of libraries, this project's own code.

Two scores are the same within `relative_tolerance` of the larger and `absolute_tolerance`: the order of floating-point
sums may differ between machines. Items are compared place by place; two whose recorded scores are the same in this
sense may change places.
"""

from collections.abc import Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import polars as pl
import torch

from features import manifest
from features._hash import hash64
from features.errors import InputError
from features.moment import load_snapshot
from features.online import Id, MemoryStore
from recsys import inference
from recsys.bundle import Bundle
from recsys.inference import Recommender, Request, Response

FILE = "smoke.json"
PEOPLE, STRANGERS = 60, 4
SHOWN, RECORDED = 10, 20
"""Places that are compared, and places that are recorded, so that what falls off the end can be looked up."""
RELATIVE, ABSOLUTE = 1e-3, 1e-5
QUANTILES = tuple(round(0.1 * step, 1) for step in range(11))


def record(bundle: Bundle) -> None:
    """Ask the bundle, and write `smoke.json` into it.

    It holds `asked_at` (Unix time in ms: just after the snapshot's last event), tolerances, `answers` (of each question
    `user_id`, `exclude_seen`, `source`, and `items` with `scores`), and `shown`: quantiles of the scores and of the
    ranker's probabilities over all recorded places of people who are known, null where there are none. Drift is
    measured against these.
    """
    asked_at = _end(bundle) + 1
    requests = [
        # Some are shown what they have seen, so that both ways are asked.
        Request(user_id=user, k=RECORDED, timestamp=asked_at, exclude_seen=number % 4 != 3)
        for number, user in enumerate(_asked(bundle))
    ]
    answers = _answers(bundle, requests)
    of_model = [item for answer in answers if answer.source == "model" for item in answer.items]
    shown = {
        "quantiles": QUANTILES,
        "scores": _quantiles([item.score for item in of_model]),
        "probabilities": _quantiles([item.probability for item in of_model if item.probability is not None]),
    }
    facts = {"asked_at": asked_at, "relative_tolerance": RELATIVE, "absolute_tolerance": ABSOLUTE, "shown": shown}
    facts["answers"] = [
        {
            "user_id": request.user_id,
            "exclude_seen": request.exclude_seen,
            "source": answer.source,
            "items": [item.item_id for item in answer.items],
            "scores": [item.score for item in answer.items],
        }
        for request, answer in zip(requests, answers, strict=True)
    ]
    manifest.write_json(bundle.directory / FILE, facts)


def check(bundle: Bundle) -> int:
    """Ask again what was asked at export; how many questions were asked.

    Raises:
        InputError: an answer is another one; says which question and place, and nothing of whom it was about.
    """
    facts = manifest.read_json(bundle.directory / FILE)
    recorded: list[dict[str, Any]] = facts["answers"]
    requests = [
        Request(user_id=answer["user_id"], k=RECORDED, timestamp=facts["asked_at"], exclude_seen=answer["exclude_seen"])
        for answer in recorded
    ]
    differ: list[str] = []
    for number, (there, here) in enumerate(zip(recorded, _answers(bundle, requests), strict=True), start=1):
        items, scores = [item.item_id for item in here.items], [item.score for item in here.items]
        what = difference(there, here.source, items, scores)
        if what is not None:
            differ.append(f"question {number}, {what}")
    if differ:
        raise InputError(
            f"{bundle.directory}: {len(differ)} of {len(recorded)} recorded questions are answered differently, the "
            f"first: {differ[0]}; it was exported by other code or libraries: run `recsys export` again with these"
        )
    return len(recorded)


def difference(there: dict[str, Any], source: str, items: list[Id], scores: list[float]) -> str | None:
    """What differs first between a recorded answer and another; None where nothing does."""
    if there["source"] != source:
        return f"source: {source}, and at export {there['source']}"
    if len(there["items"]) != len(items):
        return f"{len(items)} items, and at export {len(there['items'])}"
    score_of = dict(zip(there["items"], there["scores"], strict=True))
    for place in range(min(SHOWN, len(items))):
        item, score, recorded = items[place], scores[place], there["scores"][place]
        if not _close(score, recorded):
            return f"place {place + 1}: score {score:.6g}, and at export {recorded:.6g}"
        if item != there["items"][place] and not (item in score_of and _close(score_of[item], recorded)):
            return f"place {place + 1}: item {item!r}, and at export {there['items'][place]!r}"
    return None


def _close(first: float, second: float) -> bool:
    return abs(first - second) <= ABSOLUTE + RELATIVE * max(abs(first), abs(second))


def _answers(bundle: Bundle, requests: Sequence[Request]) -> list[Response]:
    """Of the bundle as its own config has it, one by one, as a server asks; applies nothing."""
    retain = bundle.config["prepare"]["retain"]
    store = MemoryStore(retain=retain)
    store.seed(*load_snapshot(bundle.directory, [request.user_id for request in requests]))
    recommender = Recommender(bundle, store, inference.Config.model_validate(bundle.config["recommend"]))
    threads = torch.get_num_threads()
    # As a replica asks: a request is too little work to share between threads.
    torch.set_num_threads(1)
    try:
        return [recommender.recommend(request) for request in requests]
    finally:
        torch.set_num_threads(threads)


def _asked(bundle: Bundle) -> list[Id]:
    """People of the snapshot, and strangers."""
    known = pl.read_parquet(bundle.directory / "snapshot" / "users.parquet", columns=["user_id"])["user_id"]
    people = known.gather(np.argsort(hash64(known), kind="stable")[:PEOPLE]).to_list()
    taken = set(known.to_list())
    numbers = known.dtype.is_integer()
    candidates = (number if numbers else f"stranger-{number}" for number in count(1))
    return [*people, *islice((user for user in candidates if user not in taken), STRANGERS)]


def _end(bundle: Bundle) -> int:
    """The last moment of the snapshot, Unix time in ms; 0 where it is empty."""
    times = pl.scan_parquet(bundle.directory / "snapshot" / "users.parquet").select(
        pl.col("timestamp").list.max().max()
    )
    return int(times.collect().item() or 0)


def _quantiles(values: list[float]) -> list[float] | None:
    return np.quantile(values, QUANTILES).tolist() if values else None
