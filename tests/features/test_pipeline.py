"""The promises of `prepare`: counts add up, nothing knows its future, online equals offline, whole or not at all."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from features import manifest, pipeline
from features.encoder import Encoder, load_schema
from features.errors import InputError
from features.events import RawLog
from features.online import Event, MemoryStore, UserState
from features.pipeline import Config, Label, prepare
from features.schema import FeatureSpec
from features.temporal import PARTS

START = 1_700_000_000_000
ITEMS = [f"i{n}" for n in range(25)]
CLICKS = ("click", "like")

SPECS = tuple(
    FeatureSpec.model_validate(dict(zip(("name", "kind", "source", "transform"), line.split(), strict=True)) | more)
    for line, more in (
        ("user sparse user.index index", {}),
        ("item sparse item.index index", {}),
        ("recent bag request.history index", {"table": "item", "params": {"last": 3}}),
        ("history bag request.history index", {"table": "item"}),
        ("categories bag item.categories lookup", {}),
        ("country sparse user.country hashing", {"params": {"buckets": 7}}),
        ("device sparse request.device lookup", {}),
        ("hour sparse request.timestamp calendar", {}),
        ("price dense item.price numeric", {}),
        ("user_count dense request.user_events numeric", {"params": {"log": True}}),
        ("item_count dense request.item_events numeric", {}),
        ("user_rate dense request.user_positives rate", {"params": {"per": "user_events"}}),
        ("item_rate dense request.item_positives rate", {"params": {"per": "item_events"}}),
        ("idle dense request.user_last_timestamp elapsed", {}),
    )
)
LEARNS_NOTHING = tuple(
    FeatureSpec.model_validate(
        spec.model_dump() | {"params": {"standardise": False}} if spec.transform == "numeric" else spec
    )
    for spec in SPECS
    if spec.transform in ("index", "calendar", "hashing", "numeric")
)


def events(rows: int = 700, seed: int = 0) -> pl.DataFrame:
    """A log with ties in time, several actions, missing devices; two bad rows; people and items that come late."""
    rng = np.random.default_rng(seed)
    user, item = rng.zipf(1.4, rows) % 30, rng.zipf(1.3, rows) % 30
    user[-20:] += rng.integers(0, 2, 20) * 30
    item[-40:] += rng.integers(0, 2, 40) * 30
    table = pl.DataFrame(
        {
            "user_id": user,
            "item_id": [f"i{n}" for n in item],
            "timestamp": START + np.sort(rng.integers(0, rows // 2, rows)) * 600_000,
            "action": rng.choice(["view", *CLICKS], rows),
            "value": rng.random(rows),
            "device": rng.choice(["phone", "desk", "tv"], rows),
        }
    )
    table = table.with_columns(device=pl.when(pl.col("value") < 0.8).then("device"))
    bad = table.head(2).with_columns(user_id=pl.Series([None, 1]), timestamp=pl.Series([START, -1]))
    return pl.concat([table, bad])


def log(table: pl.DataFrame) -> RawLog:
    described = {
        "item_id": ITEMS,
        "categories": [[f"c{n % 4}", f"c{n % 7}"] if n % 5 else None for n in range(25)],
        "price": [float(n) if n % 6 else None for n in range(25)],
    }
    users = pl.DataFrame({"user_id": range(60), "country": [None if n % 9 == 0 else f"u{n % 4}" for n in range(60)]})
    return RawLog(events=table, items=pl.DataFrame(described), users=users, source="made up")


def config(**changes: Any) -> Config:
    defaults: dict[str, Any] = {
        "history_actions": CLICKS,
        "label": Label(name="click", actions=CLICKS),
        "max_history": 6,
        "ranker_history": 4,
        "retain": 7,
        "valid_share": 0.1,
        "test_share": 0.2,
    }
    return Config(**defaults | changes)


def made(out: Path, table: pl.DataFrame, settings: Config, specs: tuple[FeatureSpec, ...] = SPECS) -> Path:
    prepare(log(table), settings, specs, out, {})
    return out


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("run") / "examples", events(), config())


def test_counts_add_up(prepared: Path) -> None:
    facts = manifest.read(prepared)
    assert facts is not None
    rows = facts["rows"]
    assert rows["read"] == 702 == rows["valid"] + rows["quarantined"]
    assert rows["reasons"] == {"timestamp: negative": 1, "user_id: missing": 1}
    assert pl.read_parquet(prepared / "events.parquet").height == rows["valid"]
    assert pl.read_parquet(prepared / "quarantine.parquet").height == rows["quarantined"]
    for split, counts in facts["splits"].items():
        assert sum(counts[part]["events"] for part in PARTS) == rows["valid"]
        for part in PARTS:
            examples = pl.read_parquet(prepared / split / "ranking" / f"{part}.parquet")
            assert counts[part]["examples"] == examples.height == counts[part]["events"]
            assert counts[part]["positives"] == examples["label"].sum()
        interactions = pl.read_parquet(prepared / split / "interactions.parquet")
        assert interactions.height == rows["interactions"] == sum(counts[part]["positives"] for part in PARTS)
        for name in ("users", "items"):
            table = pl.read_parquet(prepared / split / f"{name}.parquet")
            assert table["index"].to_list() == list(range(counts[name] + 1))
            assert table[f"{name[:-1]}_id"].null_count() == 1  # row 0 stands for all others


def test_examples_are_what_the_schema_says(prepared: Path) -> None:
    schema = load_schema(prepared / "time")
    assert Encoder.load(prepared / "time").schema == schema
    for part in PARTS:
        examples = pl.read_parquet(prepared / "time" / "ranking" / f"{part}.parquet")
        for feature in schema.features:
            column = examples[feature.name]
            flat = column.explode(empty_as_null=False) if feature.kind == "bag" else column
            assert column.null_count() == flat.null_count() == 0
            if feature.kind != "dense":
                assert feature.rows is not None
                assert flat.is_between(0, feature.rows - 1).all()
    late = pl.read_parquet(prepared / "time" / "ranking" / "test.parquet")
    assert (late["user"] == 0).any()  # the log has people and items that nobody knew
    assert (late["item"] == 0).any()


def spoilt(table: pl.DataFrame, at: int) -> pl.DataFrame:
    """The log with everything that happens from the time `at` on made another, but who and when."""
    other = events(seed=99)
    later = pl.col("timestamp") >= at
    return table.with_columns(
        pl.when(later).then(other[name]).otherwise(pl.col(name)).alias(name)
        for name in ("item_id", "action", "value", "device")
    )


def before(path: Path, at: int) -> pl.DataFrame:
    return pl.read_parquet(path).filter(pl.col("timestamp") < at)


def test_the_future_changes_nothing_by_time(prepared: Path, tmp_path: Path) -> None:
    """Also not what was learned: everything up to the test part stays, bit by bit."""
    tail = pl.read_parquet(prepared / "time" / "ranking" / "test.parquet")
    at = int(tail["timestamp"][50])
    other = made(tmp_path / "examples", spoilt(events(), at), config())
    kept = [f"{kind}/{part}.parquet" for kind in ("ranking", "sequences") for part in ("train", "valid")]
    for name in [*kept, "snapshot/users.parquet", "snapshot/items.parquet", "users.parquet", "items.parquet"]:
        assert_frame_equal(pl.read_parquet(other / "time" / name), pl.read_parquet(prepared / "time" / name))
    for name in ("schema.json", "transforms.json", "item_features.arrow"):
        assert (other / "time" / name).read_bytes() == (prepared / "time" / name).read_bytes()
    for kind in ("ranking", "sequences"):
        mine, theirs = (root / "time" / kind / "test.parquet" for root in (prepared, other))
        assert before(mine, at).height >= 20
        assert_frame_equal(before(theirs, at), before(mine, at))
        assert not pl.read_parquet(mine).equals(pl.read_parquet(theirs))


@pytest.mark.parametrize("place", [0.6, 0.9])
def test_the_future_changes_nothing_leave_one_out(tmp_path: Path, place: float) -> None:
    """What is learned is of all training parts, which end late: so only with features that learn nothing."""
    table = events().filter(pl.col("item_id").is_in(ITEMS))
    at = int(table["timestamp"][int(table.height * place)])
    settings = config(splits=("leave_one_out",), history_actions=(), label=Label(at_least=0.5))
    changed = table.with_columns(
        item_id=pl.when(pl.col("timestamp") >= at).then(pl.lit("i3")).otherwise("item_id"),
        value=pl.when(pl.col("timestamp") >= at).then(1 - pl.col("value")).otherwise("value"),
    )
    mine = made(tmp_path / "mine", table, settings, LEARNS_NOTHING)
    theirs = made(tmp_path / "theirs", changed, settings, LEARNS_NOTHING)
    for part in PARTS:
        name = f"leave_one_out/ranking/{part}.parquet"
        assert before(mine / name, at).height > 0
        assert_frame_equal(before(theirs / name, at), before(mine / name, at))
    for part in ("valid", "test"):
        name = f"leave_one_out/sequences/{part}.parquet"
        assert_frame_equal(before(theirs / name, at), before(mine / name, at))


def snapshot(split: Path) -> tuple[dict[Any, UserState], dict[Any, tuple[int, int]]]:
    users: dict[Any, UserState] = {}
    for row in pl.read_parquet(split / "snapshot" / "users.parquet").iter_rows(named=True):
        columns = [row[name] for name in ("item_id", "timestamp", "action", "value", "positive")]
        history = tuple(Event(row["user_id"], *event) for event in zip(*columns, strict=True))
        users[row["user_id"]] = UserState(history, row["events"], row["positives"], row["last_timestamp"])
    return users, {item: counts for item, *counts in pl.read_parquet(split / "snapshot" / "items.parquet").iter_rows()}


def request_frame(store: MemoryStore, split: Path, row: dict[str, Any]) -> pl.DataFrame:
    """What a recommender knows when one user is about to meet one item; see `features.encoder`."""
    tables = {name: pl.read_parquet(split / f"{name}s.parquet")[f"{name}_id"].to_list() for name in ("user", "item")}
    index = {name: {key: i for i, key in enumerate(keys) if i} for name, keys in tables.items()}
    state, counts = store.user(row["user_id"]), store.items([row["item_id"]])
    return pl.DataFrame(
        {
            "user_index": [index["user"].get(row["user_id"], 0)],
            "item_index": [index["item"].get(row["item_id"], 0)],
            "timestamp": [row["timestamp"]],
            "user_events": [state.events],
            "user_positives": [state.positives],
            "item_events": counts.events,
            "item_positives": counts.positives,
            "user_last_timestamp": [state.last_timestamp],
            "history": [[index["item"].get(event.item_id, 0) for event in state.history[-config().ranker_history :]]],
        },
        schema_overrides={
            "user_index": pl.Int32,
            "item_index": pl.Int32,
            "user_last_timestamp": pl.Int64,
            "history": pl.List(pl.Int32),
        },
    ).with_columns(pl.Series("device", [row["device"]]))


def test_online_equals_offline(prepared: Path) -> None:
    """The tail of the log through a store and the encoder, one request at a time, gives the examples of the batch."""
    split = prepared / "time"
    encoder, store = Encoder.load(split), MemoryStore(retain=config().retain)
    assert store.seed(*snapshot(split))
    offline = pl.read_parquet(split / "ranking" / "test.parquet")
    tail = pl.read_parquet(prepared / "events.parquet").tail(offline.height)
    online: list[pl.DataFrame] = []
    for row in tail.iter_rows(named=True):
        online.append(encoder.encode(request_frame(store, split, row)))
        if row["action"] in CLICKS:
            store.append([Event(*(row[name] for name in ("user_id", "item_id", "timestamp", "action", "value")), True)])
    features = [feature.name for feature in encoder.schema.features]
    assert_frame_equal(pl.concat(online), offline.select(features), check_exact=True)


def test_every_step_of_a_sequence_is_predicted_once(prepared: Path) -> None:
    for split in ("time", "leave_one_out"):
        interactions = pl.read_parquet(prepared / split / "interactions.parquet").filter(pl.col("part") == 0)
        steps: list[tuple[int, int, int]] = []
        for user, items, times in pl.read_parquet(prepared / split / "sequences" / "train.parquet").iter_rows():
            assert 2 <= len(items) == len(times) <= config().max_history + 1
            steps += [(user, *step) for step in pairwise(items)]
        wanted: list[tuple[int, int, int]] = []
        for (user,), rows in interactions.sort("row").group_by("user_index"):
            items = rows["item_index"].to_list()
            wanted += [(user, *step) for step in pairwise(items)]
        assert len(wanted) > 100
        assert sorted(steps) == sorted(wanted)


def test_negatives_were_never_met(tmp_path: Path) -> None:
    """Also for those who have met nearly everything; who has met everything gets none."""
    keen = [(user, item) for user, last in ((100, 25), (101, 24)) for item in range(last)]
    table = pl.concat(
        [
            events().head(300).select("user_id", "item_id", "timestamp"),
            pl.DataFrame({"user_id": [u for u, _ in keen], "item_id": [f"i{i}" for _, i in keen]}).with_columns(
                timestamp=START + pl.int_range(pl.len()) * 60_000
            ),
        ]
    ).filter(pl.col("item_id").is_in(ITEMS))
    settings = config(history_actions=(), label=Label(negatives=3), splits=("leave_one_out",))
    counting = {"name": "met", "kind": "dense", "source": "request.item_events", "transform": "numeric"}
    specs = (*SPECS[:4], FeatureSpec.model_validate(counting | {"params": {"standardise": False}}))
    out = made(tmp_path / "examples", table, settings, specs)
    split = out / "leave_one_out"
    met = pl.read_parquet(split / "interactions.parquet")
    drawn: list[int] = []
    for number, part in enumerate(PARTS):
        examples = pl.read_parquet(split / "ranking" / f"{part}.parquet")
        negatives = examples.filter(pl.col("label") == 0)
        known = met.filter(pl.col("part") <= number).select("user_index", "item_index")
        assert negatives.join(known, on=["user_index", "item_index"], how="semi").is_empty()
        assert negatives["item_index"].is_between(1, 25).all()
        asked = met.filter(pl.col("part") == number)
        assert examples["label"].sum() == asked.height
        all_met = known.unique().group_by("user_index").len().filter(pl.col("len") == 25)["user_index"]
        assert negatives.height == 3 * asked.filter(~pl.col("user_index").is_in(all_met.implode())).height
        drawn += negatives["item_index"].to_list()
    assert set(drawn) == set(range(1, 26))
    person = pl.read_parquet(split / "users.parquet")["user_id"].to_list().index(101)
    last = pl.read_parquet(split / "ranking" / "test.parquet").filter(user_index=person, label=0)
    assert last["item_index"].to_list() == [25] * 3
    row = met.filter(user_id=101, part=2)["row"][0]
    times_met = met.filter(pl.col("row") < row, item_id="i24").height
    assert times_met > 0
    assert last["met"].to_list() == [times_met] * 3  # its own counters, not those of the item that was met


def test_a_failure_leaves_nothing_and_spoils_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("disk full")

    out = tmp_path / "examples"
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_snapshot", fail)
        with pytest.raises(RuntimeError):
            made(out, events(), config())
        assert list(tmp_path.iterdir()) == []
        patch.undo()
        made(out, events(), config(splits=("time",)))
        finished = (out / "manifest.json").read_bytes()
        patch.setattr(pipeline, "_snapshot", fail)
        with pytest.raises(RuntimeError):
            made(out, events(), config())
    assert list(tmp_path.iterdir()) == [out]
    assert (out / "manifest.json").read_bytes() == finished


def changed(name: str, **changes: Any) -> tuple[FeatureSpec, ...]:
    return tuple(FeatureSpec(**spec.model_dump() | changes) if spec.name == name else spec for spec in SPECS)


@pytest.mark.parametrize(
    ("settings", "specs", "message"),
    [
        ({"label": Label(actions=("buy",))}, SPECS, "prepare.label.actions = ['buy'] matches no row"),
        ({"history_actions": ("buy",)}, SPECS, "prepare.history_actions = ['buy'] matches no row"),
        ({}, changed("price", source="item.cost"), "feature price: item has no column 'cost' (found: index, item_id"),
        ({}, changed("price", source="item.item_id"), "feature price: 'item_id' is String, not a number"),
        ({}, changed("user_rate", params={"per": "x"}), "feature user_rate: no column 'x' beside user_positives"),
        ({}, changed("user_rate", params={}), "feature user_rate: params.per"),
        ({}, changed("hour", params={"part": "year"}), "feature hour: params.part = 'year'"),
        ({}, changed("device", transform="index"), "feature device: transform 'index' needs user.index"),
        ({}, changed("hour", kind="dense"), "feature hour: transform 'calendar' yields sparse, not dense"),
        ({}, changed("recent", kind="sparse"), "use kind = 'bag' for lists"),
        ({}, changed("item", table="user"), "features user and item share table user but not its shape"),
        ({}, (*SPECS, SPECS[0]), "feature names are used twice: user"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, settings: dict[str, Any], specs: tuple[FeatureSpec, ...], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        made(tmp_path / "examples", events(), config(**settings), specs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_columns_of_the_pipeline_may_not_be_brought_along(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="made up: the log has a column 'user_events', a name that the pipeline gives"):
        made(tmp_path, events().with_columns(user_events=1), config())


def test_a_log_too_short_or_without_a_clock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="split leave_one_out: no interactions in the training or the test part"):
        made(tmp_path, events().head(2), config(history_actions=(), label=Label(negatives=1)))
    timeless = RawLog(events=events().head(9), source="s", has_clock=False)
    with pytest.raises(InputError, match=r"s has no times, only positions; set prepare.splits = \['leave_one_out'\]"):
        prepare(timeless, config(), SPECS, tmp_path / "examples", {})


def test_schemas_differ_in_what_was_learned(prepared: Path, tmp_path: Path) -> None:
    """Equal in shape is not equal: the same index would mean another item."""
    other = made(tmp_path / "examples", events().with_columns(device=pl.col("device").replace("tv", "car")), config())
    mine, theirs = load_schema(prepared / "time"), load_schema(other / "time")
    assert mine.features == theirs.features
    with pytest.raises(InputError, match="mine and theirs have different schemas: fitted is"):
        mine.require_equal(theirs, "mine", "theirs")
    mine.require_equal(load_schema(prepared / "time"), "mine", "itself")


@pytest.mark.parametrize("column", ["label", "user_code", "value", "action"])
def test_what_a_request_cannot_know_is_no_source(column: str, tmp_path: Path) -> None:
    cheat = FeatureSpec(name="cheat", kind="dense", source=f"request.{column}", transform="numeric")
    with pytest.raises(InputError, match=f"feature cheat: request has no column '{column}'"):
        made(tmp_path / "examples", events(), config(), (*SPECS, cheat))
    assert not (tmp_path / "examples").exists()
