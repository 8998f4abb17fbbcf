"""Stored tables answer as the collections that they stand for, given the same rows."""

import pytest
import torch
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)

from embeddings.quantized import (
    Form,
    StoredTable,
    check_dim,
    dequantize,
    quantize,
    table_names,
    whole_table,
    with_tables,
)
from features.errors import InputError

FORMS: tuple[Form, ...] = ("fp32", "int8", "int4")
MIXED: dict[str, Form] = {"item": "int4", "user": "int8", "city": "fp32"}
ROWS = 50


class Model(nn.Module):
    def __init__(self, collection: nn.Module) -> None:
        super().__init__()
        self.arch = collection


def bags(pooling: PoolingType) -> EmbeddingBagCollection:
    """Two features share a table; widths differ."""
    features = {"item": ["clicked", "bought"], "user": ["user"], "city": ["city"]}
    tables = [
        EmbeddingBagConfig(
            name=name, num_embeddings=ROWS, embedding_dim=dim, feature_names=features[name], pooling=pooling
        )
        for name, dim in (("item", 12), ("user", 8), ("city", 4))
    ]
    return EmbeddingBagCollection(tables=tables, is_weighted=pooling == PoolingType.SUM)


def sequences() -> EmbeddingCollection:
    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(name="item", num_embeddings=ROWS, embedding_dim=12, feature_names=["clicked", "bought"]),
            EmbeddingConfig(name="user", num_embeddings=ROWS, embedding_dim=12, feature_names=["user", "city"]),
        ]
    )


def batch(*, weighted: bool) -> KeyedJaggedTensor:
    """Keys in another order than the tables', empty bags, repeated ids."""
    rng = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 5, (4 * 30,), generator=rng)
    ids = torch.randint(0, ROWS, (int(lengths.sum()),), generator=rng)
    weights = torch.randn(len(ids), generator=rng) if weighted else None
    return KeyedJaggedTensor(keys=["user", "bought", "city", "clicked"], values=ids, lengths=lengths, weights=weights)


def with_stored(collection: nn.Module, form_of: dict[str, Form]) -> tuple[nn.Module, nn.Module]:
    """(the collection with its rows rounded to their forms, stored tables of the same rows)."""
    model = Model(collection)
    names, state = table_names(model), model.state_dict()
    stored = {name: StoredTable(form_of[table], quantize(state[name], form_of[table])) for name, table in names.items()}
    with torch.no_grad():
        for name, table in stored.items():
            state[name].copy_(dequantize(table.rows, table.form))
    return collection, with_tables(model, stored).get_submodule("arch")


def forms_of(form: str) -> dict[str, Form]:
    return MIXED if form == "mixed" else {table: form for table in MIXED}  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("pooling", [PoolingType.MEAN, PoolingType.SUM])
@pytest.mark.parametrize("form", [*FORMS, "mixed"])
def test_bags_are_those_of_unpacked_rows(form: str, pooling: PoolingType):
    features = batch(weighted=pooling == PoolingType.SUM)
    reference, stored = with_stored(bags(pooling), forms_of(form))
    with torch.inference_mode():
        expected, found = reference(features), stored(features)
    assert found.keys() == expected.keys()
    assert found.length_per_key() == expected.length_per_key()
    torch.testing.assert_close(found.values(), expected.values(), rtol=0, atol=0 if form == "fp32" else 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_sequences_are_those_of_unpacked_rows(form: Form):
    features = batch(weighted=False)
    reference, stored = with_stored(sequences(), forms_of(form))
    with torch.inference_mode():
        expected, found = reference(features), stored(features)
    assert found.keys() == expected.keys()
    for name, jagged in expected.items():
        assert torch.equal(found[name].values(), jagged.values())
        assert torch.equal(found[name].lengths(), jagged.lengths())
    for table in ("item", "user"):
        assert torch.equal(whole_table(stored, table), whole_table(reference, table))


def test_nothing_to_look_up_is_no_error():
    none = KeyedJaggedTensor(
        keys=["clicked", "bought", "user", "city"],
        values=torch.empty(0, dtype=torch.int64),
        lengths=torch.zeros(8, dtype=torch.int64),
    )
    for form in FORMS:
        _, stored = with_stored(bags(PoolingType.MEAN), forms_of(form))
        assert torch.equal(stored(none).values(), torch.zeros(2, 2 * 12 + 8 + 4))
        _, stored = with_stored(sequences(), forms_of(form))
        assert stored(none)["clicked"].values().shape == (0, 12)


def rows_of_all_kinds() -> Tensor:
    """Ordinary rows, small and large ones, outliers, a constant, zeros, and rows far from zero."""
    rows_RD = torch.randn(400, 16, generator=torch.Generator().manual_seed(2))
    rows_RD[:50] *= 1e-3
    rows_RD[50:100] *= 100
    rows_RD[100:150, 3] = 40
    rows_RD[150:160] = 0.3
    rows_RD[160:170] = 0
    rows_RD[170:200] += 5
    return rows_RD


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_weight_is_off_by_half_a_step_at_most(form: Form):
    """And by the rounding of the row's scale and bias: float32's for int8, float16's for int4."""
    rows_RD = rows_of_all_kinds()
    low_R1, high_R1 = rows_RD.amin(1, keepdim=True), rows_RD.amax(1, keepdim=True)
    step_R1 = (high_R1 - low_R1) / (255 if form == "int8" else 15)
    rounding = 2.0**-22 if form == "int8" else 2.0**-10
    bound_R1 = step_R1 / 2 + rounding * (low_R1.abs() + high_R1.abs())
    error_RD = (dequantize(quantize(rows_RD, form), form) - rows_RD).abs()
    assert (error_RD <= bound_R1).all(), (error_RD / bound_R1).max()
    assert error_RD.max() > 0
    assert torch.equal(error_RD[160:170], torch.zeros(10, 16))


def test_sizes_and_a_width_that_does_not_fit():
    rows_RD = torch.zeros(3, 16)
    assert [quantize(rows_RD, form)[0].nbytes for form in FORMS] == [64, 16 + 8, 8 + 4]
    with pytest.raises(InputError, match="table item has 6 columns"):
        check_dim("item", 6, "int4")
    check_dim("item", 6, "int8")
