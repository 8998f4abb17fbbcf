"""What reward to expect of an action in a situation: the model that the direct method and its corrections stand on.

It is cross-fitted: each row is predicted by a model that has seen no row of its cluster, so that what it says of an
action is no memory of what came of it (Chernozhukov et al. 2018, https://doi.org/10.1111/ectj.12097). A logistic
regression of situation and action, ridge-penalised, or boosted trees where they act on each other.

Shapes: N rows, X distinct situations, A actions, F columns.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import polars as pl
import polars.selectors as cs
from numpy.typing import NDArray
from pydantic import Field
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from features.settings import Settings
from recsys.replay.estimators._contract import Floats, Ints

BLOCK = 1 << 18
"""Pairs of situation and action that are predicted at a time."""

_MOST_CATEGORIES = 255
"""Boosted trees split more values than this as if they were ordered."""


class Config(Settings):
    """The model and how it is fitted."""

    kind: Literal["logistic", "boosting"] = "logistic"
    """Logistic regression on one-hot columns, or boosted trees."""
    folds: int = Field(default=3, ge=2)
    """Models that are fitted, each on all folds but the one that it predicts."""
    penalty: float = Field(default=1.0, gt=0)
    """Of logistic regression: strength of the ridge penalty."""
    seed: int = Field(default=0, ge=0)
    """Of the folds and the trees."""


def cross_fit(
    config: Config,
    *,
    situations: pl.DataFrame,
    actions: pl.DataFrame,
    action_N: Ints,
    reward_N: Floats,
    target_XA: Floats,
    situation_N: Ints,
    cluster_N: Ints | None = None,
) -> tuple[Floats, Floats]:
    """Predictions for each row, of models that have not seen it.

    Args:
        config: the model.
        situations: one row a distinct situation: text and numbers.
        actions: one row an action: text and numbers; its number among them identifies the action, beside these.
        action_N: the logged actions, rows of `actions`.
        reward_N: 0 or 1.
        target_XA: the target policy's probabilities in each situation.
        situation_N: the rows' situations, rows of `situations`.
        cluster_N: rows that belong together are kept in one fold; None: each by itself.

    Returns:
        q̂(x, a) of the logged action and q̂(x, π), both float64 `[N]`.
    """
    fold_N = _folds(config, len(reward_N) if cluster_N is None else int(cluster_N.max()) + 1)
    if cluster_N is not None:
        fold_N = fold_N[cluster_N]
    named = actions.select(pl.all().name.prefix("action."))
    named = named.with_columns(pl.Series("action", np.arange(len(actions)).astype(str)))
    logged = pl.concat([situations[situation_N], named[action_N]], how="horizontal")
    model_N, target_N = np.empty(len(reward_N)), np.empty(len(reward_N))
    for fold in range(config.folds):
        out_N = fold_N == fold
        model = _fit(config, logged.filter(~out_N), reward_N[~out_N])
        asked_X = np.unique(situation_N[out_N])
        place_X = np.searchsorted(asked_X, situation_N[out_N])
        expected_XA = np.concatenate(list(_predictions(model, situations[asked_X], named)))
        model_N[out_N] = expected_XA[place_X, action_N[out_N]]
        target_N[out_N] = (expected_XA * target_XA[asked_X]).sum(axis=1)[place_X]
    return model_N, target_N


def _folds(config: Config, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((config.seed, 2)).permutation(count) % config.folds


def _fit(config: Config, table: pl.DataFrame, reward_N: Floats) -> Pipeline | float:
    """A fitted model; a number where there is only one outcome to learn from."""
    if (reward_N == reward_N[0]).all():
        return float(reward_N[0])
    words, numbers = table.select(cs.string()).columns, table.select(cs.numeric()).columns
    if config.kind == "logistic":
        columns = make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore", dtype=np.float64), words), (StandardScaler(), numbers)
        )
        model = LogisticRegression(C=1 / config.penalty, max_iter=1_000)
    else:
        few = [name for name in words if table[name].n_unique() <= _MOST_CATEGORIES]
        encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
        columns = make_column_transformer((encoder, [*few, *(set(words) - set(few))]), ("passthrough", numbers))
        options: dict[str, Any] = {"categorical_features": list(range(len(few))), "random_state": config.seed}
        model = HistGradientBoostingClassifier(learning_rate=0.05, max_leaf_nodes=15, **options)
    pipeline = make_pipeline(columns, model)
    pipeline.fit(table, reward_N.astype(np.int64))
    return pipeline


def _sums(model: Pipeline, situations: pl.DataFrame, actions: pl.DataFrame) -> Floats:
    """Expected rewards by logistic regression: its log-odds are a sum of what the situation and the action say."""
    first_X, first_A = np.zeros(len(situations), np.int64), np.zeros(len(actions), np.int64)
    of_X = model.decision_function(pl.concat([situations, actions[first_X]], how="horizontal"))
    of_A = model.decision_function(pl.concat([situations[first_A], actions], how="horizontal"))
    return 1 / (1 + np.exp(of_X[0] - of_X[:, None] - of_A))


def _predictions(model: Any, situations: pl.DataFrame, actions: pl.DataFrame) -> Iterator[Floats]:
    """Expected rewards of every action, some situations at a time."""
    if isinstance(model, Pipeline) and isinstance(model[-1], LogisticRegression):
        yield _sums(model, situations, actions)
        return
    step = max(BLOCK // len(actions), 1)
    for begin in range(0, len(situations), step):
        part = situations[begin : begin + step]
        if isinstance(model, float):
            yield np.full((len(part), len(actions)), model)
            continue
        x = np.repeat(np.arange(len(part)), len(actions))
        pairs = pl.concat([part[x], actions[np.tile(np.arange(len(actions)), len(part))]], how="horizontal")
        yield model.predict_proba(pairs)[:, 1].reshape(len(part), len(actions))
