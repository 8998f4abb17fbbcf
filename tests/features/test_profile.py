"""The numbers of a profile: indices known in closed form, and a made-up log whose every count is known."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features import profile as profiling
from features.events import DAY_MS, Part, RawLog
from features.pipeline import Config, Label, prepare
from features.profile import gini, profile, psi_by_chance, psi_terms
from features.schema import FeatureSpec

DAY = 19_700 * DAY_MS
ROWS, PARTS = 1000, 10
SPECS = tuple(
    FeatureSpec.model_validate(dict(zip(("name", "kind", "source", "transform"), line.split(), strict=True)))
    for line in (
        "user sparse user.index index",
        "item sparse item.index index",
        "device sparse request.device lookup",
        "steady dense request.steady numeric",
        "constant dense request.constant numeric",
        "tags bag item.tags lookup",
        "history bag request.history index",
        "place vector item.place vector",
    )
)
HALVES_TO_FIFTHS = 0.3 * math.log(0.8 / 0.5) - 0.3 * math.log(0.2 / 0.5)
"""The index of a half and a half that become four fifths and one fifth."""


def log() -> RawLog:
    """A thousand events a minute apart, with a silence of three days; the last tenth comes from another device."""
    place = np.arange(ROWS)
    late = place >= 900
    table = pl.DataFrame(
        {
            "user_id": np.where(late & (place % 10 == 0), 99, place % 25),
            "item_id": place % 20,
            "timestamp": DAY + place * 60_000 + (place >= 500) * 3 * DAY_MS,
            "action": np.where(place % 4 == 0, "like", "view"),
            "device": np.where(np.where(late, place % 5 > 0, place % 2 > 0), "phone", "desk"),
            "steady": (place % 10).astype(np.float64),
            "constant": np.ones(ROWS),
        }
    )
    bad = table.head(3).with_columns(timestamp=pl.lit(-1, dtype=pl.Int64))
    stretches = [table[first : first + ROWS // PARTS] for first in range(0, ROWS, ROWS // PARTS)]
    stretches[0] = pl.concat([stretches[0], bad])
    items = pl.DataFrame(
        {
            "item_id": range(30),
            "tags": [["a", "b"] if n % 2 else [] for n in range(30)],
            "place": [[3.0, 4.0] if n % 2 else None for n in range(30)],
        }
    )
    return RawLog(
        parts=tuple(Part(name=f"part {n}", read=_reading(table)) for n, table in enumerate(stretches)),
        source="made up",
        items=items,
    )


def _reading(table: pl.DataFrame) -> Callable[[], pl.DataFrame]:
    return lambda: table


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "examples"
    settings = Config(label=Label(actions=("like",)), valid_share=0.1, test_share=0.1)
    prepare(log(), settings, SPECS, out, {"source": "made up", "has_clock": True})
    return out


@pytest.fixture(scope="module")
def found(prepared: Path) -> dict[str, Any]:
    found = profile(prepared, "time")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_stability_index() -> None:
    even, uneven = np.array([50, 50]), np.array([800, 200])
    assert psi_terms(even, even * 7).sum() == 0
    assert psi_terms(even, uneven).sum() == pytest.approx(HALVES_TO_FIFTHS)
    assert psi_terms(uneven, even).sum() == pytest.approx(HALVES_TO_FIFTHS)
    assert np.isfinite(psi_terms(np.array([10, 0]), np.array([0, 10]))).all()


def test_chance_is_what_samples_of_one_distribution_give() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    pairs = [(rng.multinomial(4000, shares), rng.multinomial(500, shares)) for _ in range(2000)]
    above = np.mean([psi_terms(one, other).sum() > psi_by_chance(one, other) for one, other in pairs])
    assert above == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize(("counts", "known"), [([5, 5, 5], 0.0), ([0, 0, 0, 8], 0.75), ([4, 1, 3, 2], 0.25), ([], 0)])
def test_gini(counts: list[int], known: float) -> None:
    assert gini(np.array(counts)) == pytest.approx(known)


def test_counts_add_up(found: dict[str, Any]) -> None:
    assert found["rows"]["read"] == ROWS + 3
    assert found["rows"]["reasons"] == {"timestamp: negative": 3}
    assert sum(day["events"] for day in found["days"]) == sum(part["valid"] for part in found["parts"]) == ROWS
    assert sum(day["positive"] for day in found["days"]) == ROWS // 4
    assert {row["action"]: row["events"] for row in found["actions"]} == {"view": 750, "like": 250}
    for parts in found["splits"].values():
        assert sum(part["events"] for part in parts.values()) == ROWS
        assert sum(part["positives"] for part in parts.values()) == ROWS // 4


def test_log(found: dict[str, Any]) -> None:
    assert found["gaps"][0] == {"to_ms": DAY + 500 * 60_000 + 3 * DAY_MS, "ms": 3 * DAY_MS + 60_000}
    assert found["gaps"][1]["ms"] == 60_000
    assert (found["people"]["seen"], found["items"]["seen"], found["items"]["all"]) == (26, 20, 30)
    assert found["items"]["quantiles"] == [50.0] * 7
    assert (found["items"]["gini"], found["items"]["with_half"]) == (pytest.approx(0), 10)
    # 25 people and 20 items in turn: each person meets 4 items; the guest meets 2.
    assert found["pairs"]["density"] == pytest.approx((25 * 4 + 2) / (26 * 20))
    assert found["pairs"]["repeated"] == pytest.approx(1 - 102 / ROWS)


def test_split_tells_who_is_new(found: dict[str, Any]) -> None:
    train, test = (found["splits"]["time"][part] for part in ("train", "test"))
    assert train["base_rate"] == test["base_rate"] == 0.25
    assert (train["first_ms"], test["last_ms"]) == (DAY, DAY + (ROWS - 1) * 60_000 + 3 * DAY_MS)
    assert (test["people"], test["unknown_people"], test["events_of_unknown_people"]) == (26, 1, 10)
    assert test["unknown_items"] == 0


def test_features(found: dict[str, Any]) -> None:
    features = {feature["name"]: feature for feature in found["features"]}
    assert list(features) == [spec.name for spec in SPECS]
    assert features["device"]["effective"] == pytest.approx(2)
    assert [one["share"] for one in features["device"]["top"]] == [0.5, 0.5]
    assert (features["item"]["distinct"], features["item"]["rows"]) == (20, 31)
    assert (features["tags"]["empty"], features["tags"]["mean"]) == (0.5, 1.0)
    assert features["steady"]["mean"] == pytest.approx(0, abs=1e-6)
    assert features["steady"]["deviation"] == pytest.approx(1, abs=1e-3)
    assert features["constant"]["missing"] == 1  # a constant is its own mean
    assert features["place"]["empty"] == 0.5
    assert sum(features["steady"]["histogram"]["shares"][0]) == pytest.approx(1)


def test_drift_is_found_where_it_was_planted(found: dict[str, Any]) -> None:
    drift = {(one["feature"], one["of"]): one for one in found["drift"]}
    assert drift["device", "ids"]["test"]["psi"] == pytest.approx(HALVES_TO_FIFTHS)
    assert drift["device", "ids"]["test"]["bin"] == "desk"
    assert drift["user", "ids"]["test"]["bin"] == profiling.UNKNOWN
    assert drift["user", "ids"]["test"]["is"] == pytest.approx(0.1)
    for name, of in (("steady", "value"), ("constant", "value"), ("tags", "elements"), ("place", "norm")):
        assert drift[name, of]["worst"] == pytest.approx(0), name
    assert drift["steady", "value"]["test"]["ks"] == pytest.approx(0)
    assert {name for name, of in drift if of == "length"} == {"tags", "history"}
    worst = [one["worst"] for one in found["drift"]]
    assert worst == sorted(worst, reverse=True)


def test_constant_that_changes_has_drifted() -> None:
    before, after = np.ones(100, dtype=np.float32), np.full(100, 2.0, dtype=np.float32)
    binned, bins = profiling._number_bins([before, before, after])
    compared = profiling._compared(binned, bins)
    assert compared["valid"]["psi"] == 0
    assert compared["test"]["psi"] > 1
    assert compared["test"]["bin"] in ("1", "above 1")


def test_long_log_is_sampled_and_says_so(
    prepared: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "SAMPLE_ROWS", 400)
    monkeypatch.setattr(profiling, "PAIR_ROWS", 500)
    sampled = profile(prepared, "time")
    assert found["sampled"]["train"] == {"rows": 800, "of": 800}
    assert sampled["sampled"]["train"] == {"rows": 400, "of": 800}
    assert sampled["sampled"]["test"] == {"rows": 100, "of": 100}
    assert sampled["features"][2]["top"] == found["features"][2]["top"]
    assert sampled["pairs"]["people_looked_at"] == 0.5
    assert sampled["pairs"]["repeated"] == pytest.approx(found["pairs"]["repeated"], abs=0.01)
