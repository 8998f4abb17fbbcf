"""A retriever that validation has chosen the epochs of, and that is then trained anew on all that is known."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl

from features import manifest
from recsys import checkpoint, config
from recsys.roles import RetrieverConfig, open_catalogue
from recsys.stages import Run

SECTION = RetrieverConfig.model_validate(
    {
        "model": {"dim": 16, "blocks": 1, "max_history": 12},
        "train": {"epochs": 4, "patience": 1, "batch_size": 16, "valid_rows": 200, "refit": True},
        "items": {"graph": {}},
    }
)
SMALL = Path(__file__).parents[2] / "configs" / "synthetic" / "small.toml"


def test_it_is_trained_on_training_and_validation_part_for_the_best_number_of_epochs(examples: Path, tmp_path: Path):
    run = Run(config.load(SMALL, ["--run.directory", str(tmp_path)]), SMALL)
    out = tmp_path / "checkpoints" / "retriever"

    def train(key: str) -> tuple[dict[str, Any], dict[str, Any]]:
        run._train(SECTION, examples, out, "local", {"key": key})
        found = manifest.read(out), manifest.read(out.with_name("retriever-chosen"))
        assert found[0] is not None
        assert found[1] is not None
        return found[0], found[1]

    again, chosen = train("one")
    assert again["chosen"]["valid"] == chosen["valid"]
    assert chosen["valid"]["ndcg@10"] > 0
    assert again["valid"] == {}
    assert again["epochs"] == chosen["best_epoch"] + 1
    for facts, part in ((chosen, "train"), (again, "known")):
        windows = pl.read_parquet(examples / "sequences" / f"{part}.parquet").height
        assert facts["steps"] == facts["epochs"] * -(-windows // 16)
    assert again["best"] == checkpoint.name_of(again["steps"])

    # What was chosen stays chosen.
    shutil.rmtree(out)
    _, kept = train("one")
    assert kept == chosen
    _, anew = train("two")
    assert (anew["key"], anew["valid"]) == ("two", chosen["valid"])


def test_its_catalogue_knows_what_the_validation_part_has_met(examples: Path):
    after, before = open_catalogue(SECTION, examples), open_catalogue(SECTION, examples, "train")
    assert after.shape == before.shape
    assert (after.trained >= before.trained).all()
    assert after.graph is not None
    assert before.graph is not None
    assert after.graph.counts.sum() > before.graph.counts.sum()
