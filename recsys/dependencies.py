"""What the result of each stage depends on: sections of the config, stages before it, source files, library versions.

A change in any of them makes the stage's result out of date; `recsys.stages` puts them into its key.
"""

from typing import Any

from features.manifest import source_fingerprint
from recsys.summary import versions

OF_SPLITS = ("splits", "valid_share", "test_share", "max_history", "retain")
"""Fields of [prepare] that say what is made of request frames, not what is in them."""

SECTIONS: dict[str, tuple[str, ...]] = {
    "prepare": ("dataset", "prepare", "features"),
    "train retriever": ("retriever", "sharding", "tables", "launch"),
    "candidates": ("recommend", "ranker", "baselines"),
    "train ranker": ("ranker", "sharding", "tables", "launch"),
    "export": ("recommend", "run", "export"),
    "evaluate": ("recommend", "baselines"),
    "probe": ("serve",),
    "replay": ("recommend", "replay"),
}
UPSTREAM: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "train retriever": ("prepare",),
    "candidates": ("train retriever",),
    "train ranker": ("prepare",),
    "export": ("train retriever", "train ranker"),
    "evaluate": ("export",),
    "replay": ("export",),
    "probe": ("export",),
}
_TRAINING = (
    *("embeddings", "recsys/models", "recsys/modules", "recsys/interactions"),
    *(
        f"recsys/{name}.py"
        for name in (
            *("train", "resume", "roles", "tasks", "losses", "data", "sequences", "metrics", "checkpoint"),
            "distributed",
        )
    ),
)
_FEED = (
    "recsys/index",
    *(
        f"recsys/{name}.py"
        for name in ("inference", "taste", "blend", "diversity", "bundle", "scorer", "sources", "losses", "metrics")
    ),
)
SOURCES: dict[str, tuple[str, ...]] = {
    "prepare": ("features",),
    "train retriever": _TRAINING,
    "candidates": ("recsys/baselines", *(f"recsys/{name}.py" for name in ("candidates", "export", "stored")), *_FEED),
    "train ranker": _TRAINING,
    "export": (*(f"recsys/{name}.py" for name in ("export", "stored", "calibration", "integrity", "smoke")), *_FEED),
    "evaluate": (
        "recsys/baselines",
        *(f"recsys/{name}.py" for name in ("evaluate", "evaluate_index", "groups", "experts")),
        *_FEED,
    ),
    "replay": ("recsys/baselines", "recsys/evaluate.py", "recsys/groups.py", "recsys/replay", *_FEED),
    "probe": ("serving", "recsys/replay", "recsys/baselines", "recsys/cli.py", "recsys/config.py", *_FEED),
}
"""Source files whose change makes a stage's result out of date, beside those of the stages before it."""


def environment(stage: str) -> dict[str, Any]:
    """What a stage's result depends on beside config and data."""
    return {
        "versions": versions(),
        "source": source_fingerprint(SOURCES[stage]),
    }
