"""What of a history speaks to a candidate: attention with the candidate as its query (DIN: Zhou et al., KDD 2018).

The history is looked up once for a request, and every candidate asks it. A step counts by what it is and by how many
steps ago it was; a learned vector stands beside the steps, so that a candidate may find nothing, and an empty history
is something too.

B candidates, R requests of G candidates each, T longest history, N steps in all, D width, H heads, A width of a head.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from features.errors import InputError
from features.schema import FeatureSpec, Schema
from features.settings import Settings


class Config(Settings):
    """The section [ranker.model.attention]."""

    history: str = "history"
    """A bag of the ranker's features, oldest first, that the candidate is compared with."""
    candidate: str = "item_id"
    """The sparse feature of the same table that is compared with it."""
    heads: int = Field(default=2, gt=0)
    """Attention heads, which share the features' width."""
    steps: int = Field(default=50, gt=0)
    """Steps back that are told apart; what is older counts as the oldest of them."""

    def of(self, features: Sequence[FeatureSpec]) -> tuple[FeatureSpec, FeatureSpec]:
        """The features of the history and of the candidate.

        Raises:
            InputError: they are not there, of another kind, of two tables, or not what attention can do with.
        """
        history, candidate = _feature(features, self.history, "bag"), _feature(features, self.candidate, "sparse")
        if not history.source.startswith(("request.", "user.")):
            raise InputError(
                f"ranker.model.attention.history = {history.name!r} is of {history.source}, which differs from "
                "candidate to candidate; name a bag of the request or the user"
            )
        if history.table_name != candidate.table_name:
            raise InputError(
                f"ranker.model.attention: {history.name} reads table {history.table_name} and {candidate.name} table "
                f"{candidate.table_name}; what is compared is of one table"
            )
        if candidate.params.get("unbounded") or history.params.get("unbounded"):
            raise InputError(
                f"ranker.model.attention.candidate = {candidate.name!r} has ids without bound; name a feature of "
                "bounded ids"
            )
        if candidate.dim % self.heads:
            raise InputError(
                f"ranker.model.attention.heads = {self.heads} does not divide dim = {candidate.dim}; change one"
            )
        return history, candidate

    def table(self, features: Sequence[FeatureSpec]) -> str:
        """The table of its embeddings: its own, for what pools well is another thing than what compares well."""
        return f"{self.of(features)[1].table_name}_attended"


class TargetAttention(nn.Module):
    """A batch of ids → y_BD."""

    def __init__(self, config: Config, schema: Schema, device: torch.device) -> None:
        """The table is made on `device`.

        Raises:
            InputError: see `Config.of`.
        """
        super().__init__()
        history, candidate = config.of(schema.features)
        dim = candidate.dim
        assert candidate.rows is not None
        self.history, self.candidate, self.heads = history.name, candidate.name, config.heads
        self.key = config.table(schema.features)
        table = EmbeddingConfig(
            name=self.key,
            num_embeddings=candidate.rows,
            embedding_dim=dim,
            feature_names=[self.key],
            init_fn=nn.init.zeros_,
        )
        self.sparse_arch = EmbeddingCollection(tables=[table], device=device)
        self.back_SD = nn.Parameter(torch.randn(config.steps, dim) / dim**0.5)
        self.nothing_D = nn.Parameter(torch.zeros(dim))
        self.query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)

    def forward(self, sparse: KeyedJaggedTensor, together: int) -> Tensor:
        """float32 [B, D].

        Args:
            sparse: of B candidates.
            together: G: so many that follow each other are of one request, and have one history.
        """
        assert sparse.stride() % together == 0, f"{sparse.stride()} rows are no requests of {together}"
        candidate_B, history = sparse[self.candidate].values(), sparse[self.history]
        lengths_R, history_N = history.lengths()[::together], history.values()
        if together > 1:
            history_N = _of_first(history_N, history.offsets(), lengths_R, together)
        ids = torch.cat([candidate_B, history_N])
        looked_up = self.sparse_arch(
            KeyedJaggedTensor(keys=[self.key], values=ids, lengths=torch.ones_like(ids, dtype=torch.int64))
        )[self.key].values()
        candidate_BD, history_ND = looked_up.split([len(candidate_B), len(history_N)])
        padded_RTD, real_RT, back_RT = self._padded(history_ND, lengths_R)
        padded_RTD = padded_RTD + self.back_SD[back_RT]
        nothing_R1D = self.nothing_D.expand(len(lengths_R), 1, -1)
        k_RTD, v_RTD = self.key_value(torch.cat([nothing_R1D, padded_RTD], dim=1)).chunk(2, dim=2)
        seen_R11T = torch.cat([real_RT.new_ones(len(real_RT), 1), real_RT], dim=1)[:, None, None]
        q_RHGA, k_RHTA, v_RHTA = (
            x.view(len(lengths_R), -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)
            for x in (self.query(candidate_BD), k_RTD, v_RTD)
        )
        found_RHGA = scaled_dot_product_attention(q_RHGA, k_RHTA, v_RHTA, attn_mask=seen_R11T)
        return self.out(found_RHGA.transpose(1, 2).reshape(len(candidate_B), -1))

    def _padded(self, history_ND: Tensor, lengths_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Histories side by side [R, T, D]; which steps are real, bool [R, T]; and how far back each is, int64."""
        longest = int(lengths_R.max()) if len(lengths_R) else 0
        offsets = torch.cat([lengths_R.new_zeros(1), lengths_R.cumsum(0)]).long()
        padded_RTD = torch.ops.fbgemm.jagged_to_padded_dense(history_ND, [offsets], [longest], 0.0)
        back_RT = lengths_R.unsqueeze(1) - 1 - torch.arange(longest, device=lengths_R.device)
        return padded_RTD, back_RT >= 0, back_RT.clamp(0, len(self.back_SD) - 1)


def _of_first(values_N: Tensor, offsets_B1: Tensor, lengths_R: Tensor, together: int) -> Tensor:
    """The ids of the first candidate of each request."""
    start_R = offsets_B1[:-1][::together]
    within = torch.arange(int(lengths_R.sum()), device=values_N.device)
    ends_R = lengths_R.cumsum(0)
    return values_N[within + (start_R - (ends_R - lengths_R)).repeat_interleave(lengths_R)]


def _feature(features: Sequence[FeatureSpec], name: str, kind: str) -> FeatureSpec:
    found = {feature.name: feature for feature in features if feature.kind == kind}
    if name not in found:
        raise InputError(
            f"ranker.model.attention names '{name}', which is no {kind} feature; there are: "
            f"{', '.join(found) or 'none'}"
        )
    return found[name]
