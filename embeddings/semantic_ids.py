"""Residual quantization: a vector → a short path of codes, the first the coarsest.

Each level has a codebook, which codes what the levels before it have left over (RQ-VAE: Lee et al., CVPR 2022; as ids
of items: TIGER, Rajput et al., NeurIPS 2023). Codes follow the mean of the residuals that they are given, by
exponential moving averages (van den Oord et al., 2017, appendix A.1), so no gradient goes into them. A code that hardly
anything uses is moved to where vectors are quantised worst.

On every rank of a process group the codebooks are the same, and the same as one process would have.

I vectors, D width, L levels, K codes of a level, X of all levels.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

_SCORES = 1 << 22
"""Distances that are held at a time."""

SAMPLE = 1 << 18
"""Vectors that `fit` looks at, at most."""

_SEEDS = 1 << 14
"""Vectors among which it looks for codes to begin with, at most."""


class ResidualQuantizer(nn.Module):
    """Codebooks of L levels, as buffers; a model trains them by calling it, or `fit` finds them at once."""

    def __init__(
        self, sizes: tuple[int, ...], dim: int, *, decay: float = 0.99, dead: float = 0.05, seed: int = 0
    ) -> None:
        """Make codebooks of zeros, which the first call in training fills.

        Args:
            sizes: codes of each level.
            dim: width of the vectors.
            decay: of the moving averages, for one step.
            dead: a code is moved when its share of the vectors is less than this times that of the average code.
            seed: of what the first call draws.
        """
        super().__init__()
        assert sizes
        assert min(sizes) > 0
        self.sizes, self.dim, self.decay, self.dead, self.seed = sizes, dim, decay, dead, seed
        for level, size in enumerate(sizes):
            self.register_buffer(f"codes_{level}", torch.zeros(size, dim))
            self.register_buffer(f"shares_{level}", torch.zeros(size))
            self.register_buffer(f"sums_{level}", torch.zeros(size, dim))
        self.register_buffer("started", torch.tensor(False))

    def nodes(self, level: int) -> Tensor:
        """The codebook of a level; float32 [K, D]."""
        return self.get_buffer(f"codes_{level}")

    def shares(self, level: int) -> Tensor:
        """The share of the vectors that each code of a level has had lately; float32 [K]."""
        return self.get_buffer(f"shares_{level}")

    @torch.no_grad()
    def assign(self, v_ID: Tensor) -> Tensor:
        """Codes of vectors, greedily level by level; int64 [I, L]. Beside its result it needs a few MB."""
        assert self.get_buffer("started"), "codebooks are empty: call fit, or the module in training"
        codes_IL = torch.empty(len(v_ID), len(self.sizes), dtype=torch.int64, device=v_ID.device)
        rows = max(1, _SCORES // max(self.sizes))
        for part_ID, codes_PL in zip(v_ID.split(rows), codes_IL.split(rows), strict=True):
            residual_ID = part_ID.float()
            for level in range(len(self.sizes)):
                codes_PL[:, level] = nearest(residual_ID, self.nodes(level))
                residual_ID = residual_ID - self.nodes(level)[codes_PL[:, level]]
        return codes_IL

    @torch.no_grad()
    def decode(self, codes_IL: Tensor) -> Tensor:
        """The sum of the codes of each path; float32 [I, D]."""
        return torch.stack([self.nodes(level)[codes_IL[:, level]] for level in range(len(self.sizes))]).sum(dim=0)

    def forward(self, v_ID: Tensor, *, everywhere: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise vectors; in training the codebooks follow them, and every rank calls it.

        Args:
            v_ID: of this rank.
            everywhere: whether all ranks have the same vectors, in which case none needs to hear of the others'.

        Returns:
            Codes, int64 [I, L]; quantised vectors, [I, D], whose gradient goes to `v_ID` as it is (straight-through);
            the mean squared distance of `v_ID` from them, by which vectors are drawn to their codes.
        """
        if self.training and not self.get_buffer("started"):
            found_ID = v_ID.detach().float()
            self.fit(found_ID if everywhere else _gathered(found_ID), self.seed)
            self._agree()
        codes_IL = self.assign(v_ID)
        quantized_ID = self.decode(codes_IL)
        if self.training:
            self._follow(v_ID.detach().float(), codes_IL, everywhere=everywhere)
            self._agree()
        straight_ID = v_ID + (quantized_ID - v_ID).detach()
        # Not of no vectors, which would be no number.
        commitment = (v_ID - quantized_ID).square().sum() / max(1, v_ID.numel())
        return codes_IL, straight_ID, commitment

    @torch.no_grad()
    def fit(self, v_ID: Tensor, seed: int, *, rounds: int = 10) -> None:
        """Residual k-means, whatever the codebooks were; in a process group every rank gives the same vectors.

        10⁶ × 64 with 256 and 64 codes take five seconds on a core that others use, too.

        Args:
            v_ID: one at least; at most `SAMPLE` of them are looked at.
            seed: of the sample, and where the codes begin.
            rounds: of k-means.
        """
        assert len(v_ID)
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(v_ID), generator=generator)[:SAMPLE].sort().values
        residual_ID = v_ID[chosen.to(v_ID.device)].float()
        for level, size in enumerate(self.sizes):
            centres_KD = _k_means(residual_ID, size, rounds, generator)
            codes_I = nearest(residual_ID, centres_KD)
            share_K = torch.bincount(codes_I, minlength=size) / len(codes_I)
            self.nodes(level).copy_(centres_KD)
            self.shares(level).copy_(share_K)
            self.get_buffer(f"sums_{level}").copy_(centres_KD * share_K[:, None])
            residual_ID = residual_ID - centres_KD[codes_I]
        self.get_buffer("started").fill_(True)

    @torch.no_grad()
    def _follow(self, v_ID: Tensor, codes_IL: Tensor, *, everywhere: bool) -> None:
        """Move the codes towards the means of what they were given, on all ranks alike."""
        alone = everywhere or not dist.is_initialized()
        residuals = list(self._residuals(v_ID, codes_IL))
        statistics_XS = torch.cat(
            [
                _statistics(before_ID, after_ID, codes_IL[:, level], self.sizes[level])
                for level, (before_ID, after_ID) in enumerate(residuals)
            ]
        )
        if not alone:
            dist.all_reduce(statistics_XS)
        total = statistics_XS[: self.sizes[0], 0].sum()
        # A batch whose loss is no number leaves the codes as they are, as it leaves the weights.
        if total == 0 or not statistics_XS.isfinite().all():
            return
        for level, statistics_KS in enumerate(statistics_XS.split(self.sizes)):
            share_K, sum_KD, code_KD = self.shares(level), self.get_buffer(f"sums_{level}"), self.nodes(level)
            share_K.lerp_((statistics_KS[:, 0] / total).float(), 1 - self.decay)
            sum_KD.lerp_((statistics_KS[:, 2:] / total).float(), 1 - self.decay)
            dead_K = share_K < self.dead / len(share_K)
            code_KD.copy_(torch.where(dead_K[:, None], code_KD, sum_KD / share_K.clamp(min=1e-12)[:, None]))
            if dead_K.any():
                self._revive(level, dead_K, statistics_KS[:, 1], *residuals[level], codes_IL[:, level], alone=alone)

    def _agree(self) -> None:
        """Take the codebooks of the first rank: a GPU adds up in no fixed order, and each rank a little differently."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            for level in range(len(self.sizes)):
                for name in ("codes", "shares", "sums"):
                    dist.broadcast(self.get_buffer(f"{name}_{level}"), 0)

    def _residuals(self, v_ID: Tensor, codes_IL: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What each level is given to code, and what it leaves."""
        for level in range(len(self.sizes)):
            left_ID = v_ID - self.nodes(level)[codes_IL[:, level]]
            yield v_ID, left_ID
            v_ID = left_ID

    def _revive(
        self,
        level: int,
        dead_K: Tensor,
        error_K: Tensor,
        before_ID: Tensor,
        after_ID: Tensor,
        codes_I: Tensor,
        *,
        alone: bool,
    ) -> None:
        """Put dead codes on the worst vectors of the codes of the greatest error, one a step for each of those.

        Args:
            level: of the codes.
            dead_K: which are dead.
            error_K: the sum of squared errors of each code's vectors, of all ranks.
            before_ID: what this rank's vectors were at this level.
            after_ID: what is left of them.
            codes_I: their codes.
            alone: whether no rank has others.
        """
        size = len(dead_K)
        errors_I = after_ID.square().sum(dim=1)
        worst_K = torch.zeros(size, device=dead_K.device).scatter_reduce(0, codes_I, errors_I, "amax")
        vector_KD = torch.zeros_like(self.nodes(level))
        # Of equals the last one is written on the CPU, any on other devices, and so the first is looked for.
        is_worst_I = errors_I == worst_K[codes_I]
        at_I = torch.arange(len(codes_I), device=codes_I.device)
        first_K = torch.full((size,), len(codes_I), device=codes_I.device).scatter_reduce(
            0, codes_I[is_worst_I], at_I[is_worst_I], "amin"
        )
        has_K = first_K < len(codes_I)
        vector_KD[has_K] = before_ID[first_K[has_K]]
        if not alone:
            every = torch.cat([worst_K[:, None], vector_KD], dim=1)
            parts = [torch.empty_like(every) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, every)
            rank_K = torch.stack([part[:, 0] for part in parts]).argmax(dim=0)
            vector_KD = torch.stack([part[:, 1:] for part in parts])[rank_K, torch.arange(size, device=rank_K.device)]
        places = dead_K.nonzero().flatten()
        order = error_K.argsort(descending=True, stable=True)
        order = order[error_K[order] > 0][: len(places)]
        places = places[: len(order)]
        self.nodes(level)[places] = vector_KD[order]
        self.shares(level)[places] = 1.0 / size
        self.get_buffer(f"sums_{level}")[places] = vector_KD[order] / size


