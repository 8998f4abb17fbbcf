"""Losses, in float32, as sums over a rank's part, divided by the global count: their sum over ranks is the global mean.

N steps, C candidates, S of them sampled, D width, M links of steps and candidates, B examples.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from embeddings.batch import Batch

CHUNK = 256
"""Steps whose scores are held at a time."""


@dataclass(frozen=True)
class Links:
    """What is added to the scores of some pairs of a step and a candidate: sparse rows."""

    offsets_N1: Tensor
    """int64 [N + 1]"""
    candidate_M: Tensor
    """int64 [M], none twice in a row."""
    logit_M: Tensor
    """float32 [M]"""

    @classmethod
    def of(cls, batch: Batch, outputs: dict[str, Tensor]) -> "Links | None":
        """Those of a batch, as its model counts them; None where it has none."""
        if batch.sequences is None or "link_M" not in outputs:
            return None
        return cls(batch.sequences["link_offsets"], batch.sequences["link_candidates"], outputs["link_M"])

    def of_steps(self, steps: slice) -> tuple[slice, Tensor]:
        """The links of some steps, and the step of each, counted from the first of these: int64."""
        edges = self.offsets_N1[steps.start : steps.stop + 1]
        row_M = torch.arange(len(edges) - 1, device=edges.device).repeat_interleave(edges.diff())
        return slice(int(edges[0]), int(edges[-1])), row_M

    def add_to(self, score_NC: Tensor) -> None:
        """Add to the scores of all steps, in place."""
        _, row_M = self.of_steps(slice(0, len(score_NC)))
        places = row_M * score_NC.shape[1] + self.candidate_M
        score_NC.view(-1).index_add_(0, places, self.logit_M.to(score_NC.dtype))


def softmax(
    user_ND: Tensor,
    candidates_CD: Tensor,
    target_N: Tensor,
    count: int,
    bias_S: Tensor | None = None,
    links: Links | None = None,
) -> Tensor:
    """Cross entropy of each step's next item among candidates, and, where there are links, that of scores with them.

    Where candidates are the whole catalogue this is the full softmax. Where they are sampled, the first S of them are
    the sample, with which every step is compared, and the others are targets alone. `bias_S` is minus the log of the
    chance that a candidate is in the sample (logQ: Bengio & Senécal, 2008), so that the loss estimates the full
    softmax; the target, which is always there, is not corrected.

    Links learn beside the vectors, what these leave unsaid: the second cross entropy is added, and its gradient goes to
    the links alone. Learned through one loss with them, vectors would leave to links what they could learn themselves.

    Scores are computed for CHUNK steps at a time, and with them their gradients, so that N × C numbers are never held;
    links change few of a step's scores, so that their loss follows from the chances without them, in time M.
    Under autocast scores and products are of its type; the loss and what is added up over chunks are float32.

    Args:
        user_ND: users after each step.
        candidates_CD: vectors of distinct candidates.
        target_N: place of each step's target among them.
        count: steps of the global batch.
        bias_S: float32; −inf leaves a candidate out where it is not the target. None: every step is compared with all
            candidates, and none is corrected.
        links: what a graph adds.
    """
    device = user_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    logit_M = None if links is None else links.logit_M
    return _Softmax.apply(user_ND.float(), candidates_CD.float(), target_N, bias_S, dtype, links, logit_M) / count  # pyright: ignore[reportReturnType, reportOptionalOperand, reportOperatorIssue]


class _Softmax(torch.autograd.Function):
    """The sum of `softmax`, with its gradients computed on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        user_ND: Tensor,
        candidates_CD: Tensor,
        target_N: Tensor,
        bias_S: Tensor | None,
        dtype: torch.dtype,
        links: Links | None,
        logit_M: Tensor | None,
    ) -> Tensor:
        shared = len(candidates_CD) if bias_S is None else len(bias_S)
        # Where some targets are compared with their own steps alone, every target has a column of its own: the last.
        apart = shared < len(candidates_CD)
        low_ND, low_CD = user_ND.to(dtype), candidates_CD.to(dtype)
        low_SD = low_CD[:shared]
        user_grad, candidates_grad = torch.empty_like(user_ND), torch.zeros_like(candidates_CD)
        logit_grad = None if logit_M is None else torch.zeros_like(logit_M)
        loss = user_ND.new_zeros(())
        # One buffer for all chunks: its pages are fetched once.
        score_KW = low_ND.new_empty(min(CHUNK, len(user_ND)), shared + apart)
        for start in range(0, len(user_ND), CHUNK):
            part = slice(start, min(start + CHUNK, len(user_ND)))
            target_P, user_PD = target_N[part], low_ND[part]
            score_PW = score_KW[: len(target_P)]
            score_PS = score_PW[:, :shared]
            torch.mm(user_PD, low_SD.T, out=score_PS)
            at_P1 = target_P.unsqueeze(1)
            if apart:
                score_PW[:, shared] = (user_PD * low_CD[target_P]).sum(1)
                at_P1 = torch.full_like(at_P1, shared)
            if bias_S is not None:
                own_P1 = score_PW.gather(1, at_P1)
                score_PS.add_(bias_S.to(dtype))
                score_PW.scatter_(1, at_P1, own_P1)
            if apart:
                twice = (target_P < shared).nonzero().squeeze(1)
                score_PW[twice, target_P[twice]] = -torch.inf
            chance_PW = torch.softmax(score_PW, 1, out=score_PW)
            if links is not None and logit_M is not None and logit_grad is not None:
                mine, row_M, column_M = _link_places(links, part, target_P, shared, apart=apart)
                more, logit_grad[mine] = _linked(chance_PW, at_P1, row_M, column_M, logit_M[mine])
                loss += more
            own_P1 = chance_PW.gather(1, at_P1).float()
            chance_PW.scatter_(1, at_P1, 0.0)
            # 1 − p, whose digits bf16 would have lost where p is near 1; each row of the gradient sums to 0.
            rest_P1 = chance_PW.sum(1, keepdim=True, dtype=torch.float32)
            sure_P1 = -torch.log1p(-rest_P1.clamp(max=0.5))
            unsure_P1 = -own_P1.clamp(min=_TINY).log()
            # With links this loss counts twice: theirs is given as its difference.
            own_loss = torch.where(rest_P1 < 0.5, sure_P1, unsure_P1).sum()
            loss += own_loss if logit_grad is None else 2 * own_loss
            chance_PW.scatter_(1, at_P1, -rest_P1.to(dtype))
            chance_PS = chance_PW[:, :shared]
            user_grad[part] = chance_PS @ low_SD
            candidates_grad[:shared] += chance_PS.T @ user_PD
            if apart:
                user_grad[part] -= rest_P1 * candidates_CD[target_P]
                candidates_grad.index_add_(0, target_P, -rest_P1 * user_ND[part])
        ctx.save_for_backward(user_grad, candidates_grad, logit_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        user_grad, candidates_grad, logit_grad = ctx.saved_tensors
        of_links = None if logit_grad is None else logit_grad * grad
        return user_grad * grad, candidates_grad * grad, None, None, None, None, of_links


def _linked(
    chance_PW: Tensor, at_P1: Tensor, row_M: Tensor, column_M: Tensor, logit_M: Tensor
) -> tuple[Tensor, Tensor]:
    """By how much links raise the sum of the losses of some steps, and the gradient with respect to their logits.

    With p the chances without links and l their logits, the chances are p·exp(l) / Z, Z = 1 + Σ p·(exp(l) − 1); all is
    divided by the largest exp(l) of the row.

    Args:
        chance_PW: p.
        at_P1: column of each step's target.
        row_M: step of each link.
        column_M: its column.
        logit_M: l; float32.
    """
    chance_M = chance_PW[row_M, column_M].float()
    zero_P = logit_M.new_zeros(len(chance_PW))
    most_P = zero_P.scatter_reduce(0, row_M, logit_M, "amax")
    raised_M = chance_M * torch.exp(logit_M - most_P[row_M])
    unlinked_P = (1 - zero_P.index_add(0, row_M, chance_M)).clamp(min=0)
    sum_P = (unlinked_P * torch.exp(-most_P)).index_add(0, row_M, raised_M).clamp(min=_TINY)
    own_M = column_M == at_P1.squeeze(1)[row_M]
    loss = (sum_P.log() + most_P).sum() - (logit_M * own_M).sum()
    return loss, raised_M / sum_P[row_M] - own_M.float()


def _link_places(
    links: Links, part: slice, target_P: Tensor, shared: int, *, apart: bool
) -> tuple[slice | Tensor, Tensor, Tensor]:
    """Which links add to the scores of some steps, and the row and column of each among these; int64."""
    mine, row_M = links.of_steps(part)
    candidate_M = links.candidate_M[mine]
    if not apart:
        return mine, row_M, candidate_M
    own_M = candidate_M == target_P[row_M]
    # Of a candidate that is a target alone, only the step whose target it is hears.
    kept = ((candidate_M < shared) | own_M).nonzero().squeeze(1)
    return mine.start + kept, row_M[kept], torch.where(own_M, shared, candidate_M)[kept]


_TINY = torch.finfo(torch.float32).tiny
"""A chance that has underflowed is taken for this, so that its logarithm is a number."""


def binary(user_ND: Tensor, candidates_CD: Tensor, target_N: Tensor, negative_N: Tensor, count: int) -> Tensor:
    """Log-loss of each step's next item and of one other (SASRec: Kang & McAuley, ICDM 2018).

    Args:
        user_ND: users after each step.
        candidates_CD: vectors of candidates.
        target_N: place of each step's target among them.
        negative_N: place of each step's negative among them.
        count: steps of the global batch.
    """
    positive_N = (user_ND * candidates_CD[target_N]).sum(1).float()
    negative_N = (user_ND * candidates_CD[negative_N]).sum(1).float()
    return -(logsigmoid(positive_N) + logsigmoid(-negative_N)).sum() / count


def listwise(logits_B: Tensor, label_B: Tensor, together: int, count: int, weight_B: Tensor | None) -> Tensor:
    """Cross entropy of each list's right candidate among its candidates (ListNet: Cao et al., ICML 2007): float32.

    Args:
        logits_B: predictions; a list's candidates follow each other.
        label_B: 1 for the right candidate, 0 for the others; a list without one teaches nothing.
        together: candidates of a list.
        count: lists of the global batch.
        weight_B: of the candidates, the same in a list; None: all 1.
    """
    chance_LR = torch.log_softmax(logits_B.float().view(-1, together), dim=1)
    right_LR = (label_B if weight_B is None else label_B * weight_B).view(-1, together)
    return -(chance_LR * right_LR).sum() / count


def task_losses(logits_BT: Tensor, outcome_BT: Tensor, binary_T: Tensor, count: int, weight_B: Tensor | None) -> Tensor:
    """Binary cross entropy in nats of tasks that are yes or no, half the squared errors of the others: float32 [T].

    An outcome that is not known, NaN, adds nothing; a task's mean is over all rows, so that one that is seldom known
    counts for less.

    Args:
        logits_BT: predictions.
        outcome_BT: what happened; 0 or 1, or a standardised number.
        binary_T: bool; which are yes or no.
        count: rows of the global batch.
        weight_B: of the rows; None: all 1.
    """
    logits_BT = logits_BT.float()
    known_BT = ~outcome_BT.isnan()
    outcome_BT = outcome_BT.nan_to_num()
    entropy_BT = binary_cross_entropy_with_logits(logits_BT, outcome_BT, reduction="none")
    loss_BT = torch.where(binary_T, entropy_BT, (logits_BT - outcome_BT) ** 2 / 2) * known_BT
    if weight_B is not None:
        loss_BT = loss_BT * weight_B.unsqueeze(1)
    return loss_BT.sum(0) / count
