"""Ranking metrics over the full catalogue, and pointwise metrics of predicted probabilities.

Q questions with one right item each, whose rank is 1 where it comes first; E examples; T tasks.
"""

import numpy as np
import polars as pl
from scipy.special import xlogy
from scipy.stats import rankdata

from features.schema import Schema

CUTS = (5, 10)

Outcomes = dict[str, dict[str, float]]
"""Metrics by task."""


def next_item_metrics(rank_Q: np.ndarray) -> dict[str, float]:
    """recall@k and ndcg@k for k in `CUTS`, and mrr, from the rank of the right item; inf where it was not ranked.

    With one right item, DCG is 1 / log2(rank + 1) and the ideal DCG is 1.
    """
    if not len(rank_Q):
        return {**{f"{name}@{k}": 0.0 for k in CUTS for name in ("recall", "ndcg")}, "mrr": 0.0}
    rank = np.asarray(rank_Q, dtype=np.float64)
    gain = 1.0 / np.log2(rank + 1.0)
    metrics: dict[str, float] = {}
    for k in CUTS:
        metrics[f"recall@{k}"] = float((rank <= k).mean())
        metrics[f"ndcg@{k}"] = float((gain * (rank <= k)).mean())
    return metrics | {"mrr": float((1.0 / rank).mean())}


def rank_of(score_BI: np.ndarray, target_B1: np.ndarray) -> np.ndarray:
    """Rank of one column in each row; ties share their mean rank.

    Args:
        score_BI: higher is better; −inf for what is left out.
        target_B1: int64, the column.

    Returns:
        float64 [B]: 1 is first; inf where the column itself is left out or its score is no number.
    """
    own_B1 = np.take_along_axis(score_BI, target_B1, axis=1)
    rank_B = 1 + (score_BI > own_B1).sum(1) + ((score_BI == own_B1).sum(1) - 1) / 2
    return np.where(np.isfinite(own_B1[:, 0]), rank_B, np.inf)


def coverage(recommended: np.ndarray, items: int) -> float:
    """Share of the catalogue that is in at least one list; `recommended` holds item indices > 0, 0 where none."""
    shown = np.unique(recommended)
    return float((shown > 0).sum() / items)


def pointwise_metrics(probability_E: np.ndarray, label_E: np.ndarray, group_E: np.ndarray) -> dict[str, float]:
    """AUC, GAUC, log-loss, NE and calibration of predicted probabilities.

    - `gauc`: AUC within each group (user), averaged by the group's examples; groups of one class have none.
    - `ne`: log-loss over that of always predicting the base rate (He et al., ADKDD 2014).
    - `calibration`: mean prediction over base rate; 1 is calibrated.
    """
    p = np.asarray(probability_E, dtype=np.float64)
    certain = np.clip(p, 1e-7, 1 - 1e-7)  # a wrong prediction that was certain costs much, not everything
    y = np.asarray(label_E, dtype=np.float64)
    base = y.mean()
    logloss = float(-(xlogy(y, certain) + xlogy(1 - y, 1 - certain)).mean())
    entropy = float(-(xlogy(base, base) + xlogy(1 - base, 1 - base)))
    return {
        "auc": auc(p, y),
        "gauc": grouped_auc(p, y, group_E),
        "logloss": logloss,
        "ne": logloss / entropy if entropy else float("nan"),
        "calibration": float(p.mean() / base) if base else float("nan"),
    }


def outcome_metrics(schema: Schema, predicted_ET: np.ndarray, outcome_ET: np.ndarray, group_E: np.ndarray) -> Outcomes:
    """Metrics of each task, on the examples whose outcome is known.

    Args:
        schema: names the tasks.
        predicted_ET: probabilities, or standardised numbers.
        outcome_ET: what happened; NaN where it is not known.
        group_E: the user.

    Returns:
        Task → `pointwise_metrics` or `number_metrics`, and `examples`; nothing else where no outcome is known.
    """
    found: Outcomes = {}
    for place, name in enumerate(schema.outcomes):
        known_E = ~np.isnan(outcome_ET[:, place])
        predicted, outcome = predicted_ET[known_E, place], outcome_ET[known_E, place]
        metrics: dict[str, float] = {}
        if known_E.any():
            binary = schema.binary[place]
            metrics = pointwise_metrics(predicted, outcome, group_E[known_E]) if binary else {}
            metrics |= {"base_rate": float(outcome.mean())} if binary else number_metrics(predicted, outcome)
        found[name] = metrics | {"examples": int(known_E.sum())}
    return found


def number_metrics(predicted_E: np.ndarray, outcome_E: np.ndarray) -> dict[str, float]:
    """Errors of predicted numbers, and how well they order.

    - `rmse`: in standard deviations of the training part.
    - `r2`: the share of the variance that is explained.
    - `spearman`: the correlation of ranks; nan where one of both is constant.
    """
    p, y = np.asarray(predicted_E, dtype=np.float64), np.asarray(outcome_E, dtype=np.float64)
    square, variance = float(np.mean((p - y) ** 2)), float(y.var())
    constant = np.ptp(p) == 0 or np.ptp(y) == 0
    return {
        "rmse": square**0.5,
        "r2": 1 - square / variance if variance else float("nan"),
        "spearman": float("nan") if constant else float(np.corrcoef(rankdata(p), rankdata(y))[0, 1]),
    }


def auc(score_E: np.ndarray, label_E: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties half (Mann–Whitney); nan with only one class."""
    positives = label_E.sum()
    negatives = len(label_E) - positives
    if not positives or not negatives:
        return float("nan")
    rank_sum = rankdata(score_E)[label_E > 0].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def grouped_auc(score_E: np.ndarray, label_E: np.ndarray, group_E: np.ndarray) -> float:
    """AUC by group, weighted by the group's examples; nan if no group has both classes."""
    groups = (
        pl.DataFrame({"score": score_E, "label": label_E, "group": group_E})
        .with_columns(pl.col("score").rank("average").over("group").alias("rank"))
        .group_by("group")
        .agg(
            (pl.col("rank") * pl.col("label")).sum().alias("rank_sum"),
            pl.col("label").sum().alias("positives"),
            pl.len().alias("examples"),
        )
        .filter((pl.col("positives") > 0) & (pl.col("positives") < pl.col("examples")))
        .with_columns(
            (
                (pl.col("rank_sum") - pl.col("positives") * (pl.col("positives") + 1) / 2)
                / (pl.col("positives") * (pl.col("examples") - pl.col("positives")))
            ).alias("auc")
        )
    )
    if groups.is_empty():
        return float("nan")
    return float(np.average(groups["auc"].to_numpy(), weights=groups["examples"].to_numpy()))
