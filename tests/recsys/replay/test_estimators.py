"""Estimators against answers worked out by hand, against each other, and against a bandit whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from features import registry
from features.errors import InputError
from features.settings import Settings
from recsys.replay import intervals
from recsys.replay.estimate import Config, estimate, least_error
from recsys.replay.estimators import _contract
from recsys.replay.estimators._contract import Floats, Logged, Slates, names
from recsys.replay.estimators._slates import slates
from recsys.replay.sums import Sums

INTERVALS = Config(replicates=100)

TWO_ARMS = Logged(
    reward_N=np.array([1.0, 0.0, 1.0, 1.0]),
    propensity_N=np.array([0.8, 0.8, 0.8, 0.2]),
    target_N=np.array([0.4, 0.4, 0.4, 0.6]),
    model_N=np.array([0.5, 0.5, 0.5, 1.0]),
    model_target_N=np.full(4, 0.8),
)
"""Arm A shown three times of four with probability 0.8, B once with 0.2; the target takes them with 0.4 and 0.6."""


def values(log: Logged | Slates, **fields: dict[str, float]) -> dict[str, float]:
    return {name: found.value for name, found in estimate(log, fields, INTERVALS).items()}


@pytest.mark.parametrize("name", registry.known(_contract.PACKAGE))
def test_says_what_it_is(name: str) -> None:
    estimator = _contract.load(name)
    assert issubclass(estimator.Config, Settings)
    assert all(about.description for about in estimator.Config.model_fields.values())
    assert estimator.ASSUMES.endswith(".")
    assert "http" in (estimator.__doc__ or ""), "names its paper"


def test_two_arms_by_hand() -> None:
    """Weights are 1/2, 1/2, 1/2 and 3."""
    assert values(TWO_ARMS, ips={}, snips={}, dm={}, dr={}) == pytest.approx(
        {
            "ips": (0.5 + 0 + 0.5 + 3) / 4,
            "snips": (0.5 + 0 + 0.5 + 3) / 4.5,
            "dm": 0.8,
            "dr": 0.8 + (0.5 * 0.5 - 0.5 * 0.5 + 0.5 * 0.5 + 0) / 4,
        }
    )


def test_clipping_by_hand_shows_what_it_costs() -> None:
    found = estimate(TWO_ARMS, {"clipped_ips": {"clip": 1.0}}, INTERVALS)["clipped_ips"]
    assert found.value == pytest.approx((0.5 + 0.5 + 1) / 4)
    assert found.parameter == 1
    assert found.bias == pytest.approx(0.5 - 1.0)  # against 1, which is IPS
    assert found.bias_bound == pytest.approx(1 - (0.5 * 3 + 1) / 4)


def test_switch_and_shrinkage_by_hand() -> None:
    log = replace(TWO_ARMS, model_N=np.array([0.5, 0.5, 0.5, 0.5]))
    fields = {"switch_dr": {"tau": 1.0}, "dr_shrinkage": {"strength": 1.0}}
    small, great = 0.5 / 1.25, 3 / 10  # λ w / (w² + λ)
    assert values(log, **fields) == pytest.approx(
        {"switch_dr": 0.8 + 0.5 * 0.5 / 4, "dr_shrinkage": 0.8 + (small * 0.5 + great * 0.5) / 4}
    )


def bandit(rows: int, seed: int, overlap: float = 1.0) -> tuple[Logged, float]:
    """A log of a contextual bandit of four situations and five actions, and what the target is truly worth."""
    fixed = np.random.default_rng(1)
    expected_XA = fixed.uniform(0.1, 0.9, (4, 5))
    logging_XA = fixed.dirichlet(np.full(5, 3.0), 4)
    target_XA = overlap * fixed.dirichlet(np.full(5, 2.0), 4) + (1 - overlap) * logging_XA
    rng = np.random.default_rng(seed)
    x = rng.integers(4, size=rows)
    a = (rng.random(rows)[:, None] > logging_XA.cumsum(axis=1)[x]).sum(axis=1).clip(max=4)
    model_XA = (expected_XA + 0.3).clip(max=1)  # far too hopeful
    return Logged(
        reward_N=(rng.random(rows) < expected_XA[x, a]).astype(float),
        propensity_N=logging_XA[x, a],
        target_N=target_XA[x, a],
        model_N=model_XA[x, a],
        model_target_N=(model_XA * target_XA).sum(axis=1)[x],
    ), float((expected_XA * target_XA).sum(axis=1).mean())


def test_right_on_average_even_with_a_wrong_model() -> None:
    runs = [bandit(400, seed) for seed in range(300)]
    found = [values(log, ips={}, snips={}, dr={}) for log, _ in runs]
    for name in ("ips", "snips", "dr"):
        errors = np.array([run[name] - truth for run, (_, truth) in zip(found, runs, strict=True)])
        assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(len(errors)), name


def test_the_direct_method_is_as_wrong_as_its_model() -> None:
    log, truth = bandit(50_000, 0)
    assert values(log, dm={})["dm"] - truth > 0.2


def test_identities() -> None:
    log, _ = bandit(2_000, 3)
    zero = replace(log, model_N=np.zeros(2_000), model_target_N=np.zeros(2_000))
    same = replace(log, target_N=log.propensity_N)
    found = values(log, ips={}, dr={}, dm={})
    assert values(zero, dr={})["dr"] == pytest.approx(found["ips"], abs=1e-12), "DR without a model is IPS"
    for name in ("ips", "snips", "clipped_ips"):
        fields = {"clip": 1.0} if name == "clipped_ips" else {}
        assert values(same, **{name: fields})[name] == pytest.approx(log.reward_N.mean()), "the log's own policy"
    ends = {"switch_dr": "tau", "dr_shrinkage": "strength"}
    for name, field in ends.items():
        assert values(log, **{name: {field: 0.0}})[name] == pytest.approx(found["dm"], abs=1e-12)
        assert values(log, **{name: {field: 1e12}})[name] == pytest.approx(found["dr"], abs=1e-6)
    shifted = replace(log, reward_N=log.reward_N + 1, reward_range=(1.0, 2.0))
    assert values(shifted, snips={})["snips"] == pytest.approx(values(log, snips={})["snips"] + 1)


def test_a_perfect_model_of_sure_rewards_leaves_nothing_to_correct() -> None:
    log, _ = bandit(2_000, 4)
    assert log.model_N is not None
    sure = replace(log, reward_N=log.model_N, model_target_N=np.full(2_000, 0.4))
    found = estimate(sure, {"dr": {}, "ips": {}}, INTERVALS)
    assert found["dr"].error == pytest.approx(0, abs=1e-12)
    assert found["ips"].error > 0.005


def lists(rows: int, seed: int) -> tuple[Slates, float]:
    """Slates of three places whose rewards depend on their own item alone, and their true worth."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(2)
    expected_SA = fixed.uniform(0, 1, (3, 4))
    logging_SA, target_SA = fixed.dirichlet(np.full(4, 5.0), 3), fixed.dirichlet(np.full(4, 5.0), 3)
    place = np.arange(3)
    a_RS = (rng.random((rows, 3))[:, :, None] > logging_SA.cumsum(axis=1)).sum(axis=2).clip(max=3)
    return Slates(
        reward_RS=(rng.random((rows, 3)) < expected_SA[place, a_RS]).astype(float),
        propensity_RS=logging_SA[place, a_RS],
        target_RS=target_SA[place, a_RS],
    ), float((expected_SA * target_SA).sum())


