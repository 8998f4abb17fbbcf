import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor

from embeddings.batch import Columns, Known, Share, jagged, ranking_batch
from embeddings.histories import Histories, Links, retrieval_batch
from embeddings.tables import bag_tables, means
from features.schema import FeatureSpec, Schema
from tests.batches import histories, tensors

SCHEMA = Schema(
    features=(
        FeatureSpec(name="price", kind="dense", source="item.price", transform="numeric"),
        FeatureSpec(name="genres", kind="bag", source="item.categories", transform="lookup", rows=9),
        FeatureSpec(name="idle", kind="dense", source="request.user_last_timestamp", transform="elapsed"),
        FeatureSpec(name="item_id", kind="sparse", source="item.index", transform="index", rows=9),
    ),
    label="like",
    items=8,
    users=8,
)
EXAMPLES = pl.DataFrame(
    {
        "item_id": [3, 1, 2],
        "genres": [[], [4, 5], [6]],
        "price": [0.5, 1.5, 2.5],
        "idle": [1, 2, 3],
        "label": [1.0, 0.0, 1.0],
    },
    schema_overrides={"genres": pl.List(pl.Int32), "item_id": pl.Int32, "price": pl.Float32, "label": pl.Float32},
)


def test_examples_become_a_batch_in_the_schemas_order():
    batch = ranking_batch(EXAMPLES, SCHEMA)
    assert batch.sparse is not None
    assert batch.sparse.keys() == ["genres", "item_id"]
    assert batch.sparse.stride() == 3
    assert batch.sparse.values().tolist() == [4, 5, 6, 3, 1, 2]
    assert batch.sparse.lengths().tolist() == [0, 2, 1, 1, 1, 1]
    assert batch.sparse.values().dtype == torch.int64
    assert batch.dense is not None
    assert torch.equal(batch.dense, torch.tensor([[0.5, 1], [1.5, 2], [2.5, 3]]))
    assert batch.labels is not None
    assert batch.labels["outcomes"].tolist() == [[1], [0], [1]]
    assert batch.labels["outcomes"].dtype == torch.float32


@pytest.mark.parametrize(
    ("rows", "lengths", "values"),
    [([0], [0], []), ([2, 0], [1, 0], [6]), ([1, 1], [2, 2], [4, 5, 4, 5])],
    ids=["an empty bag", "gathered backwards", "one row twice"],
)
def test_gathered_and_empty_bags(rows: list[int], lengths: list[int], values: list[int]):
    sparse = ranking_batch(EXAMPLES[rows], SCHEMA).sparse
    assert sparse is not None
    assert sparse["genres"].lengths().tolist() == lengths
    assert sparse["genres"].values().tolist() == values
    assert sparse["item_id"].values().tolist() == [EXAMPLES["item_id"][row] for row in rows]


def test_a_slice_of_a_list_column_holds_its_own_values_alone():
    values, lengths = jagged(EXAMPLES["genres"].slice(2))
    assert (values.tolist(), lengths.tolist()) == ([6], [1])
    values, lengths = jagged(EXAMPLES["genres"].head(2))
    assert (values.tolist(), lengths.tolist()) == ([4, 5], [0, 2])
    values, lengths = jagged(pl.concat([EXAMPLES, EXAMPLES.slice(2)], rechunk=False)["genres"])
    assert (values.tolist(), lengths.tolist()) == ([4, 5, 6, 6], [0, 2, 1, 1])


def test_vectors_are_columns_among_the_dense_ones():
    vector = FeatureSpec(name="image", kind="vector", source="item.image", transform="vector", width=2)
    schema = SCHEMA.model_copy(update={"features": (SCHEMA.features[0], vector, *SCHEMA.features[1:])})
    image = pl.Series("image", [[1, 2], [3, 4], [5, 6]], dtype=pl.Array(pl.Float32, 2))
    dense = ranking_batch(EXAMPLES.with_columns(image), schema).dense
    assert dense is not None
    assert schema.dense_width == 4
    assert dense.dtype == torch.float32
    assert torch.equal(dense, torch.tensor([[0.5, 1, 2, 1], [1.5, 3, 4, 2], [2.5, 5, 6, 3]]))


