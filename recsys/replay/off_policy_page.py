"""The page of off-policy estimates, and their verdict in a sentence."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from recsys.replay import report
from recsys.replay.estimators import _contract
from recsys.replay.report import Plot, Section, Table
from recsys.report import STYLE

NAMES = {
    "ips": "IPS",
    "clipped_ips": "IPS, clipped",
    "snips": "SNIPS",
    "dm": "direct method",
    "dr": "DR",
    "switch_dr": "SWITCH-DR",
    "dr_shrinkage": "DR, shrunk",
}
POLICIES = {"random_to_bts": "bts from the log of random", "bts_to_random": "random from the log of bts"}

HOW = (
    "Nobody asked the target policy. Each estimate says what it would have earned, from the log of another one; the "
    "band is what it did earn, in a log of its own of the same week. That log is finite too, so that a perfect "
    "estimate still differs from its mean.",
    "Intervals are of the bootstrap, requests being drawn with replacement; where weights were cut they span the uncut "
    "estimate as well. Empirical Bernstein holds for any number of rows whatever their distribution, and is wide for "
    "that; it is given where an estimate is unbiased. The direct method's interval knows nothing of its model's error.",
)


def verdict(result: dict[str, Any]) -> str:
    """What has come out."""
    cases = [(c, d, case) for c, found in result["campaigns"].items() for d, case in found.items()]
    answered = [case for _, _, case in cases if "estimates" in case]
    summary = result["summary"]
    best = min(summary, key=lambda name: summary[name]["relative_error"])
    doubt = sum((case["truth"]["high"] - case["truth"]["low"]) / 2 / case["truth"]["value"] for case in answered)
    weak = [f"{c} ({POLICIES[d]})" for c, d, case in cases if "estimates" in case and case["warnings"]]
    refused = len(cases) - len(answered)
    said = (
        f"Of {len(answered)} questions, each about what one policy would have earned by the log of another, "
        f"{NAMES[best]} answers nearest to what was earned, {_percent(summary[best]['relative_error'])} off on "
        f"average; what was earned is itself known to ± {_percent(doubt / len(answered))} only, so that estimators "
        "less far apart than that are not told apart."
    )
    if weak:
        said += f" With a warning: {', '.join(weak)}."
    if refused:
        said += f" Refused for want of support: {refused}."
    return said


def write(directory: Path, result: dict[str, Any]) -> Path:
    """Write the page; returns its path."""
    with mpl.rc_context(rc=STYLE):
        sections = [Section("In short", HOW, _summary(result))]
        for campaign, found in result["campaigns"].items():
            sections += [_case(f"{campaign}: {POLICIES[name]}", case) for name, case in found.items()]
        sections.append(_assumptions(list(result["summary"])))
        return report.write(directory, "Off-policy estimates on Open Bandit", result["verdict"], sections)


def _summary(result: dict[str, Any]) -> Table:
    rows = [
        [NAMES[name], _percent(found["relative_error"]), f"{found['meets_truth']} of {found['cases']}"]
        for name, found in sorted(result["summary"].items(), key=lambda pair: pair[1]["relative_error"])
    ]
    return Table(("estimator", "mean distance from the truth", "interval meets the truth's"), rows)


def _case(heading: str, case: dict[str, Any]) -> Section:
    if "refused" in case:
        return Section(heading, (f"Refused. {case['refused']}.",))
    overlap, truth = case["overlap"], case["truth"]
    words = [
        f"The policy's own log: {_clicks(truth['value'])} ({_clicks(truth['low'])} to {_clicks(truth['high'])}) clicks "
        f"in a thousand places; the log that answers: {_clicks(case['logged'])}. Its {overlap['rows']:,} rows are "
        f"worth {overlap['effective_rows']:,.0f} of the target's own. Weights average {overlap['mean_weight']:.3f} ± "
        f"{overlap['mean_weight_error']:.3f}, the greatest is {overlap['max_weight']:,.1f}, one in a hundred is above "
        f"{overlap['weight_quantiles']['0.99']:.1f}.",
        *case["warnings"],
    ]
    if case["quarantined"]:
        aside = ", ".join(f"{reason} ({count})" for reason, count in case["quarantined"].items())
        words.append(f"Rows set aside: {aside}.")
    rows = [
        [
            NAMES[name],
            _clicks(found["value"]),
            f"{_clicks(found['low'])} to {_clicks(found['high'])}",
            "–" if found["bernstein"] is None else " to ".join(_clicks(end) for end in found["bernstein"]),
            "–" if found["relative_error"] is None else _percent(found["relative_error"]),
            _cut(found["parameter"]),
            "–" if found["bias_bound"] == 0 else f"{_clicks(found['bias'])} (at most {_clicks(found['bias_bound'])})",
        ]
        for name, found in case["estimates"].items()
    ]
    columns = ("clicks in a thousand", "estimate", "95 % interval", "Bernstein", "off by", "cut at", "bias of that")
    return Section(heading, words, Table(columns, rows), [Plot(_intervals(case), "The band is the policy's own log.")])


def _intervals(case: dict[str, Any]) -> Figure:
    """Estimates and intervals beside the truth."""
    estimates, truth = case["estimates"], case["truth"]
    figure = Figure(figsize=(9, 0.26 * len(estimates) + 0.7), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(1000 * truth["low"], 1000 * truth["high"], color="#3f8f4f", alpha=0.15, linewidth=0)
    axes.axvline(1000 * truth["value"], color="#3f8f4f", linewidth=1)
    for y, found in enumerate(estimates.values()):
        axes.plot([1000 * found["low"], 1000 * found["high"]], [y, y], color="#1f5fbf", linewidth=2)
        axes.plot(1000 * found["value"], y, "o", color="#1f5fbf", markersize=5)
    axes.set_yticks(range(len(estimates)), [NAMES[name] for name in estimates])
    axes.invert_yaxis()
    axes.set_xlim(left=min(0, *axes.get_xlim()))
    axes.set_xlabel("clicks in a thousand places")
    return figure


def _assumptions(estimators: list[str]) -> Section:
    rows = [[NAMES[name], _contract.load(name).ASSUMES] for name in estimators]
    return Section(
        "What each estimator assumes", (), Table(("estimator", "it is right if"), rows, words=frozenset({0, 1}))
    )


def _cut(parameter: float | None) -> str:
    """Where weights were cut."""
    if parameter is None:
        return "–"
    return "nowhere" if np.isinf(parameter) else f"{parameter:.3g}"


def _clicks(value: float) -> str:
    return f"{1000 * value:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
