"""Off-policy estimates on Open Bandit: what each policy's log says of the other policy, against that one's own log.

    recsys replay configs/replay/open_bandit.toml --replay.path DIR

For every campaign and both directions all estimators answer, with intervals and diagnostics. A log that cannot answer
is refused with the reason, and the others still answer.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from features.datasets import openbandit
from features.errors import InputError, one_of
from features.manifest import write_json
from features.settings import Settings
from recsys.replay import estimate, off_policy_page, open_bandit, reward_model
from recsys.replay import overlap as overlaps
from recsys.replay.dispatch import Progress
from recsys.replay.estimators._contract import Logged, names

RESULT = "result.json"
DIRECTIONS = {"random_to_bts": ("random", "bts"), "bts_to_random": ("bts", "random")}
"""The logging policy and the one that is asked about."""


class Config(Settings):
    """The section [replay] of the kind `off_policy`."""

    path: Path
    """The folder of the Open Bandit Dataset."""
    campaigns: tuple[Literal["all", "men", "women"], ...] = Field(default=("all", "men", "women"), min_length=1)
    """Which of its campaigns."""
    prior: Path | None = None
    """JSON of the Beta priors of Thompson sampling, `{campaign: {"alpha": […], "beta": […]}}`; None: its average over
    the week, as its own log has it."""
    model: reward_model.Config = reward_model.Config()
    """The reward model."""
    intervals: estimate.Config = estimate.Config()
    """The bootstrap."""
    overlap: overlaps.Config = overlaps.Config()
    """What a log may be like."""
    estimators: dict[str, dict[str, Any]] = Field(default_factory=lambda: {name: {} for name in names(Logged)})
    """Estimators and their fields; all of single actions if not given."""


def check(config: Config, path: Path) -> None:
    """Whether the estimators are known; the data are looked for only when they are read.

    Raises:
        InputError: one is not.
    """
    known = names(Logged)
    for name in config.estimators:
        if name not in known:
            raise one_of(f"{path}: replay.estimators", name, known)


def run(config: Config, path: Path, directory: Path, progress: Progress) -> dict[str, Any]:
    """Estimate, judge, write `result.json` and the page.

    Raises:
        InputError: a file is missing or damaged, or no log can answer.
    """
    started = time.monotonic()
    for campaign in config.campaigns:
        for policy in ("random", "bts"):
            fields = {"path": config.path, "campaign": campaign, "policy": policy}
            openbandit.inputs(openbandit.Config.model_validate(fields))
    campaigns: dict[str, dict[str, Any]] = {campaign: {} for campaign in config.campaigns}
    refusals: list[InputError] = []
    with progress.count("estimates", len(config.campaigns) * len(DIRECTIONS)) as advance:
        for campaign in config.campaigns:
            for name, policies in DIRECTIONS.items():
                case = open_bandit.case(
                    config.path, campaign, policies, config.prior, config.model, config.intervals.level
                )
                try:
                    campaigns[campaign][name] = answer(case, config)
                except InputError as error:
                    refusals.append(error)
                    campaigns[campaign][name] = {"refused": str(error)}
                advance(sum(len(found) for found in campaigns.values()))
    if len(refusals) == len(config.campaigns) * len(DIRECTIONS):
        raise refusals[0]
    result: dict[str, Any] = {
        "directory": str(directory),
        "campaigns": campaigns,
        "summary": summary(campaigns),
        "target": "average of its log" if config.prior is None else f"prior of {config.prior}",
        "level": config.intervals.level,
        "seconds": time.monotonic() - started,
    }
    result["verdict"] = off_policy_page.verdict(result)
    directory.mkdir(parents=True, exist_ok=True)
    result["report"] = str(off_policy_page.write(directory, result))
    write_json(directory / RESULT, result)
    return result


def answer(case: open_bandit.Case, config: Config) -> dict[str, Any]:
    """All estimates of a case beside its truth.

    Raises:
        InputError: the log cannot answer.
    """
    log, impossible = overlaps.admit(case.log, config.overlap, case.source)
    found = overlaps.overlap(log)
    overlaps.require_support(found, config.overlap, case.source)
    estimates = estimate.estimate(log, config.estimators, config.intervals, case.source)
    low, high = case.truth_interval
    return {
        "truth": {"value": case.truth, "low": low, "high": high},
        "logged": float(log.reward_N.mean()),
        "estimates": {
            name: {
                **asdict(each),
                "relative_error": abs(each.value - case.truth) / case.truth if case.truth else None,
                "meets_truth": each.low <= high and low <= each.high,
            }
            for name, each in estimates.items()
        },
        "overlap": found.as_json(),
        "quarantined": case.quarantined | impossible,
        "warnings": overlaps.warnings(found, config.overlap),
    }


def summary(campaigns: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By estimator: mean relative error, and in how many cases its interval meets the truth's."""
    cases = [case for directions in campaigns.values() for case in directions.values() if "estimates" in case]
    found: dict[str, dict[str, float]] = {}
    for name in cases[0]["estimates"]:
        each = [case["estimates"][name] for case in cases]
        errors = [one["relative_error"] for one in each if one["relative_error"] is not None]
        found[name] = {
            "relative_error": float(np.mean(errors)) if errors else float("nan"),
            "meets_truth": sum(one["meets_truth"] for one in each),
            "cases": len(each),
        }
    return found