WEIGHTED = Schema(
    features=(
        FeatureSpec(name="genres", kind="bag", source="item.genres", transform="lookup", rows=9, dim=4, table="shared"),
        FeatureSpec(name="item_id", kind="sparse", source="item.index", transform="index", rows=5, dim=4),
        FeatureSpec(
            name="tags",
            kind="bag",
            source="item.tags",
            transform="lookup",
            rows=9,
            dim=4,
            table="shared",
            weights="item.w",
        ),
    ),
    label="like",
    items=4,
    users=1,
)
TAGGED = pl.DataFrame(
    {
        "genres": [[1, 2, 3, 4], [], [5], [6, 6]],
        "item_id": [1, 2, 3, 4],
        "tags": [[], [1, 2], [3, 4, 5], [7]],
        "tags__weights": [[], [3.0, -1.0], [0.0, 0.0, 0.0], [0.25]],
    },
    schema_overrides={
        "genres": pl.List(pl.Int32),
        "item_id": pl.Int32,
        "tags": pl.List(pl.Int32),
        "tags__weights": pl.List(pl.Float32),
    },
)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2, 1, 1], [0]], ids=["all", "gathered", "an empty bag"])
def test_sums_with_the_batchs_weights_are_weighted_means(rows: list[int]):
    tables = EmbeddingBagCollection(
        tables=bag_tables(WEIGHTED), is_weighted=True, device=torch.device("cpu")
    ).requires_grad_(False)
    for weight in tables.parameters():
        nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    shared, item = (tables.embedding_bags[name].weight for name in ("shared", "item_id"))
    expected = {
        "genres": [shared[[1, 2, 3, 4]].mean(0), torch.zeros(4), shared[5], shared[6]],
        "item_id": [item[1], item[2], item[3], item[4]],
        "tags": [torch.zeros(4), (3 * shared[1] - shared[2]) / 4, torch.zeros(4), shared[7]],
    }
    whole = Columns.of(TAGGED, WEIGHTED)
    for batch in (ranking_batch(TAGGED[rows], WEIGHTED), whole.take(np.array(rows)).batch()):
        assert batch.sparse is not None
        pooled = tables(batch.sparse).to_dict()
        for name, of_rows in expected.items():
            torch.testing.assert_close(pooled[name], torch.stack([of_rows[row] for row in rows]))


def test_a_bag_without_weights_is_averaged():
    sparse = ranking_batch(EXAMPLES, SCHEMA).sparse
    assert sparse is not None
    assert sparse.weights_or_none() is None
    tables = EmbeddingBagCollection(tables=bag_tables(SCHEMA), device=torch.device("cpu"))
    for parameter in tables.parameters():
        nn.init.normal_(parameter)
    found = means(tables(sparse), sparse, {"genres"})
    genre = tables.state_dict()["embedding_bags.genres.weight"]
    expected = torch.stack([torch.zeros(genre.shape[1]), (genre[4] + genre[5]) / 2, genre[6]])
    torch.testing.assert_close(found["genres"], expected)


def test_weights_of_other_lengths_are_refused():
    wrong = TAGGED.with_columns(tags__weights=pl.Series([[1.0], [1.0], [], []], dtype=pl.List(pl.Float32)))
    with pytest.raises(AssertionError, match="tags has other lengths than its weights"):
        ranking_batch(wrong, WEIGHTED)


@pytest.mark.parametrize("schema", [SCHEMA, WEIGHTED], ids=["plain", "weighted"])
def test_joined_parts_are_the_whole(schema: Schema):
    frame = EXAMPLES if schema is SCHEMA else TAGGED
    whole = Columns.of(frame, schema)
    # Slices, whose Arrow offsets do not begin at 0.
    joined = Columns.join([Columns.of(frame.slice(first, rows), schema) for first, rows in ((0, 1), (1, 0), (1, 9))])
    rows = np.array([2, 0, 1, 1])
    for one, other in ((joined, whole), (joined.take(rows), whole.take(rows))):
        assert one.rows == other.rows
        for name in ("ids", "offsets", "weights"):
            for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
                np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(one.dense, other.dense)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_without_labels_or_dense_features():
    sparse_only = Schema(features=SCHEMA.embedded, label="like", items=8, users=8)
    batch = ranking_batch(EXAMPLES.drop("label", "price"), sparse_only)
    assert batch.labels is None
    assert batch.dense is None


def test_nulls_are_refused():
    with pytest.raises(AssertionError, match="item_id has nulls"):
        ranking_batch(EXAMPLES.with_columns(item_id=pl.Series([1, None, 2], dtype=pl.Int32)), SCHEMA)


PAST = histories([7, 8], [], [9, 7, 5], times=[[10, 20, 25], [99], [1, 2, 4, 8]], actions=[[0, -1], [], [1, 2, 0]])


def test_a_step_asks_for_what_follows_it():
    assert PAST.asked_N.tolist() == [20, 25, 2, 4, 8]
    assert PAST.rows_N.tolist() == [0, 0, 2, 2, 2]
    assert PAST.steps_back_N.tolist() == [1, 0, 2, 1, 0]
    assert histories([], []).asked_N.tolist() == []


