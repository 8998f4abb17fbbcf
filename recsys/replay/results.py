"""What a replay has found, as one JSON object: metrics of policies, their differences, segments, latency."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.replay import exposure, judged, tastes
from recsys.replay.bootstrap import LEVEL, ByUser, compared, holm, interval
from recsys.replay.runner import SHOWN
from recsys.replay.segments import Segment, days, segments
from recsys.replay.settings import Config
from recsys.replay.world import World

MAIN = "ndcg@10"
"""The metric of verdict, segments and gaps."""

FEWEST = 10
"""People of a segment that is compared with others."""

REAL = 0.05
"""A difference is called real where its corrected p-value is below."""


def assemble(directory: Path, names: Sequence[str], world: World, config: Config) -> dict[str, Any]:
    """Judge what was shown.

    Returns:
        `policies.<name>`: means of all metrics, `intervals.<metric>.{low, high}`, `coverage`, `gini`, `strangers`,
        `latency_ms`; `differences.<a>.<b>.<metric>`: `mean, low, high, p, p_corrected, real`, for each pair once;
        `segments.<by>.<name>`, `gaps.<by>.<policy>`, `by_day`; `events`, `users`, `unknown_items`, `compared`.
    """
    shown = pl.read_parquet(directory / SHOWN / "*.parquet").sort("event")
    feeds = {name: padded(shown[f"{name}.items"], config.k) for name in names}
    right_EH = judged.right_items(world.item_E, world.user_E, config.ahead)
    columns = {name: of_events(feed, right_EH, world, config.k) for name, feed in feeds.items()}
    metrics = list(columns[names[0]])
    by_user = {
        name: ByUser.of(np.stack([found[metric] for metric in metrics], axis=1), world.user_E, world.users)
        for name, found in columns.items()
    }
    drawn = {name: sums.resampled(config.resamples, config.seed) for name, sums in by_user.items()}
    catalogue = int(world.items["known"].sum())
    policies: dict[str, Any] = {}
    for name in names:
        low, high = interval(drawn[name])
        count_I = exposure.exposures(feeds[name], world.items.height - 1)
        count_I = count_I[world.items["known"].to_numpy()[1:]] if catalogue else count_I
        policies[name] = {
            **dict(zip(metrics, by_user[name].means_C.tolist(), strict=True)),
            "intervals": {
                metric: {"low": float(low[place]), "high": float(high[place])} for place, metric in enumerate(metrics)
            },
            f"coverage@{config.k}": exposure.coverage(count_I),
            f"gini@{config.k}": exposure.gini(count_I),
            "strangers": int(shown[f"{name}.popular"].sum()),
            "latency_ms": latency(shown[f"{name}.stages"], shown[f"{name}.ms"]),
        }
    return {
        "policies": policies,
        "differences": differences(metrics, {name: by_user[name].means_C for name in names}, drawn),
        **of_segments(segments(world, config.groups), columns, world, config),
        "by_day": by_day(columns, world) if world.has_clock else [],
        "events": world.log.height,
        "users": world.users,
        "unknown_items": int((~world.items["known"].to_numpy())[world.item_E].sum()),
        "compared": {"level": LEVEL, "resamples": config.resamples, "correction": "Holm", "real_below": REAL},
    }


def cuts(k: int) -> list[int]:
    """The k of metrics."""
    return sorted({5, 10, k})


def of_events(feed_EK: np.ndarray, right_EH: np.ndarray, world: World, k: int) -> dict[str, np.ndarray]:
    """Every metric that is a mean over events; NaN where it has no value."""
    found = judged.accuracy(feed_EK, right_EH, cuts(k))
    count_I = world.count_I[1:]
    log_rank_I = np.concatenate([[0.0], exposure.popularity_ranks(count_I)])
    met_EX = world.summed_before(np.stack([np.concatenate([[0.0], np.ones(len(count_I))]), log_rank_I], axis=1))
    history = np.divide(met_EX[:, 1], met_EX[:, 0], out=np.full(len(met_EX), np.nan), where=met_EX[:, 0] > 0)
    found["novelty"] = exposure.mean_of(exposure.self_information(count_I), feed_EK)
    found["popularity_rank"] = exposure.mean_of(log_rank_I[1:], feed_EK)
    # Below 1 the feed is of more popular items than the person's own history.
    found["popularity_bias"] = found["popularity_rank"] / history
    category_IG, names = world.categories
    if names:
        found["diversity"] = tastes.diversity(feed_EK, category_IG)
        found["miscalibration"] = tastes.miscalibration(feed_EK, world.summed_before(category_IG), category_IG)
    return found


def padded(lists: pl.Series, k: int) -> np.ndarray:
    """Feeds as rows of k codes, 0 where there are no more; int64 [E, k]."""
    filled = lists.list.concat(pl.Series([[0] * k], dtype=lists.dtype)).list.head(k)
    return filled.explode().to_numpy().reshape(-1, k).astype(np.int64)


def differences(
    metrics: Sequence[str], means: dict[str, np.ndarray], drawn: dict[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Each pair of policies by each metric; p-values are corrected for the number of them all."""
    pairs = list(combinations(means, 2))
    found = {(a, b): compared(means[a] - means[b], drawn[a] - drawn[b]) for a, b in pairs}
    corrected = holm(np.concatenate([one.p_C for one in found.values()])) if pairs else np.zeros(0)
    tree: dict[str, dict[str, Any]] = {}
    for number, ((a, b), one) in enumerate(found.items()):
        for place, metric in enumerate(metrics):
            p = float(corrected[number * len(metrics) + place])
            tree.setdefault(a, {}).setdefault(b, {})[metric] = {
                "mean": float(one.mean_C[place]),
                "low": float(one.low_C[place]),
                "high": float(one.high_C[place]),
                "p": float(one.p_C[place]),
                "p_corrected": p,
                "real": p < REAL,
            }
    return tree


