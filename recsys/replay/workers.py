"""The processes of a replay: this one, processes of this machine, or Ray's tasks."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from features.errors import InputError
from recsys.console import quiet
from recsys.replay.runner import Task, work
from recsys.replay.settings import Config

POLL_SECONDS = 0.5


def run(task: Task, config: Config, advance: Callable[[int], None]) -> None:
    """Do all stretches that are missing.

    Args:
        task: the replay.
        config: how many processes, and who starts them.
        advance: told how many events are past; with several processes, about.

    Raises:
        InputError: a policy does not fit the log.
    """
    if config.engine == "ray":
        _on_ray(task, config.workers, advance)
    elif config.workers == 1:
        work(task, 0, 1, advance)
    else:
        _on_processes(task, config.workers, advance)
    assert task.done() == task.stretches(), "a process has ended before its stretches did"


def _on_processes(task: Task, workers: int, advance: Callable[[int], None]) -> None:
    context = multiprocessing.get_context("spawn")
    started = []
    for worker in range(workers):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_process, args=(there, task, worker, workers), daemon=True)
        process.start()
        there.close()
        started.append((process, here))
    try:
        while any(process.is_alive() for process, _ in started):
            time.sleep(POLL_SECONDS)
            advance(task.done() * task.rows)
            for process, here in started:
                if here.poll():
                    try:
                        refused = here.recv()
                    except EOFError:
                        continue
                    raise InputError(refused)
                if process.exitcode not in (None, 0):
                    raise RuntimeError(f"a process of the replay ended with status {process.exitcode}; see above")
    finally:
        for process, _ in started:
            process.terminate()
            process.join()


def _process(back: Connection, task: Task, worker: int, workers: int) -> None:
    quiet()
    try:
        work(task, worker, workers)
    except InputError as error:
        back.send(str(error))


def _on_ray(task: Task, workers: int, advance: Callable[[int], None]) -> None:
    # Ray is slow to import.
    import ray

    own = not ray.is_initialized()
    if own:
        ray.init(log_to_driver=False, include_dashboard=False, num_cpus=max(workers, 1))
    try:
        # A worker that is lost is started again, and finds what it has finished.
        asked = ray.remote(num_cpus=1, max_retries=2)(_refusal)
        waiting = [asked.remote(task, worker, workers) for worker in range(workers)]
        while waiting:
            finished, waiting = ray.wait(waiting, timeout=POLL_SECONDS)
            advance(task.done() * task.rows)
            for refused in ray.get(finished):
                if refused is not None:
                    raise InputError(refused)
    finally:
        if own:
            ray.shutdown()


def _refusal(task: Task, worker: int, workers: int) -> str | None:
    quiet()
    try:
        work(task, worker, workers)
    except InputError as error:
        return str(error)
    return None
