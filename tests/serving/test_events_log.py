"""The log of events: whole lines or none on a full disk, each event once when read, nobody who was erased."""

import subprocess
import sys
import textwrap
from pathlib import Path

from serving.events_log import EventsLog, read


def row(user: int, item: int, timestamp: int, event_id: str = "") -> dict[str, object]:
    return {"user_id": user, "item_id": item, "timestamp": timestamp, "action": "click", "event_id": event_id}


def test_what_is_sent_again_is_read_once_and_what_has_no_id_as_often_as_it_was_sent(tmp_path: Path) -> None:
    first, second = EventsLog(tmp_path), EventsLog(tmp_path)
    first.append([row(1, 10, 1000, "a"), row(2, 10, 1000, "a"), row(1, 11, 1002)])
    second.append([row(1, 10, 1001, "a"), row(1, 11, 1002)])
    assert first.path != second.path
    found = read(tmp_path)
    assert found.select("user_id", "item_id", "timestamp").rows() == [
        (1, 10, 1000),
        (2, 10, 1000),
        (1, 11, 1002),
        (1, 11, 1002),
    ]


def test_who_was_erased_is_left_out_and_may_come_again(tmp_path: Path) -> None:
    log = EventsLog(tmp_path)
    log.append([row(1, 10, 1000), row(2, 10, 1000)])
    log.erase(1, 2000)
    log.append([row(1, 12, 3000)])
    assert read(tmp_path).select("user_id", "item_id").rows() == [(2, 10), (1, 12)]


def test_a_full_disk_leaves_whole_lines_and_what_fits_later_is_written(tmp_path: Path) -> None:
    # A process's limit of the length of files stands for the disk: hence a process of its own.
    script = """
        import resource, sys
        from pathlib import Path
        from serving.events_log import EventsLog
        log = EventsLog(Path(sys.argv[1]))
        rows = [{"user_id": user, "item_id": 1, "timestamp": user, "event_id": ""} for user in range(100)]
        log.append(rows[:1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        try:
            log.append(rows[1:])
        except OSError as error:
            print("refused")
        log.append(rows[1:3])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == "refused\n"
    assert read(tmp_path)["user_id"].to_list() == [0, 1, 2]
