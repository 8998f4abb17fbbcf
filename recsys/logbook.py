"""The logbook of a run: what happened to its trainings, a line each, to which lines are only ever added.

    book = Logbook(Path("runs/ml-1m"), "time/ranker")
    book.start(config, examples="1f3c…")
    book.write("checkpoint", step=4000, epoch=1, batch=120, checkpoint="step-4000", seconds=1.2)
    book.write("stop", cause=FINISHED, step=9000)
    write_page(Path("runs/ml-1m"))

`logbook.jsonl` is the truth: an object a line with `time`, `kind`, `training`, perhaps `cause`, and facts. It is never
rewritten or cut. `logbook.html` is made from it, and can be made again at any time.

A line that cannot be written, because the disk is full for instance, does not end a training: it goes to stderr, is
kept, and is written before the next one, followed by a line of the kind `delayed` that says why. Only a process that
ends in the meantime takes such lines with it, and then stderr has them.

Facts have any name. The page understands `step`, `epoch`, `batch` (where training stands; the batch is the next one),
`checkpoint` (a name), `seconds`, `bytes`, `batches` of `skipped` (1 if not said), `metrics` (name → value) of
`evaluation`, `metric` and `value` of `best`, `before` and `after` of `reshard`.
"""

import fcntl
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from features.manifest import source_fingerprint
from recsys import summary
from recsys.console import console

FILE = "logbook.jsonl"

Kind = Literal[
    "start",
    "resume",
    "stop",
    "crash",
    "reshard",
    "position",
    "checkpoint",
    "damaged",
    "discarded",
    "not_finite",
    "skipped",
    "not_saved",
    "evaluation",
    "best",
    "early_stop",
    "delayed",
]
"""What a line can be about. `resume` follows `start`, once a checkpoint has been taken up; `delayed` is the logbook's
own. A reader also meets `torn`: a line whose writer died, or ran out of space, in the middle of it."""

TORN = "torn"
FINISHED = "finished"
"""The cause of a `stop` after which there is nothing left to train."""
WITHOUT_A_WORD = "ended without a word"
"""The cause of a `crash` that the next start has found: the process was killed, or its machine went down."""

ENDS = ("stop", "crash")
SOURCE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Entry:
    """A line of a logbook."""

    line: int
    """Its number, from 1."""
    time: datetime | None
    """UTC; None if the line is torn."""
    kind: str
    training: str
    """For instance `time/ranker`; empty if the line is torn."""
    cause: str | None
    facts: dict[str, Any]
    """All the rest; the text of a torn line as `text`."""


class Logbook:
    """One training's hand in the logbook of its run; any number of processes may write at the same time."""

    def __init__(self, directory: Path, training: str) -> None:
        """Nothing is opened or made before the first line.

        Args:
            directory: of the run.
            training: split and role, `time/ranker`.
        """
        self.path = directory / FILE
        self.training = training
        self._kept: list[bytes] = []
        self._trouble = ""

    def write(self, kind: Kind, *, cause: str | None = None, **facts: Any) -> None:
        """Add a line; it is on the disk when this returns, or else on stderr and kept for the next time.

        Args:
            kind: what it is about.
            cause: why, in words.
            facts: anything that `plain` takes; those that are None are left out.
        """
        late = len(self._kept)
        self._kept.append(self._line(kind, cause, facts))
        try:
            self._write_kept()
            if late:
                self._kept.append(self._line("delayed", self._trouble, {"lines": late}))
                self._write_kept()
        except OSError as error:
            self._trouble = error.strerror or str(error)
            # stderr may lead to the same full disk.
            with suppress(OSError):
                text = f"{self.path} cannot be written ({self._trouble}); {len(self._kept)} kept, the last of them: "
                console.print(text + self._kept[-1].decode(), markup=False, highlight=False, soft_wrap=True, end="")

    def start(self, config: dict[str, Any], **facts: Any) -> None:
        """Add the line of a start: the config, what has `changed` in it since the last start, and the environment.

        If this training's last start has no end, then its process was killed: a `crash` is added first, with where it
        last stood and, as `last_line`, when.

        Args:
            config: all that the training is made from, nested.
            facts: fingerprints of data and schema, for instance; they take precedence over those of `environment`.
        """
        earlier = [entry for entry in read(self.path) if entry.training == self.training]
        turns = [entry for entry in earlier if entry.kind in ("start", *ENDS)]
        if turns and turns[-1].kind == "start":
            self.write("crash", cause=WITHOUT_A_WORD, last_line=stamp(earlier[-1].time), **last_position(earlier))
        configs = [entry.facts["config"] for entry in turns if "config" in entry.facts]
        config = plain(config)
        changed = difference(configs[-1], config) if configs else None
        self.write("start", **{**environment(), "config": config, "changed": changed, **facts})

    def _line(self, kind: Kind, cause: str | None, facts: dict[str, Any]) -> bytes:
        taken = {"time", "training"} & facts.keys()
        assert not taken, f"facts cannot be called {taken}"
        head = {"time": stamp(datetime.now(UTC)), "kind": kind, "training": self.training, "cause": cause}
        line = {name: plain(value) for name, value in (head | facts).items() if value is not None}
        return json.dumps(line, allow_nan=False).encode() + b"\n"

    def _write_kept(self) -> None:
        while self._kept:
            _append(self.path, self._kept[0])
            del self._kept[0]


