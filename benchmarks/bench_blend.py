"""The blend of one feed: 500 candidates, 20 places, part by part and with everything on.

    python benchmarks/bench_blend.py
    python benchmarks/bench_blend.py --candidates 100 --json

Scores, probabilities and a catalogue of 20,000 items with 1 to 4 of 18 categories are random.
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import polars as pl

from features.schema import Schema
from recsys.blend import Blend, Config

ITEMS, CATEGORIES, REPEATS = 20_000, 18, 500
CAPS = {"most": 3}
EXPLORATION = {"slots": [4, 9], "pool": 50, "temperature": 1.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "values and their order": {},
    "mmr": {"diversity": {"kind": "mmr", "strength": 0.3}},
    "dpp": {"diversity": {"kind": "dpp", "strength": 0.3}},
    "caps": {"caps": CAPS},
    "exploration": {"exploration": EXPLORATION},
    "mmr, caps, exploration": {"diversity": {"strength": 0.3}, "caps": CAPS, "exploration": EXPLORATION},
    "dpp, caps, exploration": {"diversity": {"kind": "dpp", "strength": 0.3}, "caps": CAPS, "exploration": EXPLORATION},
}


def main() -> None:
    """Print milliseconds a feed, by config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    sets = [rng.choice(CATEGORIES, rng.integers(1, 5), replace=False).tolist() for _ in range(ITEMS)]
    items = pl.DataFrame({"item_id": range(ITEMS + 1), "categories": [[], *sets]})
    schema = Schema(features=(), label="like", items=ITEMS, users=1)
    found = {
        name: measure(Blend(Config.model_validate(config), items, schema), rng, options.candidates, options.k)
        for name, config in CONFIGS.items()
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, milliseconds in found.items():
        print(f"{name:24} least {milliseconds['least']:.2f} ms, median {milliseconds['p50']:.2f} ms")


def measure(blend: Blend, rng: np.random.Generator, candidates: int, k: int) -> dict[str, float]:
    """Milliseconds of one feed."""
    taken: list[float] = []
    for _ in range(REPEATS):
        items_BR = rng.choice(ITEMS, (1, candidates), replace=False) + 1
        score_BR = -np.sort(-rng.standard_normal((1, candidates)).astype(np.float32))
        probability_BRT = rng.random((1, candidates, 1), dtype=np.float32)
        started = time.perf_counter()
        blend.fill(blend.values(score_BR, probability_BRT), items_BR, [7], np.array([1_700_000_000_000]), k)
        taken.append(1000 * (time.perf_counter() - started))
    return {"least": min(taken), "p50": float(np.median(taken))}


if __name__ == "__main__":
    main()
