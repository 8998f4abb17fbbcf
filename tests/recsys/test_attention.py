"""Attention over jagged histories against the published formulas, written out history by history and step by step."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, silu

from recsys.modules.attention import HSTUBlock, RelativeBias, Steps, causal_attention, steps_of, time_bucket

LENGTHS, WIDTH, HEADS, LONGEST = [3, 1, 0, 7, 5], 8, 2, 12
TOTAL = sum(LENGTHS)


@pytest.fixture
def times() -> tuple[Tensor, Tensor]:
    """When each step was, and when what follows it is asked for; ms, up to a year apart."""
    generator = torch.Generator().manual_seed(1)
    time_N = torch.cat(
        [torch.randint(0, 3 * 10**10, (length,), generator=generator).sort().values for length in LENGTHS]
    )
    asked = [torch.cat([part[1:], part[-1:] + 5_000]) for part in time_N.split(LENGTHS)]
    return time_N, torch.cat(asked)


def steps(times: tuple[Tensor, Tensor] | None) -> Steps:
    return steps_of(torch.tensor(LENGTHS), *(times or (None, None)), None, LONGEST)


def bias_module(*, time: bool) -> RelativeBias:
    bias = RelativeBias(HEADS, LONGEST, time=time)
    for parameter in bias.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    return bias


def bias_of(bias: RelativeBias, head: int, back: int, gap_ms: Tensor | None) -> Tensor:
    """What is added to the attention on what lies `back` steps, and so many ms, before the request."""
    value = bias.step_HT[head, back]
    if bias.time_HK is not None and gap_ms is not None:
        value = value + bias.time_HK[head, int(time_bucket(gap_ms))]
    return value


def logits(
    q_TA: Tensor, k_TA: Tensor, head: int, step: int, bias: RelativeBias | None, times: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Products of a step's query with the keys up to it, with the bias of each; `times` of this history."""
    values = []
    for other in range(step + 1):
        value = q_TA[step] @ k_TA[other]
        if bias is not None:
            gap = None if times is None else times[1][step] - times[0][other]
            value = value + bias_of(bias, head, step - other, gap)
        values.append(value)
    return torch.stack(values)


def of_each(x_NK: Tensor) -> list[Tensor]:
    return list(x_NK.split(LENGTHS))


@pytest.mark.parametrize("timed", [False, True], ids=["", "times"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_softmax_attention_is_the_textbooks(times: tuple[Tensor, Tensor], biased: bool, timed: bool):
    qkv_N3D = torch.randn(TOTAL, 3 * WIDTH, generator=torch.Generator().manual_seed(0))
    bias, width = bias_module(time=timed) if biased else None, WIDTH // HEADS
    found = steps(times if timed else None)
    scaled = [
        _softmax_reference(*part.view(-1, 3, HEADS, width).unbind(1), bias, (asked, at) if timed else None, width)
        for part, asked, at in zip(of_each(qkv_N3D), of_each(times[0]), of_each(times[1]), strict=True)
    ]
    attended = causal_attention(qkv_N3D, found, HEADS, None if bias is None else bias(found))
    torch.testing.assert_close(attended, torch.cat(scaled))


def _softmax_reference(
    q_THA: Tensor,
    k_THA: Tensor,
    v_THA: Tensor,
    bias: RelativeBias | None,
    times: tuple[Tensor, Tensor] | None,
    width: int,
) -> Tensor:
    rows = []
    for step in range(len(q_THA)):
        heads = []
        for head in range(HEADS):
            weight = logits(q_THA[:, head] / math.sqrt(width), k_THA[:, head], head, step, bias, times).softmax(0)
            heads.append(weight @ v_THA[: step + 1, head])
        rows.append(torch.cat(heads))
    return torch.stack(rows) if rows else torch.empty(0, HEADS * width)


@pytest.mark.parametrize("timed", [False, True], ids=["", "times"])
def test_hstu_is_the_papers(times: tuple[Tensor, Tensor], timed: bool):
    """Its equations 1 to 3: φ₁(f₁), φ₂(qkᵀ + rab) v / n, f₂(norm(av) ⊙ u); its queries are not scaled."""
    torch.manual_seed(0)
    block = HSTUBlock(WIDTH, HEADS, 0.0, bias_module(time=timed), LONGEST, salt=1)
    x_ND = torch.randn(TOTAL, WIDTH)
    found = block(x_ND, steps(times if timed else None))
    width, expected = WIDTH // HEADS, []
    gate_ND, vqk_N3D = silu(block.uvqk(layer_norm(x_ND, (WIDTH,)))).split((WIDTH, 3 * WIDTH), dim=1)
    for part, asked, at in zip(of_each(vqk_N3D), of_each(times[0]), of_each(times[1]), strict=True):
        v_THA, q_THA, k_THA = part.view(-1, 3, HEADS, width).unbind(1)
        for step in range(len(part)):
            weight = [
                silu(logits(q_THA[:, h], k_THA[:, h], h, step, block.bias, (asked, at) if timed else None))
                for h in range(HEADS)
            ]
            expected.append(torch.cat([weight[h] @ v_THA[: step + 1, h] / LONGEST for h in range(HEADS)]))
    normed_ND = layer_norm(torch.stack(expected), (WIDTH,))
    torch.testing.assert_close(found, x_ND + block.out(normed_ND * gate_ND))


def test_buckets_of_time_grow_with_its_logarithm():
    gaps = torch.tensor([-5_000, 0, 999, 1_000, 3_000, 7_000, 86_400_000, 2**62])
    assert time_bucket(gaps).tolist() == [0, 0, 1, 2, 4, 6, 32, 63]


def test_who_has_no_history_has_no_steps():
    nobody = steps_of(torch.zeros(3, dtype=torch.int64), None, None, None, LONGEST)
    assert (nobody.longest, len(nobody.number_N)) == (0, 0)
