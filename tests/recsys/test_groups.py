"""Groups: made as said, judged against all others, and not at all where they are few."""

import numpy as np
import polars as pl

from recsys.groups import FEW, people_groups, quality, quarters, question_groups

DAY_MS = 86_400_000


def test_quarters_hold_a_quarter_each_and_keep_equal_values_together() -> None:
    found = quarters(pl.Series([None, *range(1, 101)]))
    assert found[0] == "not known"
    counts = found[1:].value_counts().rows()
    assert sorted(counts) == [("1 to 25", 25), ("26 to 50", 25), ("51 to 75", 25), ("76 to 100", 25)]
    assert quarters(pl.Series([5] * 8)).unique().to_list() == ["5"]


def test_columns_that_make_groups_of_people() -> None:
    users = pl.DataFrame(
        {
            "user_id": range(60),
            "name": [f"person {n}" for n in range(60)],
            "gender": ["F", None] * 30,
            "age": range(20, 80),
            "subscribed": [True, False, True] * 20,
        }
    )
    found = people_groups(users)
    assert found.keys() == {"gender", "age", "subscribed"}
    assert found["gender"].unique().sort().to_list() == ["F", "not known"]
    assert found["age"].n_unique() == 4


def test_questions_are_grouped_by_what_was_known_before_them() -> None:
    interactions = pl.DataFrame(
        {
            "user_id": [1] * 10 + [2] * 11,
            "item_index": [*range(1, 11), *([1] * 11)],
            "timestamp": [day * DAY_MS for day in (*range(10), *range(11))],
        }
    )
    questions = pl.DataFrame(
        {"user_id": [1, 2, 2, 3], "item_index": [1, 10, 0, 5], "timestamp": [n * DAY_MS for n in (60, 9, 9, 60)]}
    )
    users = pl.DataFrame({"user_id": [1, 2], "gender": ["F", "M"]})
    found = {
        name: groups.to_list()
        for name, groups in question_groups(questions, users, interactions, has_clock=True).items()
    }
    assert found["item popularity"] == [
        "the most popular tenth",
        "the less popular half",
        "never met before",
        "the rest of the first half",
    ]
    assert found["item age"] == ["more than a month", "under a day", "never met before", "more than a month"]
    assert found["gender"] == ["F", "M", "M", "not known"]
    assert found["activity"][3] == "0"
    assert "item age" not in question_groups(questions, users, interactions, has_clock=False)


def test_a_gap_is_one_that_chance_does_not_give_and_few_are_not_judged() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(["a", "b", "few"], [400, 400, FEW - 1])
    rank = np.where(rng.random(len(group)) < np.where(group == "b", 0.1, 0.5), 1.0, np.inf)
    planted = quality(rank, {"kind": pl.Series(group)})["kind"]
    assert [row["group"] for row in planted] == ["a", "b", "few"]
    assert planted[1]["ndcg@10"] == np.mean(rank[group == "b"] == 1)
    assert planted[1]["low"] < planted[1]["ndcg@10"] < planted[1]["high"]
    assert planted[0]["gap"] > 0.3
    assert planted[1]["gap"] < -0.3
    assert planted[2] == {"group": "few", "questions": FEW - 1}
    by_chance = [quality(rng.permutation(rank), {"kind": pl.Series(group)})["kind"] for _ in range(200)]
    assert sum(any(row.get("gap") for row in rows) for rows in by_chance) < 25


def test_numbers_stand_in_their_order() -> None:
    group = pl.Series(np.repeat(["100 to 200", "1,000 to 2,000", "9 to 99"], 30))
    assert [row["group"] for row in quality(np.ones(90), {"activity": group})["activity"]] == [
        "9 to 99",
        "100 to 200",
        "1,000 to 2,000",
    ]
