"""A retriever with a hierarchy of its items, learned together: attention over the history, and a path to every item.

Item vectors are quantised to paths of residual codes, which follow them while they are trained; a path scorer learns to
go down the paths to the next item by cross-attention over the history. Served, a beam descends the tree of paths, and
only the items at the ends of the best ones are scored (`recsys.index.tree`).

After deep retrieval by learned paths (Gao et al., CIKM 2021, arXiv:2007.07203) and by codes of residual quantisation
(TIGER: Rajput et al., NeurIPS 2023), with exact scores at the leaves; an item that is new gets a path from its vector.
B users, T their longest history, C candidates, N history steps in all, I items, L levels, K codes of each, P nodes.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from embeddings.batch import Batch
from embeddings.catalogue import Shape
from embeddings.semantic_ids import ResidualQuantizer
from recsys.index.tree import NodeScorer
from recsys.models import sequential
from recsys.modules.attention import steps_of
from recsys.modules.path_scorer import Asker, Level, PathScorer

ROLE: Literal["retriever"] = "retriever"


class Config(sequential.Config):
    """The section [retriever.model]."""

    codes: tuple[int, ...] = Field(default=(64, 64), min_length=1)
    """Codes of each level; an item is reached by one of each."""
    path_width: int = Field(default=32, gt=0)
    """Width of the cross-attention of nodes over histories."""
    path_loss: float = Field(default=0.2, ge=0)
    """Weight of the log-loss of the paths to next items."""
    commitment: float = Field(default=0.05, ge=0)
    """Weight of the squared distance between item vectors and the sums of their codes, in steps in which these move."""
    follow_every: int = Field(default=8, gt=0)
    """Steps from one time that the codes follow the item vectors to the next."""


class Hierarchical(sequential.Sequential):
    """`Sequential`, its items quantised, and a scorer of paths."""

    def __init__(self, config: Config, shape: Shape, device: torch.device) -> None:
        super().__init__(config, shape, device)
        self.path_loss, self.commitment, self.follow_every = config.path_loss, config.commitment, config.follow_every
        self.quantizer = ResidualQuantizer(config.codes, config.dim)
        self.path_scorer = PathScorer(config.codes, config.dim, config.path_width)

    def auxiliary(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """The rank's share of the loss of paths, after the last step of each history, and of the commitment."""
        assert batch.labels is not None
        assert batch.share is not None
        assert batch.sequences is not None
        vectors_CD, last_B = outputs["candidates_CD"], batch.sequences["lengths"].cumsum(0) - 1
        if batch.share.step % self.follow_every == 0 or not self.quantizer.get_buffer("started"):
            sequences = batch.sequences
            # What was drawn for all ranks; a target that was not is known to one of them alone.
            common_CD = vectors_CD[: len(sequences["bias"])] if "bias" in sequences else vectors_CD
            _, _, commitment = self.quantizer(common_CD, everywhere="negatives" not in sequences)
        else:
            commitment = vectors_CD.new_zeros(())
        path_BL = self.quantizer.assign(vectors_CD[batch.labels["next_item"][last_B]].detach())
        asker, levels = self.asker(outputs, batch), self.levels()
        loss = vectors_CD.new_zeros(())
        for level in range(path_BL.shape[1]):
            score_BPK = self.path_scorer(asker, levels, path_BL[:, None, :level])
            loss = loss + cross_entropy(score_BPK.squeeze(1).float(), path_BL[:, level], reduction="sum")
        # Every rank commits the same candidates, or its own: a mean over ranks of means.
        share = len(last_B) / batch.share.rows
        return self.path_loss * loss / batch.share.rows + self.commitment * share * commitment

    def asker(self, outputs: dict[str, Tensor], batch: Batch) -> Asker:
        """What the users of a batch bring to the path scorer, after their last steps."""
        assert batch.sequences is not None
        lengths_B = batch.sequences["lengths"]
        steps = steps_of(lengths_B, None, None, None, self.encoder.max_history)
        real_BT = torch.arange(steps.longest, device=lengths_B.device) < lengths_B.unsqueeze(1)
        user_ND = outputs["user_ND"]
        return self.path_scorer.asker(steps.padded(user_ND), real_BT, user_ND[steps.offsets_B1[1:] - 1])

    def levels(self) -> list[Level]:
        """What the codes bring to it; of a model that is not trained any more always the same."""
        return self.path_scorer.levels(self.quantizer)

    def node_scores(self, outputs: dict[str, Tensor], batch: Batch, levels: list[Level]) -> NodeScorer:
        """What a tree asks of the path scorer: log-probabilities of paths, added up from the root."""
        asker = self.asker(outputs, batch)

        @torch.inference_mode()
        def score(level: int, paths_BPl: np.ndarray, scores_BP: np.ndarray) -> np.ndarray:
            assert paths_BPl.shape[2] == level
            found_BPK = self.path_scorer(asker, levels, torch.from_numpy(paths_BPl))
            return (torch.log_softmax(found_BPK, dim=2) + torch.from_numpy(scores_BP).unsqueeze(2)).numpy()

        return score

    def paths(self, vectors_ID: Tensor) -> np.ndarray:
        """The path of each item of `item_vectors`; int64 [I + 1, L], −1 for index 0."""
        codes_IL = self.quantizer.assign(vectors_ID)
        codes_IL[0] = -1
        return codes_IL.numpy()


def build(config: Config, shape: Shape, device: torch.device) -> Hierarchical:
    """The model for a catalogue of that shape; tables on `device`, which is meta for a model that is to be sharded."""
    return Hierarchical(config, shape, device)
