"""One bundle in service: its recommender on the store of the service, and the words for what it says."""

from pathlib import Path
from typing import Any

from features.errors import InputError
from features.online import Id, StateStore
from recsys import bundle as bundles
from recsys import inference
from recsys.bundle import Bundle
from recsys.inference import Recommender


class Model:
    """A recommender with titles, for the ids of one bundle."""

    def __init__(self, bundle: Bundle, store: StateStore, recommend: inference.Config) -> None:
        """Put a loaded bundle to work.

        Args:
            bundle: what was exported.
            store: histories and counters, shared with other models; an empty one is filled by `recommender.seed`.
            recommend: how it retrieves and blends.

        Raises:
            InputError: `recommend` asks for what the bundle does not have.
        """
        self.bundle = bundle
        self.recommender = Recommender(bundle, store, recommend)
        items = bundle.items.slice(1)
        self._titles: dict[Id, str] = _known(items, "title")
        self._categories: dict[Id, list[str] | str] = _known(items, "categories")
        self._users_are_numbers = bundle.users.schema["user_id"].is_integer()
        self._items_are_numbers = items.schema["item_id"].is_integer()

    @classmethod
    def load(cls, directory: Path, store: StateStore, recommend: inference.Config) -> "Model":
        """The same from a bundle's directory."""
        return cls(bundles.load(directory), store, recommend)

    @property
    def name(self) -> str:
        """The fingerprint of the bundle, short."""
        return self.bundle.facts["fingerprint"][:8]

    def title(self, item: Id) -> str:
        """What to call an item."""
        return self._titles.get(item, str(item))

    def categories(self, item: Id) -> tuple[str, ...]:
        """The categories of an item; () where the log names none."""
        found = self._categories.get(item, ())
        return (found,) if isinstance(found, str) else tuple(found)

    def user(self, given: Id) -> Id:
        """An id as this bundle's log writes it.

        Raises:
            InputError: the log's ids are numbers, and this is none.
        """
        return _as_logged(given, "user_id", numbers=self._users_are_numbers)

    def item(self, given: Id) -> Id:
        """The same for an item."""
        return _as_logged(given, "item_id", numbers=self._items_are_numbers)

    def card(self) -> dict[str, Any]:
        """What is served: run, data, date, models, quality of tables, features, versions."""
        bundle, facts, schema = self.bundle, self.bundle.facts, self.bundle.encoder.schema
        return {
            "name": self.name,
            "run": bundle.config["run"]["name"],
            "split": facts["split"],
            "exported": facts["exported"],
            "schema": schema.fingerprint,
            "items": schema.items,
            "users": schema.users,
            "label": schema.label,
            "actions": sorted(self.recommender.history_actions) or list(self.recommender.moment.actions),
            "retriever": bundle.config["retriever"]["kind"],
            "ranker": bundle.config["ranker"]["kind"],
            "tables": {name: facts["export"][name] for name in ("form", "bytes", "quality")},
            "features": [spec.name for spec in schema.features],
            "versions": facts["environment"]["versions"],
        }


def _known(items: Any, column: str) -> dict[Id, Any]:
    """What a column says of items, where it says something."""
    if column not in items.columns:
        return {}
    return dict(items.select("item_id", column).drop_nulls().iter_rows())


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
