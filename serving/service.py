"""What a replica holds: the bundle's recommender on the configured store, and the words for what it says."""

from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import Depends, Request

from features.errors import InputError
from features.online import Event, Id
from recsys import bundle as bundles
from recsys import inference
from recsys.inference import Recommender
from serving.store import Config as StoreConfig
from serving.store import open_store


class Service:
    """A recommender with titles, for the ids of one bundle."""

    def __init__(self, bundle: Path, recommend: inference.Config, store: StoreConfig, directory: Path) -> None:
        """Open the bundle and the store, and fill the store from the bundle's snapshot if it is empty.

        Args:
            bundle: directory of the bundle.
            recommend: how it recommends.
            store: kind and place of the store.
            directory: of the run, where an embedded store is.
        """
        # A request is too little work to share between threads, and replicas share the cores.
        torch.set_num_threads(1)
        self.bundle = bundles.load(bundle)
        retain = self.bundle.config["prepare"]["retain"]
        self.recommender = Recommender(self.bundle, open_store(store, directory, retain), recommend)
        self.recommender.seed()
        items = self.bundle.items.slice(1)
        self.titles: dict[Id, str] = {}
        if "title" in items.columns:
            pairs = items.select("item_id", "title").drop_nulls().iter_rows()
            self.titles = dict(pairs)
        self.users_are_numbers = self.bundle.users.schema["user_id"].is_integer()
        self.items_are_numbers = items.schema["item_id"].is_integer()

    def title(self, item: Id) -> str:
        """What to call an item."""
        return self.titles.get(item, str(item))

    def user(self, given: Id) -> Id:
        """An id as this bundle's log writes it.

        Raises:
            InputError: the log's ids are numbers, and this is none.
        """
        return _as_logged(given, "user_id", numbers=self.users_are_numbers)

    def item(self, given: Id) -> Id:
        """The same for an item."""
        return _as_logged(given, "item_id", numbers=self.items_are_numbers)

    def history(self, user: Id) -> tuple[Event, ...]:
        """What is kept of a person, oldest first."""
        return self.recommender.store.history(user)

    def card(self) -> dict[str, Any]:
        """What is served."""
        facts, schema = self.bundle.facts, self.bundle.encoder.schema
        return {
            "run": self.bundle.config["run"]["name"],
            "split": facts["split"],
            "schema": schema.fingerprint,
            "items": schema.items,
            "users": schema.users,
            "label": schema.label,
            "retriever": self.bundle.config["retriever"]["kind"],
            "ranker": self.bundle.config["ranker"]["kind"],
            "features": [spec.name for spec in schema.features],
            "versions": facts["environment"]["versions"],
        }


def _as_logged(given: Id, field: str, *, numbers: bool) -> Id:
    if not numbers:
        return str(given)
    try:
        number = int(given)
    except ValueError:
        raise InputError(f"{field} = {given!r}: ids of this model are whole numbers; send one") from None
    if not -(2**63) <= number < 2**63:
        raise InputError(f"{field} = {given}: beyond a 64-bit number; send a smaller one")
    return number


async def _service(request: Request) -> Service:
    return request.app.state.service


Serving = Annotated[Service, Depends(_service)]
"""An endpoint's parameter of this type is the replica's service."""
