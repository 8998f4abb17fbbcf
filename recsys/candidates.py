"""What a ranker learns from where it ranks what was retrieved: lists of candidates, one of which came next.

A feature `retrieved.…` is known of candidates and of no row of the log. Where one is declared, the ranker is trained on
lists: a retriever that has met the training part alone is asked, as it will be asked when it serves, for the first item
that everybody whom that part knows has met in the validation part; lists that have it teach which of the candidates it
is. A list is told of the training part alone: histories, counters and graph are those of its end. In a split by time
that is all before the question; leave-one-out has no such moment, and as in its evaluation other people's training
events may be later.

    frames/00000.parquet, …    request frames as `features.fold` makes them: a row a candidate, a list's one after the
                               other; codes are the indices of the split's vocabulary
    lists/                     a split's directory as `features.examples` opens it, its features fitted on these frames;
                               part 0 trains, part 1 are the people held out to validate

R candidates of a list.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from embeddings.collisions import Managed
from features._arrow import list_series
from features._hash import splitmix64
from features.encoder import Encoder
from features.errors import InputError
from features.examples import BLOCK_ROWS, BLOCKS, ITEMS, PART, USERS, Examples, Frames, Vocabulary
from features.manifest import finished_directory, write_json
from features.moment import Asked, Column, Ragged
from features.online import MemoryStore
from features.placing import resolve
from features.schema import FeatureSpec
from features.settings import Settings
from recsys import bundle as bundles
from recsys import checkpoint, export
from recsys.blend import Config as BlendConfig
from recsys.inference import Config, Recommender, requests_of
from recsys.roles import NEXT, TOGETHER, RetrieverConfig
from recsys.sources import fit_sources
from recsys.stored import StoredModel

LISTS = "lists"

ASKED = 256
"""Questions asked together."""


def write(
    examples: Path,
    retriever: tuple[RetrieverConfig, Path],
    managed: Managed,
    specs: tuple[FeatureSpec, ...],
    sources: dict[str, Settings],
    config: Config,
    holdout: float,
    sections: dict[str, Any],
    out: Path,
    facts: dict[str, Any],
) -> None:
    """Ask a retriever, keep its lists, fit the features on them; whole or not at all.

    Args:
        examples: directory of the split.
        retriever: its section, and its checkpoint, trained on the training part alone.
        managed: tables whose ids have no bound.
        specs: all features that are declared.
        sources: baseline → Config of each whose score is a feature.
        config: how it is asked; R is `retrieved`.
        holdout: share of the people whose lists validate.
        sections: of the run's config: `prepare`.
        out: a directory; what was there before is replaced.
        facts: what its manifest says beside `questions`, all that were asked; `lists`, of each part; and `short`, how
            many lists were left out for they had fewer than R.

    Raises:
        InputError: no list has what came next.
    """
    width = config.retrieved
    if width > Examples.open(examples).schema.items:
        raise InputError(f"recommend.retrieved = {width}, and there are not so many items to make lists of; lower it")
    with finished_directory(out, facts) as directory, tempfile.TemporaryDirectory(dir=directory) as scratch:
        recommender = _asked(examples, retriever, managed, sources, config, sections, Path(scratch), facts)
        questions = pl.read_parquet(examples / "sequences" / "valid.parquet")
        questions = questions.filter((pl.col("item_index") > 0) & (pl.col("user_index") > 0))
        questions = questions.unique("user_id", keep="first", maintain_order=True)
        frames, lists = directory / "frames", directory / LISTS
        frames.mkdir()
        lists.mkdir()
        said = {spec.source for spec in specs if spec.retrieved}
        facts |= _write_frames(recommender, questions, said, _types(examples), frames)
        users = [pl.read_parquet(path, columns=["user_code"])["user_code"].to_numpy() for path in _files(frames)]
        user = np.concatenate([np.zeros(0, dtype=np.int32), *users])
        held = splitmix64(user.astype(np.uint64)) < np.uint64(holdout * 2**64)
        facts["lists"] = {"train": int((~held).sum()) // width, "valid": int(held.sum()) // width}
        if not all(facts["lists"].values()):
            raise InputError(
                f"{examples}: of {facts['questions']} questions of the validation part {len(user) // width} have lists "
                f"with what came next, too few to train and to validate; {facts['short']} lists had fewer than "
                f"recommend.retrieved = {width} items: lower that if these are many, else raise it, or use a longer log"
            )
        _fit(examples, frames, held.astype(np.int8), specs, lists)
        write_json(lists / TOGETHER, {"together": width})


def _asked(
    examples: Path,
    retriever: tuple[RetrieverConfig, Path],
    managed: Managed,
    sources: dict[str, Settings],
    config: Config,
    sections: dict[str, Any],
    scratch: Path,
    facts: dict[str, Any],
) -> Recommender:
    """A recommender as of the moment when the validation part begins; what it is made of lies in `scratch`."""
    section, path = retriever
    split = Examples.open(examples)
    for name in ("actions.json", "items.parquet", "users.parquet"):
        shutil.copy2(examples / name, scratch)
    shutil.copytree(examples / "snapshot_train", scratch / "snapshot")
    stored, folder = StoredModel(checkpoint.best_state(path)), scratch / "retriever"
    export.write_model(section, split.schema, managed, stored, export.Config(), folder)
    export.write_catalogue(section, examples, managed, folder, "train")
    items = pl.read_parquet(examples / "items.parquet")
    fit_sources(sources, split.interactions(0), items, scratch)
    bundle = bundles.load_retrieval(scratch, facts, sections, split.encoder)
    # Nothing is ranked or blended; what was seen is left out as it will be.
    asked = config.model_copy(update={"blend": BlendConfig(seen_again_after=config.blend.seen_again_after)})
    recommender = Recommender(bundle, MemoryStore(retain=sections["prepare"]["retain"]), asked, rank=False)
    recommender.seed()
    return recommender


def _types(examples: Path) -> dict[str, pl.DataType]:
    """Of the columns of the log's own request frames."""
    return dict(pl.read_parquet_schema(Examples.open(examples).files[0]))


