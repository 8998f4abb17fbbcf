"""How well the nodes of a hierarchy suit a user: cross-attention of nodes over the user's history.

A node asks what in the history speaks for it: its query attends to the steps' keys, and what it finds in their values
is held against the node itself. A node's query and what it holds against are sums over the codes of its path, so that
scores of all children of a beam cost two small products and a softmax over the history.

B users, T their longest history, N steps in all, S of them asked about, K codes of a level, P nodes of a beam, A width.
"""

import math

import torch
from torch import Tensor, nn

from embeddings.semantic_ids import ResidualQuantizer


class PathScorer(nn.Module):
    """Scores of the children of nodes; a path's log-probability is the sum of log-softmaxes down its levels."""

    def __init__(self, sizes: tuple[int, ...], dim: int, width: int) -> None:
        """`sizes`: codes of each level. `dim`: of users and codes. `width`: A."""
        super().__init__()
        self.width = width
        self.key, self.value, self.user = (nn.Linear(dim, width) for _ in range(3))
        self.query, self.against, self.direct = (nn.Linear(dim, width, bias=False) for _ in range(3))
        self.code_bias = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes)
        self.code_KA = nn.ParameterList(nn.Parameter(torch.randn(size, width) / math.sqrt(width)) for size in sizes)

    def forward(
        self, history_BTD: Tensor, real_BT: Tensor, user_BD: Tensor, codes: ResidualQuantizer, path_BPl: Tensor
    ) -> Tensor:
        """The scores of all children of some nodes; float32 [B, P, K].

        Args:
            history_BTD: what the encoder made of each step, padded.
            real_BT: bool: which steps are real; one at least in each history.
            user_BD: the user after the last step.
            codes: codebooks.
            path_BPl: the nodes, as the codes of their paths; int64, `l` levels deep.
        """
        level = path_BPl.shape[2]
        attention, direct = self.tokens(history_BTD, user_BD)
        logit_BT1K, gain_BTK, own_BK = self._of_level(codes, level, attention, direct)
        logit_BTPK = logit_BT1K.unsqueeze(2)
        gain_BTPK = gain_BTK.unsqueeze(2)
        own_BPK = own_BK.unsqueeze(1)
        for above in range(level):
            picked_BP = path_BPl[..., above]
            logit_BTK, gain_BTK, own_BK = self._of_level(codes, above, attention, direct)
            index_BTP = picked_BP.unsqueeze(1).expand(-1, logit_BTK.shape[1], -1)
            logit_BTPK = logit_BTPK + logit_BTK.gather(2, index_BTP).unsqueeze(3)
            gain_BTPK = gain_BTPK + gain_BTK.gather(2, index_BTP).unsqueeze(3)
            own_BPK = own_BPK + own_BK.gather(1, picked_BP).unsqueeze(2)
        blank_BT11 = ~real_BT.unsqueeze(2).unsqueeze(3)
        weight_BTPK = torch.softmax(logit_BTPK.masked_fill(blank_BT11, -math.inf), dim=1)
        return (weight_BTPK * gain_BTPK).sum(1) + own_BPK + self.code_bias[level]

    def tokens(self, history_BTD: Tensor, user_BD: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """((keys, values) [B, T, A], the user [B, A]): what all levels are asked with."""
        scale = 1 / math.sqrt(self.width)
        return (self.key(history_BTD) * scale, self.value(history_BTD) * scale), self.user(user_BD) * scale

    def _of_level(
        self, codes: ResidualQuantizer, level: int, attention: tuple[Tensor, Tensor], direct_BA: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the codes of a level add to (attention logit [B, T, K], gain [B, T, K], own score [B, K])."""
        key_BTA, value_BTA = attention
        node_KD = codes.nodes(level)
        learned_KA = self.code_KA[level]
        query_KA, against_KA = self.query(node_KD), self.against(node_KD) + learned_KA
        own_BK = direct_BA @ (self.direct(node_KD) + learned_KA).T
        return key_BTA @ query_KA.T, value_BTA @ against_KA.T, own_BK
