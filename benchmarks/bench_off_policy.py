"""Off-policy estimators: how near they come to a known truth, how fast they are, and obp beside them.

    python benchmarks/bench_off_policy.py                          200 simulated logs of two kinds, 10 million rows
    python benchmarks/bench_off_policy.py --quick --json           a minute
    python benchmarks/bench_off_policy.py --obd DIR --obp PYTHON   and Open Bandit, obp on the same logs

PYTHON is an interpreter that can import obp, which wants older libraries than this project:

    uv venv obp && uv pip install --python obp/bin/python --no-deps obp pyieoe seaborn

with numpy, pandas, scikit-learn, torch, matplotlib, tqdm and PyYAML beside them.

Coverage of 95 % over 200 logs is itself known to ± 1.5 points (one standard error), over 1,000 to ± 0.7: `--seeds`.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _simulated_bandit import PLACES, simulate

from features.datasets import openbandit as datasets
from features.events import validate
from recsys.replay import open_bandit as bandits
from recsys.replay.estimate import Config, estimate
from recsys.replay.estimators._contract import Logged, Slates, names
from recsys.replay.kinds.off_policy import DIRECTIONS
from recsys.replay.overlap import Config as OverlapConfig
from recsys.replay.overlap import admit, overlap
from recsys.replay.reward_model import Config as ModelConfig

SCENES = {"much exploration": 0.5, "little exploration": 0.05}
"""How often the logging policy shows anything at all."""

UNBIASED = ("ips", "snips", "dr", "slate_iips", "slate_rips", "slate_ips")
PEERS = {
    "dm": "dm",
    "ips": "ipw",
    "snips": "snipw",
    "dr": "dr",
    "switch_dr": "switch-dr",
    "dr_shrinkage": "dr-os",
}
"""What obp calls them."""


def main() -> None:
    """Print what was found, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 logs, a million rows")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, help="simulated logs of each kind")
    parser.add_argument("--requests", type=int, default=2_000, help="of a simulated log")
    parser.add_argument("--rows", type=int, help="of the log that is timed")
    parser.add_argument("--obd", type=Path, help="folder of the Open Bandit Dataset")
    parser.add_argument("--obp", type=Path, help="an interpreter with obp")
    options = parser.parse_args()
    seeds, rows = options.seeds or (20 if options.quick else 200), options.rows or (10**6 if options.quick else 10**7)

    # First, for the peak of memory is the process's own.
    found: dict[str, Any] = {"speed": speed(rows)}
    found["simulated"] = {name: coverage(seeds, options.requests, share) for name, share in SCENES.items()}
    found["ratios"], found["bars"] = {}, bars(found, rows)
    if options.obp:
        found["obp_speed"] = peer_speed(options.obp)
        found["ratios"]["rows a second over obp"] = found["obp_speed"]["ratio"]
    if options.obd:
        found["open_bandit"] = open_bandit(options.obd, options.obp)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


def coverage(seeds: int, requests: int, exploration: float) -> dict[str, dict[str, float]]:
    """By estimator: bias, spread, coverage and width over so many logs; all but coverage as shares of the truth."""
    every: dict[str, list[tuple[float, ...]]] = {}
    effective: list[float] = []
    for seed in range(seeds):
        simulated = simulate(seed, requests=requests, exploration=exploration)
        effective.append(overlap(simulated.log).effective_rows / len(simulated.log))
        answers = estimate(simulated.log, {name: {} for name in names(Logged)}, Config(seed=seed, replicates=1_000))
        answers |= estimate(simulated.lists, {name: {} for name in names(Slates)}, Config(seed=seed, replicates=1_000))
        for name, answer in answers.items():
            truth = simulated.value * (PLACES if name.startswith("slate") else 1)
            low, high = answer.bernstein or (np.nan, np.nan)
            every.setdefault(name, []).append(
                (
                    answer.value / truth - 1,
                    answer.low <= truth <= answer.high,
                    (answer.high - answer.low) / truth,
                    np.nan if answer.bernstein is None else low <= truth <= high,
                    (high - low) / truth,
                )
            )
    found: dict[str, dict[str, float]] = {}
    for name, rows in every.items():
        error, covered, width, bernstein, bernstein_width = np.array(rows, np.float64).T
        found[name] = {
            "bias": float(error.mean()),
            "bias_error": float(error.std(ddof=1) / np.sqrt(seeds)),
            "spread": float(error.std(ddof=1)),
            "rmse": float(np.sqrt((error**2).mean())),
            "coverage": float(covered.mean()),
            "width": float(width.mean()),
            "effective_share": float(np.mean(effective)),
        }
        # Some logs of a tuned estimator are not cut at all; an interval that is not always there is not counted.
        if not np.isnan(bernstein).any():
            found[name] |= {"bernstein_coverage": bernstein.mean(), "bernstein_width": bernstein_width.mean()}
    return found


