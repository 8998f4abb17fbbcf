"""What prepared data are like: volumes, sparsity, splits, every feature, and how far each has drifted.

    profile(Path("runs/<name>/examples"), "time")

gives one JSON-able dict, which `recsys.data_report` draws:
    rows, parts             as the manifest counts them
    days, gaps, actions     the log in time, where it has a clock, and by action
    people, items, pairs    how many, how often, how unevenly; who meets what
    splits                  rows, times, base rate and unknown ids of each part of each split
    features, drift         of one split, from its encoded examples; drift is sorted, the worst first
    sampled                 rows looked at for the two, and rows there are, of each part

The log is aggregated lazily, examples are read block by block. What is held grows with people, items and rows of the
embedding tables, and with at most SAMPLE_ROWS numbers a dense feature and part, never with the log.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features import manifest as manifests
from features.events import DAY_MS
from features.examples import PART, Examples, PartExamples
from features.pipeline import NAMES, Split
from features.schema import FeatureSpec

SAMPLE_ROWS = 1_000_000
"""Examples of a part that features are looked at in; where there are more, evenly spaced blocks of about as many."""

PAIR_ROWS = 4_000_000
"""Interactions that repetitions are counted in; where there are more, those of every n-th person."""

TOP = 20
"""Indices that have a bin of their own in the stability index of ids."""

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
"""Shares at which quantiles are told."""

HISTOGRAM = 24
"""Bars of a histogram."""

UNKNOWN = "unknown"
"""What index 0 is called."""

_FLOOR = 1e-4
"""Least share of a bin in the stability index, so that an empty bin weighs much but not infinitely."""

_THINNED = 20_000
"""Order statistics that a Kolmogorov–Smirnov distance is computed from: exact up to 1 / 20,000."""

_POINTS = 60
"""Points of a curve."""

# SciPy ships no types.
_special: Any = import_module("scipy.special")
_stats: Any = import_module("scipy.stats")


def profile(prepared: Path, split: Split) -> dict[str, Any]:
    """Look at all that `prepare` has left.

    Args:
        prepared: a finished `examples/`.
        split: whose features are looked at.

    Raises:
        InputError: the split was not prepared.
    """
    facts = manifests.read(prepared)
    assert facts is not None, f"{prepared} is not finished"
    has_clock = facts["has_clock"]
    return {
        "split": split,
        "source": facts["source"],
        "has_clock": has_clock,
        "content": facts["content"],
        "rows": facts["rows"],
        "parts": [{name: value for name, value in part.items() if name != "inputs"} for part in facts["parts"]],
        **_log(prepared, facts["rows"], has_clock),
        "splits": {name: _split(prepared, name, facts["splits"][name], has_clock) for name in facts["splits"]},
        **_features(Examples.open(prepared / split)),
    }


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of counts: 0 if all are equal, towards 1 if one has everything; 0 of nothing."""
    ordered = np.sort(counts).astype(np.float64)
    total, number = ordered.sum(), len(ordered)
    if not total:
        return 0.0
    return float(2 * (np.arange(1, number + 1) * ordered).sum() / (number * total) - (number + 1) / number)


