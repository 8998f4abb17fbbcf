"""The contract of a dataset, over every file of `features/datasets`: a new one needs a sample in `SAMPLES`.

    python -m pytest tests/contract/test_datasets.py

Real data are read from $FEEDLINE_DATA, by default `../shared/data` beside the project; their tests skip where absent.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features import registry
from features.errors import InputError
from features.events import OPTIONAL, REQUIRED, ValidLog, validate
from features.manifest import file_fingerprint
from features.settings import Settings

DATA = Path(os.environ.get("FEEDLINE_DATA", Path(__file__).parents[2] / "../shared/data"))


def files(place: Path) -> dict[str, Any]:
    log = "uid,video,time,action,device\n007,b,1700000000,view,tv\n8,a,1700000001,click,\n007,a,1700000001,view,tv\n"
    (place / "log.csv").write_text(log)
    (place / "items.jsonl").write_text('{"item_id": "a", "genre": "x| y", "created_at": 1}\n{"item_id": "b"}\n')
    (place / "users.tsv").write_text("uid\tcountry\n007\tDE\n8\t\n")
    return {
        "events": str(place / "log.csv"),
        "items": place / "items.jsonl",
        "users": place / "users.tsv",
        "columns": {"user_id": "uid", "item_id": "video", "timestamp": "time"},
        "item_columns": {"categories": "genre"},
        "user_columns": {"user_id": "uid"},
        "context": ("device",),
        "time_unit": "s",
    }


def movielens(place: Path) -> dict[str, Any]:
    (place / "ratings.dat").write_text("1::10::5::978300760\n1::20::3::978302109\n2::10::4::978301968\n")
    (place / "movies.dat").write_text("10::Amélie (2001)::Comedy|Romance\n20::Heat (1995)::Crime\n", "latin-1")
    (place / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    return {"release": "1m", "path": place}


def openbandit(place: Path) -> dict[str, Any]:
    log = pl.DataFrame(
        {
            "timestamp": [f"2019-11-24 00:00:17.{moment}+00:00" for moment in ("004101", "004101", "004999")],
            "item_id": [1, 0, 1],
            "position": [1, 3, 2],
            "click": [0, 1, 0],
            "propensity_score": [0.5, 0.25, 0.5],
            **{f"user_feature_{number}": ["81ce1", "81ce1", f"0{number}"] for number in range(4)},
            "user-item_affinity_0": [0.0, 0.0, 1.0],
        }
    )
    log.write_parquet(place / "bts_men.parquet")
    pl.DataFrame({"item_id": [0, 1], "item_feature_0": [-0.5, 0.1]}).write_parquet(place / "item_context_men.parquet")
    return {"path": place, "campaign": "men", "policy": "bts"}


def sequences(place: Path) -> dict[str, Any]:
    (place / "log.txt").write_text("1 10 20 10\n2 20\n")
    (place / "attributes.json").write_text(json.dumps({"10": [1, 2], "20": [2]}))
    (place / "names.json").write_text(json.dumps({"1": "red", "2": "big"}))
    return {
        "path": place / "log.txt",
        "attributes": place / "attributes.json",
        "attribute_names": place / "names.json",
    }


def synthetic(place: Path) -> dict[str, Any]:
    return {"users": 20, "items": 30, "events": 500, "days": 3}


SAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "files": files,
    "movielens": movielens,
    "openbandit": openbandit,
    "sequences": sequences,
    "synthetic": synthetic,
}
"""For each dataset a function that writes the smallest sample to a folder and returns its Config's fields."""


@pytest.fixture(params=registry.known("features.datasets"))
def kind(request: pytest.FixtureRequest) -> str:
    assert request.param in SAMPLES, f"dataset '{request.param}' has no sample; add one to SAMPLES in {__file__}"
    return request.param


def loaded(kind: str, fields: dict[str, Any]) -> ValidLog:
    module = registry.load("features.datasets", kind, "dataset.kind")
    return validate(module.load(module.Config(**fields)))


def test_says_what_it_is(kind: str) -> None:
    module = registry.load("features.datasets", kind, "dataset.kind")
    assert issubclass(module.Config, Settings)
    assert module.Config.model_config.get("extra") == "forbid"
    for field, about in module.Config.model_fields.items():
        assert about.description, f"{field} has no docstring"
    for name in ("load", "inputs"):
        assert getattr(module, name).__doc__, name
    assert module.__doc__


def test_the_sample_is_valid_and_canonical(kind: str, tmp_path: Path) -> None:
    log = loaded(kind, SAMPLES[kind](tmp_path))
    assert log.quarantine.is_empty()
    types = log.events.schema
    assert set(REQUIRED) <= set(types)
    assert types["timestamp"] == pl.Int64
    assert all(types[name] == dtype for name, dtype in OPTIONAL.items() if name in types)
    assert log.events["row"].to_list() == list(range(log.events.height))
    assert log.events["timestamp"].is_sorted()
    for table, key in ((log.items, "item_id"), (log.users, "user_id")):
        assert types[key] in (pl.Int64, pl.String)
        assert table.schema[key] == types[key]
        assert table[key].is_unique().all()
        assert log.events[key].is_in(table[key].implode()).all()
    if "categories" in log.items.columns:
        assert log.items.schema["categories"] == pl.List(pl.String)
    assert "user_id" in log.users.columns


