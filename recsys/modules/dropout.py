"""Dropout whose masks depend on the place in the global batch, not on the rank: one seed, one result."""

import torch
from torch import Tensor, nn

from embeddings.batch import Share


class GlobalDropout(nn.Module):
    """Inverted dropout over jagged rows.

    Every rank draws the mask of the whole global batch from torch's initial seed, which all ranks share, the step and
    its salt, and applies its own rows. The drawing is
    cheap beside the layers around it, and a run on two ranks repeats the run on one.
    """

    def __init__(self, probability: float, salt: int) -> None:
        """`salt` tells this layer's masks from those of other layers."""
        super().__init__()
        self.probability = probability
        self.salt = salt

    def forward(self, x_ND: Tensor, share: Share | None) -> Tensor:
        """Shape unchanged; the identity in evaluation, where there is no `share`, and at probability 0."""
        if not self.training or share is None or self.probability == 0.0:
            return x_ND
        seed = hash((torch.initial_seed(), share.step, self.salt)) & (2**63 - 1)
        generator = torch.Generator(device=x_ND.device).manual_seed(seed)
        drawn = torch.rand(share.tokens, x_ND.shape[1], generator=generator, device=x_ND.device)
        kept = drawn[share.tokens_before : share.tokens_before + x_ND.shape[0]] >= self.probability
        return x_ND * kept / (1.0 - self.probability)
