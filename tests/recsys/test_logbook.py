"""The logbook: lines are only added, whoever writes, dies or has no space left; the page tells what they come to."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import expect, sync_playwright

from recsys import logbook
from recsys.logbook import FILE, FINISHED, WITHOUT_A_WORD, Logbook, difference, read, write_page
from recsys.logbook_page import SHOWN
from tests.conftest import ROOT, require_program
from tests.integration.test_report import CHROMIUM

WRITERS, LINES = 4, 150


def process(code: str, *words: str) -> subprocess.Popen[str]:
    """A process of its own that has `book`, on the directory that is its first word, and runs `code`."""
    head = "import sys; from pathlib import Path; from recsys.logbook import Logbook, read\n"
    head += "book = Logbook(Path(sys.argv[1]), sys.argv[2])\n"
    return subprocess.Popen([sys.executable, "-c", head + code, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def told(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(entry.kind, entry.facts) for entry in read(path)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    book = Logbook(tmp_path / "run", "time/ranker")
    assert not book.path.parent.exists(), "nothing is made before the first line"
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    book.write("evaluation", step=3, metrics={"auc": np.float32(0.5), "ne": torch.tensor(1.5)}, none=None, to=(1, 2))
    book.write("not_finite", cause="loss\nis “nan” \udcff", loss=float("nan"), norm=np.float32("inf"), at=Path("a/b"))
    first, second = read(book.path)
    assert (first.line, first.kind, first.training, first.cause) == (1, "evaluation", "time/ranker", None)
    assert first.facts == {"step": 3, "metrics": {"auc": 0.5, "ne": 1.5}, "to": [1, 2]}
    assert second.cause == "loss\nis “nan” \udcff"
    assert second.facts == {"loss": "nan", "norm": "inf", "at": "a/b"}
    assert first.time is not None
    assert before <= first.time <= datetime.now(UTC)
    lines = book.path.read_text().splitlines()
    assert len(lines) == 2
    assert all(re.match(r'\{"time": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "kind": ', line) for line in lines)


def test_processes_that_write_at_once_and_die_leave_whole_lines(tmp_path: Path) -> None:
    code = f"for n in range({LINES}): book.write('position', step=n, filler='x' * (n * 997 % 20_000))"
    endless = "n = 0\nwhile True: book.write('position', step=n, filler='y' * 200_000); n += 1"
    victim = process(endless, str(tmp_path), "victim")
    writers = [process(code, str(tmp_path), f"writer/{n}") for n in range(WRITERS)]
    deadline = time.monotonic() + 30
    while not any(entry.training == "victim" for entry in read(tmp_path / FILE)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    errors = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * WRITERS, errors
    entries = read(tmp_path / FILE)
    for n in range(WRITERS):
        steps = [entry.facts["step"] for entry in entries if entry.training == f"writer/{n}"]
        assert steps == list(range(LINES))
    assert Counter(entry.kind for entry in entries)[logbook.TORN] <= 1


@pytest.mark.parametrize("end", [b'{"time": "2026-03-01T00:00:00.000Z", "kind": "chec', b"\0" * 9, b"\xe2\x80"])
def test_torn_line_stays_and_is_reported(tmp_path: Path, end: bytes) -> None:
    book = Logbook(tmp_path, "time/ranker")
    book.write("resume", step=1)
    with book.path.open("ab") as file:
        file.write(end)
    assert [entry.kind for entry in read(book.path)] == ["resume", "torn"]
    before = book.path.read_bytes()
    book.write("checkpoint", step=2)
    assert book.path.read_bytes().startswith(before + b"\n{"), "what was there is untouched"
    entries = read(book.path)
    assert [(entry.line, entry.kind) for entry in entries] == [(1, "resume"), (2, "torn"), (3, "checkpoint")]
    assert (entries[1].training, entries[1].time) == ("", None)
    assert entries[1].facts["text"] == end.decode(errors="replace").replace("\0", "�")


def test_line_without_its_newline_is_whole(tmp_path: Path) -> None:
    book = Logbook(tmp_path, "time/ranker")
    book.write("resume", step=1)
    os.truncate(book.path, book.path.stat().st_size - 1)
    book.write("checkpoint", step=2)
    assert [entry.kind for entry in read(book.path)] == ["resume", "checkpoint"]


def test_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on the file's size stands for a disk that is full, and is then lifted."""
    code = """
import resource
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
book.write("resume", step=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (book.path.stat().st_size + 20, hard))
for step in (1, 2): book.write("checkpoint", step=step)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
book.write("checkpoint", step=3)
"""
    writer = process(code, str(tmp_path), "time/ranker")
    errors = writer.communicate()[1]
    assert writer.returncode == 0, errors
    assert errors.count("cannot be written (File too large)") == 2
    assert '"step": 1' in errors
    assert '"step": 2' in errors
    entries = read(tmp_path / FILE)
    assert [entry.facts.get("step") for entry in entries if entry.kind == "checkpoint"] == [1, 2, 3]
    assert [entry.kind for entry in entries] == ["resume", "torn", *["checkpoint"] * 3, "delayed"]
    assert (entries[-1].cause, entries[-1].facts) == ("File too large", {"lines": 2})