def test_inputs_are_the_files_that_it_reads(kind: str, tmp_path: Path) -> None:
    """A run is repeated when one of them changes; the same files give the same log."""
    module = registry.load("features.datasets", kind, "dataset.kind")
    fields = SAMPLES[kind](tmp_path)
    found = module.inputs(module.Config(**fields))
    assert set(found) == set(tmp_path.iterdir())
    assert all(file_fingerprint(path) for path in found)
    assert loaded(kind, fields).events.equals(loaded(kind, fields).events)


def test_a_missing_file_is_named(kind: str, tmp_path: Path) -> None:
    module = registry.load("features.datasets", kind, "dataset.kind")
    fields = SAMPLES[kind](tmp_path)
    paths = {name: value for name, value in fields.items() if Path(str(value)).is_relative_to(tmp_path)}
    for name, value in paths.items():
        gone = Path(str(value)).with_name("gone.csv")
        config = module.Config(**fields | {name: type(value)(gone)})
        for function in (module.inputs, module.load):
            with pytest.raises(InputError) as caught:
                function(config)
            assert "\n" not in str(caught.value)
            assert str(caught.value).startswith(f"{gone}: no such file; set dataset.{name} to")


def real(folder: str) -> Path:
    if not (DATA / folder).is_dir():
        pytest.skip(f"{DATA / folder} is not there; set FEEDLINE_DATA to the folder that holds {folder}/")
    return DATA / folder


def sizes(log: ValidLog) -> tuple[int, int, int, int]:
    seen = log.events["item_id"].n_unique()
    return log.events.height, log.events["user_id"].n_unique(), seen, log.quarantine.height


def test_movielens_100k_from_the_wheel() -> None:
    pytest.importorskip("recbole", reason="the wheel recbole==1.2.1 carries the data (requirements/data.txt)")
    log = loaded("movielens", {})
    assert sizes(log) == (100_000, 943, 1682, 0)
    assert log.items["title"].null_count() == log.items["categories"].null_count() == 0


def test_movielens_1m() -> None:
    folder = real("ml-1m")
    log = loaded("movielens", {"release": "1m", "path": folder})
    assert sizes(log) == (1_000_209, 6040, 3706, 0)
    assert log.items.height == 3883
    given = pl.read_parquet(folder / "ratings.parquet").sort("user_id", maintain_order=True)
    ours = log.events.sort("user_id", maintain_order=True)
    assert ours["item_id"].to_list() == given["movie_id"].to_list()  # everybody's own order, ties included


def test_beauty() -> None:
    folder = real("beauty")
    fields = {"attributes": folder / "Beauty_item2attributes.json"}
    log = loaded("sequences", {"path": folder / "Beauty.txt", **fields})
    assert sizes(log) == (198_502, 22_363, 12_101, 0)
    first = [int(item) for item in (folder / "Beauty.txt").read_text().split("\n", 1)[0].split()]
    assert log.events.filter(user_id=first[0])["item_id"].to_list() == first[1:]


def test_kuairand() -> None:
    columns = {"item_id": "video_id", "timestamp": "time_ms", "value": "is_click"}
    log = loaded("files", {"events": str(real("kuairand") / "interactions.parquet"), "columns": columns})
    events, users, items, repeated = sizes(log)
    assert events + repeated == 41_828
    assert (users, items) == (664, 9359)
    assert log.quarantine["reason"].unique().to_list() == ["row: repeats an earlier one"]


def test_open_bandit() -> None:
    path = real("obd")
    for campaign, items in (("all", 80), ("men", 34), ("women", 46)):
        for policy in ("random", "bts"):
            log = loaded("openbandit", {"path": path, "campaign": campaign, "policy": policy})
            assert log.events.height == 10_000
            assert log.items.height == items
            given = pl.read_parquet(path / f"{policy}_{campaign}.parquet")
            assert (log.events["action"] == "click").sum() == given["click"].sum()
            assert log.events["request_id"].n_unique() == given["timestamp"].n_unique()


def test_open_bandit_as_it_is_published(tmp_path: Path) -> None:
    """The archive's folders of CSV files, whose first column numbers the rows, hold the same log."""
    fields = openbandit(tmp_path)
    folder = tmp_path / "archive" / "bts" / "men"
    folder.mkdir(parents=True)
    for name, to in (("bts_men", "men"), ("item_context_men", "item_context")):
        table = pl.read_parquet(tmp_path / f"{name}.parquet").with_row_index("")
        table.write_csv(folder / f"{to}.csv")
    same = loaded("openbandit", fields | {"path": tmp_path / "archive"})
    assert same.events.equals(loaded("openbandit", fields).events)
    assert same.events["request_id"].to_list() == [0, 0, 1]
    assert same.events["position"].to_list() == [0, 2, 1]
