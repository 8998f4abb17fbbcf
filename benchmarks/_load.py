"""Requests at a rate, whether or not the last ones have been answered, as people send them.

Closed-loop tools (wrk, hey, locust) wait for an answer before they ask again and so spare a server that is slow; here
every request has its moment, drawn beforehand from a Poisson process, and its latency counts from that moment.

    python benchmarks/_load.py '{"url": "http://127.0.0.1:8000/v1/recommend", "rate": 50, "seconds": 10, "bodies": […]}'
"""

import asyncio
import json
import re
import sys
import time
from collections import Counter
from typing import Any

import aiohttp
import numpy as np

TIMEOUT_SECONDS = 30
FALLBACK = re.compile(rb'"fallback": ?"(\w+)"')
"""In an answer: the model had no time for it, or no store."""


async def load(url: str, bodies: list[dict[str, Any]], rate: float, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Post bodies in turn.

    Args:
        url: where to.
        bodies: JSON objects; begun anew at their end.
        rate: requests a second, on average.
        seconds: how long.
        seed: of the moments.

    Returns:
        `sent`; `statuses` (of what was answered, and `error` for what was not) and `fallbacks` by reason; `p50_ms,
        p90_ms, p99_ms, max_ms` of what was answered with 200; `refused_p99_ms` of other answers; `answered_per_second`;
        `behind_ms`, how late the generator itself was at p99: figures are worth nothing where that is much.
    """
    rng = np.random.default_rng(seed)
    moments = np.cumsum(rng.exponential(1 / rate, max(1, int(rate * seconds))))
    texts = [json.dumps(body).encode() for body in bodies]
    statuses: Counter[str] = Counter()
    fallbacks: Counter[str] = Counter()
    latency: list[float] = []
    refused: list[float] = []
    behind: list[float] = []
    headers = {"content-type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def ask(moment: float, text: bytes) -> None:
            behind.append(1000 * (time.perf_counter() - moment))
            try:
                async with session.post(url, data=text, headers=headers) as response:
                    answer = await response.read()
                    status = response.status
            except (aiohttp.ClientError, TimeoutError):
                statuses["error"] += 1
                return
            statuses[str(status)] += 1
            fallbacks.update(found.group(1).decode() for found in FALLBACK.finditer(answer))
            (latency if status == 200 else refused).append(1000 * (time.perf_counter() - moment))

        began = time.perf_counter()
        tasks: list[asyncio.Task[None]] = []
        for number, moment in enumerate((began + moments).tolist()):
            wait = moment - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(ask(moment, texts[number % len(texts)])))
        await asyncio.gather(*tasks)
        took = time.perf_counter() - began
    return {
        "sent": len(moments),
        "statuses": dict(statuses),
        "fallbacks": dict(fallbacks),
        **{f"p{q}_ms": float(np.percentile(latency, q)) if latency else None for q in (50, 90, 99)},
        "max_ms": max(latency, default=None),
        "refused_p99_ms": float(np.percentile(refused, 99)) if refused else None,
        "answered_per_second": len(latency) / took,
        "behind_ms": float(np.percentile(behind, 99)),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(**json.load(sys.stdin) if sys.argv[1:] == ["-"] else json.loads(sys.argv[1])))))