def test_start_tells_of_the_environment_but_not_of_the_machine(tmp_path: Path) -> None:
    book = Logbook(tmp_path, "time/ranker")
    book.start({"model": {"dim": 8, "lr": 0.1}}, data="1f3c")
    facts = read(book.path)[0].facts
    assert {"world", "device", "threads", "versions", "source", "pid"} <= facts.keys()
    assert facts["versions"]["torchrec"] == "1.9.2"
    assert {name.split("-")[0] for name in facts["versions"]} >= {"python", "torch", "fbgemm"}
    assert (facts["data"], facts["config"]) == ("1f3c", {"model": {"dim": 8, "lr": 0.1}})
    assert "changed" not in facts
    assert str(ROOT) not in book.path.read_text()
    book.write("stop", cause=FINISHED)
    book.start({"model": {"dim": 8, "lr": 0.2, "over": (1, 2)}})
    changed = read(book.path)[-1].facts["changed"]
    assert changed == {"model.lr": {"before": 0.1, "after": 0.2}, "model.over": {"after": [1, 2]}}


def test_commit_is_read_where_there_is_one(tmp_path: Path) -> None:
    assert logbook.commit(tmp_path) == {}
    (tmp_path / ".git").mkdir()
    assert logbook.commit(tmp_path) == {}
    git = [require_program("git"), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for words in ("init -q", "add file", "commit -q -m one"):
        subprocess.run([*git, *words.split(" ")], cwd=tmp_path, check=True)
    found = logbook.commit(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", found["commit"])
    assert found["uncommitted"] is False
    (tmp_path / "file").write_text("22")
    assert logbook.commit(tmp_path) == found | {"uncommitted": True}


@pytest.mark.parametrize("end", [None, "stop", "crash"])
def test_start_after_a_kill_writes_the_crash(tmp_path: Path, end: Any) -> None:
    book, other = Logbook(tmp_path, "time/ranker"), Logbook(tmp_path, "time/retriever")
    book.start({})
    book.write("checkpoint", step=40, epoch=1, batch=7)
    book.write("resume", checkpoint="step-40")
    last = json.loads(book.path.read_text().splitlines()[-1])["time"]
    other.start({})
    if end is not None:
        book.write(end)
    before = book.path.read_bytes()
    Logbook(tmp_path, "time/ranker").start({})
    assert book.path.read_bytes().startswith(before)
    added = read(book.path)[before.count(b"\n") :]
    assert [entry.kind for entry in added] == (["crash", "start"] if end is None else ["start"])
    assert added[-1].facts["changed"] == {}
    if end is None:
        assert (added[0].training, added[0].cause) == ("time/ranker", WITHOUT_A_WORD)
        assert added[0].facts == {"last_line": last, "step": 40, "epoch": 1, "batch": 7}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {}, {}),
        ({"a": {"b": {"c": 1}}, "d": 2}, {"d": 2, "a": {"b": {"c": 3}}}, {"a.b.c": {"before": 1, "after": 3}}),
        ({"a": 1}, {"a": True}, {"a": {"before": 1, "after": True}}),
        ({"a": None}, {}, {"a": {"before": None}}),
        ({}, {"a": {"b": 1, "c": {}}}, {"a.b": {"after": 1}, "a.c": {"after": {}}}),
        ({"a": {"b": 1}}, {"a": 2}, {"a": {"before": {"b": 1}, "after": 2}}),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, {"a": {"before": [1, {"b": 2}], "after": [1, {"b": 3}]}}),
        ({"x.y": {"z": 1}}, {"x.y": {"z": 2}}, {'"x.y".z': {"before": 1, "after": 2}}),
        ({"a": {"p": 1, "q": 2}}, {"a": {"q": 2, "p": 1}}, {}),
    ],
)
def test_difference(before: dict[str, Any], after: dict[str, Any], expected: dict[str, Any]) -> None:
    assert difference(before, after) == expected


