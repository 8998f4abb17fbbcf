import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from recsys.losses import full_softmax, log_loss, sampled_softmax

STEPS, ITEMS, WIDTH = 12, 40, 8


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Users after each step, the catalogue, and the place of each target in it."""
    generator = torch.Generator().manual_seed(0)
    user_ND = torch.randn(STEPS, WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5
    item_ID = torch.randn(ITEMS, WIDTH, generator=generator, dtype=torch.float64)
    return user_ND, item_ID, torch.randint(0, ITEMS, (STEPS,), generator=generator)


def sampled(vectors, drawn: torch.Tensor) -> torch.Tensor:
    """`sampled_softmax` with the negatives `drawn` (places in the catalogue) behind the targets."""
    user_ND, item_ID, target_N = vectors
    candidate_C = torch.cat([target_N, drawn])
    places = torch.arange(STEPS)
    return sampled_softmax(user_ND, item_ID[candidate_C], places, STEPS, len(drawn), candidate_C + 1, ITEMS)


def test_full_softmax_is_cross_entropy(vectors):
    user_ND, item_ID, target_N = vectors
    expected = cross_entropy(user_ND @ item_ID.T, target_N)
    assert full_softmax(user_ND, item_ID, target_N, STEPS) == pytest.approx(expected.item(), rel=1e-12)


def test_every_item_drawn_once_is_the_full_softmax(vectors):
    # log(negatives / items) is 0, and the step's own target, drawn too, must not count twice.
    assert sampled(vectors, torch.arange(ITEMS)).item() == pytest.approx(
        full_softmax(*vectors, STEPS).item(), rel=1e-12
    )


def test_every_item_drawn_k_times_is_corrected_by_log_q(vectors):
    drawn = torch.arange(ITEMS).repeat(7)
    assert sampled(vectors, drawn).item() == pytest.approx(full_softmax(*vectors, STEPS).item(), rel=1e-12)


def test_uniform_negatives_estimate_the_full_softmax(vectors):
    generator = torch.Generator().manual_seed(1)
    exact = full_softmax(*vectors, STEPS).item()

    def mean_and_error(negatives: int, draws: int = 400) -> tuple[float, float]:
        values = torch.stack(
            [sampled(vectors, torch.randint(0, ITEMS, (negatives,), generator=generator)) for _ in range(draws)]
        )
        return values.mean().item(), values.std().item() / math.sqrt(draws)

    few, _ = mean_and_error(8)
    mean, error = mean_and_error(2048)
    # log is concave, so the estimate is low by O(1 / negatives); at 2048 what is left is the error of the mean.
    assert abs(mean - exact) < 4 * error + 1e-3
    assert abs(mean - exact) < abs(few - exact)


def test_a_negative_that_is_the_target_is_left_out(vectors):
    _, _, target_N = vectors
    only_hits = sampled((*vectors[:2], target_N[:1].repeat(STEPS)), target_N[:1].repeat(5))
    assert only_hits.item() == 0.0  # nothing is left to be mistaken for


def test_parts_sum_to_the_whole(vectors):
    user_ND, item_ID, target_N = vectors
    parts = (slice(0, 5), slice(5, 6), slice(6, STEPS))
    whole = full_softmax(user_ND, item_ID, target_N, STEPS)
    assert sum(full_softmax(user_ND[p], item_ID, target_N[p], STEPS) for p in parts) == pytest.approx(whole.item())

    drawn = torch.arange(0, ITEMS, 2)
    item_C = torch.cat([target_N, drawn])
    arguments = (STEPS, len(drawn), item_C + 1, ITEMS)
    places = torch.arange(STEPS)
    whole = sampled_softmax(user_ND, item_ID[item_C], places, *arguments)
    of_parts = [sampled_softmax(user_ND[p], item_ID[item_C], places[p], *arguments) for p in parts]
    assert sum(of_parts).item() == pytest.approx(whole.item())  # pyright: ignore[reportAttributeAccessIssue]

    logits_N, label_N = user_ND[:, 0], (target_N % 2).double()
    whole = binary_cross_entropy_with_logits(logits_N, label_N)
    assert sum(log_loss(logits_N[p], label_N[p], STEPS) for p in parts) == pytest.approx(whole.item())


def test_a_row_of_weight_0_is_no_row():
    logits_B, label_B = torch.tensor([0.3, -1.0, 7.0]), torch.tensor([1.0, 0.0, 0.0])
    padded = log_loss(logits_B, label_B, 2, torch.tensor([1.0, 1.0, 0.0]))
    assert padded.item() == pytest.approx(log_loss(logits_B[:2], label_B[:2], 2).item())