def test_lists_of_independent_places() -> None:
    """All three forms are right then, and surer the more they assume."""
    runs = [lists(500, seed) for seed in range(200)]
    found = [values(log, slate_ips={}, slate_rips={}, slate_iips={}) for log, _ in runs]
    spread: list[float] = []
    for name in ("slate_iips", "slate_rips", "slate_ips"):
        errors = np.array([run[name] - truth for run, (_, truth) in zip(found, runs, strict=True)])
        assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(len(errors))
        spread.append(float(errors.std()))
    assert spread == sorted(spread)


def test_a_list_by_hand() -> None:
    """Weights 2 and 3: the list's is 6, the second place's with the one above it 6, alone 3."""
    log = Slates(
        reward_RS=np.array([[1.0, 1.0], [0.0, 0.0]]),
        propensity_RS=np.array([[0.4, 0.2], [1.0, 1.0]]),
        target_RS=np.array([[0.8, 0.6], [1.0, 1.0]]),
    )
    assert values(log, slate_ips={}, slate_rips={}, slate_iips={}) == pytest.approx(
        {"slate_ips": 2 * 6 / 2, "slate_rips": (2 + 6) / 2, "slate_iips": (2 + 3) / 2}
    )


def test_lists_from_rows_in_any_order() -> None:
    request, position = np.array([7, 3, 7, 3, 3]), np.array([2, 5, 1, 1, 3])
    log = Logged(
        reward_N=np.array([72.0, 35, 71, 31, 33]),
        propensity_N=np.full(5, 0.5),
        target_N=np.full(5, 0.25),
        reward_range=(0, 100),
    )
    found = slates(log, request, position)
    assert found.reward_RS.tolist() == [[31, 33, 35], [71, 72, 0]]
    assert found.weight_RS.tolist() == [[0.5, 0.5, 0.5], [0.5, 0.5, 1]]
    with pytest.raises(InputError, match="request 3 has position 1 twice"):
        slates(log, request, np.array([2, 1, 1, 1, 3]))


