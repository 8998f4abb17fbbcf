"""What is known of items: looked up with content and neighbours, left out at random alike everywhere, kept in files."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from embeddings.catalogue import Catalogue, Config, Noise, Shape
from embeddings.sharding import table_parameters
from features.encoder import Encoder
from features.errors import InputError
from features.graph import Config as GraphConfig
from features.schema import FeatureSpec, Schema
from recsys.modules.item_tower import ItemTower, item_vectors
from tests.batches import catalogue, histories, looked_up, tensors
from tests.batches import questions as asked

MET = [[1, 2, 3, 2], [2, 1], [2, 3], [1, 3, 4], [5, 1]]
"""Of six items; nobody has met the last."""
GENRES = [[1, 2], [], [3], [1], [2, 2], [3]]
KNOWN = catalogue(
    6,
    MET,
    content={"genres": GENRES, "brand": [[1], [0], [1], [2], [2], [2]]},
    graph=GraphConfig(shrinkage=1.0),
    neighbours=2,
    recency=0.5,
    numbers=2,
)


def test_lookup_gives_row_neighbours_and_content():
    found = KNOWN.lookup(np.array([6, 2, 4]))
    assert found.ids.values().dtype == torch.int64
    assert KNOWN.numbers is not None
    assert looked_up(found) == {
        "item": [[0], [2], [4]],
        # 2 meets 1 and 3 three times each, and 4 each once; 3 says more, for it was met less often.
        "neighbours": [[], [3, 1], [3, 1]],
        "genres": [[3], [], [1]],
        "brand": [[2], [0], [2]],
        "numbers": KNOWN.numbers[[6, 2, 4]].tolist(),
    }


def test_the_whole_catalogue_is_every_items_lookup():
    assert looked_up(KNOWN.whole) == looked_up(KNOWN.lookup(np.arange(1, 7)))
    assert looked_up(KNOWN.whole)["item"] == [[1], [2], [3], [4], [5], [0]]
    assert KNOWN.whole is KNOWN.whole
    assert looked_up(catalogue(3).lookup(np.array([3, 3, 1]))) == {"item": [[3], [3], [1]]}


SCHEMA = Schema(
    features=(
        FeatureSpec(name="item_id", kind="sparse", source="item.index", transform="index", rows=4),
        FeatureSpec(name="genres", kind="bag", source="item.genres", transform="lookup", rows=9),
        FeatureSpec(name="brand", kind="sparse", source="item.brand", transform="lookup", rows=5),
        FeatureSpec(name="price", kind="dense", source="item.price", transform="numeric"),
        FeatureSpec(name="words", kind="vector", source="item.title", transform="text", width=2),
        FeatureSpec(name="device", kind="sparse", source="request.device", transform="lookup", rows=3),
    ),
    label="like",
    items=3,
    users=2,
)
ENCODER = Encoder(
    SCHEMA,
    {},
    pl.DataFrame(
        {
            "index": [0, 1, 2, 3],
            "genres": [[0], [4, 8], [], [1]],
            "brand": [0, 4, 1, 2],
            "price": [0.0, 1.5, -1.0, 0.5],
            "words": [[0.0, 0.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        },
        schema_overrides={
            "genres": pl.List(pl.Int32),
            "brand": pl.Int32,
            "price": pl.Float32,
            "words": pl.Array(pl.Float32, 2),
        },
    ),
    pl.DataFrame(),
)
WINDOWS = pl.Series([[1, 3], [3, 1, 1]], dtype=pl.List(pl.Int32))


def test_it_is_made_of_what_prepare_has_written():
    config = Config(content=("brand", "genres"), graph=GraphConfig(shrinkage=0.0), neighbours=4, recency=0.25)
    made = Catalogue.of(ENCODER, WINDOWS, config)
    assert made.trained.tolist() == [False, True, False, True]
    assert looked_up(made.whole) == {
        "item": [[1], [0], [3]],
        "neighbours": [[3], [], [1]],
        "brand": [[4], [1], [2]],
        "genres": [[4, 8], [], [1]],
    }
    assert made.shape == Shape.of(SCHEMA, config) == Shape(3, {"brand": 5, "genres": 9}, 4, links=True)
    walk = made.walk()
    assert walk is not None
    assert walk.recency == 0.25
    plain = Catalogue.of(ENCODER, WINDOWS, Config())
    assert plain.shape == Shape.of(SCHEMA, Config()) == Shape(3, {}, 0, links=False)
    assert plain.walk() is None
    near = Config(graph=GraphConfig(), neighbours=2, links=False)
    assert Catalogue.of(ENCODER, WINDOWS, near).walk() is None
    assert Catalogue.of(ENCODER, WINDOWS, near).shape == Shape.of(SCHEMA, near) == Shape(3, {}, 2, links=False)
    numbers = Config(content=("words", "price"))
    described = Catalogue.of(ENCODER, WINDOWS, numbers)
    assert looked_up(described.whole)["numbers"] == [[1.0, 2.0, 1.5], [3.0, 4.0, -1.0], [5.0, 6.0, 0.5]]
    assert described.shape == Shape.of(SCHEMA, numbers) == Shape(3, {}, 0, links=False, numbers=3)


@pytest.mark.parametrize("name", ["item_id", "device", "colour"])
def test_content_that_describes_no_item_is_refused(name: str):
    with pytest.raises(
        InputError, match=rf"retriever\.items\.content names '{name}'.*there are: genres, brand, price, words"
    ):
        Shape.of(SCHEMA, Config(content=(name,)))


def test_a_config_that_contradicts_itself_is_refused():
    with pytest.raises(ValidationError, match="neighbours = 3 needs a graph"):
        Config(neighbours=3)
    with pytest.raises(ValidationError, match=r"items\.graph is used by nothing"):
        Config(graph=GraphConfig(), links=False)


@pytest.mark.parametrize(
    "made",
    [KNOWN, catalogue(6), catalogue(3, content={"genres": [[], [], [0]]}), catalogue(3, [[1, 2]], graph=GraphConfig())],
    ids=["described", "plain", "hardly any content", "a graph that is not used"],
)
def test_it_comes_back_from_its_folder(tmp_path: Path, made: Catalogue):
    made.save(tmp_path / "catalogue")
    found = Catalogue.load(tmp_path / "catalogue")
    assert found.shape == made.shape
    assert looked_up(found.whole) == looked_up(made.whole)
    past = histories([1, 2], [], [3])
    ours, theirs = tensors(asked(made, past)), tensors(asked(found, past))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_noise_depends_on_item_step_and_stream_alone():
    noise, items = Noise(step=3, seed=1, cold=0.5, neighbours=0), np.arange(1, 1001)
    drawn = noise.draws(items, 0)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert len(np.unique(drawn)) == 1000
    # Of a uniform number the mean has a deviation of 0.29 / √1000.
    assert abs(drawn.mean() - 0.5) < 4 * 0.29 / 1000**0.5
    np.testing.assert_array_equal(noise.draws(items[::-7], 0), drawn[::-7])
    others = [noise.draws(items, 1), Noise(4, 1, 0.5, 0).draws(items, 0), Noise(3, 2, 0.5, 0).draws(items, 0)]
    for other in others:
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 4 / 1000**0.5


def test_neighbours_are_drawn_without_repetition_and_all_have_their_turn():
    met = [[1, other] for other in range(2, 9)] + [[9, 10]]
    known = catalogue(10, met, graph=GraphConfig(), neighbours=5)
    whole = looked_up(known.whole)["neighbours"]
    assert [len(near) for near in whole] == [5, *[1] * 9]
    seen: set[int] = set()
    for step in range(40):
        drawn = looked_up(known.lookup(np.arange(1, 11), Noise(step, 0, 0.0, 3)))["neighbours"]
        assert drawn[1:] == whole[1:]
        assert len(drawn[0]) == len(set(drawn[0])) == 3
        seen |= set(drawn[0])
    assert seen == set(whole[0])


def test_a_vector_is_the_sum_of_its_parts():
    tower = ItemTower(KNOWN.shape, 4, torch.device("cpu"))
    for table in table_parameters(tower):
        nn.init.normal_(table, generator=torch.Generator().manual_seed(table.shape[0]))
    nn.init.constant_(tower.neighbour_scale, 0.5)
    table = {name.split(".")[-2]: weight.detach() for name, weight in tower.named_parameters() if "." in name}
    item, genre, brand = (table[name] for name in ("item", "genres_of_item", "brand_of_item"))
    with torch.inference_mode():
        vectors_ID = item_vectors(tower, KNOWN)
    expected = {
        0: torch.zeros(4),
        2: item[2] + brand[0] + (item[3] + item[1]) / 4,
        5: item[5] + genre[2] + brand[2] + item[1] / 2,  # of its bag of two ids the mean
        6: genre[3] + brand[2],  # not met: it has no embedding of its own
    }
    for index, vector in expected.items():
        torch.testing.assert_close(vectors_ID[index], vector)
