"""Logs in files of several forms, as people have them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from features.datasets.files import Config, load
from features.errors import InputError
from features.events import ValidLog, validate

MS = 1_700_000_000_000


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def read(events: str, **fields: Any) -> ValidLog:
    return validate(load(Config(events=events, **fields)))


def test_text_ids_are_numbers_only_where_nothing_is_lost(tmp_path: Path) -> None:
    text = f"user_id,item_id,timestamp\n007,1,{MS}\n7,2,{MS}\n"
    log = read(write(tmp_path / "log.csv", text))
    assert log.users["user_id"].to_list() == ["007", "7"]
    assert log.items["item_id"].to_list() == [1, 2]


def test_missing_and_mistyped_values_are_quarantined(tmp_path: Path) -> None:
    csv = f"user_id,item_id,timestamp,value\n1,2,{MS},\n,2,{MS},1\n1,2,soon,1\n1,2,{MS},good\n1,2,{MS},3\n"
    jsonl = "\n".join(
        [
            f'{{"user_id": 1, "item_id": 2, "timestamp": {MS}}}',
            f'{{"item_id": 2, "timestamp": {MS}, "value": 1}}',
            '{"user_id": 1, "item_id": 2, "timestamp": "soon", "value": 1}',
            f'{{"user_id": 1, "item_id": 2, "timestamp": {MS}, "value": "good"}}',
            f'{{"user_id": 1, "item_id": 2, "timestamp": {MS}, "value": 3}}',
        ]
    )
    for log in (read(write(tmp_path / "log.csv", csv)), read(write(tmp_path / "log.jsonl", jsonl))):
        wanted = ["user_id: missing", "timestamp: not Int64", "value: not Float64"]
        assert log.quarantine["reason"].to_list() == wanted
        assert log.quarantine["timestamp"][1] == "soon"
        assert log.events["value"].to_list() == [None, 3]


@pytest.mark.parametrize(
    ("time", "unit"), [("1700000000", "s"), ("1700000000.0", "s"), ("1700000000000000", "us"), (str(MS), "ms")]
)
def test_units(tmp_path: Path, time: str, unit: str) -> None:
    text = f"user_id,item_id,timestamp\n1,2,{time}\n"
    assert read(write(tmp_path / "a.csv", text), time_unit=unit).events["timestamp"].to_list() == [MS]
    spoilt = read(write(tmp_path / "b.csv", text + "1,2,soon\n"), time_unit=unit)
    assert spoilt.events["timestamp"].to_list() == [MS]
    assert spoilt.quarantine.select("timestamp", "reason").rows() == [("soon", "timestamp: not Int64")]


def test_datetimes_need_no_unit(tmp_path: Path) -> None:
    when = pl.Series([MS]).cast(pl.Datetime("ms", "UTC"))
    ids = pl.Series(["a"], dtype=pl.Categorical)
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user_id": ids, "item_id": [1], "timestamp": when}).write_parquet(path)
    pl.DataFrame({"item_id": [1], "created_at": when}).write_parquet(tmp_path / "items.parquet")
    log = read(str(path), items=tmp_path / "items.parquet", time_unit="s")
    assert log.events["timestamp"].to_list() == log.items["created_at"].to_list() == [MS]
    assert log.users["user_id"].to_list() == ["a"]


def test_many_files_are_one_log(tmp_path: Path) -> None:
    write(tmp_path / "2.csv", f"user_id,item_id,timestamp\n007,1,{MS}\n")
    write(tmp_path / "1.csv", f"timestamp,item_id,user_id\n{MS},1,8\n")
    assert read(str(tmp_path / "*.csv")).events["user_id"].to_list() == ["8", "007"]
    write(tmp_path / "3.csv", f"user_id,item_id,timestamp,value\n8,1,{MS},1\n")
    with pytest.raises(InputError, match=r"3\.csv: has the columns item_id, timestamp, user_id, value, but .*1\.csv"):
        read(str(tmp_path / "*.csv"))


def test_categories_without_words_are_none(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", f"user_id,item_id,timestamp\n1,1,{MS}\n")
    items = Path(write(tmp_path / "items.csv", 'item_id,categories\n1,"a| b|"\n2,\n3,"|"\n'))
    assert read(log, items=items).items["categories"].to_list() == [["a", "b"], None, []]


BAD: list[tuple[Callable[[Path], str], dict[str, Any], str]] = [
    (lambda at: write(at / "a.csv", ""), {}, "a.csv: the file is empty"),
    (lambda at: write(at / "a.jsonl", ""), {}, "a.jsonl: the file is empty"),
    (lambda at: write(at / "a.csv", "user_id,item_id,timestamp\n"), {}, "a.csv: the log has no rows"),
    (lambda at: write(at / "a.csv", "user_id,item_id\n1,2\n"), {}, "a.csv: column 'timestamp' is missing"),
    (lambda at: write(at / "a.csv", "a,b\n1,2,3\n"), {}, "a.csv: cannot be read as csv"),
    (lambda at: write(at / "a.jsonl", '{"user_id": 1}\n{"user'), {}, "a.jsonl: cannot be read as jsonl"),
    (lambda at: write(at / "a.parquet", "no parquet"), {}, "a.parquet: cannot be read as parquet"),
    (lambda at: write(at / "a.txt", "x"), {}, "a.txt: '.txt' files are not read; use .parquet"),
    (lambda at: str(at / "*.csv"), {}, "*.csv: no file matches; set dataset.events"),
    (
        lambda at: write(at / "a.csv", "user_id,item_id,timestamp\n1,2,2024-01-01\n"),
        {"time_unit": "s"},
        "no value of column 'timestamp' is Int64 (first: '2024-01-01')",
    ),
    (
        lambda at: write(at / "a.jsonl", f'{{"user_id": 1.5, "item_id": 2, "timestamp": {MS}}}'),
        {},
        "column 'user_id' is Float64; ids are integers or text",
    ),
    (
        lambda at: write(at / "a.csv", "u,item_id,timestamp\n1,2,3\n"),
        {"columns": {"user_id": "uid"}},
        "a.csv: column 'uid' of dataset.columns.user_id is missing (found: u, item_id, timestamp)",
    ),
    (
        lambda at: write(at / "a.csv", "user_id,item_id,timestamp\n1,2,3\n"),
        {"context": ("device",)},
        "a.csv: column 'device' of dataset.context is missing",
    ),
]


@pytest.mark.parametrize(("make", "fields", "message"), BAD)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, make: Callable[[Path], str], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        read(make(tmp_path), **fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_canonical_names_are_mapped() -> None:
    with pytest.raises(ValidationError, match=r"columns\.user is no canonical column; use user_id"):
        Config(events="log.csv", columns={"user": "uid"})