@pytest.mark.parametrize(
    ("found", "items", "times", "actions", "asked"),
    [
        (PAST.last(2), [[7, 8], [], [7, 5]], [10, 20, 2, 4], [0, -1, 2, 0], [25, 99, 8]),
        (PAST.last(9), [[7, 8], [], [9, 7, 5]], [10, 20, 1, 2, 4], [0, -1, 1, 2, 0], [25, 99, 8]),
        (PAST.users(np.array([2, 0])), [[9, 7, 5], [7, 8]], [1, 2, 4, 10, 20], [1, 2, 0, 0, -1], [8, 25]),
        (PAST.users(np.array([False, True, False])), [[]], [], [], [99]),
    ],
    ids=["the last steps", "all steps", "users in another order", "users by a mask"],
)
def test_parts_of_histories(
    found: Histories, items: list[list[int]], times: list[int], actions: list[int], asked: list[int]
):
    assert [part.tolist() for part in np.split(found.items_N, np.cumsum(found.lengths_B)[:-1])] == items
    assert found.timestamps_N.tolist() == times
    assert found.actions_N.tolist() == actions
    assert found.asked_B.tolist() == asked


def test_histories_are_read_from_a_table():
    table = pl.DataFrame(
        {
            "items": [[7, 8], [], [9, 7, 5]],
            "timestamps": [[10, 20], [], [1, 2, 4]],
            "actions": [[0, -1], [], [1, 2, 0]],
            "timestamp": [25, 99, 8],
        },
        schema_overrides={"items": pl.List(pl.Int32), "actions": pl.List(pl.Int16)},
    )
    for name in ("items_N", "lengths_B", "timestamps_N", "actions_N", "asked_B"):
        np.testing.assert_array_equal(getattr(Histories.of(table), name), getattr(PAST, name))


def test_a_retrieval_batch_says_only_what_is_asked():
    ids = KeyedJaggedTensor(keys=["item"], values=torch.arange(5), lengths=torch.ones(5, dtype=torch.int64))
    known = Known(ids, None)
    places_N = np.array([0, 1, 2, 0, 3])
    least = retrieval_batch(PAST, known, places_N)
    assert least.items is ids
    assert least.item_numbers is None
    assert least.labels is None
    assert least.sequences is not None
    assert {name: tensor.tolist() for name, tensor in least.sequences.items()} == {
        "history": [0, 1, 2, 0, 3],
        "lengths": [2, 0, 3],
        "timestamps": [10, 20, 1, 2, 4],
        "asked": [20, 25, 2, 4, 8],
        "actions": [0, -1, 1, 2, 0],
    }
    links = Links(np.array([0, 1, 1, 2, 2, 2]), np.array([1, 0]), np.array([0.5, 2.0], dtype=np.float32))
    share = Share(step=0, rows=3, targets=5, tokens_before=0, tokens=5)
    bias_C = np.array([0, -np.inf], dtype=np.float32)
    whole = retrieval_batch(
        PAST, known, places_N, np.array([1, 4]), np.array([0, 0, 1, 1, 0]), bias_C, np.ones(5), links, share
    )
    assert whole.share == share
    assert whole.sequences is not None
    assert whole.labels is not None
    found = {name: tensor.tolist() for name, tensor in (whole.sequences | whole.labels).items()}
    assert found == {name: tensor.tolist() for name, tensor in least.sequences.items()} | {
        "candidates": [1, 4],
        "next_item": [0, 0, 1, 1, 0],
        "bias": [0, -np.inf],
        "negatives": [1] * 5,
        "link_offsets": [0, 1, 1, 2, 2, 2],
        "link_candidates": [1, 0],
        "link_values": [0.5, 2.0],
    }
    real = {name for name, tensor in tensors(whole).items() if tensor.dtype == torch.float32}
    assert real == {"bias", "link_values"}
    assert all(tensor.dtype == torch.int64 for name, tensor in tensors(whole).items() if name not in real)
    moved = whole.to(torch.device("meta"))
    assert moved.share == share
    assert tensors(moved).keys() == tensors(whole).keys()
    assert all(tensor.is_meta for tensor in tensors(moved).values())


def test_moving_keeps_everything():
    share = Share(step=1, rows=3, targets=3, tokens_before=0, tokens=0)
    batch = ranking_batch(EXAMPLES, SCHEMA, share, np.array([1.0, 1.0, 0.0]))
    assert batch.weights is not None
    assert batch.weights.tolist() == [1, 1, 0]
    moved = batch.to(torch.device("meta"))
    assert moved.share == share
    assert tensors(moved).keys() == {"sparse values", "sparse lengths", "dense", "outcomes", "weights"}
    assert all(tensor.is_meta for tensor in tensors(moved).values())
    assert moved.sequences is None
