"""Losses, in float32, as sums over a rank's part, divided by the global count: their sum over ranks is the global mean.

N steps, C candidates, D width, B examples.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy


def full_softmax(user_ND: Tensor, candidates_CD: Tensor, target_N: Tensor, count: int) -> Tensor:
    """Cross entropy of each step's next item among all candidates, which are the whole catalogue."""
    return cross_entropy((user_ND @ candidates_CD.T).float(), target_N, reduction="sum") / count


def sampled_softmax(
    user_ND: Tensor, candidates_CD: Tensor, target_N: Tensor, count: int, negatives: int, item_C: Tensor, items: int
) -> Tensor:
    """Cross entropy of the next item among itself and shared uniform negatives, the last `negatives` candidates.

    The negatives' scores are corrected by the log of their expected count (logQ: Bengio & Senécal, 2008), so that the
    loss estimates the full softmax; a negative that is the step's own target is left out.

    Args:
        user_ND: users after each step.
        candidates_CD: vectors of the targets and, behind them, of the negatives.
        target_N: place of each step's target among the candidates.
        count: steps of the global batch.
        negatives: how many of the candidates are negatives.
        item_C: item index of each candidate.
        items: size of the catalogue they were drawn from.
    """
    positive_N = (user_ND * candidates_CD[target_N]).sum(1)
    negative_NM = user_ND @ candidates_CD[-negatives:].T - math.log(negatives / items)
    hit_NM = item_C[-negatives:] == item_C[target_N].unsqueeze(1)
    logits = torch.cat([positive_N.unsqueeze(1), negative_NM.masked_fill(hit_NM, -math.inf)], dim=1)
    return cross_entropy(logits.float(), torch.zeros_like(target_N), reduction="sum") / count


def log_loss(logits_B: Tensor, label_B: Tensor, count: int, weight_B: Tensor | None = None) -> Tensor:
    """Binary cross entropy in nats; `weight_B` None: all 1."""
    return binary_cross_entropy_with_logits(logits_B.float(), label_B, weight_B, reduction="sum") / count
