"""The last part of a ranker: what is known of an example → the tasks' predictions, by one bottom or by sparse experts.

Experts are MLPs that all tasks share; each task has a gate of its own, which lets the few speak that it rates highest
for an example: multi-gate mixtures of experts (MMoE: Ma et al., KDD 2018) with the sparse gates of Shazeer et al. (ICLR
2017). A loss keeps the gates from sending everything to the same experts (Switch: Fedus et al., JMLR 2022). The gates
are part of the output, so that a person can see who spoke.

On these widths every expert is computed for every example: several tasks rarely leave one out, and one product of all
of them is faster than many of some.

B examples, K numbers of each, T tasks, E experts, H hidden width.
"""

from itertools import pairwise

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from embeddings.batch import Batch
from features.settings import Settings
from recsys import distributed
from recsys.modules.mlp import mlp


class Config(Settings):
    """The section [ranker.model.over]."""

    layers: tuple[PositiveInt, ...] = (128, 64)
    """Hidden widths of the bottom, or of each expert; none: the tasks' heads are linear in what is known."""
    experts: int = Field(default=0, ge=0)
    """How many; 0: one bottom for all tasks."""
    top: int = Field(default=2, gt=0)
    """How many of them speak for an example and a task."""
    balance: float = Field(default=0.01, ge=0)
    """Weight of the loss that is least where all experts are asked as often."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.experts and self.top > self.experts:
            raise ValueError(f"over.top = {self.top} of over.experts = {self.experts} cannot speak; lower top")
        if self.experts and not self.layers:
            raise ValueError(f"over.experts = {self.experts} have no layers; set over.layers")
        return self


class OverArch(nn.Module):
    """x_BK → `logits_BT`, and where there are experts `gates_BTE`, which sum to 1 over E, all but `top` of them 0."""

    def __init__(self, config: Config, width: int, tasks: int) -> None:
        """`width`: K; `tasks`: T."""
        super().__init__()
        self.config, self.tasks = config, tasks
        if config.experts:
            self.bottom: nn.Module = Experts(config.experts, (width, *config.layers))
            self.gate: nn.Module | None = nn.Linear(width, tasks * config.experts, bias=False)
        else:
            self.bottom, self.gate = mlp((width, *config.layers), last_linear=False), None
        self.head = nn.Linear((width, *config.layers)[-1], tasks)

    def forward(self, x_BK: Tensor) -> dict[str, Tensor]:
        """The outputs of a ranker; `asked_BTE` are the gates before all but a few of them were closed."""
        if self.gate is None:
            return {"logits_BT": self.head(self.bottom(x_BK))}
        asked_BTE = self.gate(x_BK).unflatten(1, (self.tasks, -1)).float().softmax(2)
        top_BTk, place_BTk = asked_BTE.topk(self.config.top, dim=2)
        shares_BTk = top_BTk / top_BTk.sum(2, keepdim=True)
        gates_BTE = torch.zeros_like(asked_BTE).scatter(2, place_BTk, shares_BTk)
        hidden_BEH = self.bottom(x_BK)
        hidden_BTH = torch.bmm(gates_BTE.to(hidden_BEH.dtype), hidden_BEH)
        logits_BT = (hidden_BTH * self.head.weight).sum(2) + self.head.bias
        return {"logits_BT": logits_BT, "gates_BTE": gates_BTE, "asked_BTE": asked_BTE}

    def balance_loss(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """This rank's share of the balancing loss: 1 at best, times its weight; 0 where there are no experts.

        E Σ fₑ pₑ of each task, and the mean over tasks: fₑ, the share of what expert e was given, of all ranks and as a
        constant; pₑ, the mean of how it was rated.
        """
        if self.gate is None:
            return outputs["logits_BT"].new_zeros(())
        assert batch.share is not None
        gates_BTE, asked_BTE = outputs["gates_BTE"], outputs["asked_BTE"]
        if batch.weights is not None:
            weight_B11 = batch.weights[:, None, None]
            gates_BTE, asked_BTE = gates_BTE * weight_B11, asked_BTE * weight_B11
        given_TE = (gates_BTE.detach() > 0).float().sum(0)
        given_TE = distributed.total(given_TE) / (batch.share.rows * self.config.top)
        rated_TE = asked_BTE.sum(0) / batch.share.rows
        return self.config.balance * self.config.experts * (given_TE * rated_TE).sum() / self.tasks


class Experts(nn.Module):
    """MLPs of the same widths, computed together: x_BK → [B, E, H]."""

    def __init__(self, experts: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.experts = experts
        self.first = nn.Linear(widths[0], experts * widths[1])
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for before, after in pairwise(widths[1:]):
            bound = before**-0.5
            self.weights.append(nn.Parameter(torch.empty(experts, before, after).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(experts, 1, after).uniform_(-bound, bound)))

    def forward(self, x_BK: Tensor) -> Tensor:
        """[B, K] → [B, E, H]."""
        hidden_EBH = torch.relu(self.first(x_BK)).unflatten(1, (self.experts, -1)).transpose(0, 1)
        for weight_EHH, bias_E1H in zip(self.weights, self.biases, strict=True):
            hidden_EBH = torch.relu(torch.baddbmm(bias_E1H, hidden_EBH, weight_EHH))
        return hidden_EBH.transpose(0, 1)
