"""The page about the data: it names every feature, needs nothing but itself, and puts what has drifted first."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.events import DAY_MS, RawLog, in_one_part
from features.manifest import read_json
from features.pipeline import Config, Label, Split, prepare
from features.schema import FeatureSpec
from recsys import data_report

ROWS = 600
SPECS = tuple(
    FeatureSpec.model_validate(dict(zip(("name", "kind", "source", "transform"), line.split(), strict=True)))
    for line in (
        "user_id sparse user.index index",
        "device sparse request.device lookup",
        "history bag request.history index",
        "steady dense request.steady numeric",
        "shifted dense request.shifted numeric",
        "place vector item.place vector",
    )
)


def written(directory: Path, split: Split, *, has_clock: bool) -> str:
    """The page about a made-up log, in which a number jumps where the test part of the split by time begins."""
    place = np.arange(ROWS)
    turn = place // 20
    table = pl.DataFrame(
        {
            "user_id": place % 20,
            "item_id": place % 7,
            "timestamp": 19_700 * DAY_MS + place * 3_600_000 if has_clock else turn,
            "value": (place % 3).astype(np.float64),
            "device": np.where(place % 2 > 0, "<b>phone</b>", "desk"),
            "steady": (place % 5).astype(np.float64),
            "shifted": place % 10 + np.where(place >= ROWS * 0.9, 100.0, 0.0),
        }
    )
    items = pl.DataFrame({"item_id": range(7), "place": [[1.0, float(n)] for n in range(7)]})
    log = RawLog(parts=in_one_part(table, "made up"), source="made up", items=items, has_clock=has_clock)
    settings = Config(splits=(split,), label=Label(at_least=2.0))
    prepare(log, settings, SPECS, directory / "examples", {"source": log.source, "has_clock": has_clock})
    page = data_report.write(directory, split)
    assert page == directory / "reports" / "data.html"
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("run"), "time", has_clock=True)


def test_page_names_every_feature_and_needs_nothing_else(page: str) -> None:
    for spec in SPECS:
        assert page.count(f"<td>{spec.name}<") >= 2, f"{spec.name} is to be in its table and among the drift"
    assert not re.search(r"""(?:src|href)=["'](?!#)|@import|url\((?!#)|<script""", page)


def test_values_of_the_log_are_escaped(page: str) -> None:
    assert "&lt;b&gt;phone" in page
    assert "<b>phone" not in page


def test_planted_drift_comes_first(page: str) -> None:
    table = page[page.index("<h2>Drift") :]
    rows = re.findall(r'<tr class="(\w+)"><td>(\w+)</td>', table)
    assert rows[0] == ("much", "shifted")
    assert ("none", "steady") in rows
    assert re.search(r"<li>Drifted much from training: shifted[,.]", page)


def test_log_without_a_clock_has_no_days(tmp_path: Path) -> None:
    page = written(tmp_path, "leave_one_out", has_clock=False)
    assert "The log has no clock" in page
    assert "1970-" not in page
    assert "Events by day" not in page
    found: dict[str, Any] = read_json(tmp_path / "reports" / "data.json")
    assert (found["days"], found["gaps"]) == ([], [])
    assert found["splits"]["leave_one_out"]["test"]["first_ms"] is None


@pytest.mark.parametrize(
    ("psi", "chance", "words"),
    [(0.05, 0.01, "none"), (0.1, 0.01, "some"), (0.25, 0.01, "some"), (0.3, 0.01, "much"), (0.3, 0.5, "chance")],
)
def test_reading(psi: float, chance: float, words: str) -> None:
    assert data_report.reading(psi, chance) == words
