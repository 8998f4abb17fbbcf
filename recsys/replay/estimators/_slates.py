"""Lists from rows, and the bounds of what lists are estimated by."""

from collections.abc import Sequence

import numpy as np

from features.errors import InputError
from recsys.replay.estimators._contract import Floats, Ints, Logged, Slates


def product_bounds(log: Slates, factors: Sequence[int]) -> tuple[float, float]:
    """Bounds of Σ_s r_s w_1 … w_f(s), each weight at most the greatest one of a place."""
    greatest = float(log.weight_RS.max()) if log.weight_bound is None else log.weight_bound
    # Beyond any use already; and a power of it must not overflow.
    products = sum(min(max(greatest, 1.0) ** factor, 1e100) for factor in factors)
    low, high = log.reward_range
    return min(0.0, low * products), max(0.0, high * products)


def slates(log: Logged, request_N: Ints, position_N: Ints, cluster_N: Ints | None = None) -> Slates:
    """Rows as lists: each request's in the order of positions, in the order of request numbers.

    Args:
        log: the rows.
        request_N: int64, equal for rows of a list.
        position_N: int64, ascending from the top; gaps are closed.
        cluster_N: of the requests, one for each row; None: requests are independent.

    Raises:
        InputError: a request has a position twice.
    """
    order = np.lexsort((position_N, request_N))
    request, position = request_N[order], position_N[order]
    first = np.flatnonzero(np.diff(request, prepend=request[0] - 1))
    twice = (np.diff(request) == 0) & (np.diff(position) == 0)
    if twice.any():
        at = int(twice.argmax())
        raise InputError(
            f"request {request[at]} has position {position[at]} twice; a list has one item at a place: mend the log"
        )
    length = np.diff(first, append=len(request))
    row = np.repeat(np.arange(len(first)), length)
    place = np.arange(len(request)) - first[row]
    shape = len(first), int(length.max())

    def filled(value_N: Floats, empty: float) -> Floats:
        filled_RS = np.full(shape, empty)
        filled_RS[row, place] = value_N[order]
        return filled_RS

    return Slates(
        reward_RS=filled(log.reward_N, 0.0),
        propensity_RS=filled(log.propensity_N, 1.0),
        target_RS=filled(log.target_N, 1.0),
        cluster_R=None if cluster_N is None else cluster_N[order][first],
        weight_bound=log.weight_bound,
        reward_range=log.reward_range,
    )
