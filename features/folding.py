"""The parts of a log, one after the other: validated, marked, folded (`features.fold`) and written.

Parts that an earlier run has finished are linked, not done again.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features import manifest as manifests
from features._hash import hash64
from features.encoder import Encoder
from features.events import Part, RawLog, Validator, described, nothing_valid
from features.examples import BLOCK_ROWS, with_unknown
from features.fold import DERIVED, HISTORY_COLUMNS, Plan, State
from features.labels import Rules
from features.manifest import file_fingerprint, fingerprint
from features.schema import FeatureSpec

PLACES = ("log", "frames", "quarantine")
"""Folders with a file for each part."""

_OWN = {
    *(*DERIVED, *HISTORY_COLUMNS, "part", "user_index", "item_index", "index", "label", "user_last_timestamp"),
    *("items", "reason"),
}
"""Columns that the pipeline adds to events and requests."""

_REHEARSED = 200
"""Rows on which it is tried whether the features work at all."""


class Folder:
    """Parts of a log, made canonical, marked and folded."""

    def __init__(
        self, log: RawLog, plan: Plan, rules: Rules, specs: tuple[FeatureSpec, ...], *, only_described: bool
    ) -> None:
        """What is done to every part.

        Args:
            log: the parts.
            plan: what is to be known of each row.
            rules: what counts as an interaction and as a positive.
            specs: the declared features.
            only_described: refuse events of items or users that their table, where there is one, does not describe.
        """
        self.log, self.plan, self.rules, self.specs = log, plan, rules, specs
        given = {"item_id": log.items, "user_id": log.users} if only_described else {}
        self.validator = Validator(
            log,
            known={key: table[key] for key, table in given.items() if table is not None and key in table.columns},
            reserved=frozenset({*_OWN, *(name for counter in plan.counters for name in counter.columns)}),
        )
        self.tables: dict[str, pl.DataFrame] = {}
        """`user` and `item`: what their tables describe; known from `begin` on."""

    def fold(
        self, directory: Path, done: list[dict[str, Any]], report: Callable[[str], None]
    ) -> tuple[State, list[dict[str, Any]]]:
        """Write the files of the parts that are not `done`; what is known after the last, and an entry for each part.

        Raises:
            InputError: something is wrong with the log, its tables or the features; says which and why.
        """
        entries, state = list(done), None
        # While a part is folded, the next one is read and the one before is written: three parts are held at most.
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            rest = islice(iter(self.log.parts), len(done), None)
            coming = reader.submit(self._next, rest)
            writing: Future[dict[str, Any]] | None = None
            while (read := coming.result()) is not None:
                part, events, refused = read
                if state is None and self.validator.types:
                    state = self.begin(directory / "state", events, resumed=bool(done))
                coming = reader.submit(self._next, rest)
                log, frame = state.advance(events) if state is not None and events.height else (None, None)
                number = len(entries) + (writing is not None)
                if writing is not None:
                    entries.append(_told(writing.result(), report))
                writing = writer.submit(write_part, directory, number, part, log, frame, refused)
                del read, events, refused, log, frame
            if writing is not None:
                entries.append(_told(writing.result(), report))
        if state is None:
            if not done:
                raise nothing_valid(self.log, 0, [])
            state = self.begin(directory / "state", None, resumed=True)
        shutil.rmtree(directory / "state", ignore_errors=True)
        return state, entries

    @property
    def let_through(self) -> dict[str, str]:
        """Fingerprints of the ids that are let through, where not all are."""
        return {
            key: fingerprint(len(ids), int(np.bitwise_xor.reduce(hash64(ids))))
            for key, ids in self.validator.known.items()
        }

    def _next(self, rest: Iterator[Part]) -> tuple[Part, pl.DataFrame, pl.DataFrame] | None:
        part = next(rest, None)
        return None if part is None else (part, *self.validated(part))

    def validated(self, part: Part) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(valid, refused) rows of the next part, the valid ones with `interaction` and `positive`."""
        events, refused = self.validator.part(part)
        return self.rules.mark(events) if events.height else events, refused

    def begin(self, saved: Path, events: pl.DataFrame | None, *, resumed: bool) -> State:
        """The state before the first part that is folded, after everything that can be wrong has been looked at."""
        self._describe()
        if resumed:
            return State.load(saved, self.plan, self.tables["user"], self.tables["item"])
        if events is not None and events.height:
            self._rehearse(events.head(_REHEARSED))
        return State.empty(self.plan, self.tables["user"], self.tables["item"])

    def resume(
        self, out: Path, directory: Path, manifest: dict[str, Any], inputs: dict[str, str]
    ) -> list[dict[str, Any]]:
        """Link the files of the parts that `out` holds already into `directory`.

        Args:
            out: what an earlier run may have finished.
            directory: what this run fills.
            manifest: of this run; only what was made with the same `settings` is taken over.
            inputs: path → fingerprint of the files that the log is read from.

        Returns:
            What the manifest of `out` says of those parts; [] where they are not the beginning of this log.
        """
        before = manifests.read(out)
        if before is None or "settings" not in manifest or before.get("settings") != manifest["settings"]:
            return []
        parts, done = self.log.parts, before["parts"]
        if not isinstance(parts, tuple) or len(done) > len(parts):
            return []
        for entry, part in zip(done, parts, strict=False):
            same = [inputs.get(str(path), "") for path in part.paths] == entry["inputs"]
            if not part.paths or entry["name"] != part.name or not same:
                return []
        log = pl.read_parquet_schema(min((out / "log").iterdir()))
        types = {name: dtype for name, dtype in log.items() if name not in DERIVED}
        if before["let_through"] != self.let_through or self._retold(out / "state", types):
            return []
        for number, entry in enumerate(done):
            if entry["valid"] and not all((out / name / f"{number:05}.parquet").exists() for name in ("log", "frames")):
                return []
        for name in (*PLACES, "state"):
            shutil.copytree(out / name, directory / name, copy_function=_link, dirs_exist_ok=True)
        self.validator.types = types
        self.validator.rows = sum(entry["valid"] for entry in done)
        self.validator.last_ms = max(entry["last_ms"] for entry in done if entry["valid"])
        return done

    def _describe(self) -> None:
        types = self.validator.types
        for name, column, table in (("item", "item_id", self.log.items), ("user", "user_id", self.log.users)):
            self.tables[name] = described(table, column, types[column], self.log.source)

    def _retold(self, saved: Path, types: dict[str, pl.DataType]) -> bool:
        """Whether the tables now tell something else, that is counted by, of those already met."""
        self.validator.types = types
        self._describe()
        state, retold = State.empty(self.plan, self.tables["user"], self.tables["item"]), False
        for entities in (state.users, state.items):
            met = pl.read_parquet(saved / f"{entities.name}s.parquet")
            columns = [entities.key, *sorted(self.plan.counted(entities.name))]
            again = met.select(entities.key).join(
                entities.table.select(columns), on=entities.key, how="left", maintain_order="left"
            )
            if not again.equals(met):
                retold = True
        self.validator.types = {}
        return retold

    def _rehearse(self, events: pl.DataFrame) -> None:
        """Fit the features on a few rows: what cannot work fails here, before any work."""
        state = State.empty(self.plan, self.tables["user"], self.tables["item"])
        _, frame = state.advance(events)
        nobody = np.zeros(frame.height, dtype=np.int32)
        requests = frame.drop("row", "user_code", "item_code", "label").with_columns(
            pl.Series("user_index", nobody), pl.Series("item_index", nobody)
        )
        items, users = (with_unknown(table) for table in (state.items.described(), state.users.described()))
        Encoder.rehearse(self.specs, items, users, requests)


