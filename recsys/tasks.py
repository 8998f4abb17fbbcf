"""What turns a model into something to train: a module whose forward is (loss, outputs) of a batch."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from embeddings.batch import Batch
from features.schema import Schema
from features.settings import Settings
from recsys.losses import full_softmax, log_loss, sampled_softmax


class RetrievalLoss(Settings):
    """The section [retriever.loss]."""

    kind: Literal["full", "sampled"] = "full"
    """Softmax over the whole catalogue, or over shared uniform negatives with logQ correction."""
    negatives: int = Field(default=1024, gt=0)
    """Items sampled for a batch, if sampled."""

    @property
    def sampled(self) -> int | None:
        """Negatives to sample; None for none."""
        return self.negatives if self.kind == "sampled" else None


class RetrievalTask(nn.Module):
    """Predict the next item after every step."""

    def __init__(self, model: nn.Module, loss: RetrievalLoss, schema: Schema) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.items = schema.items

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The rank's share of the global mean loss, 0 where the batch has no targets, and the model's outputs."""
        outputs = self.model(batch)
        if batch.labels is None:
            return torch.zeros(()), outputs
        assert batch.share is not None
        assert batch.sequences is not None
        user_ND, candidates_CD, target_N = outputs["user_ND"], outputs["candidates_CD"], batch.labels["next_item"]
        count = batch.share.targets
        if self.loss.sampled is None:
            return full_softmax(user_ND, candidates_CD, target_N, count), outputs
        item_C = batch.sequences["candidates"].values()
        negatives = self.loss.sampled
        return sampled_softmax(user_ND, candidates_CD, target_N, count, negatives, item_C, self.items), outputs


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