def nearest(v_ID: Tensor, centres_KD: Tensor) -> Tensor:
    """The nearest centre of each vector, the first of those that are equally near; int64 [I]."""
    half_K = centres_KD.square().sum(dim=1) / 2
    rows = max(1, _SCORES // len(centres_KD))
    # Products of 16 bits would take some vectors to another code in training than later.
    with torch.autocast(v_ID.device.type, enabled=False):
        return torch.cat([torch.addmm(-half_K, part, centres_KD.T).argmax(dim=1) for part in v_ID.split(rows)])


def _statistics(before_ID: Tensor, after_ID: Tensor, codes_I: Tensor, size: int) -> Tensor:
    """Of each code: its vectors, the sum of their squared errors, and their sum; float64 [K, 2 + D].

    Ranks add theirs in some order; in float64, which one does not show in the float32 of the codes but by rare chance.
    """
    count_I1 = torch.ones(len(codes_I), 1, device=codes_I.device)
    rows = torch.cat([count_I1, after_ID.square().sum(dim=1, keepdim=True), before_ID], dim=1).double()
    return torch.zeros(size, rows.shape[1], dtype=torch.float64, device=rows.device).index_add_(0, codes_I, rows)


def _k_means(v_ID: Tensor, size: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Centres of a data set; float32 [K, D]. A centre that loses all its vectors goes to the vector quantised worst."""
    centres_KD = _seeds(v_ID, size, generator)
    for _ in range(rounds):
        codes_I = nearest(v_ID, centres_KD)
        count_K = torch.bincount(codes_I, minlength=size)
        sum_KD = torch.zeros_like(centres_KD).index_add_(0, codes_I, v_ID)
        used_K = count_K > 0
        centres_KD[used_K] = sum_KD[used_K] / count_K[used_K, None]
        empty = (~used_K).nonzero().flatten()
        if len(empty):
            errors_I = (v_ID - centres_KD[codes_I]).square().sum(dim=1)
            worst = errors_I.topk(min(len(empty), len(v_ID))).indices
            centres_KD[empty[: len(worst)]] = v_ID[worst]
    return centres_KD


def _seeds(v_ID: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Vectors far from each other, by k-means++ (Arthur and Vassilvitskii, 2007) in a sample; [K, D]."""
    sample = torch.randperm(len(v_ID), generator=generator)[:_SEEDS].to(v_ID.device)
    v_ID = v_ID[sample]
    squares_I = v_ID.square().sum(dim=1)
    centres_KD = torch.empty(size, v_ID.shape[1], device=v_ID.device)
    distance_I = torch.full_like(squares_I, torch.inf)
    drawn_K = torch.rand(size, generator=generator, dtype=torch.float64)
    place = 0
    for k in range(size):
        if k:
            sums_I = distance_I.double().cumsum(dim=0)
            place = int(torch.searchsorted(sums_I, drawn_K[k].to(sums_I.device) * sums_I[-1]).clamp(max=len(v_ID) - 1))
        centres_KD[k] = v_ID[place]
        found_I = squares_I - 2 * (v_ID @ v_ID[place]) + squares_I[place]
        distance_I = torch.minimum(distance_I, found_I).clamp(min=0)
    return centres_KD


def _gathered(v_ID: Tensor) -> Tensor:
    """The vectors of all ranks, one rank's behind those of the one before."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return v_ID
    lengths = [torch.zeros((), dtype=torch.int64, device=v_ID.device) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, torch.tensor(len(v_ID), device=v_ID.device))
    longest = max(int(length) for length in lengths)
    padded_ID = torch.zeros(longest, v_ID.shape[1], device=v_ID.device)
    padded_ID[: len(v_ID)] = v_ID
    parts = [torch.empty_like(padded_ID) for _ in lengths]
    dist.all_gather(parts, padded_ID)
    return torch.cat([part[: int(length)] for part, length in zip(parts, lengths, strict=True)])