class Page(HTMLParser):
    """The page as a reader sees it: rows of its tables, sentences, marks, and whether every tag is closed."""

    VOID = ("meta", "br", "wbr", "path", "circle", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[dict[str, str]] = []
        self.marks: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.addresses += [found[name] for name in ("href", "src") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "tr" and "data-kind" in found:
            self.rows.append(found)
        if tag == "a":
            self.marks.append(found["title"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.text += data + " "


def eventful(directory: Path) -> None:
    """A night: a training is killed, goes on in the morning on fewer processes and ends early; another runs on."""
    now = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)
    lines: list[str] = []

    def add(training: str, kind: str, minutes: float = 1, **facts: Any) -> None:
        nonlocal now
        now += timedelta(minutes=minutes)
        lines.append(json.dumps({"time": logbook.stamp(now), "kind": kind, "training": training, **facts}))

    ranker, retriever = "time/ranker", "time/retriever"
    config = {"model": {"lr": 0.1}}
    add(ranker, "start", config=config, world=2)
    for step in range(1000, 9000, 1000):
        add(ranker, "checkpoint", step=step, epoch=step // 5000, batch=step % 5000)
    add(ranker, "not_finite", cause="the loss is nan", step=8100)
    add(ranker, "skipped", step=8100, batches=2)
    seen = logbook.stamp(now)
    lines.append('{"time": "2026-03-01T22:1')
    add(ranker, "crash", 500, cause=WITHOUT_A_WORD, last_line=seen, step=8100)
    changed = {"model.lr": {"before": 0.1, "after": 0.05}, "model.<i>": {"after": "<img src=x>"}}
    add(ranker, "start", 0, config={"model": {"lr": 0.05}}, changed=changed, world=1)
    add(ranker, "damaged", checkpoint="step-8000", cause="<script>alert(1)</script> & sums differ")
    add(
        ranker, "reshard", before={"world": 2, "plan": {"t": [0, 1]}}, after={"world": 1, "plan": {"t": [0]}}, step=7000
    )
    add(ranker, "resume", checkpoint="step-7000", step=7000)
    add(ranker, "evaluation", 30, step=9000, metrics={"logloss": 0.41, "auc": 0.77})
    add(ranker, "best", 0, step=9000, metric="logloss", value=0.41)
    add(ranker, "early_stop", 30, step=12000, cause="no better one")
    add(ranker, "stop", 0, step=12000, cause=FINISHED)
    add(retriever, "start", config=config)
    add(retriever, "crash", 5, step=12, cause="RuntimeError: out of memory")
    add(retriever, "start", config=config, changed={})
    add(retriever, "position", step=3)
    (directory / FILE).write_text("\n".join(lines) + "\n")


def page_of(directory: Path) -> Page:
    before = (directory / FILE).read_bytes()
    path = write_page(directory)
    assert path == directory / "logbook.html"
    assert sorted(found.name for found in directory.iterdir()) == ["logbook.html", FILE]
    assert (directory / FILE).read_bytes() == before
    return Page(path.read_text(encoding="utf-8"))


def test_page_tells_what_happened(tmp_path: Path) -> None:
    eventful(tmp_path)
    page = page_of(tmp_path)
    words = re.sub(r"\s+", " ", page.text)
    assert "2 trainings: 1 finished, 1 running." in words
    assert (
        "time/ranker ended without a word after 2026-03-01 22:11 (step 8,100); it was started again 8 h 20 min later "
        "and went on from step 7,000, with world 2 → 1, another plan."
    ) in words
    assert "time/ranker skipped 2 batches: the loss is nan." in words
    assert "time/ranker passed over step-8000: <script>alert(1)</script> & sums differ." in words
    assert "time/retriever crashed at 2026-03-02 07:40 (step 12); it was started again 1 min later" in words
    assert "1 line of the logbook is torn" in words
    summary = (
        "time/ranker finished 2026-03-02 07:34:00 1 h 13 min 2 1 12,000 2 step 8,000 2026-03-01 22:09:00 logloss 0.41 "
    )
    assert summary in words
    assert "model.lr 0.1 0.05" in words
    kinds = [row["data-kind"] for row in page.rows]
    assert kinds[:5] == ["position", "start", "crash", "start", "stop"], "the newest first"
    assert kinds.count("torn") == 1
    assert kinds.count("checkpoint") == 9, "a row for all, and the lines that it opens to"
    assert len([mark for mark in page.marks if "crash" in mark]) == 2
    assert any(mark.startswith("2026-03-01 22:11:00 crash") for mark in page.marks), "when it happened, not when found"
    assert all(address.startswith("#") for address in page.addresses), "the page needs nothing else"
    assert {address[1:] for address in page.addresses} <= set(page.ids)


def test_page_of_ten_thousand_lines_is_short(tmp_path: Path) -> None:
    book = Logbook(tmp_path, "time/ranker")
    book.start({})
    line = book.path.read_text().replace('"start"', '"checkpoint"')
    with book.path.open("a") as file:
        file.write(line * 6_000 + line.replace("checkpoint", "skipped") * 4_000)
    page = page_of(tmp_path)
    assert len(page.rows) == 1 + 2 * (1 + SHOWN)
    assert "6,000 × checkpoint" in page.text
    assert "skipped 4,000 batches" in page.text
    assert len(page.marks) == 1


def test_run_without_a_logbook_has_a_page(tmp_path: Path) -> None:
    write_page(tmp_path)
    assert "Nothing has been trained yet" in (tmp_path / "logbook.html").read_text()


def test_page_in_a_browser(tmp_path: Path) -> None:
    eventful(tmp_path)
    path = write_page(tmp_path)
    program = require_program("chromium", "chromium-browser", "google-chrome")
    errors: list[str] = []
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=program, args=CHROMIUM)
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("dialog", lambda dialog: errors.append(dialog.message))
            page.goto(f"file://{path}")
            rows = page.locator("tr[data-kind]:visible")
            everything = rows.count()
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
            page.select_option("select[name=kind]", "crash")
            assert rows.count() == 2
            page.select_option("select[name=training]", "time/ranker")
            assert rows.count() == 1
            page.select_option("select[name=kind]", "")
            page.select_option("select[name=training]", "")
            page.get_by_role("button", name="show the lines").click()
            assert rows.count() == everything + 8
            page.get_by_role("button", name="hide the lines").click()
            assert rows.count() == everything
            page.select_option("select[name=kind]", "start")
            page.locator(".time a[title*='ended without a word']").click()
            expect(rows, "a mark leads to its line, whatever was filtered").to_have_count(everything)
            assert page.locator("tr:target").is_visible()
        browser.close()
    assert not errors
