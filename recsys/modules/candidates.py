"""Features of the candidates of requests, those that a request's candidates share kept once.

What is linear in the features is a part of the request and a part of the candidate. The first is computed for each
request instead of each of its candidates; sums are the same up to rounding.

B candidates, R requests of A candidates each, F features of a candidate: S shared ones, then C of its own; D their
width, G mixtures, K = F · D numbers, N numbers that come out.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import linear


@dataclass(frozen=True, eq=False)
class Candidates:
    """x_BFD in two parts."""

    shared_RSD: Tensor
    """Features that come first, and are the same for all candidates of a request."""
    own_BCD: Tensor
    """The others; request by request."""

    @property
    def shared(self) -> int:
        """S."""
        return self.shared_RSD.shape[1]

    @property
    def asked(self) -> int:
        """A."""
        return len(self.own_BCD) // len(self.shared_RSD)

    @cached_property
    def whole_BFD(self) -> Tensor:
        """All features of each candidate, in a copy."""
        return torch.cat([self._spread(self.shared_RSD), self.own_BCD], dim=1)

    def linear(self, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """A linear layer over all numbers; [B, N]."""
        shared, own = weight_NK.split([self.shared_RSD[0].numel(), self.own_BCD[0].numel()], dim=1)
        y_BN = self._spread(linear(self.shared_RSD.flatten(1), shared, bias_N))
        return torch.addmm(y_BN, self.own_BCD.flatten(1), own.T)

    def mixtures(self, weight_GF: Tensor, onto: Tensor | None = None) -> Tensor:
        """As `recsys.interactions.compression.mixtures`; [B, G, D]."""
        shared, own = weight_GF.split([self.shared, self.own_BCD.shape[1]], dim=1)
        y_BGD, own_BGC = self._spread(shared @ self.shared_RSD), own.expand(len(self.own_BCD), -1, -1)
        if onto is None:
            return torch.baddbmm(y_BGD, own_BGC, self.own_BCD)
        return onto.add_(y_BGD).baddbmm_(own_BGC, self.own_BCD)

    def products(self, other_BGD: Tensor) -> Tensor:
        """Of each of some vectors with each feature; [B, G, F]."""
        other_RED = other_BGD.view(len(self.shared_RSD), -1, other_BGD.shape[2])
        shared_BGS = torch.bmm(other_RED, self.shared_RSD.transpose(1, 2)).view(*other_BGD.shape[:2], -1)
        return torch.cat([shared_BGS, torch.bmm(other_BGD, self.own_BCD.transpose(1, 2))], dim=2)

    def of_requests(self, x_BN: Tensor) -> Tensor:
        """[B, N] → [R, A, N]."""
        return x_BN.view(len(self.shared_RSD), self.asked, -1)

    def _spread(self, x_R: Tensor) -> Tensor:
        """What is of a request, for each of its candidates; a view where there is one request."""
        if len(x_R) == 1:
            return x_R.expand(self.asked, *x_R.shape[1:])
        return x_R.repeat_interleave(self.asked, dim=0)
