"""The promises of `prepare`: counts add up, nothing knows its future, online equals offline, whole or not at all."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from features import manifest, pipeline, registry
from features.counters import Counter
from features.encoder import Encoder, load_schema
from features.errors import InputError
from features.events import RawLog, in_one_part
from features.examples import Examples
from features.fold import Plan
from features.instant import Instant
from features.labels import Label, Task
from features.moment import Asked, Moment, load_snapshot
from features.online import Event, MemoryStore
from features.pipeline import NAMES, Config, prepare
from features.schema import FeatureSpec

START = 1_700_000_000_000
ITEMS = [f"i{n}" for n in range(25)]
CLICKS = ("click", "like")
COUNTERS = (
    Counter(name="today", by=("item",), window="6h", resolution="1h"),
    Counter(name="taste", by=("user", "item.categories"), half_life="8h"),
    Counter(name="abroad", by=("item", "user.country")),
    Counter(name="trend", by=("item.categories",), half_life="2h", resolution="30m"),
)

SPECS = tuple(
    FeatureSpec.model_validate(dict(zip(("name", "kind", "source", "transform"), line.split(), strict=True)) | more)
    for line, more in (
        ("user sparse user.index index", {}),
        ("item sparse item.index index", {}),
        ("recent bag request.history index", {"table": "item", "params": {"last": 3}}),
        ("history bag request.history index", {"table": "item", "weights": "request.history_recency"}),
        ("categories bag item.categories lookup", {}),
        ("tags bag item.tags lookup", {"weights": "item.tag_weights"}),
        ("past_categories bag history.categories lookup", {"table": "categories"}),
        ("past_actions bag request.history_actions lookup", {}),
        ("past_gaps bag request.history_gaps quantile", {"params": {"buckets": 5}}),
        ("country sparse user.country hashing", {"params": {"buckets": 7}}),
        ("device sparse request.device lookup", {"params": {"min_count": 3}}),
        ("hour sparse request.timestamp calendar", {}),
        ("device_hour sparse feature.device cross", {"params": {"with": ["hour", "item"], "buckets": 50}}),
        ("price dense item.price numeric", {}),
        ("price_level sparse item.price quantile", {"params": {"buckets": 3}}),
        ("content vector item.content vector", {}),
        ("words vector item.title text", {"params": {"dim": 4, "buckets": 64}}),
        ("age dense item.created_at elapsed", {}),
        ("user_count dense request.user_events numeric", {"params": {"log": True}}),
        ("item_count dense request.item_events numeric", {}),
        ("item_today dense request.today_events numeric", {"params": {"log": True}}),
        ("taste dense request.taste_events numeric", {}),
        ("taste_rate dense request.taste_positives rate", {"params": {"per": "taste_events"}}),
        ("abroad dense request.abroad_positives numeric", {}),
        ("trend dense request.trend_events numeric", {"params": {"log": True}}),
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
"""Scales and vocabularies are learned from all training parts, which with leave-one-out end late."""


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
        "tags": [[f"t{n % 3}", f"t{n % 5}"][: n % 3] for n in range(25)],
        "tag_weights": [[0.5 + n, 2.0][: n % 3] for n in range(25)],
        "content": [[float(n), 1.0, -2.0] if n % 8 else None for n in range(25)],
        "title": [f"the {n % 7} of {'night' if n % 2 else 'day'}" for n in range(25)],
        "created_at": [START + n * 3_600_000 if n % 4 else None for n in range(25)],
    }
    users = pl.DataFrame({"user_id": range(60), "country": [None if n % 9 == 0 else f"u{n % 4}" for n in range(60)]})
    return RawLog(parts=in_one_part(table, "made up"), items=pl.DataFrame(described), users=users, source="made up")


def config(**changes: Any) -> Config:
    defaults: dict[str, Any] = {
        "history_actions": CLICKS,
        "counters": COUNTERS,
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


def examples(split: Path, part: str) -> pl.DataFrame:
    """The encoded examples of a part, with the keys of their requests."""
    opened = Examples.open(split)
    number = NAMES.index(part)
    found = [opened.requests(block, number) for block in range(len(opened.blocks))]
    requests = pl.concat(frame for frame in found if frame.height)
    keys = requests.select("row", "user_code", "user_index", "item_index", "timestamp")
    keys = keys.with_columns(opened.encoder.outcomes(requests))
    return pl.concat([keys, opened.encoder.encode(requests)], how="horizontal")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("run") / "examples", events(), config())


def test_counts_add_up(prepared: Path) -> None:
    facts = manifest.read(prepared)
    assert facts is not None
    rows = facts["rows"]
    assert rows["read"] == 702 == rows["valid"] + rows["quarantined"]
    assert rows["reasons"] == {"timestamp: negative": 1, "user_id: missing": 1}
    assert rows["unknown_items"] > 0
    assert sum(pl.read_parquet(path).height for path in (prepared / "log").iterdir()) == rows["valid"]
    assert sum(pl.read_parquet(path).height for path in (prepared / "quarantine").iterdir()) == rows["quarantined"]
    for split, counts in facts["splits"].items():
        assert sum(counts[part]["events"] for part in NAMES) == rows["valid"]
        for part in NAMES:
            table = examples(prepared / split, part)
            assert counts[part]["examples"] == table.height == counts[part]["events"]
            assert counts[part]["positives"] == table["label"].sum()
        interactions = Examples.open(prepared / split).interactions()
        assert interactions.height == rows["interactions"] == sum(counts[part]["positives"] for part in NAMES)
        for name in ("users", "items"):
            table = pl.read_parquet(prepared / split / f"{name}.parquet")
            assert table["index"].to_list() == list(range(counts[name] + 1))
            assert table[f"{name[:-1]}_id"].null_count() == 1  # row 0 stands for all others


def test_every_transform_is_tried_here() -> None:
    assert {spec.transform for spec in SPECS} == set(registry.known("features.transforms"))


def test_examples_are_what_the_schema_says(prepared: Path) -> None:
    schema = load_schema(prepared / "time")
    assert Encoder.load(prepared / "time").schema == schema
    for part in NAMES:
        table = examples(prepared / "time", part)
        for feature in schema.features:
            column = table[feature.name]
            flat = column.explode(empty_as_null=False) if feature.kind == "bag" else column
            assert column.null_count() == flat.null_count() == 0
            if feature.kind in ("sparse", "bag"):
                assert feature.rows is not None
                assert flat.is_between(0, feature.rows - 1).all()
            if feature.kind == "vector":
                assert column.dtype == pl.Array(pl.Float32, feature.width or 0)
            if feature.weights is not None:
                assert table[feature.name + "__weights"].list.len().equals(column.list.len())
    late = examples(prepared / "time", "test")
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


def before(table: pl.DataFrame, at: int) -> pl.DataFrame:
    return table.filter(pl.col("timestamp") < at)


def test_the_future_changes_nothing_by_time(prepared: Path, tmp_path: Path) -> None:
    """Also not what was learned: everything up to the test part stays, bit by bit."""
    tail = examples(prepared / "time", "test")
    at = int(tail["timestamp"][50])
    other = made(tmp_path / "examples", spoilt(events(), at), config()) / "time"
    mine = prepared / "time"
    for part in ("train", "valid"):
        assert_frame_equal(examples(other, part), examples(mine, part))
        name = f"sequences/{part}.parquet"
        assert_frame_equal(pl.read_parquet(other / name), pl.read_parquet(mine / name))
    for name in ("snapshot/users.parquet", "snapshot/counters.parquet", "snapshot/items.parquet", "users.parquet"):
        order = pl.read_parquet(mine / name).columns[:2]
        assert_frame_equal(pl.read_parquet(other / name).sort(order), pl.read_parquet(mine / name).sort(order))
    for name in ("items.parquet", "schema.json", "transforms.json", "item_features.arrow"):
        assert (other / name).read_bytes() == (mine / name).read_bytes()
    theirs = examples(other, "test")
    assert before(tail, at).height >= 20
    assert_frame_equal(before(theirs, at), before(tail, at))
    assert not tail.equals(theirs)
    asked, changed = (pl.read_parquet(split / "sequences" / "test.parquet") for split in (mine, other))
    assert_frame_equal(before(changed, at), before(asked, at))


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
    for part in NAMES:
        kept = before(examples(mine / "leave_one_out", part), at)
        assert kept.height > 0
        assert_frame_equal(before(examples(theirs / "leave_one_out", part), at), kept)
    for part in ("valid", "test"):
        name = f"leave_one_out/sequences/{part}.parquet"
        changed, kept = (before(pl.read_parquet(root / name), at) for root in (theirs, mine))
        assert_frame_equal(changed, kept)


def moment(split: Path, encoder: Encoder, settings: Config) -> Moment:
    tables = {name: pl.read_parquet(split / f"{name}s.parquet")[f"{name}_id"].to_list() for name in ("user", "item")}
    plan = Plan.of(settings.counters, (spec.source for spec in SPECS), settings.ranker_history, 0, 0)
    users = {user: index for index, user in enumerate(tables["user"]) if index}
    return Moment.load(split, plan, encoder.requested, tables["item"], users)


def test_online_equals_offline(prepared: Path) -> None:
    """The tail of the log through a store and the encoder, one request at a time, gives the examples of the batch."""
    split, settings = prepared / "time", config()
    encoder, store = Encoder.load(split), MemoryStore(retain=settings.retain)
    now = moment(split, encoder, settings)
    assert store.seed(*load_snapshot(split))
    offline, instant = examples(split, "test"), Instant(encoder, now)
    keys = ["row", "user_code", "user_index", "item_index", "timestamp", "label"]
    types = dict(offline.drop(keys).schema)
    log = pl.concat([pl.read_parquet(path) for path in sorted((prepared / "log").iterdir())]).tail(offline.height)
    online: list[pl.DataFrame] = []
    for row in log.iter_rows(named=True):
        asked = Asked(row["user_id"], row["timestamp"], {"device": row["device"]})
        item = np.array([[now.item_index.get(row["item_id"], 0)]])
        online.append(instant.encode([asked], [store.history(row["user_id"])], item, store).frame(types))
        if row["action"] in CLICKS:
            happened = Event(*(row[name] for name in ("user_id", "item_id", "timestamp", "action", "value")), True)
            store.append([happened], [now.increments(happened)])
    found = pl.concat(online)
    # An item that nobody knew when the features were fitted is asked for as nobody: its own counters are not looked up.
    known = offline["item_index"] > 0
    assert known.sum() > 100
    assert_frame_equal(found.filter(known), offline.select(found.columns).filter(known), check_exact=True)
    past = store.history(row["user_id"])
    together = instant.encode([asked, asked], [past, past], np.array([[1, 2, 3], [3, 2, 4]]), store).frame(types)
    alone = [instant.encode([asked], [past], np.array([[item]]), store).frame(types) for item in (1, 2, 3, 3, 2, 4)]
    assert_frame_equal(together, pl.concat(alone), check_exact=True)


@pytest.mark.parametrize(("name", "parts"), [("train", (0,)), ("known", (0, 1))])
@pytest.mark.parametrize("split", ["time", "leave_one_out"])
def test_every_step_of_a_sequence_is_predicted_once(
    prepared: Path, split: str, name: str, parts: tuple[int, ...]
) -> None:
    """With what was done; people of the training part alone."""
    folder = prepared / split
    actions = manifest.read_json(folder / "actions.json")["actions"]
    steps: list[tuple[Any, ...]] = []
    for window in pl.read_parquet(folder / "sequences" / f"{name}.parquet").iter_rows(named=True):
        done = [actions[code] for code in window["actions"]]
        assert 2 <= len(window["items"]) == len(window["timestamps"]) == len(done) <= config().max_history + 1
        steps += [(window["user_index"], *step) for step in pairwise(zip(window["items"], done, strict=True))]
    wanted: list[tuple[Any, ...]] = []
    interactions = Examples.open(folder).interactions(*parts)
    log = pl.concat([pl.read_parquet(path, columns=["row", "action"]) for path in (prepared / "log").iterdir()])
    interactions = interactions.join(log, on="row").filter(pl.col("user_index") > 0)
    for (user,), rows in interactions.sort("row").group_by("user_index"):
        wanted += [(user, *step) for step in pairwise(rows.select("item_index", "action").iter_rows())]
    assert len(wanted) > 100
    assert sorted(steps) == sorted(wanted)


def test_negatives_were_shown_before_and_not_met_before(tmp_path: Path) -> None:
    """Uniformly, and with their own counters."""
    table = events(3000).select("user_id", "item_id", "timestamp").filter(pl.col("item_id").is_in(ITEMS[:20]))
    settings = config(history_actions=(), label=Label(negatives=3), splits=("leave_one_out",), counters=())
    counting = {"name": "count", "kind": "dense", "source": "request.item_events", "transform": "numeric"}
    specs = (SPECS[0], SPECS[1], FeatureSpec.model_validate(counting | {"params": {"standardise": False}}))
    out = made(tmp_path / "examples", table, settings, specs)
    split = out / "leave_one_out"
    met = Examples.open(split).interactions()
    found = pl.concat([examples(split, part) for part in NAMES]).sort("row", maintain_order=True)
    assert found["label"].sum() == met.height
    drawn = found.filter(pl.col("label") == 0)
    assert drawn.height > 1.5 * met.height  # who has met nearly everything gets few
    pairs = met.select("user_index", "item_index", met_row="row")
    again = drawn.join(pairs, on=["user_index", "item_index"]).filter(pl.col("met_row") <= pl.col("row"))
    assert again.is_empty()
    first = met.group_by("item_index").agg(pl.col("row").min().alias("first"))
    assert drawn.join(first, on="item_index", how="left").select((pl.col("first") < pl.col("row")).all()).item()
    late = drawn.filter(pl.col("row") > 500)["item_index"].value_counts()["count"]
    assert len(late) == 20
    for row in drawn.sample(50, seed=1).iter_rows(named=True):
        past = met.filter((pl.col("row") < row["row"]) & (pl.col("item_index") == row["item_index"]))
        assert row["count"] == past.height


def test_every_outcome_of_a_row_is_beside_its_features(tmp_path: Path) -> None:
    table = events().with_columns(
        value=pl.when(pl.col("value") > 0.2).then(pl.col("value") * 100),
        finished=pl.col("action") == "buy",
    )
    tasks = (
        Task(name="much", source="value", at_least=50.0),
        Task(name="amount", source="value", log=True),
        Task(name="done", source="finished", at_least=1),
    )
    split = made(tmp_path / "examples", table, config(tasks=tasks), SPECS) / "time"
    encoder = Examples.open(split).encoder
    assert encoder.schema.outcomes == ("click", "much", "amount", "done")
    amount = encoder.schema.tasks[1]
    rows = {part: examples(split, part) for part in ("train", "test")}
    logged = table.head(-2).with_row_index("row")
    for found in rows.values():
        truth = found.select("row").cast(pl.UInt32).join(logged, on="row", maintain_order="left")
        value = truth["value"].to_numpy()
        learned = {name: found[f"label.{name}"].to_numpy() for name in encoder.schema.outcomes[1:]}
        np.testing.assert_array_equal(np.isnan(learned["much"]), np.isnan(value))
        np.testing.assert_array_equal(learned["much"][~np.isnan(value)], value[~np.isnan(value)] >= 50)
        np.testing.assert_array_equal(learned["done"], truth["finished"].to_numpy())
        np.testing.assert_allclose(amount.number(learned["amount"]), value, rtol=1e-4)
    train = rows["train"]["label.amount"].drop_nans()
    assert train.mean() == pytest.approx(0, abs=1e-5)
    assert train.std() == pytest.approx(1, abs=1e-5)


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
        (
            {"label": Label(actions=("buy",)), "history_actions": ()},
            SPECS,
            "prepare.label.actions = ['buy'] matches no row",
        ),
        (
            {"history_actions": ("buy",), "label": Label(at_least=0.1)},
            SPECS,
            "prepare.history_actions = ['buy'] matches no row",
        ),
        ({}, changed("price", source="item.cost"), "feature price: item has no column 'cost' (found: index, item_id"),
        ({}, changed("price", source="item.item_id"), "feature price: 'item_id' is String, not a number"),
        (
            {},
            changed("user_rate", params={"per": "x"}),
            "feature user_rate: no column 'x' beside request.user_positives",
        ),
        ({}, changed("user_rate", params={}), "feature user_rate: params.per"),
        ({}, changed("hour", params={"part": "year"}), "feature hour: params.part = 'year'"),
        ({}, changed("device", transform="index", params={}), "feature device: transform 'index' needs user.index"),
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


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            Task(name="sold", source="sales"),
            "prepare.tasks.sold: 'sales' is no column of the log with numbers that tell",
        ),
        (
            Task(name="big", source="size"),
            "'size' is no column of the log with numbers that tell what happened; name one",
        ),
        (Task(name="who", source="user_id"), "what happened; name one of: value, one, done"),
        (Task(name="ended", source="done"), "prepare.tasks.ended: 'done' is yes or no; set at_least = 1"),
        (Task(name="cost", source="price"), "feature price: 'price' is what task cost predicts"),
        (Task(name="kind", source="device"), "feature device: 'device' is what task kind predicts"),
        (Task(name="same", source="one"), "prepare.tasks.same: the training part has fewer than two different numbers"),
    ],
)
def test_a_task_that_does_not_fit_is_one_line(tmp_path: Path, task: Task, message: str) -> None:
    table = events().with_columns(size=pl.lit("large"), one=pl.lit(2.0), done=pl.lit(True))
    with pytest.raises(InputError) as caught:
        made(tmp_path / "examples", table, config(tasks=(task,)), SPECS)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_of_the_pipeline_may_not_be_brought_along(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="made up: the log has a column 'user_events', a name that the pipeline gives"):
        made(tmp_path, events().with_columns(user_events=1), config())


def test_a_log_too_short_or_without_a_clock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="split leave_one_out: no interactions in the training or the test part"):
        made(tmp_path, events().head(2), config(history_actions=(), label=Label(negatives=1)))
    timeless = RawLog(parts=in_one_part(events().head(9), "s"), source="s", has_clock=False)
    with pytest.raises(InputError, match=r"s has no times, only positions; set prepare.splits = \['leave_one_out'\]"):
        prepare(timeless, config(), SPECS, tmp_path / "examples", {})
    with pytest.raises(InputError, match="s has no times; counter today can have no window and no half_life"):
        prepare(timeless, config(splits=("leave_one_out",)), SPECS, tmp_path / "examples", {})


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