def speed(rows: int) -> dict[str, float]:
    """All estimators of single actions with intervals and diagnostics, once over so many rows in clusters of ten."""
    rng = np.random.default_rng(0)
    propensity_N = rng.uniform(0.02, 0.9, rows)
    log = Logged(
        reward_N=(rng.random(rows) < 0.1).astype(np.float64),
        propensity_N=propensity_N,
        target_N=np.minimum(propensity_N * rng.exponential(1.0, rows), 1),
        model_N=rng.uniform(0.05, 0.15, rows),
        model_target_N=rng.uniform(0.05, 0.15, rows),
        cluster_N=np.arange(rows) // 10,
    )
    started = time.perf_counter()
    log, _ = admit(log, OverlapConfig(), "rows")
    overlap(log)
    estimate(log, {name: {} for name in names(Logged)}, Config())
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"rows": rows, "seconds": seconds, "peak_gb": peak}


def bars(found: dict[str, Any], rows: int) -> dict[str, dict[str, Any]]:
    """What is aimed at."""
    said: dict[str, dict[str, Any]] = {}
    for scene, estimators in found["simulated"].items():
        for name in UNBIASED:
            value = estimators[name]["coverage"]
            said[f"coverage, {scene}, {name}"] = {"value": value, "target": "0.93 … 0.97", "ok": 0.93 <= value <= 0.97}
    took, peak = found["speed"]["seconds"], found["speed"]["peak_gb"]
    said[f"seconds for {rows:,} rows"] = {"value": took, "target": 120, "ok": took < 120}
    said["peak memory, GB"] = {"value": peak, "target": 4, "ok": peak < 4}
    return said


