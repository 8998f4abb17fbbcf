"""What turns a model into something to train: a module whose forward is (loss, outputs) of a batch."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from embeddings.batch import Batch
from features.settings import Settings
from recsys.losses import Links, binary, log_loss, softmax
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
        loss = softmax(user_ND, candidates_CD, target_N, count, bias_S)
        if links is None:
            return loss
        # Links learn what the model leaves unsaid. Trained together, it would leave to them what it could learn itself.
        return loss + softmax(user_ND.detach(), candidates_CD.detach(), target_N, count, bias_S, links)


class RankingTask(nn.Module):
    """Predict the label of every example."""

    def __init__(self, model: nn.Module, label: str) -> None:
        super().__init__()
        self.model = model
        self.label = label

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The rank's share of the global mean loss, and the model's outputs."""
        outputs = self.model(batch)
        assert batch.share is not None
        assert batch.labels is not None
        return log_loss(outputs["logits_B"], batch.labels[self.label], batch.share.rows, batch.weights), outputs
