"""A feed over HTTP: how long it takes, how much of that is not the model, how many a second, and what happens beyond.

    python benchmarks/bench_serving.py                     makes its runs first; those of a million items last
    python benchmarks/bench_serving.py --quick --json      a small catalogue, seconds of load
    python benchmarks/bench_serving.py --items 12000       without the million

`configs/synthetic/feed.toml`: 500 candidates are retrieved down the tree and ranked by a DHEN, k = 20. Requests come at
random moments, 50 a second on average, for people with a history (`_load.py`), from the same cores that serve. In the
same run, one after the other: an application that does nothing behind the same ingress; the usual way to serve, FastAPI
and FAISS (`_peer_serving.py`). The saturation rate is the highest of a geometric ladder at which 99 % are answered by
the model, half a second late at most at p99; then twice as many are sent.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "synthetic" / "feed.toml"
RATE, K = 50.0, 20
SECONDS = 30
LADDER = 1.25
LATE_MS = 500.0
"""At p99, what still counts as keeping up."""
START_SECONDS = 300
SMALL = {"dataset.users": 500, "dataset.items": 1000, "dataset.events": 40000, "recommend.retrieved": 100}
LARGE = {
    "run.name": "synthetic-feed-million",
    "dataset.items": 1_000_000,
    "dataset.users": 50_000,
    "dataset.events": 3_000_000,
    "retriever.model.codes": "[256, 256]",
    "retriever.train.epochs": 1,
}
NOOP = """
import os
from fastapi import FastAPI
from pydantic import BaseModel
import ray
from ray import serve
from serving.app import _own_ports, environment

os.environ.update(environment() | _own_ports())
app = FastAPI()

class Asks(BaseModel):
    user_id: int
    k: int = 20

@serve.deployment(max_ongoing_requests=64)
@serve.ingress(app)
class Nothing:
    @app.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/recommend")
    async def recommend(self, asked: Asks) -> dict[str, int]:
        return {"user_id": asked.user_id}

ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
serve.start(http_options={"host": "127.0.0.1", "port": %d}, logging_config={"enable_access_log": False})
serve.run(Nothing.bind(), name="nothing")
import signal
signal.pause()
"""


def recsys(verb: str, options: dict[str, Any]) -> None:
    """A verb of the command line, in a process of its own."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "recsys.cli", verb, str(CONFIG), *words], check=True, cwd=ROOT, stdout=2)


