import numpy as np
import pytest
import torch
from pydantic import ValidationError

from embeddings.batch import Batch, Columns, Share
from features.schema import FeatureSpec, Schema
from recsys.experts import specialities
from recsys.modules.over_arch import Config, Experts, OverArch

X_BK = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
EXPERTS = Config(layers=(8, 5), experts=4, top=2)


def share(rows: int, weights: torch.Tensor | None = None) -> Batch:
    return Batch(share=Share(step=0, rows=rows, targets=rows, tokens_before=0, tokens=0), weights=weights)


def test_experts_together_are_the_same_mlps_one_by_one():
    torch.manual_seed(0)
    experts = Experts(3, (6, 8, 5))
    for expert, found_BH in enumerate(experts(X_BK).unbind(1)):
        first = slice(8 * expert, 8 * expert + 8)
        hidden_BH = torch.relu(X_BK @ experts.first.weight[first].T + experts.first.bias[first])
        expected_BH = torch.relu(hidden_BH @ experts.weights[0][expert] + experts.biases[0][expert])
        torch.testing.assert_close(found_BH, expected_BH)


def test_a_task_hears_its_best_experts_by_their_shares():
    torch.manual_seed(0)
    arch = OverArch(EXPERTS, 6, 3)
    outputs = arch(X_BK)
    hidden_BEH = arch.bottom(X_BK)
    asked_BTE = arch.gate(X_BK).view(12, 3, 4).softmax(2)
    for row in range(12):
        for task in range(3):
            best = asked_BTE[row, task].topk(2)
            shares = best.values / best.values.sum()
            heard_H = shares @ hidden_BEH[row, best.indices]
            expected = heard_H @ arch.head.weight[task] + arch.head.bias[task]
            torch.testing.assert_close(outputs["logits_BT"][row, task], expected)
            assert outputs["gates_BTE"][row, task].nonzero().squeeze(1).tolist() == sorted(best.indices.tolist())


def test_the_balance_loss_is_least_where_all_experts_are_asked_as_often():
    arch = OverArch(Config(layers=(8,), experts=4, top=1, balance=1.0), 6, 1)

    def loss(chosen: list[int]) -> float:
        gates_BTE = torch.eye(4)[chosen].unsqueeze(1)
        asked_BTE = 0.9 * gates_BTE + 0.025
        return arch.balance_loss({"gates_BTE": gates_BTE, "asked_BTE": asked_BTE}, share(len(chosen))).item()

    assert loss([0, 1, 2, 3]) == pytest.approx(1.0)
    assert loss([0, 0, 1, 2]) > 1.0
    assert loss([0, 0, 0, 0]) == pytest.approx(4 * 0.925)


def test_a_row_of_weight_0_is_asked_nothing():
    arch = OverArch(EXPERTS, 6, 2)
    whole = arch.balance_loss(arch(X_BK), share(12))
    padded = torch.cat([X_BK, X_BK[:1]])
    weights = torch.cat([torch.ones(12), torch.zeros(1)])
    torch.testing.assert_close(arch.balance_loss(arch(padded), share(12, weights)), whole)


def test_more_experts_than_there_are_cannot_speak():
    with pytest.raises(ValidationError, match=r"over.top = 3 of over.experts = 2 cannot speak; lower top"):
        Config(experts=2, top=3)


def test_a_planted_speciality_is_found():
    rng = np.random.default_rng(0)
    schema = Schema(
        features=(
            FeatureSpec(name="hour", kind="sparse", source="request.timestamp", transform="calendar", rows=4),
            FeatureSpec(name="age", kind="dense", source="user.age", transform="numeric"),
        ),
        label="click",
        items=1,
        users=1,
    )
    hour, age = rng.integers(0, 4, 3000), rng.normal(size=3000).astype(np.float32)
    columns = Columns(schema, 3000, [hour], [None], [None], age[:, None], None, None)
    # The first expert speaks at hour 2 alone, the second at any other, the third for the old.
    third = (age > np.quantile(age, 2 / 3)).astype(float)
    gates_BE = np.stack([(hour == 2) * (1 - third), (hour != 2) * (1 - third), third], axis=1)
    first, second, last = specialities(columns, gates_BE[:, None])["click"]
    assert first["more"][0] == {"feature": "hour", "value": "2", "times": pytest.approx(4, rel=0.1)}
    assert {one["value"] for one in second["more"]} <= {"0", "1", "3", "low", "middle"}
    assert last["more"][0] == {"feature": "age", "value": "high", "times": pytest.approx(3, rel=0.01)}
    assert first["share"] + second["share"] + last["share"] == pytest.approx(1)
