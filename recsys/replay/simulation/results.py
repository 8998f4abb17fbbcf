"""What a simulation has found, from what each seed has shown: policies offline and online, and how the two agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.replay.simulation.agreement import Evidence, agreement, interval, values
from recsys.replay.simulation.holdout import Holdout, Judged
from recsys.replay.simulation.policies import Policy
from recsys.replay.simulation.population import Outcome

CONDITIONS = ("without_feedback", "with_feedback")
ONLINE = "expected_clicks"
"""The online value that policies are ordered by: the true expectation for what was shown, without luck."""


@dataclass(frozen=True)
class Seed:
    """One world."""

    holdout: Holdout
    offline: dict[str, Judged]
    online: dict[str, dict[str, list[Outcome]]]
    """Condition → policy → its rounds."""


def summary(policies: Mapping[str, Policy], seeds: Sequence[Seed], slate: int, draws: int, seed: int) -> dict[str, Any]:
    """All that is told, as plain values.

    Args:
        policies: by name.
        seeds: what each has shown.
        slate: length of feeds.
        draws: of the bootstrap.
        seed: of its draws.

    Returns:
        `policies.<name>`: `kind`, `reference`, `offline.<metric>` and `online.<condition>.{clicks,expected_clicks}`
        with `value`, `low`, `high`; `rounds` and `shown` of each round, means over seeds. `agreement.<condition>.
        <metric>` as in `agreement`, of policies that are no references; `order`, the policies by their value
        before people; `support`, what stands behind the estimates; `verdict`.
    """
    names = list(policies)
    metrics = (f"recall@{slate}", f"ndcg@{slate}", "ips")
    found: dict[str, Any] = {
        "policies": {name: {"kind": policy.kind, "reference": policy.reference} for name, policy in policies.items()}
    }
    for name in names:
        own = found["policies"][name]
        own["offline"] = {metric: _offline(seeds, name, metric, draws, seed) for metric in metrics}
        own["online"] = {condition: _online(seeds, condition, name, draws, seed) for condition in CONDITIONS}
    found["metrics"], found["slate"] = list(metrics), slate
    found["support"] = {name: _support(seeds, name) for name in names}
    judged = [name for name in names if not policies[name].reference]
    found["agreement"] = {
        condition: {
            metric: agreement([_evidence(one, judged, metric, condition) for one in seeds], draws, seed)
            for metric in metrics
        }
        for condition in CONDITIONS
    }
    found["order"] = {
        condition: sorted(names, key=lambda name: -found["policies"][name]["online"][condition][ONLINE]["value"])
        for condition in CONDITIONS
    }
    found["verdict"] = verdict(found, judged)
    return found


def verdict(found: Mapping[str, Any], judged: Sequence[str]) -> str:
    """What has come out, in a sentence or two."""
    metric = found["metrics"][1]
    told = [
        f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f}) {condition.replace('_', ' ')}"
        for condition in CONDITIONS
        for one in [found["agreement"][condition][metric]["spearman"]]
    ]
    last = CONDITIONS[-1]
    best = {
        "offline": max(judged, key=lambda name: found["policies"][name]["offline"][metric]["value"]),
        "online": next(name for name in found["order"][last] if name in judged),
    }
    lost = found["agreement"][last][metric]["regret"]["value"]
    choice = (
        f"the best of both is {best['online']}"
        if best["offline"] == best["online"]
        else f"the log would choose {best['offline']}, people {best['online']}: that loses {lost:.1%} of clicks"
    )
    return (
        f"The order of {len(judged)} policies by {metric} on the held-out log agrees with their order before simulated "
        f"people to a rank correlation of {' and '.join(told)}; with feedback, {choice}."
    )


def _parts(judged: Judged, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """By request, what a metric is the quotient of; float64 [R] each."""
    if metric == "ips":
        return judged.estimate_R, np.ones_like(judged.estimate_R)
    return (judged.found_R if metric.startswith("recall") else judged.gain_R), judged.clicks_R


def _evidence(one: Seed, names: Sequence[str], metric: str, condition: str) -> Evidence:
    user_R, place_R = np.unique(one.holdout.user_R, return_inverse=True)

    def by_user(value_R: np.ndarray) -> np.ndarray:
        return np.bincount(place_R, value_R, minlength=len(user_R))

    parts = [_parts(one.offline[name], metric) for name in names]
    return Evidence(
        gain_UP=np.stack([by_user(gain_R) for gain_R, _ in parts], axis=1),
        weight_U=by_user(parts[0][1]),
        online_NP=np.array([[outcome.expected for outcome in one.online[condition][name]] for name in names]).T,
    )


def _offline(seeds: Sequence[Seed], name: str, metric: str, draws: int, seed: int) -> dict[str, float]:
    evidence = [_evidence(one, [name], metric, CONDITIONS[0]) for one in seeds]
    rng = np.random.default_rng(seed)
    spread = np.zeros(draws)
    for one in evidence:
        users = len(one.weight_U)
        times_DU = rng.multinomial(users, np.full(users, 1 / users), draws)
        spread += (times_DU @ one.gain_UP[:, 0]) / np.maximum(times_DU @ one.weight_U, 1e-12) / len(evidence)
    return {"value": float(values(evidence)[0][0]), **interval(spread)}


def _online(seeds: Sequence[Seed], condition: str, name: str, draws: int, seed: int) -> dict[str, Any]:
    rounds = [one.online[condition][name] for one in seeds]
    of_rounds = {
        "clicks": np.array([[outcome.clicks for outcome in played] for played in rounds]),
        ONLINE: np.array([[outcome.expected for outcome in played] for played in rounds]),
    }
    rng = np.random.default_rng(seed)
    count = of_rounds["clicks"].size
    picked_DC = rng.integers(count, size=(draws, count))
    return {
        **{
            title: {"value": float(value_SN.mean()), **interval(value_SN.ravel()[picked_DC].mean(1))}
            for title, value_SN in of_rounds.items()
        },
        "rounds": of_rounds[ONLINE].mean(0).tolist(),
        "shown": np.mean([[outcome.shown for outcome in played] for played in rounds], axis=0).tolist(),
    }


def _support(seeds: Sequence[Seed], name: str) -> dict[str, float]:
    """Logged places at which the policy shows what was logged, and what their weights are worth in equal ones."""
    weight = np.concatenate([one.offline[name].weight_RS.ravel() for one in seeds])
    squares = float((weight**2).sum())
    return {
        "places": len(weight),
        "matched": int((weight > 0).sum()),
        "effective": float(weight.sum() ** 2 / squares) if squares else 0.0,
    }
