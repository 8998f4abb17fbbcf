from collections.abc import Iterator
from typing import Any

import pytest

from features.online import StateStore
from tests.contract.stores.places import KINDS, NewPlace, Place, redis_server


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as (url, _):
        yield url


@pytest.fixture(scope="module")
def new_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NewPlace:
    """Makes empty places of the kind that the test asks for."""

    def new(kind: str, **options: Any) -> Place:
        url = request.getfixturevalue("redis_url") if kind == "redis" else ""
        return Place(kind, tmp_path_factory.mktemp("store"), url, **options)

    return new


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, new_place: NewPlace) -> Iterator[StateStore]:
    """An empty store that retains three events."""
    store = new_place(request.param, events=3).open()
    yield store
    store.close()
