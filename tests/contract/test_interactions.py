"""Every interaction module, found by listing the folder; and the layer that makes an ensemble of them."""

from types import ModuleType

import pytest
import torch
from torch import nn

from features import registry
from features.errors import InputError
from recsys.interactions import attention, cross, dot, fm
from recsys.interactions._contract import Interaction, mixtures
from recsys.modules.candidates import Candidates
from recsys.modules.dhen import DHENLayer

BATCH, FEATURES, DIM = 5, 6, 4
NAMES = registry.known("recsys.interactions")


@pytest.fixture(params=NAMES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return registry.load("recsys.interactions", request.param, "interactions")


def made(module: ModuleType) -> Interaction:
    torch.manual_seed(0)
    return module.build(module.Config(), FEATURES, DIM).eval()


def some(seed: int = 1) -> torch.Tensor:
    return torch.randn(BATCH, FEATURES, DIM, generator=torch.Generator().manual_seed(seed))


def test_its_outputs_have_the_promised_shape(module: ModuleType):
    interaction = made(module)
    found = interaction(some())
    if interaction.out_vectors:
        assert found.shape == (BATCH, interaction.out_vectors, DIM)
    else:
        assert found.shape == (BATCH, interaction.out_dim)
    assert found[0].numel() == interaction.out_dim
    assert interaction(some()[:0]).shape == (0, *found.shape[1:])


def test_a_row_does_not_depend_on_the_others(module: ModuleType):
    interaction = made(module)
    torch.testing.assert_close(interaction(some())[2:3], interaction(some()[2:3]))


def test_gradients_reach_every_input_and_every_weight(module: ModuleType):
    interaction = made(module)
    x_BFD = some().requires_grad_()
    interaction(x_BFD).square().sum().backward()
    assert x_BFD.grad is not None
    assert x_BFD.grad.abs().amin(2).gt(0).all()
    assert all(weight.grad is not None and weight.grad.any() for weight in interaction.parameters())


def test_candidates_of_requests_are_rows(module: ModuleType):
    """Six candidates of two requests, which share four features."""
    interaction = made(module)
    shared_RSD, own_BCD = some()[:2, :4], torch.cat([some(2), some(3)])[:6, 4:]
    x = Candidates(shared_RSD, own_BCD)
    x_BFD = torch.cat([shared_RSD.repeat_interleave(3, dim=0), own_BCD], dim=1)
    torch.testing.assert_close(x.whole_BFD, x_BFD)
    expected = interaction(x_BFD)
    torch.testing.assert_close(interaction.of_candidates(x), expected)
    if interaction.out_vectors:
        weight_MG, onto = torch.randn(3, interaction.out_vectors), torch.randn(6, 3, DIM)
        mixed = mixtures(weight_MG, expected, onto.clone())
        torch.testing.assert_close(interaction.mixed(x, weight_MG, onto), mixed)


def test_it_is_not_linear_unless_it_says_so(module: ModuleType):
    interaction = made(module)
    one, two = some(1), some(2)
    both, apart = interaction(one + two), interaction(one) + interaction(two)
    assert torch.allclose(both, apart, atol=1e-5) == module.__name__.endswith(".compression")


def test_it_can_be_exported(module: ModuleType):
    interaction = made(module)
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(interaction, (some(),), dynamic_shapes=({0: batch},)).module()
    more = torch.cat([some(3), some(4)])
    torch.testing.assert_close(program(more), interaction(more))


def test_products_of_a_checkerboard():
    x_BFD = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    assert dot.build(dot.Config(), 3, 2)(x_BFD).tolist() == [[0.0, 1.0, 1.0]]


def test_a_factorisation_machine_whose_mixtures_are_the_features_has_all_products():
    machine = fm.build(fm.Config(rank=FEATURES), FEATURES, DIM)
    machine.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    nn.init.eye_(machine.mix.weight)
    x_BFD = some()
    torch.testing.assert_close(machine(x_BFD), (x_BFD @ x_BFD.transpose(1, 2)).flatten(1))


def test_a_cross_layer_is_the_papers():
    layer = cross.build(cross.Config(rank=3), FEATURES, DIM)
    x_BK = some().flatten(1)
    (narrow,), (widen,) = layer.network.narrow, layer.network.widen
    expected = x_BK * (x_BK @ narrow.weight.T @ widen.weight.T + widen.bias) + x_BK
    torch.testing.assert_close(layer(some()).flatten(1), expected)


def test_attention_follows_a_permutation_of_the_features():
    interaction, order = made(attention), torch.randperm(FEATURES, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(interaction(some()[:, order]), interaction(some())[:, order])
    with pytest.raises(InputError, match="heads = 3 do not divide"):
        attention.build(attention.Config(heads=3), FEATURES, DIM)


@pytest.mark.parametrize("names", [NAMES, ["cross", "compression"], ["dot", "deep"]], ids=["all", "vectors", "numbers"])
def test_a_layer_of_an_ensemble_is_the_sum_of_its_parts(names: list[str]):
    """A projection of each module with its own columns of the weights, and of the shortcut, added up."""
    torch.manual_seed(0)
    modules = [registry.load("recsys.interactions", name, "") for name in names]
    built = [module.build(module.Config(), FEATURES, DIM) for module in modules]
    layer = DHENLayer(built, FEATURES, DIM, out=3).eval()
    x_BFD = some()
    y_BGD = layer.mix.weight[:, :FEATURES] @ x_BFD
    if layer.numbers is not None:
        y_BGD = y_BGD + layer.numbers.bias.view(3, DIM)
    vector, number = FEATURES, 0
    for interaction in built:
        found = interaction(x_BFD)
        if interaction.out_vectors:
            y_BGD = y_BGD + layer.mix.weight[:, vector : vector + interaction.out_vectors] @ found
            vector += interaction.out_vectors
        else:
            assert layer.numbers is not None
            columns = layer.numbers.weight[:, number : number + interaction.out_dim]
            y_BGD = y_BGD + (found @ columns.T).view(BATCH, 3, DIM)
            number += interaction.out_dim
    torch.testing.assert_close(layer(x_BFD), layer.norm(y_BGD))
