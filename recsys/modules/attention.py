"""Attention over jagged histories: a pre-norm softmax block and HSTU's pointwise-gated one.

Everything but the attention itself runs on the N real steps; only there they are padded, behind the real ones, where a
causal mask hides them. Batches are sorted by length, so that little is padded.

B histories, T longest of them, N steps in all, D width, H heads, A width of a head, K time buckets.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention, silu

from embeddings.batch import Share
from recsys.modules.dropout import GlobalDropout

Kind = Literal["softmax", "gated", "hstu"]

TIME_BUCKETS = 64
"""Of gaps in time: one for each half of a power of two of seconds."""

FUTURE = -1e4
"""Added to the attention on what follows: exactly nothing is left of it by a softmax or a SiLU, in bf16 too."""


@dataclass(frozen=True)
class Steps:
    """Where the steps of histories are."""

    offsets_B1: Tensor
    """int64 [B + 1]"""
    longest: int
    """T"""
    number_N: Tensor
    """int64: the number of each step in its history, from 0."""
    share: Share | None
    """Of the global batch; None outside of training."""
    bucket_BTT: Tensor | None
    """int32: bucket of the time between what a step asks for and each step before it, TIME_BUCKETS for those that
    follow; None: there are no times."""

    def padded(self, x_NK: Tensor) -> Tensor:
        """[N, K] → [B, T, K], zeros behind the last step of each."""
        return torch.ops.fbgemm.jagged_to_padded_dense(x_NK, [self.offsets_B1], [self.longest], 0.0)

    def jagged(self, x_BTK: Tensor) -> Tensor:
        """[B, T, K] → [N, K]."""
        return torch.ops.fbgemm.dense_to_jagged(x_BTK, [self.offsets_B1], len(self.number_N))[0]


def steps_of(
    lengths_B: Tensor, times_N: Tensor | None, asked_N: Tensor | None, share: Share | None, longest: int
) -> Steps:
    """Lay out histories.

    Args:
        lengths_B: steps of each; int64.
        times_N: of the steps, ms; None: there are none.
        asked_N: when the item after each step is asked for, ms; None as `times_N`.
        share: of the global batch.
        longest: no history may be longer.
    """
    offsets_B1 = torch.zeros(len(lengths_B) + 1, dtype=torch.int64, device=lengths_B.device)
    torch.cumsum(lengths_B, 0, out=offsets_B1[1:])
    most = int(lengths_B.max()) if lengths_B.numel() else 0
    assert most <= longest, f"a history of {most} is longer than {longest}"
    total = int(offsets_B1[-1])
    number_N = torch.arange(total, device=lengths_B.device) - offsets_B1[:-1].repeat_interleave(lengths_B)
    steps = Steps(offsets_B1, most, number_N, share, None)
    if times_N is None or asked_N is None:
        return steps
    # Not `padded`, which knows no whole numbers of 64 bits.
    history_N = torch.arange(len(lengths_B), device=lengths_B.device).repeat_interleave(lengths_B)
    time_BT, asked_BT = torch.zeros(2, len(lengths_B), most, dtype=torch.int64, device=lengths_B.device)
    time_BT[history_N, number_N], asked_BT[history_N, number_N] = times_N, asked_N
    bucket_BTT = time_bucket(asked_BT.unsqueeze(2) - time_BT.unsqueeze(1))
    return Steps(offsets_B1, most, number_N, share, bucket_BTT.masked_fill_(_future(most, bucket_BTT), TIME_BUCKETS))


def time_bucket(gap: Tensor) -> Tensor:
    """Milliseconds → a bucket that grows with the logarithm of the gap, as HSTU's; int32 of the same shape."""
    seconds = gap.clamp(min=0) / 1000
    return (2 * torch.log2(seconds + 1)).int().clamp(max=TIME_BUCKETS - 1)


def _future(longest: int, like: Tensor) -> Tensor:
    """Whether a step lies after another; bool [T, T] on the device of `like`."""
    return torch.ones(longest, longest, dtype=torch.bool, device=like.device).triu(1)


class RelativeBias(nn.Module):
    """What is added to the attention of a step on an earlier one: learned, by steps and by time between them."""

    def __init__(self, heads: int, longest: int, *, time: bool) -> None:
        super().__init__()
        self.step_HT = nn.Parameter(torch.zeros(heads, longest))
        self.time_HK = nn.Parameter(torch.zeros(heads, TIME_BUCKETS)) if time else None

    def forward(self, steps: Steps) -> Tensor:
        """[1, H, T, T], or [B, H, T, T] where there are times; FUTURE for steps that follow."""
        number_T = torch.arange(steps.longest, device=self.step_HT.device)
        back_TT = (number_T.unsqueeze(1) - number_T).clamp(min=0)
        step_HTT = self.step_HT[:, back_TT].masked_fill(_future(steps.longest, back_TT), FUTURE)
        if self.time_HK is None or steps.bucket_BTT is None:
            return step_HTT.unsqueeze(0)
        # Head by head: the gradient of a selection from one row is a plain loop, and several times as fast.
        time_HK = torch.cat([self.time_HK, self.time_HK.new_zeros(len(self.time_HK), 1)], dim=1)
        bucket = steps.bucket_BTT.view(-1)
        found = [row_K.index_select(0, bucket).view(steps.bucket_BTT.shape) for row_K in time_HK.unbind()]
        return torch.stack(found, dim=1) + step_HTT


