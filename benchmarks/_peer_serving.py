"""The usual way to serve what a bundle holds: FastAPI and uvicorn, FAISS for the candidates, eager torch.

The same weights and the same features, put together as tutorials do: a function that FastAPI calls in its pool of
threads, histories in a dictionary, all item vectors in a FAISS index, features of candidates by the expressions of the
batch side, the ranker as it comes. No store that lasts, no events, no graph, no deadlines: it does less.

    python benchmarks/_peer_serving.py BUNDLE EXAMPLES PORT
"""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from embeddings.batch import Columns
from embeddings.histories import Histories
from features.moment import Asked, Moment, load_snapshot
from features.online import MemoryStore
from recsys import bundle as bundles
from recsys.candidates import _series, _types
from recsys.inference import Config, Recommender


class Asks(BaseModel):
    """A request."""

    user_id: int
    k: int = 20


def application(directory: Path, examples: Path) -> FastAPI:
    """The whole of it."""
    bundle = bundles.load(directory)
    config = Config.model_validate(bundle.config["recommend"])
    store = MemoryStore()
    store.seed(*load_snapshot(directory))
    # Only for the words of the bundle: ids, codes of actions, columns of the moment, how the retriever reads histories.
    words = Recommender(bundle, store, config, rank=False)
    learned, moment = words._learned, words.moment
    assert isinstance(moment, Moment)
    item_ID = learned.item_vectors_ID.numpy()
    index = faiss.IndexFlatIP(item_ID.shape[1])
    index.add(item_ID[1:])
    types, lock = _types(examples), threading.Lock()
    app = FastAPI()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/recommend")
    def recommend(asked: Asks) -> dict[str, Any]:
        now = time.time_ns() // 1_000_000
        history = [event for event in store.history(asked.user_id) if event.item_id in words.item_index]
        past = Histories(
            items_N=np.array([words.item_index[event.item_id] for event in history], dtype=np.int64),
            lengths_B=np.array([len(history)], dtype=np.int64),
            timestamps_N=np.array([event.timestamp for event in history], dtype=np.int64),
            actions_N=np.array([moment.actions.get(event.action, -1) for event in history], dtype=np.int16),
            asked_B=np.array([now], dtype=np.int64),
        )
        if not history:
            best = np.argsort(-words.fallback.log_count_I[1:])[: asked.k] + 1
            return {"items": [words.item_ids[item] for item in best]}
        with torch.inference_mode():
            user_BD = learned.user_vectors(past)
        _, found_BR = index.search(user_BD, config.retrieved + len(history))
        seen = set(past.items_N.tolist())
        items = np.array([item + 1 for item in found_BR[0].tolist() if item + 1 not in seen][: config.retrieved])
        with lock:
            columns = features(asked.user_id, now, history, items)
        with torch.inference_mode():
            logits_BT = bundle.ranker(columns.batch())["logits_BT"]
        order = torch.argsort(logits_BT[:, 0], descending=True)[: asked.k].tolist()
        return {"items": [words.item_ids[items[place]] for place in order]}

    def features(user: int, now: int, history: list[Any], items: np.ndarray) -> Columns:
        people, pairs = moment.columns([Asked(user, now, {})], [history], items[None], store)
        request = {
            "user_index": pl.Series(np.full(len(items), moment.user_index.get(user, 0), dtype=np.int32)),
            "item_index": pl.Series(items, dtype=pl.Int32),
            **{name: _series(column, types[name]).gather([0] * len(items)) for name, column in people.items()},
            **{name: _series(column, types[name]) for name, column in pairs.items()},
        }
        frame = pl.DataFrame([series.alias(name) for name, series in request.items()])
        return Columns.of(bundle.encoder.encode(frame), bundle.encoder.schema)

    return app


if __name__ == "__main__":
    uvicorn.run(application(Path(sys.argv[1]), Path(sys.argv[2])), port=int(sys.argv[3]), log_level="warning")
