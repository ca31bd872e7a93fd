"""The executor `ray`: workers are tasks of a Ray cluster, or of a local Ray that is started on this machine."""

import importlib
import math
import os
import socket
import time
from typing import Any

from prunus.errors import WorkerError
from prunus.runs.executors.scheduler import WAIT_SECONDS, RunScheduler
from prunus.runs.executors.worker import MAX_RESTARTS, Errors, MissingRuns, do_missing_runs

CONNECT_SECONDS = 10.0
"""How long the address of a cluster may take to answer."""
END_SECONDS = 5.0
"""How long tasks may take to end when no run is left."""


def on_ray(
    work: MissingRuns, workers: int | None, scheduler: RunScheduler, *, address: str = "local"
) -> Errors:
    """Do the work in tasks of Ray. A task whose process or machine is lost is started again elsewhere.

    Args:
        work: The runs, and their store.
        workers: The number of tasks, of one CPU each, and one GPU if a run needs one. None: as many as the cluster has
            CPUs.
        scheduler: Updated until all tasks have ended.
        address: "local" to start a Ray on this machine, "auto" for the one that runs here, or HOST:PORT. A Ray that
            this process is connected to already is used whatever the address.

    Returns:
        What the runs that failed raised.

    Raises:
        WorkerError: Ray is not installed, no cluster answers, or all tasks were lost too often.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise WorkerError('The executor "ray" needs the package ray: `pip install "prunus[ray]"`.') from None
    connected = ray.is_initialized()
    if not connected:
        _connect(ray, address, workers)
    try:
        count = workers or int(ray.cluster_resources().get("CPU", 1))
        resources = {"num_cpus": 1, "num_gpus": work.num_gpus, "scheduling_strategy": "SPREAD"}
        task = ray.remote(max_retries=MAX_RESTARTS, **resources)(do_missing_runs)
        return _wait(ray, [task.remote(work, number, count) for number in range(count)], scheduler)
    finally:
        if not connected:
            ray.shutdown()


def _wait(ray: Any, pending: list[Any], scheduler: RunScheduler) -> Errors:
    """Update the scheduler until all tasks have ended, or all runs are done; return what the tasks returned."""
    errors: Errors = {}
    deadline = math.inf
    try:
        while pending and time.monotonic() < deadline:
            ended, pending = ray.wait(pending, timeout=WAIT_SECONDS)
            scheduler.update()
            if not scheduler.waiting:
                deadline = min(deadline, time.monotonic() + END_SECONDS)
            for task in ended:
                try:
                    errors |= ray.get(task)
                except ray.exceptions.RayError as error:
                    reason = str(error).strip().splitlines()[-1]
                    scheduler.log(f"a Ray worker was lost: {reason}")
                    if not pending and scheduler.waiting:
                        raise WorkerError(
                            f"The last Ray worker was lost ({reason}); what is done is kept: run the same "
                            "command again."
                        ) from error
    finally:
        for task in pending:
            ray.cancel(task, force=True)
    return errors


def _connect(ray: Any, address: str, workers: int | None) -> None:
    """Start Ray on this machine, or connect to a cluster. Raises WorkerError if none answers."""
    try:
        _check_answers(address)
        local = {
            "num_cpus": workers or os.cpu_count() or 1,
            "include_dashboard": False,
            "_system_config": {"worker_niceness": 0},  # that of other processes; 15 by default
        }
        # What a user's own function prints is not a result, so that it is not shown.
        options = local if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:  # Ray raises many kinds
        reason = (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
        if address == "local":
            raise WorkerError(
                f"Ray does not start on this machine: {reason}; run the same command again when the machine is less "
                "busy, or use --workers."
            ) from error
        raise WorkerError(
            f"No Ray cluster answers at {address!r}: {reason}; give the HOST:PORT that `ray start --head` printed, or "
            "no address to start a Ray on this machine."
        ) from error


def _check_answers(address: str) -> None:
    """Raise OSError or ValueError unless something answers at HOST:PORT; Ray itself would try for minutes."""
    if address in ("local", "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("it is not HOST:PORT")
    with socket.create_connection((host, int(port)), CONNECT_SECONDS):
        pass
