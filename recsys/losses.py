"""Losses, in float32, as sums over a rank's part, divided by the global count: their sum over ranks is the global mean.

N steps, C candidates, D width, M links of steps and candidates, B examples.
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

    def places(self, rows: slice, width: int) -> tuple[slice, Tensor]:
        """The links of some steps, and their places in scores of that width, end to end: int64."""
        edges = self.offsets_N1[rows.start : rows.stop + 1]
        links = slice(int(edges[0]), int(edges[-1]))
        row = torch.arange(len(edges) - 1, device=edges.device).repeat_interleave(edges.diff())
        return links, row * width + self.candidate_M[links]

    def add_to(self, score_NC: Tensor) -> None:
        """Add to the scores of all steps, in place."""
        _, places = self.places(slice(0, len(score_NC)), score_NC.shape[1])
        score_NC.view(-1).index_add_(0, places, self.logit_M.to(score_NC.dtype))


def softmax(
    user_ND: Tensor,
    candidates_CD: Tensor,
    target_N: Tensor,
    count: int,
    bias_C: Tensor | None = None,
    links: Links | None = None,
) -> Tensor:
    """Cross entropy of each step's next item among all candidates.

    Where these are the whole catalogue this is the full softmax. Where they are sampled, `bias_C` is minus the log of
    the chance that a candidate is in the sample (logQ: Bengio & Senécal, 2008), so that the loss estimates the full
    softmax; the target, which is always there, is not corrected.

    Scores are computed for CHUNK steps at a time, and with them their gradients, so that N × C numbers are never held.
    Under autocast scores and products are of its type; the loss and what is added up over chunks are float32.

    Args:
        user_ND: users after each step.
        candidates_CD: vectors of distinct candidates.
        target_N: place of each step's target among them.
        count: steps of the global batch.
        bias_C: float32; −inf leaves a candidate out where it is not the target.
        links: what a graph adds.
    """
    device = user_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    logit_M = None if links is None else links.logit_M
    return _Softmax.apply(user_ND.float(), candidates_CD.float(), target_N, bias_C, dtype, links, logit_M) / count  # pyright: ignore[reportReturnType, reportOptionalOperand, reportOperatorIssue]


class _Softmax(torch.autograd.Function):
    """The sum of `softmax`, with its gradients computed on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        user_ND: Tensor,
        candidates_CD: Tensor,
        target_N: Tensor,
        bias_C: Tensor | None,
        dtype: torch.dtype,
        links: Links | None,
        logit_M: Tensor | None,
    ) -> Tensor:
        low_ND, low_CD = user_ND.to(dtype), candidates_CD.to(dtype)
        user_grad = torch.empty_like(user_ND)
        candidates_grad = torch.zeros_like(candidates_CD)
        logit_grad = None if logit_M is None else torch.empty_like(logit_M)
        loss = user_ND.new_zeros(())
        for start in range(0, len(user_ND), CHUNK):
            part = slice(start, min(start + CHUNK, len(user_ND)))
            target_P1 = target_N[part].unsqueeze(1)
            score_PC = low_ND[part] @ low_CD.T
            if bias_C is not None:
                own_P1 = score_PC.gather(1, target_P1)
                score_PC.add_(bias_C.to(dtype)).scatter_(1, target_P1, own_P1)
            mine, places = slice(0), target_N[:0]
            if links is not None and logit_M is not None:
                mine, places = links.places(part, score_PC.shape[1])
                score_PC.view(-1).index_add_(0, places, logit_M[mine].to(dtype))
            chance_PC = torch.softmax(score_PC, 1)
            own_P1 = chance_PC.gather(1, target_P1).float()
            chance_PC.scatter_(1, target_P1, 0.0)
            # 1 − p, whose digits bf16 would have lost where p is near 1; each row of the gradient sums to 0.
            rest_P1 = chance_PC.sum(1, keepdim=True, dtype=torch.float32)
            sure_P1 = -torch.log1p(-rest_P1.clamp(max=0.5))
            unsure_P1 = -own_P1.clamp(min=torch.finfo(torch.float32).tiny).log()
            loss += torch.where(rest_P1 < 0.5, sure_P1, unsure_P1).sum()
            chance_PC.scatter_(1, target_P1, -rest_P1.to(dtype))
            user_grad[part] = (chance_PC @ low_CD).float()
            candidates_grad += (chance_PC.T @ low_ND[part]).float()
            if logit_grad is not None:
                logit_grad[mine] = chance_PC.view(-1)[places].float()
        ctx.save_for_backward(user_grad, candidates_grad, logit_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        user_grad, candidates_grad, logit_grad = ctx.saved_tensors
        of_links = None if logit_grad is None else logit_grad * grad
        return user_grad * grad, candidates_grad * grad, None, None, None, None, of_links


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


def log_loss(logits_B: Tensor, label_B: Tensor, count: int, weight_B: Tensor | None = None) -> Tensor:
    """Binary cross entropy in nats; `weight_B` None: all 1."""
    return binary_cross_entropy_with_logits(logits_B.float(), label_B, weight_B, reduction="sum") / count
