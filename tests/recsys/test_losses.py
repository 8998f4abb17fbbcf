"""Losses against torch's own: values, gradients, all that changes a score; estimates against what they estimate."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from embeddings.batch import Batch, Share
from features.labels import FittedTask
from features.schema import Schema
from recsys import losses
from recsys.losses import Links, binary, listwise, softmax, task_losses
from recsys.tasks import RankingLoss, RankingTask

STEPS, ITEMS, WIDTH = 12, 40, 8


@dataclass(frozen=True)
class Vectors:
    """Users after each step, the catalogue, and the place of each target in it."""

    user_ND: Tensor
    item_ID: Tensor
    target_N: Tensor

    def leaves(self) -> tuple[Tensor, Tensor]:
        """Copies of users and catalogue that gather gradients."""
        return self.user_ND.clone().requires_grad_(), self.item_ID.clone().requires_grad_()


@pytest.fixture
def vectors() -> Vectors:
    generator = torch.Generator().manual_seed(0)
    user_ND = torch.randn(STEPS, WIDTH, generator=generator) / WIDTH**0.5
    item_ID = torch.randn(ITEMS, WIDTH, generator=generator)
    return Vectors(user_ND, item_ID, torch.randint(0, ITEMS, (STEPS,), generator=generator))


def some_links() -> tuple[Tensor, Tensor, Tensor]:
    """(offsets, candidates, logits) of rows of 0 to 12 links; half of the rows have one to each of the first items."""
    rng = np.random.default_rng(3)
    rows = [rng.permutation(ITEMS)[:count] for count in rng.integers(0, 7, STEPS)]
    rows[::2] = [np.union1d(row, np.arange(5)) for row in rows[::2]]
    offsets = torch.from_numpy(np.cumsum([0, *(len(row) for row in rows)]))
    candidate_M = torch.from_numpy(np.concatenate(rows))
    return offsets, candidate_M, torch.rand(len(candidate_M), generator=torch.Generator().manual_seed(4)) * 3


@pytest.fixture(params=[1, 5, 256], ids=lambda chunk: f"chunks of {chunk}")
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(losses, "CHUNK", request.param)
    return request.param


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("linked", [False, True], ids=["", "links"])
@pytest.mark.parametrize("sampled", [None, ITEMS, ITEMS // 3, 2], ids=["full", "bias", "a third", "two"])
def test_softmax_and_its_gradients_are_those_of_cross_entropy(vectors: Vectors, sampled: int | None, linked: bool):
    """Of a sample, with the candidates behind it left out of all scores but those of steps whose targets they are; with
    links, of their own loss beside that of the vectors.
    """
    bias_C = None
    if sampled is not None:
        bias_C = torch.linspace(-3, 1, ITEMS)
        bias_C[::7] = -torch.inf
        bias_C[sampled:] = -torch.inf
    target_N = vectors.target_N
    found, expected = vectors.leaves(), vectors.leaves()
    score_NC = expected[0] @ expected[1].T
    if bias_C is not None:
        own_NC = torch.zeros_like(score_NC, dtype=torch.bool).scatter_(1, target_N.unsqueeze(1), True)
        score_NC = torch.where(own_NC, score_NC, score_NC + bias_C)
    theirs = cross_entropy(score_NC, target_N)
    links, logits = None, []
    if linked:
        offsets, candidate_M, logit_M = some_links()
        logits = [logit_M.clone().requires_grad_() for _ in range(2)]
        links = Links(offsets, candidate_M, logits[0])
        row_M = torch.arange(STEPS).repeat_interleave(offsets.diff())
        linked_NC = score_NC.detach().index_put((row_M, candidate_M), logits[1], accumulate=True)
        theirs = theirs + cross_entropy(linked_NC, target_N)
    ours = softmax(*found, target_N, STEPS, None if bias_C is None else bias_C[:sampled], links)
    (3 * theirs).backward()
    (3 * ours).backward()
    torch.testing.assert_close(ours, theirs)
    for one, other in zip([*found, *logits[:1]], [*expected, *logits[1:]], strict=True):
        assert one.grad is not None
        assert one.grad.any()
        torch.testing.assert_close(one.grad, other.grad)


def test_links_are_added_to_scores():
    offsets, candidate_M, logit_M = some_links()
    score_NC = torch.ones(STEPS, ITEMS)
    Links(offsets, candidate_M, logit_M).add_to(score_NC)
    row_M = torch.arange(STEPS).repeat_interleave(offsets.diff())
    torch.testing.assert_close(score_NC[row_M, candidate_M], 1 + logit_M)
    assert (score_NC == 1).sum() == score_NC.numel() - len(logit_M)


def sampled(vectors: Vectors, drawn: np.ndarray) -> Tensor:
    """The softmax over targets and `drawn` (places in the catalogue), corrected as `SequenceReader` does."""
    target_N = vectors.target_N.numpy()
    sample = np.unique(drawn)
    candidates = np.concatenate([sample, np.setdiff1d(target_N, sample)])
    bias_S = torch.full((len(sample),), -math.log(-math.expm1(len(drawn) * math.log1p(-1 / ITEMS))))
    places = torch.from_numpy((candidates == target_N[:, None]).argmax(1))
    return softmax(vectors.user_ND, vectors.item_ID[candidates], places, STEPS, bias_S)


def test_a_sample_estimates_the_full_softmax(vectors: Vectors):
    rng = np.random.default_rng(1)
    exact = softmax(vectors.user_ND, vectors.item_ID, vectors.target_N, STEPS).item()

    def mean_and_error(negatives: int, draws: int = 1000) -> tuple[float, float]:
        values = torch.stack([sampled(vectors, rng.integers(0, ITEMS, negatives)) for _ in range(draws)])
        return values.mean().item(), values.std().item() / math.sqrt(draws)

    few, _ = mean_and_error(8)
    mean, error = mean_and_error(150)
    # The sum over candidates is right on average; its log is low by half its relative variance, which a sample that
    # holds nearly all items leaves below a thousandth.
    assert abs(mean - exact) < 4 * error + 1e-3
    assert abs(mean - exact) < abs(few - exact) < 0.2
    whole = sampled(vectors, np.repeat(np.arange(ITEMS), 20)).item()
    assert whole == pytest.approx(exact, rel=1e-6)


def test_sampled_sums_of_chances_are_right_on_average(vectors: Vectors):
    """exp(loss + own score), the sum over candidates, is without bias; the target is always among them."""
    one = Vectors(vectors.user_ND[:1], vectors.item_ID, vectors.target_N[:1])
    own = (one.user_ND @ one.item_ID[one.target_N].T).item()
    rng = np.random.default_rng(2)
    others = [item for item in range(ITEMS) if item != int(one.target_N)]
    exact = (one.user_ND @ one.item_ID[others].T).exp().sum().item()
    target_N = torch.zeros(1, dtype=torch.int64)
    found = []
    for _ in range(4000):
        drawn = np.setdiff1d(rng.integers(0, ITEMS, 16), one.target_N.numpy())
        candidates = np.concatenate([one.target_N.numpy(), drawn])
        bias_C = torch.full((len(candidates),), -math.log(-math.expm1(16 * math.log1p(-1 / ITEMS))))
        loss = softmax(one.user_ND, one.item_ID[candidates], target_N, 1, bias_C).item()
        found.append(math.exp(loss + own) - math.exp(own))
    assert np.mean(found) == pytest.approx(exact, abs=4 * float(np.std(found)) / math.sqrt(len(found)))


def test_a_candidate_that_is_left_out_is_no_ones_mistake(vectors: Vectors):
    bias_C = torch.full((ITEMS,), -torch.inf)
    user_ND, item_ID = vectors.leaves()
    loss = softmax(user_ND, item_ID, vectors.target_N, STEPS, bias_C)
    loss.backward()
    assert loss.item() == 0.0
    assert user_ND.grad is not None
    assert not user_ND.grad.any()


def test_a_binary_loss_of_known_value():
    user_ND = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    candidates_CD = torch.tensor([[math.log(3), 5.0], [0.0, math.log(2)], [-1.0, 0.0]])
    # Odds 3 : 1 for the first target and 1 : 1 for its negative; 4 : 1 and, as it is the same item, 4 : 1.
    loss = binary(user_ND, candidates_CD, torch.tensor([0, 1]), torch.tensor([1, 1]), 2)
    expected = -(math.log(3 / 4) + math.log(1 / 2) + math.log(4 / 5) + math.log(1 / 5)) / 2
    assert loss.item() == pytest.approx(expected)


def test_under_autocast_the_softmax_is_nearly_that_of_fp32(vectors: Vectors):
    exact, near = vectors.leaves(), vectors.leaves()
    expected = softmax(*exact, vectors.target_N, STEPS)
    expected.backward()
    with torch.autocast("cpu", torch.bfloat16):
        # As a model does: its last product is of the lower type, and so is what its gradient comes back as.
        found = softmax(near[0].bfloat16(), near[1], vectors.target_N, STEPS)
    found.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-2)
    for ours, theirs in zip(near, exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert (ours.grad - theirs.grad).norm() < 0.02 * theirs.grad.norm()


@pytest.mark.parametrize("far", [60.0, 1e4], ids=["improbable", "impossible"])
def test_a_target_without_a_chance_has_a_finite_loss(far: float):
    user_ND = torch.tensor([[1.0]], requires_grad=True)
    loss = softmax(user_ND, torch.tensor([[0.0], [far]]), torch.tensor([0]), 1)
    loss.backward()
    assert loss.item() == pytest.approx(min(far, -math.log(torch.finfo(torch.float32).tiny)), rel=1e-5)
    torch.testing.assert_close(user_ND.grad, torch.tensor([[far]]))


def test_parts_sum_to_the_whole(vectors: Vectors):
    user_ND, item_ID, target_N = vectors.user_ND, vectors.item_ID, vectors.target_N
    parts = (slice(0, 5), slice(5, 6), slice(6, 6), slice(6, STEPS))
    negative_N = target_N.flip(0)

    whole = softmax(user_ND, item_ID, target_N, STEPS)
    of_parts = [softmax(user_ND[p], item_ID, target_N[p], STEPS) for p in parts]
    assert torch.stack(of_parts).sum().item() == pytest.approx(whole.item())

    whole = binary(user_ND, item_ID, target_N, negative_N, STEPS)
    of_parts = [binary(user_ND[p], item_ID, target_N[p], negative_N[p], STEPS) for p in parts]
    assert torch.stack(of_parts).sum().item() == pytest.approx(whole.item())

    logits_NT, outcome_NT = user_ND[:, :2], torch.stack([(target_N % 2).float(), user_ND[:, 3]], dim=1)
    whole = task_losses(logits_NT, outcome_NT, YES_OR_NO, STEPS, None)
    of_parts = [task_losses(logits_NT[p], outcome_NT[p], YES_OR_NO, STEPS, None) for p in parts]
    torch.testing.assert_close(torch.stack(of_parts).sum(0), whole)


@pytest.mark.parametrize("logit", [-200.0, 0.0, 200.0])
def test_a_link_of_any_strength_has_a_finite_loss(logit: float):
    """Three candidates of equal scores, and one link, to the target or to another."""
    user_ND, item_ID = torch.ones(2, 1), torch.zeros(3, 1)
    logit_M = torch.full((2,), logit, requires_grad=True)
    links = Links(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), logit_M)
    loss = softmax(user_ND, item_ID, torch.tensor([0, 0]), 1, None, links) - 2 * math.log(3)
    loss.backward()
    expected_M = torch.tensor([[logit, 0.0, 0.0], [0.0, logit, 0.0]], dtype=torch.float64, requires_grad=True)
    expected = cross_entropy(expected_M, torch.tensor([0, 0]), reduction="sum")
    (expected_grad,) = torch.autograd.grad(expected, expected_M)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(logit_M.grad, expected_grad[[0, 1], [0, 1]].float())


def test_a_learned_weight_is_as_sure_of_a_task_that_is_seldom_known():
    schema = Schema(
        features=(),
        label="a",
        tasks=(FittedTask(name="often", source="x"), FittedTask(name="seldom", source="x")),
        items=1,
        users=1,
    )

    class Constant(torch.nn.Module):
        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"logits_BT": torch.zeros(100, 3)}

        def auxiliary(self, outputs: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
            return torch.zeros(())

    outcome_BT = torch.full((100, 3), 0.5)
    outcome_BT[10:, 2] = torch.nan
    task = RankingTask(Constant(), schema, RankingLoss(learned=True))
    share = Share(step=0, rows=100, targets=100, tokens_before=0, tokens=0)
    optimizer = torch.optim.Adam(task.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        task(Batch(labels={"outcomes": outcome_BT}, share=share))[0].backward()
        optimizer.step()
    assert task.noise_T is not None
    # The log of the mean squared error, whatever the number of rows.
    torch.testing.assert_close(task.noise_T[1:].detach(), torch.full((2,), 0.25).log(), atol=0.02, rtol=0)


def test_of_a_list_the_right_candidate_is_learned():
    """Two lists of three; the second does not have what came next, a third weighs nothing."""
    logits_B = torch.tensor([0.3, 2.0, -1.0, 0.0, 0.5, 0.1, 4.0, 1.0, 0.0], requires_grad=True)
    label_B = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    weight_B = torch.tensor([1.0] * 6 + [0.0] * 3)
    loss = listwise(logits_B, label_B, 3, 2, weight_B)
    assert loss.item() == pytest.approx(cross_entropy(logits_B[None, :3], torch.tensor([1])).item() / 2)
    loss.backward()
    assert logits_B.grad is not None
    assert (logits_B.grad != 0).tolist() == [True] * 3 + [False] * 6


YES_OR_NO = torch.tensor([True, False])


def test_each_task_has_the_loss_of_its_kind():
    logits_BT = torch.tensor([[0.3, 2.0], [-1.0, 0.0], [7.0, -1.0]])
    outcome_BT = torch.tensor([[1.0, 1.5], [0.0, -1.0], [0.0, -1.0]])
    expected = torch.stack(
        [
            binary_cross_entropy_with_logits(logits_BT[:, 0], outcome_BT[:, 0]),
            torch.tensor((0.5**2 + 1.0**2) / 2 / 3),
        ]
    )
    torch.testing.assert_close(task_losses(logits_BT, outcome_BT, YES_OR_NO, 3, None), expected)


def test_an_outcome_that_is_not_known_teaches_nothing():
    logits_BT = torch.tensor([[0.3, 2.0], [-1.0, 0.5]], requires_grad=True)
    outcome_BT = torch.tensor([[torch.nan, 1.5], [0.0, torch.nan]])
    task_losses(logits_BT, outcome_BT, YES_OR_NO, 2, None).sum().backward()
    assert logits_BT.grad is not None
    assert (logits_BT.grad != 0).tolist() == [[False, True], [True, False]]
    assert logits_BT.grad.isfinite().all()


def test_a_row_of_weight_0_is_no_row():
    logits_BT, outcome_BT = torch.tensor([[0.3], [-1.0], [7.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    padded = task_losses(logits_BT, outcome_BT, YES_OR_NO[:1], 2, torch.tensor([1.0, 1.0, 0.0]))
    assert padded.item() == pytest.approx(task_losses(logits_BT[:2], outcome_BT[:2], YES_OR_NO[:1], 2, None).item())