def _append(path: Path, line: bytes) -> None:
    """Add a whole line and see it to the disk, on a fresh line if the last one is torn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # Between looking at the end and writing nobody else may write; the system frees the lock of whoever dies.
        fcntl.flock(file, fcntl.LOCK_EX)
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:  # once, unless the disk is full: then the second write says so
            line = line[os.write(file, line) :]
        fcntl.flock(file, fcntl.LOCK_UN)
        os.fsync(file)
    finally:
        os.close(file)
    if is_new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: Path) -> list[Entry]:
    """All lines of a logbook in their order; none if there is no such file.

    What is no whole entry comes as an entry of the kind `torn`: half a line, or one that is being written right now.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [_entry(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _entry(number: int, line: bytes) -> Entry:
    text = line.decode(errors="replace").replace("\0", "�")
    try:
        found = json.loads(text)
        time = datetime.fromisoformat(found.pop("time")).astimezone(UTC)
        return Entry(number, time, str(found.pop("kind")), str(found.pop("training")), found.pop("cause", None), found)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Entry(number, None, TORN, "", None, {"text": text})


def last_position(entries: list[Entry]) -> dict[str, int]:
    """The last step, epoch and batch that entries of one training tell of; what none tells of is left out."""
    told = [entry.facts for entry in entries if "step" in entry.facts or "epoch" in entry.facts]
    return {name: told[-1][name] for name in ("step", "epoch", "batch") if name in told[-1]} if told else {}


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What differs between two configs: dotted field → `before` and `after`, whichever of them has the field."""
    found: dict[str, dict[str, Any]] = {}
    for name in [*before, *(name for name in after if name not in before)]:
        field = json.dumps(name) if "." in name else name
        both = {side: tree[name] for side, tree in (("before", before), ("after", after)) if name in tree}
        if any(both.values()) and all(isinstance(value, dict) for value in both.values()):
            deeper = difference(both.get("before", {}), both.get("after", {}))
            found |= {f"{field}.{rest}": values for rest, values in deeper.items()}
        # As text, because 1 == True.
        elif len(both) == 1 or len({json.dumps(value, sort_keys=True) for value in both.values()}) == 2:
            found[field] = both
    return found


def plain(value: Any) -> Any:
    """The same in JSON's types; numbers of NumPy and torch become Python's, and what is not finite a text."""
    if isinstance(value, dict):
        return {str(name): plain(of) for name, of in value.items()}
    if isinstance(value, list | tuple):
        return [plain(of) for of in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def stamp(time: datetime | None) -> str | None:
    """ISO 8601 in UTC, to the millisecond."""
    return time and time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def environment() -> dict[str, Any]:
    """What a training depends on beside its config and data; names neither the machine nor its folders."""
    # Slow to import, and reading a logbook does not need it.
    import torch
    from torch import distributed

    fbgemm = {
        name: found.version
        for name in ("fbgemm-gpu", "fbgemm-gpu-cpu")
        for found in importlib.metadata.distributions(name=name)
    }
    return {
        "world": distributed.get_world_size() if distributed.is_initialized() else 1,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **summary.versions(), **fbgemm},
        "source": source_fingerprint(summary.PACKAGES),
        **commit(SOURCE),
        "pid": os.getpid(),
    }


def commit(tree: Path) -> dict[str, Any]:
    """The `commit` that a source tree stands on, and whether files differ from it; nothing if git does not know."""
    git, folder = shutil.which("git"), tree / ".git"
    if git is None or not folder.exists():
        return {}
    command = [git, "--no-optional-locks", f"--git-dir={folder}", f"--work-tree={tree}"]
    command += ["status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    # Both folders are named, or git would answer for the tree around an installed package.
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tree).stdout.splitlines()
    name = next((line.removeprefix("# branch.oid ") for line in said if line.startswith("# branch.oid ")), "(initial)")
    if name == "(initial)":
        return {}
    return {"commit": name, "uncommitted": any(not line.startswith("#") for line in said)}


def write_page(directory: Path) -> Path:
    """Make `logbook.html` from the logbook of a run; returns its path.

    Raises:
        OSError: it cannot be written; an earlier page is as it was.
    """
    # Templates are slow to import, and writing a line does not need them.
    from recsys import logbook_page

    return logbook_page.write(directory, read(directory / FILE))