def asked(obp: Path, arrays: dict[str, Any]) -> dict[str, float]:
    """What obp says of arrays."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, **arrays)
        return json.loads(_peer(obp, str(path)))


def _peer(obp: Path, argument: str) -> str:
    command = [str(obp), "-W", "ignore", str(Path(__file__).with_name("_peer_obp.py")), argument]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def peer_speed(obp: Path, rows: int = 200_000, actions: int = 10) -> dict[str, float]:
    """Point estimates and the choice of hyper-parameters, without intervals, which obp makes by another call."""
    rng = np.random.default_rng(0)
    logging_A, target_A = rng.dirichlet(np.full(actions, 2.0)), rng.dirichlet(np.full(actions, 2.0))
    action_N = rng.choice(actions, rows, p=logging_A)
    model_NA = rng.uniform(0.05, 0.15, (rows, actions))
    reward_N = (rng.random(rows) < 0.1).astype(np.float64)
    arrays = {
        "reward": reward_N,
        "action": action_N,
        "position": np.zeros(rows, np.int64),
        "pscore": logging_A[action_N],
        "target": np.tile(target_A, (rows, 1)),
        "model": model_NA[:, :, None],
    }
    theirs = asked(obp, arrays)
    log = Logged(
        reward_N=reward_N,
        propensity_N=logging_A[action_N],
        target_N=target_A[action_N],
        model_N=model_NA[np.arange(rows), action_N],
        model_target_N=model_NA @ target_A,
    )
    started = time.perf_counter()
    ours = estimate(log, {name: {} for name in PEERS}, Config(replicates=100))
    seconds = time.perf_counter() - started
    same = max(abs(ours[name].value - theirs[PEERS[name]]) for name in ("dm", "ips", "snips", "dr"))
    return {
        "rows": rows,
        "seconds": seconds,
        "obp_seconds": theirs["seconds"],
        "ratio": theirs["seconds"] / seconds,
        "greatest_difference": same,
    }


def open_bandit(root: Path, obp: Path | None) -> dict[str, Any]:
    """Relative errors on both directions of every campaign: this project's, and obp's on the same logs and targets."""
    with tempfile.TemporaryDirectory() as folder:
        prior = Path(folder) / "prior.json"
        if obp is not None:
            prior.write_text(_peer(obp, "--prior"))
        found: dict[str, Any] = {}
        for target, given in (("average of its log", None), ("prior", prior)):
            if given is None or obp is not None:
                found[target] = {
                    f"{campaign} {direction}": _question(root, campaign, policies, given, obp)
                    for campaign in ("all", "men", "women")
                    for direction, policies in DIRECTIONS.items()
                }
    for questions in found.values():
        for whose in ("ours", "obp"):
            if all(whose in question for question in questions.values()):
                each = [question[whose] for question in questions.values()]
                questions[f"mean {whose}"] = {name: float(np.mean([one[name] for one in each])) for name in PEERS}
    return found


def _question(
    root: Path, campaign: str, policies: tuple[str, str], prior: Path | None, obp: Path | None
) -> dict[str, dict[str, float]]:
    """Relative errors of one question; obp fits its own reward model, by its documentation's example."""
    case = bandits.case(root, campaign, policies, prior, ModelConfig(), 0.95)
    ours = estimate(case.log, {name: {} for name in PEERS}, Config(replicates=100))
    found = {"ours": {name: abs(ours[name].value / case.truth - 1) for name in PEERS}}
    if obp is None:
        return found
    log, own = (
        validate(datasets.load(datasets.Config.model_validate({"path": root, "campaign": campaign, "policy": policy})))
        for policy in policies
    )
    place_N, item_N, click_N, _ = bandits.columns(log)
    items = log.items.sort("item_id")
    target_SA = np.full((bandits.PLACES, len(items)), 1 / len(items))
    if policies[1] == "bts":
        target_SA = bandits.shown(own, len(items)) if prior is None else bandits.thompson(prior, campaign, len(items))
    people = log.events.select("user_id").join(log.users, on="user_id", how="left", maintain_order="left")
    codes = [pl.col(name).rank("dense").cast(pl.Float64) for name in items.columns if name != "item_id"]
    theirs = asked(
        obp,
        {
            "reward": click_N.astype(np.int64),
            "action": item_N,
            "position": place_N,
            "pscore": case.log.propensity_N,
            "target": target_SA,
            "context": people.select(datasets.PEOPLE).to_dummies(drop_first=True).to_numpy().astype(np.float64),
            "action_context": items.select(codes).to_numpy(),
        },
    )
    return found | {"obp": {name: abs(theirs[other] / case.truth - 1) for name, other in PEERS.items()}}


def show(found: dict[str, Any]) -> None:
    """For a person."""
    for scene, estimators in found["simulated"].items():
        print(f"{scene}; shares of the truth")
        print(f"  {'':14}{'bias':>16}{'spread':>8}{'covers':>8}{'width':>8}{'Bernstein covers':>18}{'width':>8}")
        for name, of in sorted(estimators.items()):
            line = f"  {name:14}{of['bias']:+8.2%} ±{of['bias_error']:6.2%}{of['spread']:8.2%}{of['coverage']:8.1%}"
            line += f"{of['width']:8.1%}"
            if "bernstein_width" in of:
                line += f"{of['bernstein_coverage']:18.1%}{of['bernstein_width']:8.0%}"
            print(line)
    for target, questions in found.get("open_bandit", {}).items():
        print(f"Open Bandit, bts is the {target}: mean relative error over six questions")
        for name in PEERS:
            print(f"  {name:14}" + "".join(f"{questions[m][name]:8.1%}" for m in questions if m.startswith("mean")))
    for name, bar in found["bars"].items():
        print(f"{'met   ' if bar['ok'] else 'MISSED'} {name}: {bar['value']:.3g} (target {bar['target']})")
    for name, ratio in found["ratios"].items():
        print(f"{name}: {ratio:.2f}")


if __name__ == "__main__":
    main()
