"""The executor `slurm`: workers are the jobs of a Slurm array, submitted by submitit."""

import importlib
import math
import shutil
import time
from typing import Any

from prunus.errors import WorkerError
from prunus.runs.executors.scheduler import WAIT_SECONDS, RunScheduler
from prunus.runs.executors.worker import MAX_RESTARTS, Errors, MissingRuns, do_missing_runs

WORKERS = 8
"""The number of jobs by default."""
MINUTES = 720
"""The time limit of a job by default; a run that takes longer continues in the next job."""
SHORT_JOB_SECONDS = 600.0
"""A job that is lost sooner after it was submitted counts as lost, whatever progress other jobs make."""
END_SECONDS = 20.0
"""How long jobs may take to end when no run is left, before they are canceled."""


def on_slurm(
    work: MissingRuns,
    workers: int | None,
    scheduler: RunScheduler,
    *,
    cluster: str = "slurm",
    **parameters: Any,
) -> Errors:
    """Do the work in the jobs of a Slurm array. A job that is lost is submitted again.

    A job that is preempted, or reaches its time limit, is lost as well. After ten losses in a row it is given up; the
    count begins again after a job that lasted, if an attempt began with more than the one before it.

    Slurm also takes options from the environment, such as SBATCH_PARTITION, SBATCH_ACCOUNT and SBATCH_TIMELIMIT.

    Args:
        work: The runs, and their store.
        workers: The number of jobs, of one CPU each, and one GPU if a run needs one; None for 8.
        scheduler: Updated until all jobs have ended.
        cluster: The executor of submitit: "slurm", or "local" for processes on this machine.
        parameters: Parameters of submitit's `AutoExecutor.update_parameters`, such as `slurm_partition="gpu"`.

    Returns:
        What the runs that failed raised.

    Raises:
        WorkerError: submitit or Slurm is not installed, a job cannot be submitted, or all jobs were lost too often.
    """
    try:
        submitit = importlib.import_module("submitit")
    except ImportError:
        raise WorkerError(
            'The executor "slurm" needs the package submitit: `pip install "prunus[slurm]"`.'
        ) from None
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise WorkerError(
            "This machine has no Slurm: there is no command `sbatch`; start the command on a login node of the "
            "cluster, or use --workers or --ray."
        )
    count = min(workers or WORKERS, len(work.todo))
    try:
        executor = submitit.AutoExecutor(folder=work.store / "slurm", cluster=cluster)
        defaults = {"name": "prunus", "cpus_per_task": 1, "gpus_per_node": work.num_gpus}
        executor.update_parameters(**{**defaults, "timeout_min": MINUTES, **parameters})
        with executor.batch():
            jobs = {number: executor.submit(do_missing_runs, work, number, count) for number in range(count)}
    except Exception as error:  # submitit and Slurm raise many kinds
        raise WorkerError(f"Slurm refused the jobs: {str(error).strip()}; correct its options.") from error
    return _wait(executor, jobs, work, scheduler)


def _wait(executor: Any, jobs: dict[int, Any], work: MissingRuns, scheduler: RunScheduler) -> Errors:
    """Update the scheduler until all jobs have ended, or all runs are done; return what the jobs returned."""
    count = len(jobs)
    errors: Errors = {}
    lost = dict.fromkeys(jobs, 0)
    submitted = dict.fromkeys(jobs, (time.monotonic(), scheduler.kept_digests.copy()))
    deadline = math.inf
    try:
        while jobs and time.monotonic() < deadline:
            for number, job in [(number, job) for number, job in jobs.items() if job.done()]:
                del jobs[number]
                try:
                    errors |= job.result()
                except Exception as error:  # the job was killed, its machine was lost, or it could not start
                    since, digests = submitted[number]
                    is_long = time.monotonic() - since >= SHORT_JOB_SECONDS
                    lost[number] = 1 if is_long and digests != scheduler.kept_digests else lost[number] + 1
                    submitted[number] = time.monotonic(), scheduler.kept_digests.copy()
                    reason = str(error).strip().partition("\n")[0]  # the message may have a whole log in it
                    scheduler.log(f"job {job.job_id} was lost: {reason or type(error).__name__}")
                    if lost[number] <= MAX_RESTARTS:
                        jobs[number] = executor.submit(do_missing_runs, work, number, count)
                    elif not jobs:
                        raise WorkerError(
                            f"The last job was lost; what is done is kept: run the same command again, and look at the "
                            f"logs in {work.store / 'slurm'}."
                        ) from error
            scheduler.update()
            if not scheduler.waiting:
                deadline = min(deadline, time.monotonic() + END_SECONDS)
            time.sleep(WAIT_SECONDS)
    finally:
        for job in jobs.values():
            job.cancel()
    return errors
