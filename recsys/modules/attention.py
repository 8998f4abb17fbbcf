"""Causal self-attention over jagged histories.

B histories, T longest of them, N steps in all, D width, H heads, A width of a head. Everything but the attention
itself runs on the N real steps; only there they are padded, behind the real ones, where a causal mask hides them.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from embeddings.batch import Share
from recsys.modules.dropout import GlobalDropout


class AttentionBlock(nn.Module):
    """A pre-norm transformer block (Xiong et al., ICML 2020): causal softmax attention, then a GELU feed-forward."""

    def __init__(self, dim: int, heads: int, dropout: float, salt: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim = {dim} is not a multiple of heads = {heads}; choose one that is")
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.forward_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 4 * dim)
        self.contract = nn.Linear(4 * dim, dim)
        self.attention_dropout = GlobalDropout(dropout, salt)
        self.forward_dropout = GlobalDropout(dropout, salt + 1)

    def forward(self, x_ND: Tensor, offsets_B1: Tensor, longest: int, share: Share | None) -> Tensor:
        """[N, D] → [N, D]; step t sees the steps ≤ t of its own history."""
        attended_ND = causal_attention(self.qkv(self.attention_norm(x_ND)), offsets_B1, longest, self.heads)
        x_ND = x_ND + self.attention_dropout(self.out(attended_ND), share)
        hidden_ND = self.contract(gelu(self.expand(self.forward_norm(x_ND))))
        return x_ND + self.forward_dropout(hidden_ND, share)


def causal_attention(qkv_N3D: Tensor, offsets_B1: Tensor, longest: int, heads: int) -> Tensor:
    """Softmax attention within each history; jagged queries, keys and values [N, 3 D] → [N, D]."""
    padded_BT3D = torch.ops.fbgemm.jagged_to_padded_dense(qkv_N3D, [offsets_B1], [longest], 0.0)
    batch, time, width = padded_BT3D.shape
    q_BHTA, k_BHTA, v_BHTA = padded_BT3D.view(batch, time, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    attended_BHTA = scaled_dot_product_attention(q_BHTA, k_BHTA, v_BHTA, is_causal=True)
    attended_BTD = attended_BHTA.transpose(1, 2).reshape(batch, time, width // 3)
    return torch.ops.fbgemm.dense_to_jagged(attended_BTD, [offsets_B1], qkv_N3D.shape[0])[0]
