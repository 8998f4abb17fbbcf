"""How well the nodes of a hierarchy suit a user: cross-attention of nodes over the user's history.

A node asks what in the history speaks for it: its query attends to the steps' keys, and what it finds in their values
is held against the node itself. A node's query and what it holds against are sums over the codes of its path, so that
scores of all children of a beam cost two small products and a softmax over the history.

B users, T their longest history, K codes of a level, P nodes of a beam, D width of users and codes, A of the attention.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from embeddings.semantic_ids import ResidualQuantizer


class Asker(NamedTuple):
    """What a user brings to all nodes of all levels."""

    key_BTA: Tensor
    value_BTA: Tensor
    user_BA: Tensor
    real_BT: Tensor
    """bool: which steps are real; one at least in each history."""


class Level(NamedTuple):
    """What the codes of a level bring to all users."""

    query_KA: Tensor
    against_KA: Tensor
    direct_KA: Tensor
    bias_K: Tensor


class PathScorer(nn.Module):
    """Scores of the children of nodes; a path's log-probability is the sum of log-softmaxes down its levels."""

    def __init__(self, sizes: tuple[int, ...], dim: int, width: int) -> None:
        """`sizes`: codes of each level. `dim`: D. `width`: A."""
        super().__init__()
        self.width = width
        self.key, self.value, self.user = (nn.Linear(dim, width) for _ in range(3))
        self.query, self.against, self.direct = (nn.Linear(dim, width, bias=False) for _ in range(3))
        self.code_bias = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes)
        self.code_KA = nn.ParameterList(nn.Parameter(torch.randn(size, width) / math.sqrt(width)) for size in sizes)

    def asker(self, history_BTD: Tensor, real_BT: Tensor, user_BD: Tensor) -> Asker:
        """What the encoder made of each step, padded; which are real; the user after the last."""
        scale = 1 / math.sqrt(self.width)
        return Asker(
            self.key(history_BTD) * scale, self.value(history_BTD) * scale, self.user(user_BD) * scale, real_BT
        )

    def levels(self, codes: ResidualQuantizer) -> list[Level]:
        """The codebooks as they are now."""
        return [
            Level(
                self.query(codes.nodes(level)),
                self.against(codes.nodes(level)) + learned_KA,
                self.direct(codes.nodes(level)) + learned_KA,
                bias_K,
            )
            for level, (learned_KA, bias_K) in enumerate(zip(self.code_KA, self.code_bias, strict=True))
        ]

    def forward(self, asker: Asker, levels: list[Level], path_BPl: Tensor) -> Tensor:
        """The scores of all children of some nodes; float32 [B, P, K].

        Args:
            asker: B users.
            levels: all of them.
            path_BPl: the nodes, as the codes of their paths; int64, `l` levels deep.
        """
        depth = path_BPl.shape[2]
        logit_BTK, gain_BTK, own_BK = _met(asker, levels[depth])
        logit_BTPK, gain_BTPK, own_BPK = logit_BTK.unsqueeze(2), gain_BTK.unsqueeze(2), own_BK.unsqueeze(1)
        for above in range(depth):
            picked_BP = path_BPl[..., above]
            logit_BTK, gain_BTK, own_BK = _met(asker, levels[above])
            index_BTP = picked_BP.unsqueeze(1).expand(-1, logit_BTK.shape[1], -1)
            logit_BTPK = logit_BTPK + logit_BTK.gather(2, index_BTP).unsqueeze(3)
            gain_BTPK = gain_BTPK + gain_BTK.gather(2, index_BTP).unsqueeze(3)
            own_BPK = own_BPK + own_BK.gather(1, picked_BP).unsqueeze(2)
        blank_BT11 = ~asker.real_BT.unsqueeze(2).unsqueeze(3)
        weight_BTPK = torch.softmax(logit_BTPK.masked_fill(blank_BT11, -math.inf), dim=1)
        return (weight_BTPK * gain_BTPK).sum(1) + own_BPK + levels[depth].bias_K


def _met(asker: Asker, level: Level) -> tuple[Tensor, Tensor, Tensor]:
    """What the codes of a level add to (attention logit [B, T, K], gain [B, T, K], own score [B, K])."""
    return (
        asker.key_BTA @ level.query_KA.T,
        asker.value_BTA @ level.against_KA.T,
        asker.user_BA @ level.direct_KA.T,
    )