@contextmanager
def running(command: list[str], port: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server until the block ends; its address."""
    place = f"http://127.0.0.1:{port}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=env) as server,
    ):
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    if httpx.get(f"{place}/healthz", timeout=5).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command} does not answer: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.5)
            yield place, server
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()


def sent(place: str, bodies: list[dict[str, Any]], rate: float, seconds: float) -> dict[str, Any]:
    """What became of requests at a rate, by a generator in a process of its own."""
    asked = {"url": f"{place}/v1/recommend", "bodies": bodies, "rate": rate, "seconds": seconds}
    command = [sys.executable, str(Path(__file__).parent / "_load.py"), "-"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def saturation(place: str, bodies: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The highest rate of the ladder that is kept up with, and what was found at each."""
    steps: list[dict[str, Any]] = []
    rate, best = 20.0, None
    while True:
        found = {"rate": rate, **sent(place, bodies, rate, seconds)}
        steps.append(found)
        kept = found["statuses"].get("200", 0) >= 0.99 * found["sent"] and not found["fallbacks"]
        if not (kept and found["p99_ms"] <= LATE_MS):
            break
        best, rate = found, rate * LADDER
    return {"rate": best["rate"] if best else 0.0, "at": best, "ladder": steps}


def stages(place: str, bodies: list[dict[str, Any]], requests: int) -> dict[str, float]:
    """One after the other: what a person waits, and the stages of the model; medians, ms."""
    waited: list[float] = []
    model: list[float] = []
    with httpx.Client(base_url=place, timeout=30) as client:
        for number in range(requests):
            began = time.perf_counter()
            answer = client.post("/v1/recommend", json=bodies[number % len(bodies)]).raise_for_status().json()
            waited.append(1000 * (time.perf_counter() - began))
            model.append(sum(answer.get("latency_ms", {"none": 0.0}).values()))
    return {
        "p50_ms": float(np.median(waited)),
        "model_p50_ms": float(np.median(model)),
        "around_p50_ms": float(np.median(np.array(waited) - np.array(model))),
    }


def replicas_memory(port_free: Any, options: dict[str, Any]) -> dict[str, float]:
    """What one replica more takes of this host, beside the first: proportional memory of two, less that of one."""
    totals: list[float] = []
    for count in (1, 2):
        port = port_free()
        with running(serve_command(options, port, replicas=count), port) as (place, _):
            for user in range(200):
                httpx.post(f"{place}/v1/recommend", json={"user_id": user, "k": K}, timeout=30)
            totals.append(sum(_pss(pid) for pid in _replicas()))
    return {"one_mb": totals[0], "two_mb": totals[1], "extra_share": (totals[1] - totals[0]) / totals[0]}


def _replicas() -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"ServeReplica" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _pss(pid: int) -> float:
    """Memory of a process, MB; of a page that several share each has its part."""
    lines = (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def serve_command(options: dict[str, Any], port: int, **section: Any) -> list[str]:
    """`recsys serve` of the run, on a port."""
    words = {**options, "serve.port": port, **{f"serve.{name}": value for name, value in section.items()}}
    flat = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "recsys.cli", "serve", str(CONFIG), *flat]


def bars(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is aimed at."""
    own, peer, idle = found["feedline"], found["usual"], found["nothing"]
    aims = [
        ("p50_ms", own["at_rate"]["p50_ms"], 8.0, False),
        ("p99_ms", own["at_rate"]["p99_ms"], 25.0, False),
        ("around_the_model_to_nothing", own["alone"]["around_p50_ms"] / idle["alone"]["p50_ms"], 2.0, False),
        ("p99_to_usual", own["at_rate"]["p99_ms"] / peer["at_rate"]["p99_ms"], 1.0, False),
        ("saturation_to_usual", own["saturation"]["rate"] / max(peer["saturation"]["rate"], 1e-9), 1.0, True),
        ("p99_beyond_to_at_saturation", found["beyond"]["p99_ms"] / own["saturation"]["at"]["p99_ms"], 3.0, False),
        ("replica_extra_share", found["replicas"]["extra_share"], 0.15, False),
    ]
    if "million" in found:
        aims.append(("million_p99_to_small", found["million"]["p99_ms"] / own["at_rate"]["p99_ms"], 1.5, False))
    return {
        name: {"value": value, "target": target, "ok": value >= target if more else value <= target}
        for name, value, target, more in aims
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small catalogue, seconds of load")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--items", type=int, default=1_000_000, help="of the larger catalogue; 12000: only the smaller")
    parser.add_argument("--directory", type=Path, default=ROOT / "runs", help="where the runs are made and kept")
    asked = parser.parse_args()
    from features.moment import load_snapshot
    from serving.app import free_port

    options: dict[str, Any] = {
        "run.directory": asked.directory,
        **(SMALL | {"run.name": "synthetic-quick"} if asked.quick else {}),
    }
    for verb in ("prepare", "train", "export"):
        recsys(verb, options)
    seconds = 4 if asked.quick else SECONDS
    rng = np.random.default_rng(0)
    run = asked.directory / options.get("run.name", "synthetic-feed")
    # Who has no history needs no model in the usual way of serving: a comparison is of those who have one.
    histories, _ = load_snapshot(run / "bundle" / "time")
    people = [user for user, history in histories.items() if history]
    bodies = [{"user_id": people[place], "k": K} for place in rng.integers(0, len(people), 2000)]
    found: dict[str, Any] = {"load": os.getloadavg()[0], "rate": RATE, "k": K}

    port = free_port()
    with running([sys.executable, "-c", NOOP % port], port) as (place, _):
        sent(place, bodies, RATE, 2)
        found["nothing"] = {"alone": stages(place, bodies, 300), "at_rate": sent(place, bodies, RATE, seconds)}
    port = free_port()
    peer = [sys.executable, str(Path(__file__).parent / "_peer_serving.py")]
    with running([*peer, str(run / "bundle" / "time"), str(run / "examples" / "time"), str(port)], port) as (place, _):
        sent(place, bodies, 10, 3)
        found["usual"] = {
            "alone": stages(place, bodies, 100),
            "at_rate": sent(place, bodies, RATE, seconds),
            "saturation": saturation(place, bodies, max(4, seconds / 3)),
        }
    port = free_port()
    with running(serve_command(options, port), port) as (place, _):
        sent(place, bodies, 10, 3)
        found["feedline"] = {
            "alone": stages(place, bodies, 300),
            "at_rate": sent(place, bodies, RATE, seconds),
            "saturation": saturation(place, bodies, max(4, seconds / 3)),
        }
        found["beyond"] = sent(place, bodies, 2 * found["feedline"]["saturation"]["rate"], seconds)
        found["after"] = sent(place, bodies, RATE, max(4, seconds / 3))
    found["replicas"] = replicas_memory(free_port, options)
    if not asked.quick and asked.items != 12_000:
        large = {**options, **LARGE, "dataset.items": asked.items}
        for verb in ("prepare", "train", "export"):
            recsys(verb, large)
        port = free_port()
        with running(serve_command(large, port), port) as (place, _):
            sent(place, bodies, 10, 3)
            found["million"] = sent(place, bodies, RATE, seconds)
    own, peer_found = found["feedline"]["at_rate"], found["usual"]["at_rate"]
    found["ratios"] = {f"usual_to_feedline_{name}": peer_found[name] / own[name] for name in ("p50_ms", "p99_ms")}
    found["bars"] = bars(found)
    print(json.dumps(found) if asked.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