def of_segments(
    parts: list[Segment], columns: dict[str, dict[str, np.ndarray]], world: World, config: Config
) -> dict[str, Any]:
    """Accuracy of each policy in each segment, with intervals of `MAIN`, and the gap between segments of a kind."""
    names = list(columns)
    values = [np.where(part.events_E, columns[name][MAIN], np.nan) for part in parts for name in names]
    drawn = ByUser.of(np.stack(values, axis=1), world.user_E, world.users).resampled(config.resamples, config.seed)
    low, high = interval(drawn)
    shown = [f"{name}@{k}" for k in cuts(config.k) for name in judged.ACCURACY]
    found: dict[str, dict[str, Any]] = {}
    column: dict[tuple[str, str, str], int] = {}
    for number, part in enumerate(parts):
        entry: dict[str, Any] = {
            "events": int(part.events_E.sum()),
            "users": len(np.unique(world.user_E[part.events_E])),
        }
        for place, name in enumerate(names):
            at = column[part.by, part.name, name] = number * len(names) + place
            entry[name] = {metric: float(columns[name][metric][part.events_E].mean()) for metric in shown}
            entry[name]["interval"] = {"low": float(low[at]), "high": float(high[at])}
        found.setdefault(part.by, {})[part.name] = entry
    gaps: dict[str, dict[str, Any]] = {}
    for by, segment in found.items():
        if by == "period" or len(segment) < 2:
            continue
        for name in names:
            enough = [one for one in segment if segment[one]["users"] >= FEWEST]
            if len(enough) < 2:
                continue
            ordered = sorted(enough, key=lambda one: segment[one][name][MAIN])
            best, worst = ordered[-1], ordered[0]
            between = drawn[:, column[by, best, name]] - drawn[:, column[by, worst, name]]
            ends = interval(between[:, None])
            gaps.setdefault(by, {})[name] = {
                "best": best,
                "worst": worst,
                "mean": segment[best][name][MAIN] - segment[worst][name][MAIN],
                "low": float(ends[0][0]),
                "high": float(ends[1][0]),
            }
    return {"segments": found, "gaps": gaps}


def by_day(columns: dict[str, dict[str, np.ndarray]], world: World) -> list[dict[str, Any]]:
    """Accuracy of each policy on each day."""
    return [
        {
            "day": day,
            "events": len(events),
            **{
                name: {
                    metric: float(values[events].mean())
                    for metric, values in found.items()
                    if metric.split("@")[0] in judged.ACCURACY
                }
                for name, found in columns.items()
            },
        }
        for day, events in days(world.log["timestamp"])
    ]


def latency(stages: pl.Series, milliseconds: pl.Series) -> dict[str, Any]:
    """Of the feeds that were asked for alone: percentiles, and the mean of each stage."""
    alone = stages.list.len() > 0
    total = milliseconds.filter(alone).list.sum().to_numpy()
    each = pl.DataFrame({"stage": stages.filter(alone).explode(), "ms": milliseconds.filter(alone).explode()})
    means = each.group_by("stage", maintain_order=True).agg(pl.col("ms").mean())
    end = float(np.percentile(total, 99.5))
    return {
        **{f"p{q}": float(np.percentile(total, q)) for q in (50, 90, 99)},
        "mean": float(total.mean()),
        "stages": dict(means.rows()),
        "histogram": np.histogram(total, bins=40, range=(0, end))[0].tolist(),
        "histogram_end": end,
        "measured": len(total),
    }