def psi_terms(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """What each bin adds to the population stability index, Σ (a − e) · ln(a / e) over the shares e and a of the bins.

    Siddiqi, Credit Risk Scorecards (2006); usually read as no drift below 0.1 and much above 0.25. It is the symmetric
    Kullback–Leibler divergence. Shares below 1 / 10,000 count as that.

    Args:
        expected: rows in each bin, of which there is at least one; [bins].
        actual: the same of what is compared.
    """
    e, a = (np.maximum(counts / counts.sum(), _FLOOR) for counts in (expected, actual))
    return (a - e) * np.log(a / e)


def psi_by_chance(expected: np.ndarray, actual: np.ndarray) -> float:
    """What the index stays below in 95 of 100 pairs of samples of these sizes from one distribution.

    It is about χ² with bins − 1 degrees of freedom, times 1/n + 1/m (Yurdakul, Western Michigan University 2018).
    """
    bins = int(((expected > 0) | (actual > 0)).sum())
    return float(_special.chdtri(max(bins - 1, 1), 0.05) * (1 / expected.sum() + 1 / actual.sum()))


def _log(prepared: Path, rows: dict[str, Any], has_clock: bool) -> dict[str, Any]:
    """The log in time, by action, by person and by item."""
    paths = sorted((prepared / "log").glob("*.parquet"))
    scan = pl.scan_parquet(paths)
    interactions = scan.filter("interaction")
    counts = (pl.len().alias("events"), pl.col("interaction").sum(), pl.col("positive").sum())
    sharing = -(-rows["interactions"] // PAIR_ROWS)
    wanted = {
        "user": scan.group_by("user_code").agg(pl.col("interaction").sum()),
        "item": scan.group_by("item_code").agg(pl.col("interaction").sum()),
        "pairs": interactions.filter(pl.col("user_code") % sharing == 0)
        .group_by("user_code", "item_code")
        .len()
        .select(pl.len().alias("distinct"), pl.col("len").sum().alias("all")),
    }
    if "action" in scan.collect_schema():
        wanted["actions"] = scan.group_by("action").agg(counts)
    if has_clock:
        wanted["days"] = scan.group_by(pl.col("timestamp") // DAY_MS).agg(counts)
        gap = pl.col("timestamp").diff()
        wanted["gaps"] = (
            scan.select(pl.col("timestamp").alias("to_ms"), ms=gap).top_k(5, by="ms").filter(pl.col("ms") > 0)
        )
    collected = pl.collect_all(list(wanted.values()), engine="streaming")
    found = dict(zip(wanted, collected, strict=True))
    result: dict[str, Any] = {"days": [], "gaps": [], "actions": []}
    if "days" in found:
        days = found["days"].sort("timestamp")
        dates = pl.from_epoch(pl.col("timestamp") * DAY_MS, time_unit="ms").dt.strftime("%Y-%m-%d")
        result["days"] = days.with_columns(dates.alias("day")).drop("timestamp").to_dicts()
        result["gaps"] = found["gaps"].sort("ms", descending=True).to_dicts()
    if "actions" in found:
        result["actions"] = found["actions"].sort("events", "action", descending=[True, False]).to_dicts()
    for name, key in (("people", "user"), ("items", "item")):
        height = pl.scan_parquet(prepared / f"{key}s.parquet").select(pl.len()).collect().item()
        result[name] = _entities(found[key]["interaction"].to_numpy(), rows[f"unknown_{key}s"], height)
    pairs = found["pairs"].row(0, named=True)
    repeated = 1 - pairs["distinct"] / pairs["all"] if pairs["distinct"] else 0.0
    size = result["people"]["active"] * result["items"]["active"]
    result["pairs"] = {
        "repeated": repeated,
        "density": rows["interactions"] * (1 - repeated) / size,
        "people_looked_at": 1 / sharing,
    }
    return result


def _entities(counts: np.ndarray, unknown: int, known: int) -> dict[str, Any]:
    """How often each of them has an interaction.

    Args:
        counts: interactions of those that the log names; of some, not of all, there may be none.
        unknown: ids in events that their table does not describe.
        known: all that events or tables name.
    """
    ordered = np.sort(counts[counts > 0]).astype(np.float64)
    number = len(ordered)
    cumulated: np.ndarray = np.concatenate([[0.0], np.cumsum(ordered)]) / ordered.sum()
    shares: np.ndarray = np.linspace(0, 1, _POINTS + 1)
    lorenz: np.ndarray = np.interp(shares, np.arange(number + 1) / number, cumulated)
    ranks = np.unique(np.geomspace(1, number, _POINTS).round().astype(np.int64))
    return {
        "all": known,
        "seen": len(counts),
        "active": number,
        "unknown": unknown,
        "mean": float(ordered.mean()),
        "once": int((ordered == 1).sum()),
        "quantiles": np.quantile(ordered, QUANTILES).tolist(),
        "gini": gini(ordered),
        "share_of_top_percent": float(1 - cumulated[number - max(number // 100, 1)]),
        "with_half": number + 1 - int(np.searchsorted(cumulated, 0.5, side="right")),
        "lorenz": [shares.tolist(), lorenz.tolist()],
        "ranks": [ranks.tolist(), ordered[number - ranks].tolist()],
    }


def _split(prepared: Path, split: str, facts: dict[str, Any], has_clock: bool) -> dict[str, Any]:
    """Rows, times and unknown ids of each part of a split."""
    part = np.load(prepared / split / PART, mmap_mode="r")
    tables = {key: pl.scan_parquet(prepared / f"{key}s.parquet").select(pl.len()).collect().item() for key in _ENTITIES}
    events = {key: np.zeros((3, size), dtype=np.int64) for key, size in tables.items()}
    times: list[pl.DataFrame] = []
    for path in sorted((prepared / "log").glob("*.parquet")):
        log = pl.read_parquet(path, columns=["row", "timestamp", "user_code", "item_code"])
        of = part[log["row"].to_numpy()]
        for key, size in tables.items():
            place = of * np.int64(size) + log[f"{key}_code"].to_numpy()
            events[key] += np.bincount(place, minlength=3 * size).reshape(3, size)
        at = pl.col("timestamp")
        by_part = log.select(pl.Series("part", of), at).group_by("part")
        times.append(by_part.agg(at.min().alias("first_ms"), at.max().alias("last_ms")))
    between = pl.concat(times).group_by("part").agg(pl.col("first_ms").min(), pl.col("last_ms").max())
    span = {row["part"]: row for row in between.to_dicts()} if has_clock else {}
    found: dict[str, Any] = {}
    for number, name in enumerate(NAMES):
        counted = facts[name]
        found[name] = {
            **counted,
            "base_rate": counted["positives"] / counted["examples"] if counted["examples"] else None,
            "first_ms": span.get(number, {}).get("first_ms"),
            "last_ms": span.get(number, {}).get("last_ms"),
        }
        for key, title in _ENTITIES.items():
            own, new = events[key][number], events[key][0] == 0
            found[name][title] = int((own > 0).sum())
            found[name][f"unknown_{title}"] = int((own[new] > 0).sum())
            found[name][f"events_of_unknown_{title}"] = int(own[new].sum())
    return found


_ENTITIES = {"user": "people", "item": "items"}


@dataclass(frozen=True)
class Seen:
    """A feature in one part of a split."""

    counts: np.ndarray | None
    """int64 [rows of its table]: how often each index is there; of ids and bags."""
    numbers: np.ndarray | None
    """float32, ascending, finite: values, lengths of bags, Euclidean norms of vectors; not of single ids."""
    not_finite: int = 0
    """Numbers left out."""


def _features(examples: Examples) -> dict[str, Any]:
    """Every feature in training, and how far it is from there in validation and test."""
    specs, states = examples.schema.features, examples.encoder.states
    parts = [examples.of_part(number) for number in range(3)]
    chosen = [_chosen(part) for part in parts]
    seen = [_seen(part, blocks) for part, blocks in zip(parts, chosen, strict=True)]
    features: list[dict[str, Any]] = []
    drift: list[dict[str, Any]] = []
    for spec in specs:
        in_parts = [part[spec.name] for part in seen]
        named = _named(spec, states[spec.name], examples.directory)
        features.append(_described(spec, states[spec.name], in_parts, named))
        drift += _drift(spec, in_parts, named)
    drift.sort(key=lambda one: -one["worst"])
    sampled = {
        name: {"rows": int(part.rows[blocks].sum()), "of": int(part.rows.sum())}
        for name, part, blocks in zip(NAMES, parts, chosen, strict=True)
    }
    return {"features": features, "drift": drift, "sampled": sampled}


def _chosen(part: PartExamples) -> np.ndarray:
    """Blocks to look at: all, or evenly spaced ones of about SAMPLE_ROWS rows."""
    number, rows = len(part.blocks), int(part.rows.sum())
    wanted = number if rows <= SAMPLE_ROWS else max(round(number * SAMPLE_ROWS / rows), 1)
    return (np.arange(wanted) * number + number // 2) // max(wanted, 1)


def _seen(part: PartExamples, blocks: np.ndarray) -> dict[str, Seen]:
    counts = {spec.name: np.zeros(spec.rows or 0, dtype=np.int64) for spec in part.schema.embedded}
    numbers: dict[str, list[np.ndarray]] = {spec.name: [] for spec in part.schema.features if spec.kind != "sparse"}
    for block in blocks:
        table = part.read(int(block))
        for spec in part.schema.features:
            column = table[spec.name]
            if spec.kind == "bag":
                numbers[spec.name].append(column.list.len().to_numpy().astype(np.float32))
                column = column.explode(empty_as_null=False)
            values = column.to_numpy()
            if spec.name in counts:
                counts[spec.name] += np.bincount(values, minlength=len(counts[spec.name]))
            elif spec.kind == "vector":
                numbers[spec.name].append(np.sqrt(np.einsum("bd,bd->b", values, values)))
            else:
                numbers[spec.name].append(values)
    found: dict[str, Seen] = {}
    for spec in part.schema.features:
        together = np.concatenate([np.empty(0, dtype=np.float32), *numbers.pop(spec.name, [])])
        finite = together[np.isfinite(together)]
        finite.sort()
        found[spec.name] = Seen(
            counts.get(spec.name), None if spec.kind == "sparse" else finite, len(together) - len(finite)
        )
    return found


def _described(
    spec: FeatureSpec, state: Mapping[str, Any], parts: list[Seen], named: Callable[[int], str]
) -> dict[str, Any]:
    """A feature as training has it."""
    train = parts[0]
    found: dict[str, Any] = {
        **{name: getattr(spec, name) for name in ("name", "kind", "source", "transform")},
        **{"table": None, "rows": None, "dim": None, "width": spec.width},
    }
    if train.counts is not None:
        found |= {"table": spec.table_name, "rows": spec.rows, "dim": spec.dim}
        found |= _ids(train.counts, named)
    if train.numbers is None:
        return found
    found["histogram"] = _histogram([part.numbers for part in parts if part.numbers is not None])
    if not len(train.numbers):
        return found | {"mean": None, "deviation": None, "quantiles": []}
    values = train.numbers.astype(np.float64)
    found |= {
        "mean": float(values.mean()),
        "deviation": float(values.std()),
        "quantiles": _at(values, np.array(QUANTILES)).tolist(),
        "not_finite": train.not_finite,
    }
    if spec.kind == "dense":
        # The transforms put what is missing at the mean, which is 0 where they standardise.
        missing = state.get("mean", 0.0) if spec.params.get("standardise") is False else 0.0
        return found | {"missing": float((train.numbers == np.float32(missing)).mean())}
    return found | {"empty": float((train.numbers == 0).mean())}


def _ids(counts: np.ndarray, named: Callable[[int], str]) -> dict[str, Any]:
    total = int(counts.sum())
    shares = counts[counts > 0] / max(total, 1)
    entropy = float(-(shares * np.log2(shares)).sum())
    top = _most(counts, 3)
    return {
        "ids": total,
        "distinct": int((counts[1:] > 0).sum()),
        "unknown": float(counts[0] / total) if total else None,
        "entropy": entropy,
        "effective": 2.0**entropy if total else 0.0,
        "top": [{"value": named(index), "share": float(counts[index] / total)} for index in top.tolist()],
    }


def _most(counts: np.ndarray, number: int) -> np.ndarray:
    """The most frequent indices, most frequent first, the lower first among equals; none that is not there."""
    number = min(number, int((counts > 0).sum()))
    if not number:
        return np.empty(0, dtype=np.int64)
    least = np.partition(counts, len(counts) - number)[len(counts) - number]
    above, equal = np.flatnonzero(counts > least), np.flatnonzero(counts == least)
    top = np.concatenate([above, equal[: number - len(above)]])
    return top[np.argsort(-counts[top], kind="stable")]


def _at(ordered: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Values of an ascending array at these shares of it: the smallest with at least the share at or below."""
    return ordered[np.maximum(np.ceil(shares * len(ordered)).astype(np.int64) - 1, 0)]


def _histogram(parts: list[np.ndarray]) -> dict[str, Any]:
    """Shares of each part in even bars over the middle 99 % of training; the outer bars hold what is beyond."""
    if not len(parts[0]):
        return {"low": 0.0, "high": 0.0, "shares": [[] for _ in parts]}
    low, high = (float(value) for value in _at(parts[0], np.array([0.005, 0.995])))
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, HISTOGRAM + 1)[1:-1].astype(np.float32)
    shares = [(_binned(numbers, edges) / max(len(numbers), 1)).tolist() for numbers in parts]
    return {"low": low, "high": high, "shares": shares}


def _binned(ordered: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many numbers are up to the first edge, in (edge, next edge] …, and above the last; int64 [edges + 1]."""
    up_to = np.searchsorted(ordered, edges, side="right")
    return np.diff(np.concatenate([[0], up_to, [len(ordered)]]))


def _drift(spec: FeatureSpec, parts: list[Seen], named: Callable[[int], str]) -> list[dict[str, Any]]:
    """The stability index of validation and test against training; of bags, of the elements and of their number."""
    found: list[dict[str, Any]] = []
    about = {"sparse": "ids", "bag": "length", "dense": "value", "vector": "norm"}[spec.kind]
    counts = [part.counts for part in parts if part.counts is not None]
    if counts:
        binned, bins = _id_bins(counts, named)
        found.append({"of": "elements" if spec.kind == "bag" else "ids", **_compared(binned, bins)})
    numbers = [part.numbers for part in parts if part.numbers is not None]
    if numbers:
        binned, bins = _number_bins(numbers)
        compared = _compared(binned, bins)
        if spec.kind == "dense":
            for name, others in zip(NAMES[1:], numbers[1:], strict=True):
                if compared[name] is not None:
                    compared[name]["ks"] = _distance(numbers[0], others)
        found.append({"of": about, **compared})
    return [{"feature": spec.name, "kind": spec.kind, **one} for one in found]


def _id_bins(parts: list[np.ndarray], named: Callable[[int], str]) -> tuple[list[np.ndarray], Callable[[int], str]]:
    """Training's most frequent indices, the unknown one, and the rest: counts of each part, and what a bin is called.

    The unknown index has a bin of its own wherever it stands: what training never lacks and the test part does would
    drown in the rest.
    """
    top = _most(np.concatenate([[0], parts[0][1:]]), TOP)
    binned = [np.array([*counts[top], counts[0], counts[1:].sum() - counts[top].sum()]) for counts in parts]
    titles = (UNKNOWN, "all others")
    return binned, lambda place: named(int(top[place])) if place < len(top) else titles[place - len(top)]


def _number_bins(parts: list[np.ndarray]) -> tuple[list[np.ndarray], Callable[[int], str]]:
    """Tenths of training: counts of each part, and what a bin is called.

    Where the tenths are all the same value, as of a constant, the bins are below it, the value itself, and above it.
    """
    train = parts[0]
    if not len(train):
        return [np.zeros(1, dtype=np.int64) for _ in parts], lambda place: "any"
    edges = np.unique(_at(train, np.arange(1, 10) / 10))
    edges = edges[edges < train[-1]]
    if len(edges):
        return [_binned(numbers, edges) for numbers in parts], lambda place: _between(edges, place)
    value = train[-1]
    around = np.array([np.nextafter(value, np.float32(-np.inf)), value], dtype=np.float32)
    titles = tuple(f"{word}{_spelt(value)}" for word in ("below ", "", "above "))
    return [_binned(numbers, around) for numbers in parts], lambda place: titles[place]


def _between(edges: Sequence[float] | np.ndarray, place: int) -> str:
    """What lies in bin `place` of those that ascending edges part; a number on an edge is in the lower one."""
    if not len(edges):
        return "any"
    if place == 0:
        return f"up to {_spelt(edges[0])}"
    if place == len(edges):
        return f"above {_spelt(edges[-1])}"
    return f"{_spelt(edges[place - 1])} to {_spelt(edges[place])}"


def _spelt(number: float) -> str:
    return f"{number:.3g}".replace("-", "−")


def _compared(binned: list[np.ndarray], bins: Callable[[int], str]) -> dict[str, Any]:
    """Validation and test against training: the index, what chance gives, and the bin that adds most."""
    train, found = binned[0], dict[str, Any]()
    for name, other in zip(NAMES[1:], binned[1:], strict=True):
        if not train.sum() or not other.sum():
            found[name] = None
            continue
        terms = psi_terms(train, other)
        place = int(terms.argmax())
        found[name] = {
            "psi": float(terms.sum()),
            "chance": psi_by_chance(train, other),
            "bin": bins(place),
            "was": float(train[place] / train.sum()),
            "is": float(other[place] / other.sum()),
        }
    return found | {"worst": max((found[name]["psi"] for name in NAMES[1:] if found[name] is not None), default=0.0)}


def _distance(train: np.ndarray, other: np.ndarray) -> float | None:
    """Kolmogorov–Smirnov distance of two ascending arrays: the greatest difference of their cumulated shares."""
    if not len(train) or not len(other):
        return None
    return float(_stats.ks_2samp(_thinned(train), _thinned(other), method="asymp").statistic)


def _thinned(ordered: np.ndarray) -> np.ndarray:
    return ordered if len(ordered) <= _THINNED else _at(ordered, np.arange(1, _THINNED + 1) / _THINNED)


def _named(spec: FeatureSpec, state: Mapping[str, Any], split: Path) -> Callable[[int], str]:
    """What an index stands for: the value or id, where there is one to look up."""
    entity = {"user.index": "user", "item.index": "item", "request.history": "item"}.get(spec.source)

    def named(index: int) -> str:
        if index == 0:
            return UNKNOWN
        if spec.transform == "lookup":
            return str(state["values"][index - 1])
        if spec.transform == "quantile":
            return _between(state["edges"], index - 1)
        if spec.transform == "calendar":
            return _WEEKDAYS[index - 1] if spec.rows == len(_WEEKDAYS) + 1 else f"{index - 1} h"
        if spec.transform == "index" and entity is not None:
            ids = pl.scan_parquet(split / f"{entity}s.parquet").select(f"{entity}_id").slice(index, 1).collect()
            return str(ids.item())
        return f"index {index}"

    return named


_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
