"""What turns a model into something to train: a module whose forward is (loss, outputs) of a batch."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor, nn

from embeddings.batch import Batch
from features.errors import InputError
from features.schema import Schema
from features.settings import Settings
from recsys.losses import Links, binary, listwise, softmax, task_losses
from recsys.sequences import Candidates


class RetrievalLoss(Settings):
    """The section [retriever.loss]."""

    kind: Literal["full", "sampled", "binary"] = "full"
    """Softmax over the whole catalogue; over a sample of it, with logQ correction; or log-loss of the next item and one
    other, as SASRec was published."""
    negatives: int = Field(default=1024, gt=0)
    """Items sampled for a batch, all as likely, if sampled."""
    in_batch: bool = False
    """Whether the next items of other steps are negatives too, if sampled (mixed negatives: Yang et al., WWW 2020).

    Their correction is that of items that come by chance; those of a step's own window come with it in any case, and
    are taken for a little more likely than they should be, as usual."""

    @model_validator(mode="after")
    def _check(self) -> "RetrievalLoss":
        if self.in_batch and self.kind != "sampled":
            raise ValueError(f"in_batch = true is of the sampled loss, and kind = {self.kind!r}; remove one")
        return self

    @property
    def candidates(self) -> Candidates:
        """What a reader puts before every step."""
        uniform = self.negatives if self.kind == "sampled" else None
        return Candidates(uniform, self.in_batch, one_each=self.kind == "binary")


class RetrievalTask(nn.Module):
    """Predict the next item after every step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The rank's share of the global mean loss, 0 where the batch has no targets, and the model's outputs.

        A model with a method `auxiliary(outputs, batch)` adds what that returns, a rank's share of a global mean too.
        """
        outputs = self.model(batch)
        if batch.labels is None:
            return torch.zeros(()), outputs
        loss = self._loss(outputs, batch)
        if hasattr(self.model, "auxiliary"):
            loss = loss + self.model.auxiliary(outputs, batch)  # pyright: ignore[reportCallIssue]
        return loss, outputs

    @staticmethod
    def _loss(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        assert batch.share is not None
        assert batch.labels is not None
        assert batch.sequences is not None
        user_ND, candidates_CD, target_N = outputs["user_ND"], outputs["candidates_CD"], batch.labels["next_item"]
        sequences, count = batch.sequences, batch.share.targets
        if "negatives" in sequences:
            return binary(user_ND, candidates_CD, target_N, sequences["negatives"], count)
        bias_S, links = sequences.get("bias"), Links.of(batch, outputs)
        return softmax(user_ND, candidates_CD, target_N, count, bias_S, links)


class RankingLoss(Settings):
    """The section [ranker.loss]."""

    kind: Literal["pointwise", "listwise"] = "pointwise"
    """Every example by itself; or, of candidates that were retrieved together, which of them comes next."""
    weights: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """Task → weight of its loss, 1 if not given."""
    learned: bool = False
    """Whether the weights are learned too, as the noise of each task (Kendall et al., CVPR 2018)."""

    def weights_of(self, tasks: Sequence[str]) -> list[float]:
        """The weight of each task.

        Raises:
            InputError: a weight is of no task.
        """
        for name in self.weights:
            if name not in tasks:
                raise InputError(f"ranker.loss.weights.{name} names no task; known: {', '.join(tasks)}")
        return [self.weights.get(name, 1.0) for name in tasks]


class RankingTask(nn.Module):
    """Predict every outcome of every example."""

    def __init__(self, model: nn.Module, schema: Schema, config: RankingLoss) -> None:
        """Of a model for that schema.

        Raises:
            InputError: a weight is of no task.
        """
        super().__init__()
        self.model = model
        weights = torch.tensor(config.weights_of(schema.outcomes), dtype=torch.float32)
        self.register_buffer("weight_T", weights, persistent=False)
        self.register_buffer("binary_T", torch.tensor(schema.binary), persistent=False)
        self.listwise = config.kind == "listwise"
        self.noise_T = nn.Parameter(torch.zeros(len(schema.outcomes))) if config.learned else None
        """The logarithm of each task's variance."""

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The rank's share of the global mean loss, and the model's outputs."""
        outputs = self.model(batch)
        assert batch.share is not None
        assert batch.labels is not None
        if self.listwise:
            right_B, lists = batch.labels["outcomes"][:, 0], batch.share.rows // batch.together
            loss = listwise(outputs["logits_BT"][:, 0], right_B, batch.together, lists, batch.weights)
            return loss + self.model.auxiliary(outputs, batch), outputs  # pyright: ignore[reportCallIssue]
        loss_T = task_losses(
            outputs["logits_BT"],
            batch.labels["outcomes"],
            self.get_buffer("binary_T"),
            batch.share.rows,
            batch.weights,
        )
        if self.noise_T is not None:
            known_BT = ~batch.labels["outcomes"].isnan()
            known_T = (known_BT if batch.weights is None else known_BT * batch.weights.unsqueeze(1)).sum(0)
            loss_T = loss_T * torch.exp(-self.noise_T) + self.noise_T / 2 * known_T / batch.share.rows
        loss = (loss_T * self.get_buffer("weight_T")).sum()
        return loss + self.model.auxiliary(outputs, batch), outputs  # pyright: ignore[reportCallIssue]
