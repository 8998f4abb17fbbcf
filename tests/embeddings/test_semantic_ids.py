"""Residual codes: clusters that were planted are found, dead codes come back, ranks agree."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from embeddings.semantic_ids import ResidualQuantizer, nearest
from recsys import distributed

DIM, COARSE, FINE = 8, 6, 4


def planted(seed: int = 0, each: int = 30) -> tuple[Tensor, Tensor]:
    """Vectors around COARSE centres far apart, each with the same FINE steps from it; (vectors, cluster [I, 2])."""
    draw = torch.Generator().manual_seed(seed)
    coarse = 10 * torch.eye(DIM)[:COARSE]
    fine = torch.cat([torch.eye(DIM)[-2:], -torch.eye(DIM)[-2:]])
    cluster = torch.cartesian_prod(torch.arange(COARSE), torch.arange(FINE)).repeat(each, 1)
    vectors = coarse[cluster[:, 0]] + fine[cluster[:, 1]]
    return vectors + 0.02 * torch.randn(vectors.shape, generator=draw), cluster


def collapsed() -> Tensor:
    """Two points, which leave most codes nothing."""
    return (10 * torch.eye(DIM)[:2]).repeat(50, 1)


def is_same_partition(codes: Tensor, cluster: Tensor) -> bool:
    pairs = torch.unique(torch.stack([codes, cluster], dim=1), dim=0)
    return len(pairs) == len(torch.unique(codes)) == len(torch.unique(cluster))


def error(quantizer: ResidualQuantizer, vectors: Tensor) -> float:
    return float((quantizer.decode(quantizer.assign(vectors)) - vectors).square().sum(dim=1).mean())


@pytest.mark.parametrize("seed", range(3))
def test_planted_clusters_are_found(seed: int):
    vectors, cluster = planted()
    quantizer = ResidualQuantizer((COARSE, FINE), DIM)
    quantizer.fit(vectors, seed)
    codes = quantizer.assign(vectors)
    assert is_same_partition(codes[:, 0], cluster[:, 0])
    assert is_same_partition(codes @ torch.tensor([FINE, 1]), cluster @ torch.tensor([FINE, 1]))
    assert error(quantizer, vectors) < 2 * DIM * 0.02**2


def test_every_level_leaves_less():
    vectors = torch.randn(3000, DIM, generator=torch.Generator().manual_seed(1))
    errors = []
    for levels in range(1, 5):
        quantizer = ResidualQuantizer((16,) * levels, DIM)
        quantizer.fit(vectors, seed=0)
        errors.append(error(quantizer, vectors))
    # A level of 16 codes has 4 bits for 8 dimensions: rate-distortion theory allows a factor of 2 ** -1 of a Gaussian.
    assert all(0.5 * before < after < 0.75 * before for before, after in pairwise(errors))


def test_assignment_is_the_nearest_code_of_what_is_left():
    vectors = torch.randn(500, DIM, generator=torch.Generator().manual_seed(1))
    quantizer = ResidualQuantizer((8, 5), DIM)
    quantizer.fit(vectors, seed=0)
    left = vectors
    for level, codes in enumerate(quantizer.assign(vectors).T):
        assert torch.equal(codes, torch.cdist(left, quantizer.nodes(level)).argmin(dim=1))
        left = left - quantizer.nodes(level)[codes]


def test_codes_follow_the_means_that_move():
    """After n steps of the same vectors, what is left of the way is decay ** n of it."""
    vectors, _ = planted()
    quantizer = ResidualQuantizer((COARSE,), DIM, decay=0.9).train()
    quantizer.fit(vectors, seed=0)
    before = quantizer.nodes(0).clone()
    shift = torch.full((DIM,), 0.5)
    for _ in range(7):
        quantizer(vectors + shift)
    moved = quantizer.nodes(0) - before
    torch.testing.assert_close(moved, ((1 - 0.9**7) * shift).expand_as(moved), atol=1e-4, rtol=0)


def test_dead_codes_are_revived_where_vectors_are_quantised_worst():
    vectors, cluster = planted()
    quantizer = ResidualQuantizer((COARSE, FINE), DIM, decay=0.8).train()
    quantizer.fit(collapsed(), seed=0)
    assert int((quantizer.shares(0) == 0).sum()) == COARSE - 2
    for _ in range(60):
        quantizer(vectors)
    codes = quantizer.assign(vectors)
    assert is_same_partition(codes[:, 0], cluster[:, 0])
    assert error(quantizer, vectors) < 2 * DIM * 0.02**2
    assert float(quantizer.shares(0).min()) > 0.1


def test_gradients_pass_straight_through_and_draw_vectors_to_their_codes():
    vectors = torch.randn(40, DIM, generator=torch.Generator().manual_seed(2)).requires_grad_()
    quantizer = ResidualQuantizer((4, 4), DIM).train()
    codes, quantized, commitment = quantizer(vectors)
    asked = torch.randn(40, DIM)
    quantized.backward(asked, retain_graph=True)
    assert vectors.grad is not None
    torch.testing.assert_close(vectors.grad, asked)
    vectors.grad = None
    commitment.backward()
    torch.testing.assert_close(vectors.grad, 2 * (vectors - quantized).detach() / vectors.numel())
    assert not list(quantizer.parameters())
    assert codes.shape == (40, 2)


def test_first_call_in_training_fills_the_codebooks_and_state_is_all_there_is():
    vectors, _ = planted()
    quantizer, same = (ResidualQuantizer((COARSE, FINE), DIM) for _ in range(2))
    with pytest.raises(AssertionError, match="codebooks are empty"):
        quantizer.eval()(vectors)
    for each in (quantizer, same):
        each.train()(vectors)
    later = ResidualQuantizer((COARSE, FINE), DIM, seed=5).train()
    later.load_state_dict(quantizer.state_dict())
    others, _ = planted(seed=1)
    for each in (quantizer, same, later):
        each(others + 0.1)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
        assert torch.equal(value, later.state_dict()[name]), name


def test_evaluation_changes_nothing():
    vectors, _ = planted()
    quantizer = ResidualQuantizer((COARSE, FINE), DIM)
    quantizer.fit(vectors, seed=0)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()(vectors + 1)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_fewer_vectors_than_codes():
    vectors = torch.eye(DIM)[:3]
    quantizer = ResidualQuantizer((5, 5), DIM).train()
    for _ in range(3):
        quantizer(vectors)
    torch.testing.assert_close(quantizer.decode(quantizer.assign(vectors)), vectors)


def train_parts(out: Path) -> None:
    """Steps of batches that ranks share unevenly, one of which leaves the last rank none; codes die on the way."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    quantizer = ResidualQuantizer((COARSE, FINE), DIM, decay=0.8).train()
    revived = 0
    for step in range(12):
        vectors = collapsed() if step < 4 else planted(seed=step)[0]
        cut = len(vectors) if step == 6 else len(vectors) // 3
        parts = [vectors] if world == 1 else [vectors[:cut], vectors[cut:]]
        dead = quantizer.shares(0) < 0.05 / COARSE
        quantizer(parts[rank])
        revived += int((quantizer.shares(0)[dead] > 0.05 / COARSE).sum()) if step else 0
    torch.save((quantizer.state_dict(), revived), out / f"{world}_{rank}.pt")


def test_two_ranks_have_the_codebooks_of_one(tmp_path: Path):
    for world in (1, 2):
        distributed.launch(train_parts, distributed.Config(nproc=world), tmp_path)
    alone, revived = torch.load(tmp_path / "1_0.pt")
    first, second = (torch.load(tmp_path / f"2_{rank}.pt")[0] for rank in range(2))
    assert revived
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, atol=1e-6, rtol=0)


def test_nearest_needs_no_table_of_all_distances(monkeypatch: pytest.MonkeyPatch):
    vectors, centres = torch.randn(100, DIM), torch.randn(7, DIM)
    whole = nearest(vectors, centres)
    monkeypatch.setattr("embeddings.semantic_ids._SCORES", 50)
    assert torch.equal(nearest(vectors, centres), whole)
