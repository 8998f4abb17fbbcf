"""How fast a log is replayed with one model, and whether two processes show what one shows.

    python benchmarks/bench_replay.py configs/ml-1m/time.toml --workers 2
    python benchmarks/bench_replay.py configs/ml-1m/time.toml --quick --json

The run has to be there (`recsys run CONFIG`). The bar: MovieLens-1M's last fifth, 200,000 events, in ten minutes on
two cores. `--quick` replays 2,000 events and reckons from them; seconds of the processor are told beside those of the
clock, for a machine that does other work.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from recsys import config as configs
from recsys.console import quiet
from recsys.replay import logs, runner, workers
from recsys.replay.policies import Policy
from recsys.replay.settings import Config

EVENTS, SECONDS = 200_000, 600.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="TOML file of a finished run with a split by time")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--events", type=int, help="replay only so many; all if not given")
    parser.add_argument("--quick", action="store_true", help="2,000 events")
    parser.add_argument("--json", action="store_true", help="print one object")
    options, overrides = parser.parse_known_args()
    quiet()
    found = measure(options.config, overrides, options.workers, 2_000 if options.quick else options.events)
    print(json.dumps(found, indent=2) if options.json else _told(found))


def measure(path: Path, overrides: list[str], processes: int, events: int | None) -> dict[str, Any]:
    """Replay the run's test part with its served bundle: by `processes`, and its beginning by one."""
    run = configs.load(path, overrides)
    split = run.served_split
    policy = Policy("full", run.directory / "bundle" / split, run.directory / "examples" / split, run.recommend)
    tail = logs.of_split(run.directory / "examples" / split)
    with tempfile.TemporaryDirectory() as scratch:
        timed, shown = _replay(Path(scratch) / "many", tail, policy, Config(max_events=events, workers=processes))
        again, alone = _replay(Path(scratch) / "one", tail, policy, Config(max_events=2_000))
    same = shown.head(alone.height).equals(alone)
    reckoned = EVENTS / timed["events_per_second"]
    return {
        "processes": processes,
        **timed,
        "one_process": again,
        "bars": {
            "seconds for 200,000 events": {"value": reckoned, "target": SECONDS, "ok": reckoned <= SECONDS},
            "processes agree": {"value": same, "target": True, "ok": same},
        },
    }


def _replay(directory: Path, tail: logs.Tail, policy: Policy, config: Config) -> tuple[dict[str, float], pl.DataFrame]:
    began, busy = time.perf_counter(), _busy()
    task = runner.begin(directory, tail, policy.items.drop("index").slice(1), [policy], config, resume=False)
    workers.run(task, config, lambda done: None)
    seconds = time.perf_counter() - began
    shown = pl.read_parquet(directory / runner.SHOWN / "*.parquet").sort("event")
    found = {
        "events": shown.height,
        "seconds": seconds,
        "processor_seconds": _busy() - busy,
        "events_per_second": shown.height / seconds,
    }
    return found, shown.select("event", "full.items")


def _busy() -> float:
    """Seconds of the processor that this process and its finished children have had."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _told(found: dict[str, Any]) -> str:
    bars = "\n".join(f"{name}: {bar['value']} (target {bar['target']})" for name, bar in found["bars"].items())
    return (
        f"{found['events']:,} events by {found['processes']} processes in {found['seconds']:.1f} s, "
        f"{found['processor_seconds']:.1f} s of the processor: {found['events_per_second']:.0f} a second\n{bars}"
    )


if __name__ == "__main__":
    main()