def write_part(
    directory: Path,
    number: int,
    part: Part,
    log: pl.DataFrame | None,
    frame: pl.DataFrame | None,
    refused: pl.DataFrame,
) -> dict[str, Any]:
    """Write what one part has become, and say it in numbers; without valid rows there are no `log` and `frame`."""
    entry: dict[str, Any] = {
        "name": part.name,
        "paths": part.paths,
        "read": refused.height,
        "valid": 0,
        "quarantined": refused.height,
        "reasons": dict(refused.group_by("reason").len().sort("reason").iter_rows()),
        "interactions": 0,
        "positives": 0,
        "frame": "",
    }
    if refused.height:
        refused.write_parquet(directory / "quarantine" / f"{number:05}.parquet")
    if log is None or frame is None:
        return entry
    written = directory / "frames" / f"{number:05}.parquet"
    log.write_parquet(directory / "log" / f"{number:05}.parquet", compression="lz4", row_group_size=BLOCK_ROWS)
    frame.write_parquet(written, compression="lz4", row_group_size=BLOCK_ROWS, statistics=False)
    return entry | {
        "read": log.height + refused.height,
        "valid": log.height,
        "interactions": int(log["interaction"].sum()),
        "positives": int(frame["label"].sum()),
        "first_ms": log["timestamp"][0],
        "last_ms": log["timestamp"][-1],
        "frame": file_fingerprint(written),
    }


def _told(entry: dict[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    report(f"  {entry['name']}: {entry['read']:,} events, {entry['quarantined']:,} refused")
    return entry


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
