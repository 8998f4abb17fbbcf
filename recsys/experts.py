"""What each expert of a ranker specialises in: for which examples a task's gate lets it speak more than usually.

B examples, T tasks, E experts.
"""

from typing import Any

import numpy as np

from embeddings.batch import Columns
from features.schema import Schema

FEW = 64
"""Values that a sparse feature may have to be looked at one by one."""

SEEN = 0.02
"""Share of the examples that a value needs to count."""

THIRDS = ("low", "middle", "high")

TOLD = 3
"""Values that are told of each expert, at most."""


def specialities(columns: Columns, gates_BTE: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """For each task a list of its experts.

    Returns:
        Task → of each expert `share`, of all that the task has heard, and `more`: `feature`, `value` (a third of its
        numbers, or an index) and `times`, how many times its usual share it has where the feature is so.
    """
    groups = _groups(columns)
    found: dict[str, list[dict[str, Any]]] = {}
    for task, gates_BE in zip(columns.schema.outcomes, gates_BTE.transpose(1, 0, 2), strict=True):
        usual_E = gates_BE.mean(0)
        times_GE = np.array([gates_BE[rows_B].mean(0) for rows_B in groups.values()]).reshape(len(groups), -1)
        times_GE /= np.maximum(usual_E, 1e-6)
        names = list(groups)
        found[task] = [
            {
                "share": float(usual_E[expert]),
                "more": [
                    {"feature": names[g][0], "value": names[g][1], "times": float(times_GE[g, expert])}
                    for g in np.argsort(-times_GE[:, expert], kind="stable")[:TOLD]
                    if times_GE[g, expert] > 1.05
                ],
            }
            for expert in range(gates_BE.shape[1])
        ]
    return found


def heard(gates_TE: np.ndarray, schema: Schema) -> dict[str, dict[str, float]]:
    """Of one example: task → expert, from "expert 1" → its share of what was heard, largest first, without zeros."""
    shares: dict[str, dict[str, float]] = {}
    for task, gates_E in zip(schema.outcomes, gates_TE, strict=True):
        order = [int(expert) for expert in np.argsort(-gates_E, kind="stable") if gates_E[expert] > 0]
        shares[task] = {f"expert {expert + 1}": float(gates_E[expert]) for expert in order}
    return shares


def _groups(columns: Columns) -> dict[tuple[str, str], np.ndarray]:
    """Examples by the value of a feature: (feature, value) → bool [B]."""
    schema: Schema = columns.schema
    found: dict[tuple[str, str], np.ndarray] = {}
    for spec, ids, offsets in zip(schema.embedded, columns.ids, columns.offsets, strict=True):
        if offsets is None and spec.rows is not None and spec.rows <= FEW:
            for value in np.flatnonzero(np.bincount(ids) >= SEEN * columns.rows).tolist():
                found[spec.name, str(value)] = ids == value
    place = 0
    for spec in schema.dense:
        if spec.width is None and columns.dense is not None:
            number_B = columns.dense[:, place]
            third_B = np.searchsorted(np.quantile(number_B, [1 / 3, 2 / 3]), number_B)
            for third, word in enumerate(THIRDS):
                if (third_B == third).mean() >= SEEN:
                    found[spec.name, word] = third_B == third
        place += spec.width or 1
    return found
