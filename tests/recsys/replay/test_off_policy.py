"""The replay of kind off_policy, on a small Open Bandit whose clicks are planted."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.errors import InputError
from recsys.replay import dispatch, open_bandit

CONFIG = Path(__file__).parents[3] / "configs" / "replay" / "open_bandit.toml"
ITEMS = 5
BTS_A = np.array([0.4, 0.3, 0.1, 0.1, 0.1])
CLICK_A = np.array([0.6, 0.4, 0.2, 0.2, 0.2])


def plant(root: Path, *, propensity: float = 1 / ITEMS, rows: int = 3_000) -> list[str]:
    """Two logs of campaign men; the overrides that ask about them."""
    rng = np.random.default_rng(0)
    for policy, share_A in (("random", np.full(ITEMS, 1 / ITEMS)), ("bts", BTS_A)):
        item = rng.choice(ITEMS, rows, p=share_A)
        moment = pl.datetime_range(pl.datetime(2019, 11, 24), pl.datetime(2019, 11, 25), "1s", eager=True)[:rows]
        log = pl.DataFrame(
            {
                "timestamp": moment.dt.strftime("%Y-%m-%d %H:%M:%S%.6f+00:00"),
                "item_id": item,
                "position": rng.integers(1, 4, rows),
                "click": (rng.random(rows) < CLICK_A[item]).astype(int),
                "propensity_score": np.full(rows, propensity) if policy == "random" else BTS_A[item],
                **{f"user_feature_{number}": rng.choice(["ab", "cd"], rows) for number in range(4)},
            }
        )
        log.write_parquet(root / f"{policy}_men.parquet")
    pl.DataFrame({"item_id": range(ITEMS), "item_feature_0": CLICK_A}).write_parquet(root / "item_context_men.parquet")
    return [
        f"--replay.path={root}",
        '--replay.campaigns=["men"]',
        f"--replay.directory={root}/runs",
        "--replay.intervals.replicates=200",
    ]


def test_estimates_meet_the_planted_truth(tmp_path: Path) -> None:
    result = dispatch.run(CONFIG, plant(tmp_path))
    for direction, policy_A in (("random_to_bts", BTS_A), ("bts_to_random", np.full(ITEMS, 1 / ITEMS))):
        case = result["campaigns"]["men"][direction]
        truth = float(policy_A @ CLICK_A)
        assert case["truth"]["value"] == pytest.approx(truth, abs=0.03)
        for name, found in case["estimates"].items():
            assert found["value"] == pytest.approx(truth, abs=0.05), name
        assert case["estimates"]["dr"]["low"] < truth < case["estimates"]["dr"]["high"]
        assert case["warnings"] == []
    assert json.loads((tmp_path / "runs/replay-open_bandit/result.json").read_text())["verdict"] == result["verdict"]
    page = Path(result["report"]).read_text()
    assert "men: bts from the log of random" in page
    assert "What each estimator assumes" in page


def test_a_log_that_cannot_answer_is_refused_and_the_others_answer(tmp_path: Path) -> None:
    result = dispatch.run(CONFIG, plant(tmp_path, propensity=0.1))
    found = result["campaigns"]["men"]
    assert "the propensities are too small for how often" in found["random_to_bts"]["refused"]
    assert "estimates" in found["bts_to_random"]
    assert "Refused for want of support: 1" in result["verdict"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    overrides = plant(tmp_path, rows=50)
    with pytest.raises(InputError, match=r"replay\.estimators = 'slate_ips' is not known; use one of: clipped_ips"):
        dispatch.load(CONFIG, [*overrides, "--replay.estimators.slate_ips={}"])
    with pytest.raises(InputError, match=r"neither random_all\.parquet nor random/all/all\.csv"):
        dispatch.run(CONFIG, overrides[::2])
    prior = tmp_path / "prior.json"
    prior.write_text('{"men": {"alpha": [1, 2], "beta": [1, 2]}}')
    with pytest.raises(InputError, match="'men' has 2 alpha and 2 beta for 5 items"):
        dispatch.run(CONFIG, [*overrides, f"--replay.prior={prior}"])


def test_thompson_sampling_of_two_sure_items_and_a_coin(tmp_path: Path) -> None:
    """Click rates of about 0.9, 0.1 and twice 0.5 or so: the first place is sure, the others a matter of luck."""
    prior = tmp_path / "prior.json"
    prior.write_text(json.dumps({"men": {"alpha": [9e4, 1e4, 50, 50], "beta": [1e4, 9e4, 50, 50]}}))
    assert open_bandit.thompson(prior, "men", 4) == pytest.approx(
        np.array([[1, 0, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]]), abs=0.01
    )