def test_a_hyper_parameter_is_chosen_where_it_makes_the_bound_of_the_error_less() -> None:
    """Of the whole estimate the squared error is 3.67, half of it in place of which is bias or not."""
    whole_M = np.array([0.0, 0.0, 4.0, 8.0])

    def chosen(first_M: Floats) -> int:
        value_MK, weight_MK = np.stack([first_M, whole_M, whole_M], axis=1), np.ones((4, 3))
        sums = Sums(
            value_MK=value_MK,
            weight_MK=weight_MK,
            kept_K=np.ones(3),
            bounds_K=[None] * 3,
            rows=4,
            clusters=4,
            largest=1,
            ratio_K=value_MK.mean(axis=0),
            error_K=intervals.standard_errors(value_MK, weight_MK),
        )
        return least_error(sums, range(3))

    assert chosen(whole_M / 2 + 1.5) == 0, "0.92 + 0.92, no bias"
    assert chosen(whole_M / 2) == 2, "0.92 + (1.5 + 0.96)²; of the two others the one that cuts nothing"


def test_chunks_and_units_change_nothing_but_the_draws() -> None:
    log, _ = bandit(5_000, 5)
    everything = {name: {} for name in names(Logged)}
    whole = estimate(log, everything, Config(replicates=400, units=5_000))
    for name, found in estimate(log, everything, Config(replicates=400, units=500, chunk=777)).items():
        assert found.value == pytest.approx(whole[name].value, abs=1e-12)
        assert found.error == pytest.approx(whole[name].error, rel=0.2)
        assert found.high - found.low == pytest.approx(whole[name].high - whole[name].low, rel=0.3)


def test_rows_of_a_cluster_are_not_independent() -> None:
    """Every row four times over says no more than once: the interval is that of the distinct rows."""
    log, _ = bandit(1_000, 6)
    four = np.repeat(np.arange(1_000), 4)

    def repeated(values_N: Floats | None) -> Floats:
        assert values_N is not None
        return values_N[four]

    again = Logged(
        reward_N=repeated(log.reward_N),
        propensity_N=repeated(log.propensity_N),
        target_N=repeated(log.target_N),
        model_N=repeated(log.model_N),
        model_target_N=repeated(log.model_target_N),
        cluster_N=four,
    )
    for name in ("ips", "snips", "dr"):
        once, many = (estimate(each, {name: {}}, INTERVALS)[name] for each in (log, again))
        assert (many.value, many.error, many.low, many.high) == pytest.approx(
            (once.value, once.error, once.low, once.high)
        )
        assert many.bernstein == (None if once.bernstein is None else pytest.approx(once.bernstein))


def test_what_an_estimator_cannot_do_is_said() -> None:
    log, _ = bandit(100, 0)
    with pytest.raises(InputError, match="'dr' needs a reward model"):
        estimate(replace(log, model_N=None), {"dr": {}}, INTERVALS)
    with pytest.raises(InputError, match="'slate_ips' takes Slates"):
        estimate(log, {"slate_ips": {}}, INTERVALS)
    with pytest.raises(InputError, match=r"estimators = 'ipz' is not known; use one of: clipped_ips, dm"):
        estimate(log, {"ipz": {}}, INTERVALS)
    with pytest.raises(InputError, match=r"unknown key replay\.estimators\.clipped_ips\.cut"):
        estimate(log, {"clipped_ips": {"cut": 3}}, INTERVALS)
