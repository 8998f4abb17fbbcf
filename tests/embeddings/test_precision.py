"""Tables of several precisions in one model, and why a device is refused some of them."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from small_model import CPU, DIM, STEPS, Model, batch, sharded, steps, whole
from torch import nn
from torchrec import EmbeddingCollection

from embeddings import optim, precision
from embeddings.tables import item_table
from features.errors import InputError

HALF = precision.Config(precision="fp16", overrides={"cut": "fp32", "everywhere": "fp32"}, stochastic_rounding=False)


@pytest.mark.usefixtures("alone")
def test_tables_have_their_own_precision(tmp_path: Path):
    config = optim.Config(dense_lr=0.02)
    model, full = sharded(config, HALF), sharded(config)
    optimizer = optim.combine(model, config)
    list(steps(model, optimizer, config, range(STEPS)))
    list(steps(full, optim.combine(full, config), config, range(STEPS)))
    weights, expected = whole(model), whole(full)
    name = "tables.embedding_bags.whole.weight"
    assert {key for key, value in weights.items() if value.dtype == torch.float16} == {name}
    assert optimizer.state_dict()["state"][f"tables.{name}"]["whole.momentum1"].dtype == torch.float32
    for key, value in weights.items():
        torch.testing.assert_close(value.float(), expected[key], atol=0.02, rtol=0)

    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path / "checkpoint")
    plain = Model(CPU)
    state = {"model": plain.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path / "checkpoint")
    plain.load_state_dict(state["model"])
    assert plain.state_dict()[name].dtype == torch.float32
    torch.testing.assert_close(plain(batch(0)[0]), model(batch(0)[0]), atol=1e-5, rtol=0)


def test_precision_reaches_tables_of_sequences():
    model = nn.ModuleList([EmbeddingCollection(tables=[item_table(9, DIM, ["history"])], device=torch.device("meta"))])
    precision.set_precision(model, precision.Config(precision="fp16"))
    (weight,) = model.parameters()
    assert (weight.dtype, weight.device.type, weight.shape) == (torch.float16, "meta", (10, DIM))
    assert model[0].embedding_configs()[0].data_type.name == "FP16"


@pytest.mark.usefixtures("alone")
def test_why_sixteen_bits_are_refused_on_cpu():
    tiny = optim.Config(sparse="sgd", sparse_lr=1e-7)
    model = sharded(tiny, HALF.model_copy(update={"stochastic_rounding": True}))
    before = whole(model)["tables.embedding_bags.whole.weight"]
    for number in range(20):
        model(batch(number)[0]).sum().backward()
    assert torch.equal(whole(model)["tables.embedding_bags.whole.weight"], before)

    with pytest.raises(NotImplementedError, match="BFloat16"):
        sharded(tiny, precision.Config(precision="bf16"))(batch(0)[0])
    with pytest.raises(AssertionError, match="not supported in CPU mode"):
        sharded(optim.Config(sparse="adam"))


@pytest.mark.usefixtures("alone")
def test_tables_that_are_not_fused_keep_32_bits():
    with pytest.raises(InputError, match=r"everywhere.*set tables\.overrides to fp32"):
        optim.combine(sharded(optim.Config(), precision.Config(precision="fp16")), optim.Config())
