"""A multi-layer perceptron."""

from itertools import pairwise

from torch import nn


def mlp(widths: tuple[int, ...], *, last_linear: bool) -> nn.Sequential:
    """Linear layers of the given widths, input first, with ReLU after each but, if `last_linear`, the last."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*(layers[:-1] if last_linear else layers))
