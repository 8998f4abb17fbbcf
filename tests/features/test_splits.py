"""Splits with known answers, in one shard or in many."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import splits
from features.slices import gather_slices
from features.splits import Log, by_time, leave_one_out, next_items, windows


def log(directory: Path, users: str, interactions: str = "", times: list[int] | None = None) -> Log:
    """One row a letter, in two files; 'x' in `interactions` marks an interaction, nothing marks them all."""
    count = len(users)
    frame = pl.DataFrame(
        {
            "row": range(count),
            "user_code": [sorted(set(users)).index(user) for user in users],
            "timestamp": times or list(range(count)),
            "interaction": [mark == "x" for mark in interactions] or [True] * count,
        },
        schema_overrides={"row": pl.Int64, "user_code": pl.Int64},
    )
    paths = [directory / "0.parquet", directory / "1.parquet"]
    for path, half in zip(paths, (frame[: count // 2], frame[count // 2 :]), strict=True):
        half.write_parquet(path)
    return Log(paths, count)


@pytest.mark.parametrize("shard", [2, 1000])
@pytest.mark.parametrize(
    ("users", "interactions", "parts"),
    [
        ("aaaa", "", "0012"),
        ("aa", "", "00"),  # too short to be split
        ("abababb", "", "0010212"),
        ("aaaaaaa", "x.x.x..", "0112222"),  # what is only shown goes with the next interaction, or the last
        ("aaaaa", "..x.x", "00000"),
        ("aaab", "xxx.", "0120"),
    ],
)
def test_leave_one_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: str, interactions: str, parts: str, shard: int
) -> None:
    monkeypatch.setattr(splits, "SHARD_ROWS", shard)
    assert leave_one_out(log(tmp_path, users, interactions)).tolist() == [int(part) for part in parts]


@pytest.mark.parametrize(
    ("times", "parts"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "0000001122"),
        ([0, 1, 2, 3, 4, 4, 4, 7, 8, 9], "0000111122"),  # an instant is not parted: the cut moves down
        ([0, 1, 2, 3, 4, 5, 6, 7, 7, 7], "0000001222"),
        ([0, 0, 0, 0, 5, 5, 5, 5, 5, 5], "0000222222"),
    ],
)
def test_by_time(tmp_path: Path, times: list[int], parts: str) -> None:
    split = by_time(log(tmp_path, "a" * len(times), times=times), valid=0.2, test=0.2)
    assert split.tolist() == [int(part) for part in parts]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 2)), min_size=2, max_size=30))
def test_splits_keep_their_promises(rows: list[tuple[str, bool, int]]) -> None:
    """Of each person the last interaction is test, the one before it validation; an instant is never parted in time."""
    users, marks = "".join(row[0] for row in rows), "".join("x" if row[1] else "." for row in rows)
    times = np.cumsum([row[2] for row in rows]).tolist()
    with TemporaryDirectory() as scratch:
        made = log(Path(scratch), users, marks, times)
        left, timed = leave_one_out(made).tolist(), by_time(made, valid=0.2, test=0.2).tolist()
    for person in set(users):
        own = [place for place, row in enumerate(rows) if row[0] == person]
        done = [left[place] for place in own if rows[place][1]]
        assert done == ([0] * (len(done) - 2) + [1, 2] if len(done) >= 3 else [0] * len(done))
        assert [left[place] for place in own] == sorted(left[place] for place in own)
    assert timed == sorted(timed)
    assert all(len({part for part, at in zip(timed, times, strict=True) if at == time}) == 1 for time in times)


def test_windows_and_questions() -> None:
    seen = pl.DataFrame(
        {
            "user_code": [0] * 6 + [1],
            "user_index": pl.Series([1] * 6 + [2], dtype=pl.Int32),
            "item_index": pl.Series([1, 2, 3, 4, 5, 6, 7], dtype=pl.Int32),
            "timestamp": list(range(7)),
            "action_code": pl.Series([0, 1, -1, 0, 1, 2, 0], dtype=pl.Int16),
            "part": [0, 0, 0, 0, 1, 1, 1],
        }
    )
    cut = windows(seen, 2)
    assert cut["items"].to_list() == [[1, 2, 3], [3, 4, 5], [5, 6]]
    assert cut["timestamps"].to_list() == [[0, 1, 2], [2, 3, 4], [4, 5]]
    assert cut["actions"].to_list() == [[0, 1, -1], [-1, 0, 1], [1, 2]]
    asked = next_items(seen, 1, 3)
    assert asked["items"].to_list() == [[2, 3, 4], [3, 4, 5]]  # who has no history is not asked about
    assert asked["timestamps"].to_list() == [[1, 2, 3], [2, 3, 4]]
    assert asked["actions"].to_list() == [[1, -1, 0], [-1, 0, 1]]
    assert asked["item_index"].to_list() == [5, 6]
    assert asked["timestamp"].to_list() == [4, 5]


def test_slices() -> None:
    flat, offsets = gather_slices(np.arange(10), np.array([2, 5, 0]), np.array([4, 5, 3]))
    assert flat.tolist() == [2, 3, 0, 1, 2]
    assert offsets.tolist() == [0, 2, 2, 5]
