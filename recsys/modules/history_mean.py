"""What a history is on average, after each of its steps.

N history steps in all, B histories, T longest of them, D width.
"""

import torch
from torch import Tensor, nn

from embeddings.batch import Share
from recsys.modules.attention import steps_of
from recsys.modules.dropout import GlobalDropout


class HistoryMean(nn.Module):
    """Means that see no later step, so that every step can be trained on."""

    def __init__(self, dropout: float) -> None:
        """`dropout`: share of each mean that is dropped in training."""
        super().__init__()
        self.dropout = GlobalDropout(dropout, salt=0)

    def forward(self, x_ND: Tensor, lengths_B: Tensor, share: Share | None) -> Tensor:
        """[N, D] → [N, D]: row t is the mean of rows ≤ t of its own history.

        Args:
            x_ND: the item of each step.
            lengths_B: steps of each history; int64.
            share: of the global batch; None outside of training.
        """
        steps = steps_of(lengths_B, None, None, share, longest=len(x_ND))
        # Padded, so that rounding in one history does not depend on those before it in the batch.
        sum_ND = steps.jagged(torch.cumsum(steps.padded(x_ND), dim=1))
        return self.dropout(sum_ND / (steps.number_N + 1).unsqueeze(1), share)