class SoftmaxBlock(nn.Module):
    """A pre-norm transformer block (Xiong et al., ICML 2020): causal softmax attention, then a feed-forward.

    `gated`: SwiGLU (Shazeer, arXiv:2002.05202) in place of a GELU, and a sigmoid gate on what each half adds, as LiGR
    (Borisyuk et al., arXiv:2502.03417).
    """

    def __init__(
        self, dim: int, heads: int, expansion: int, dropout: float, bias: RelativeBias | None, salt: int, *, gated: bool
    ) -> None:
        super().__init__()
        self.heads, self.bias, self.gated = heads, bias, gated
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.forward_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, (2 if gated else 1) * expansion * dim)
        self.contract = nn.Linear(expansion * dim, dim)
        if gated:
            self.attention_gate, self.forward_gate = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.attention_dropout = GlobalDropout(dropout, salt)
        self.forward_dropout = GlobalDropout(dropout, salt + 1)

    def forward(self, x_ND: Tensor, steps: Steps) -> Tensor:
        """[N, D] → [N, D]; step t sees the steps ≤ t of its own history."""
        bias = None if self.bias is None else self.bias(steps)
        attended_ND = self.out(causal_attention(self.qkv(self.attention_norm(x_ND)), steps, self.heads, bias))
        if self.gated:
            attended_ND = attended_ND * torch.sigmoid(self.attention_gate(x_ND))
        x_ND = x_ND + self.attention_dropout(attended_ND, steps.share)
        hidden_NK = self.expand(self.forward_norm(x_ND))
        if self.gated:
            gate_NK, value_NK = hidden_NK.chunk(2, dim=1)
            forward_ND = self.contract(silu(gate_NK) * value_NK) * torch.sigmoid(self.forward_gate(x_ND))
        else:
            forward_ND = self.contract(gelu(hidden_NK))
        return x_ND + self.forward_dropout(forward_ND, steps.share)


class HSTUBlock(nn.Module):
    """Hierarchical sequential transduction unit (Zhai et al., ICML 2024): attention by SiLU, gated pointwise.

    There is no softmax: how much of a history speaks to a step is part of the signal, not only which part.
    """

    def __init__(self, dim: int, heads: int, dropout: float, bias: RelativeBias, longest: int, salt: int) -> None:
        super().__init__()
        self.heads, self.bias, self.longest = heads, bias, longest
        self.norm = nn.LayerNorm(dim)
        self.uvqk = nn.Linear(dim, 4 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = GlobalDropout(dropout, salt)

    def forward(self, x_ND: Tensor, steps: Steps) -> Tensor:
        """[N, D] → [N, D]; step t sees the steps ≤ t of its own history."""
        dim = x_ND.shape[1]
        gate_ND, vqk_N3D = silu(self.uvqk(self.norm(x_ND))).split((dim, 3 * dim), dim=1)
        v_BHTA, q_BHTA, k_BHTA = _heads(steps.padded(vqk_N3D), self.heads)
        bias_BHTT = self.bias(steps).to(q_BHTA.dtype)
        weight_BHTT = silu(q_BHTA @ k_BHTA.transpose(2, 3) + bias_BHTT)
        attended_BTD = (weight_BHTT @ v_BHTA).transpose(1, 2).flatten(2) / self.longest
        attended_ND = layer_norm(steps.jagged(attended_BTD), (dim,))
        return x_ND + self.out(self.dropout(gate_ND * attended_ND, steps.share))


def causal_attention(qkv_N3D: Tensor, steps: Steps, heads: int, bias_BHTT: Tensor | None) -> Tensor:
    """Softmax attention within each history; jagged queries, keys and values [N, 3 D] → [N, D]."""
    q_BHTA, k_BHTA, v_BHTA = _heads(steps.padded(qkv_N3D), heads)
    if bias_BHTT is None:
        attended_BHTA = scaled_dot_product_attention(q_BHTA, k_BHTA, v_BHTA, is_causal=True)
    else:
        attended_BHTA = scaled_dot_product_attention(q_BHTA, k_BHTA, v_BHTA, attn_mask=bias_BHTT.to(q_BHTA.dtype))
    return steps.jagged(attended_BHTA.transpose(1, 2).flatten(2))


def _heads(x_BTK: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, 3 D] → three of [B, H, T, A]."""
    batch, time, width = x_BTK.shape
    first, second, third = x_BTK.view(batch, time, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    return first, second, third