def _files(frames: Path) -> list[Path]:
    return sorted(frames.iterdir())


def _write_frames(
    recommender: Recommender, questions: pl.DataFrame, said: set[str], types: dict[str, pl.DataType], out: Path
) -> dict[str, int]:
    """A file for every block of lists, with the columns `said` of what the retriever says.

    Returns:
        How many questions there were, and how many had too short a list.
    """
    order = np.argsort(questions["items"].list.len().to_numpy(), kind="stable")
    most = max(1, BLOCK_ROWS // recommender.config.retrieved)
    parts: list[_Lists] = []
    short = held = rows = 0

    def flush() -> None:
        nonlocal parts, held, rows
        if parts:
            frame = pl.concat([part.frame for part in parts]).with_row_index("row", offset=rows)
            rows += frame.height
            frame.with_columns(pl.col("row").cast(pl.Int64)).write_parquet(out / f"{len(_files(out)):05}.parquet")
        parts, held = [], 0

    for part in questions[order].iter_slices(min(ASKED, most)):
        found = _lists(recommender, part, said, types)
        short += found.short
        if held + found.lists > most:
            flush()
        if found.lists:
            parts.append(found)
            held += found.lists
    flush()
    return {"questions": questions.height, "short": short}


@dataclass(frozen=True)
class _Lists:
    frame: pl.DataFrame
    lists: int
    short: int
    """Lists that were left out."""


def _lists(recommender: Recommender, questions: pl.DataFrame, said: set[str], types: dict[str, pl.DataType]) -> _Lists:
    """The candidates of each question whose list is full and has what came next."""
    requests = requests_of(questions, recommender.context_columns, recommender.config.retrieved)
    histories = [recommender.store.history(request.user_id) for request in requests]
    items_BR, score_BR = recommender.retrieve(requests, histories)
    full_B = np.isfinite(score_BR).all(1)
    right_BR = items_BR == questions["item_index"].to_numpy()[:, None]
    kept = np.flatnonzero(full_B & right_BR.any(1))
    questions, requests, histories = questions[kept], [requests[b] for b in kept], [histories[b] for b in kept]
    items_BR, score_BR, right_BR = items_BR[kept], score_BR[kept], right_BR[kept]
    asked = [Asked(one.user_id, time, one.context) for one, time in zip(requests, questions["timestamp"], strict=True)]
    people, pairs = recommender.moment.columns(asked, histories, items_BR, recommender.store)
    retrieved = recommender.retrieved(requests, histories, items_BR, score_BR, said)
    row = np.repeat(np.arange(len(kept)), items_BR.shape[1])
    columns = {
        "user_code": questions["user_index"].cast(pl.Int32).gather(row),
        "item_code": pl.Series(items_BR.ravel(), dtype=pl.Int32),
        "timestamp": questions["timestamp"].gather(row),
        "label": pl.Series(right_BR.ravel(), dtype=pl.Float32),
        **{name: _series(column, types[name]).gather(row) for name, column in people.items() if name != "timestamp"},
        **{name: _series(column, types[name]) for name, column in pairs.items()},
        **{name: pl.Series(column if column.ndim == 1 else column[row]) for name, column in retrieved.items()},
    }
    frame = pl.DataFrame([series.alias(name) for name, series in columns.items()])
    return _Lists(frame, len(kept), int((~full_B).sum()))


def _series(column: Column, dtype: pl.DataType) -> pl.Series:
    """A column of `Moment` as the log's request frames have it."""
    if isinstance(column, Ragged):
        return list_series(column.values, column.edge).cast(dtype)
    return (
        pl.Series(column).fill_nan(None).cast(dtype) if isinstance(column, np.ndarray) else pl.Series("", column, dtype)
    )


def _fit(examples: Path, frames: Path, part: np.ndarray, specs: tuple[FeatureSpec, ...], out: Path) -> None:
    """Write a split's directory: the parts of rows, a vocabulary of indices, and the features, fitted on part 0."""
    items, users = (pl.read_parquet(examples / f"{name}.parquet") for name in ("items", "users"))
    vocabulary = Vocabulary(
        np.arange(users.height, dtype=np.int32),
        np.arange(items.height, dtype=np.int32),
    )
    np.save(out / PART, part)
    np.save(out / USERS, vocabulary.user)
    np.save(out / ITEMS, vocabulary.item)
    of_lists = Frames(_files(frames), part, vocabulary)
    features = resolve(specs, items.schema, users.schema, of_lists.schema)
    requests = of_lists.sample(sorted({name for feature in features for name in feature.requested}))
    Encoder.fit(specs, NEXT, items, users, requests, of_lists.counted).save(out)
    np.save(out / BLOCKS, of_lists.blocks()[0])
