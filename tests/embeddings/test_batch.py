import numpy as np
import polars as pl
import pytest
import torch

from embeddings.batch import Share, jagged, ranking_batch, sequence_batch
from features.schema import FeatureSpec, Schema

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
    assert batch.labels["like"].tolist() == [1, 0, 1]
    assert batch.labels["like"].dtype == torch.float32


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


def test_without_labels_or_dense_features():
    sparse_only = Schema(features=SCHEMA.embedded, label="like", items=8, users=8)
    batch = ranking_batch(EXAMPLES.drop("label", "price"), sparse_only)
    assert batch.labels is None
    assert batch.dense is None


def test_nulls_are_refused():
    with pytest.raises(AssertionError, match="item_id has nulls"):
        ranking_batch(EXAMPLES.with_columns(item_id=pl.Series([1, None, 2], dtype=pl.Int32)), SCHEMA)


def test_candidates_travel_with_the_first_row():
    batch = sequence_batch(np.array([7, 8, 9]), np.array([1, 0, 2]), np.array([5, 6]), np.array([0, 1, 1]))
    assert batch.sequences is not None
    assert batch.sequences["history"].values().tolist() == [7, 8, 9]
    assert batch.sequences["history"].lengths().tolist() == [1, 0, 2]
    assert batch.sequences["candidates"].values().tolist() == [5, 6]
    assert batch.sequences["candidates"].lengths().tolist() == [2, 0, 0]
    assert batch.labels is not None
    assert batch.labels["next_item"].tolist() == [0, 1, 1]


def test_moving_keeps_everything():
    share = Share(step=1, rows=3, targets=3, tokens_before=0, tokens=0)
    batch = ranking_batch(EXAMPLES, SCHEMA, share, np.array([1.0, 1.0, 0.0]))
    assert batch.weights is not None
    assert batch.weights.tolist() == [1, 1, 0]
    moved = batch.to(torch.device("meta"))
    assert moved.share == share
    assert moved.sparse is not None
    assert moved.dense is not None
    assert moved.labels is not None
    assert moved.weights is not None
    tensors = (moved.sparse.values(), moved.sparse.lengths(), moved.dense, moved.labels["like"], moved.weights)
    assert all(tensor.is_meta for tensor in tensors)
    assert moved.sequences is None
