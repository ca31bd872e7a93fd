"""Workers that share only a store: lost ones, paused stores, wrong machines, Ray with two nodes, submitit."""

import os
import shutil
import signal
import socket
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from prunus.errors import StoreError, StoreVersionError, WorkerError
from prunus.runs.content import read_json, write_json
from prunus.runs.executors import run_plan, slurm
from prunus.runs.executors import scheduler as scheduling
from prunus.runs.executors.ray_cluster import on_ray
from prunus.runs.executors.scheduler import MAX_LOST_WORKERS_PER_RUN, RunScheduler
from prunus.runs.executors.slurm import on_slurm
from prunus.runs.executors.worker import MAX_RESTARTS, MissingRuns, do_missing_runs, starting_workers
from prunus.runs.plan import plan as make_plan
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.runs.sweeps import is_paused, pause, resume, sweep_status, write_sweep
from prunus.tickets.ticket import TicketSpec

HELPERS = Path(__file__).parents[1] / "helpers"
sys.path.insert(0, str(HELPERS))

from plan import DENSE, plan  # noqa: E402
from same_runs import check_same  # noqa: E402
from specs import Baseline  # noqa: E402

SPECS = [replace(DENSE, replicate=replicate) for replicate in range(3)]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def start(store, spec):
    """Begin an attempt, as a process that is killed after it."""
    store.open(spec, "test").release()


# Wrong machines


def test_a_worker_of_another_version_does_nothing(store):
    work = MissingRuns(tuple(SPECS), store.path, "ray", {}, versions={"prunus": "9.1", "torch": "2.0"})
    errors = do_missing_runs(work)
    assert [*errors] == [run_id(spec) for spec in SPECS]
    assert all("Expected prunus 9.1, torch 2.0 on the machine of a worker" in str(e) for e in errors.values())
    assert not store.ids()


def test_a_worker_that_does_not_see_the_lock_of_its_sweep_does_nothing(store):
    with starting_workers(store) as name:
        pass
    for lock in (name, "workers-other.lock"):
        errors = do_missing_runs(MissingRuns(tuple(SPECS), store.path, "ray", {}, lock))
        assert "does not share locks between machines" in str(errors[run_id(SPECS[0])])
    assert not store.ids()
    with starting_workers(store) as name:
        assert not do_missing_runs(MissingRuns((SPECS[0],), store.path, "ray", {}, name))
    assert store.is_done(run_id(SPECS[0]))


def test_a_store_that_vanished_is_named(store, tmp_path):
    scheduler = RunScheduler(SPECS, store)
    shutil.rmtree(store.path)
    with pytest.raises(StoreError, match=f"The store {store.path} is not there any more.* mount the disk"):
        scheduler.next()
    errors = do_missing_runs(MissingRuns(tuple(SPECS), store.path, "slurm", {}))
    assert "There is no store of runs at" in str(errors[run_id(SPECS[0])])


@pytest.mark.parametrize("step", [1, 5])
def test_a_store_that_vanishes_during_a_training_is_named_and_not_created_again(step, store):
    """In the first epoch, before there is a checkpoint, and in the second one."""

    def remove(what, done, total):
        if f"at step {step} of" in what and store.path.exists():
            shutil.rmtree(store.path)

    with pytest.raises(
        StoreError, match=f"^The store {store.path} is not there any more.* same command again"
    ):
        run_plan(SPECS, store, executor="inline", progress=remove)
    assert not store.path.exists()


def test_a_folder_of_a_run_that_vanished_is_named(store):
    directory = store.open(Baseline(), "test")
    shutil.rmtree(directory.path)
    for use in (
        directory.record,
        partial(directory.append_row, {"level": 0}),
        partial(directory.write_steps, 1, 2),
        partial(directory.checkpoint_path, "training-00"),
    ):
        with pytest.raises(StoreError, match=f"The folder {directory.path} is not there any more") as error:
            use()
        assert "prunus runs rm" not in str(error.value)


def test_the_clock_of_a_machine_does_not_count(store, monkeypatch):
    """A machine whose clock is a day late or early begins a run; another one reads how long it took."""
    for number, skew in enumerate((-86400.0, 86400.0)):
        with monkeypatch.context() as patch:
            now = time.time
            patch.setattr(time, "time", lambda now=now, skew=skew: now() + skew)
            start(store, Baseline(seed=number))
    assert [run.state for run in store.runs()] == ["interrupted"] * 2
    assert all(run.seconds < 10 for run in store.runs())
    directory = store.open(Baseline(), "test")
    store.finish(directory, {})
    assert store.run(directory.id).seconds < 10


VERSION_ERROR = (
    r"^{} was written by {}, and this is prunus [\d.]+; update prunus, or use that version, to read it\.$"
)


def change_json(path, **changes):
    """Change fields of a JSON file, with the right digest; return its new content."""
    write_json(path, {**read_json(path), **changes})
    return path.read_bytes()


@pytest.mark.parametrize(
    ("changes", "writer"),
    [({"layout": 2}, "9.1"), ({"settings": {"layout": 2}}, "9.1"), ({"layout": 2}, None)],
)
def test_a_record_of_another_version_is_named_and_kept(changes, writer, store):
    """It has a field or a setting that this version does not know."""
    start(store, Baseline())
    id = run_id(Baseline())
    path = store.directory(id, unfinished=True).path / "run.json"
    environments = [{**read_json(path)["environments"][0], **({"prunus": writer} if writer else {})}]
    content = change_json(path, environments=environments, **changes)
    by = "another version of prunus" if writer is None else f"prunus {writer}"
    for use in (partial(store.run, id), partial(store.open, Baseline(), "test")):
        with pytest.raises(StoreVersionError, match=VERSION_ERROR.format(path, by)):
            use()
    assert path.read_bytes() == content


def test_a_run_of_another_version_is_not_to_be_removed_before_what_it_may_read(store):
    for spec in (Baseline(), Baseline(seed=1)):
        start(store, spec)
    change_json(store.directory(run_id(Baseline()), unfinished=True).path / "run.json", layout=2)
    with pytest.raises(
        StoreError, match=r"cannot be read: .* update prunus, or use that version, to read it\.$"
    ):
        store.remove(run_id(Baseline(seed=1)))


@pytest.mark.parametrize("in_entry", [False, True])
def test_a_request_of_another_version_is_named_and_kept(in_entry, store):
    store.request("lecun1990", "smoke", [({}, Baseline())], {})
    (path,) = store.requests_path.iterdir()
    (entry,) = read_json(path)["entries"]
    content = change_json(path, **({"entries": [{**entry, "weight": 2}]} if in_entry else {"weight": 2}))
    for use in (store.requests, partial(store.request, "lecun1990", "smoke", [], {})):
        with pytest.raises(StoreVersionError, match=VERSION_ERROR.format(path, "another version of prunus")):
            use()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("sweep", "reason"),
    [
        ({"requested": [], "todo": {}, "retries": 3}, "was written by another version of prunus"),
        ({"runs": []}, "was written by another version of prunus"),
        ({"requested": []}, "is damaged: it does not list the runs"),
        ({"requested": [], "todo": []}, "is damaged: it does not list the runs"),
        ({"requested": ["a"], "todo": {"a": 1}}, "is damaged: it does not list the runs"),
        ({"requested": ["a"], "todo": {}, "dependencies": {"a": 1}}, "is damaged: it does not list the runs"),
    ],
)
def test_a_sweep_of_another_form_is_an_error_of_watch_and_not_of_pause(sweep, reason, store, run_cli):
    write_sweep(store, make_plan(SPECS, store))
    (path,) = store.path.glob("sweeps/*.json")
    write_json(path, sweep)
    running = store.open(SPECS[0], "test")
    assert run_cli("runs", "watch", f"--store={store.path}", code=8).err.startswith(f"error: {path} {reason}")
    assert "paused; 1 run running" in run_cli("runs", "pause", f"--store={store.path}").err
    running.release()


@pytest.mark.parametrize(
    ("address", "reason"), [("nonsense", "it is not HOST:PORT"), ("127.0.0.1:{port}", "refused")]
)
def test_a_wrong_ray_address_is_an_error_before_any_run(address, reason, store):
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(WorkerError, match=f"No Ray cluster answers at .*{reason}"):
        run_plan(SPECS, store, executor=partial(on_ray, address=address.format(port=port)))
    assert not store.ids()


def test_what_follows_ray_is_an_address_unless_it_is_an_option_or_an_experiment(store, run_cli, monkeypatch):
    addresses = []
    monkeypatch.setattr("prunus.cli.run._executor", lambda executor, ray, slurm: addresses.append(ray) or "?")
    run = ("run", "--smoke", f"--store={store.path}")
    for arguments in (
        ("--ray", "zhou2019.zeros"), ("zhou2019.zeros", "--ray"), ("--ray", "--seed=1", "zhou2019.zeros"),
        ("zhou2019.zeros", "--ray", "nonsense"), ("zhou2019.zeros", "--ray=auto"), ("--ray", "a:1", "zhou2019.zeros"),
    ):  # fmt: skip
        assert "Unknown executor" in run_cli(*run, *arguments, code=2).err
    assert addresses == ["local", "local", "local", "nonsense", "auto", "a:1"]


def test_a_local_ray_that_does_not_start_needs_no_address(store, monkeypatch):
    ray = pytest.importorskip("ray")

    def time_out(**options):
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", time_out)
    with pytest.raises(
        WorkerError, match=r"Ray does not start on this machine: The .* startup; run"
    ) as error:
        run_plan(SPECS, store, executor="ray")
    assert "HOST:PORT" not in str(error.value)


def test_a_machine_without_slurm_is_an_error_before_any_run(store, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(WorkerError, match="This machine has no Slurm"):
        run_plan(SPECS, store, executor="slurm")
    assert not store.ids()


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named(executor, package, store, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(WorkerError, match=rf'`pip install "prunus\[{executor}\]"`'):
        run_plan(SPECS, store, executor=executor)


# Lost workers


def test_a_run_that_ends_its_workers_is_given_up(store):
    scheduler = RunScheduler(SPECS[:2], store, {run_id(SPECS[0]): 1})
    start(store, SPECS[0])  # before this sweep
    for _ in range(MAX_LOST_WORKERS_PER_RUN):
        assert scheduler.next() is SPECS[0]
        start(store, SPECS[0])
    assert scheduler.next() is SPECS[1]
    with pytest.raises(
        WorkerError, match=f"{MAX_LOST_WORKERS_PER_RUN} workers in a row ended while they computed it"
    ):
        scheduler.raise_first_error()


def test_a_run_that_makes_progress_may_lose_any_number_of_workers(store):
    scheduler, id = RunScheduler(SPECS[:1], store), run_id(SPECS[0])
    for number in range(3 * MAX_LOST_WORKERS_PER_RUN):
        assert scheduler.next() is SPECS[0]
        directory = store.open(SPECS[0], "test")
        if number % MAX_LOST_WORKERS_PER_RUN == 0:
            directory.append_row({"level": number})
        elif number % MAX_LOST_WORKERS_PER_RUN == 2:
            directory.save_tensors("checkpoint", {"step": torch.tensor(number)})
        directory.append_curve([{"level": 0, "step": 1}])  # the same again is no progress
        directory.release()
    for _ in range(2):
        start(store, SPECS[0])
        assert scheduler.next() is SPECS[0]
    start(store, SPECS[0])
    assert store.run(id).stalled == MAX_LOST_WORKERS_PER_RUN - 1
    assert scheduler.next() is None
    assert id in scheduler.errors


@pytest.mark.parametrize(("seconds", "losses"), [(0.0, 40), (600.0, MAX_RESTARTS + 1)])
def test_a_slurm_job_that_lasts_and_makes_progress_is_submitted_any_number_of_times(
    seconds, losses, store, monkeypatch
):
    """Every job adds a row to the one run, and is lost."""
    submissions = []

    class Job:
        job_id = "1"

        def done(self):
            return True

        def cancel(self):
            pass

        def result(self):
            directory = store.open(SPECS[0], "slurm")
            directory.append_row({"level": len(submissions)})
            if len(submissions) == 40:
                return store.finish(directory, {}) or {}
            directory.release()
            raise RuntimeError("preempted")

    class Executor:
        def submit(self, *arguments):
            submissions.append(arguments)
            return Job()

    monkeypatch.setattr(slurm, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "SHORT_JOB_SECONDS", seconds)
    executor, work = Executor(), MissingRuns((SPECS[0],), store.path, "slurm", {})
    scheduler = RunScheduler(SPECS[:1], store)
    with nullcontext() if seconds == 0.0 else pytest.raises(WorkerError, match="The last job was lost"):
        slurm._wait(executor, {0: executor.submit()}, work, scheduler)
    assert len(submissions) == losses
    assert store.is_done(run_id(SPECS[0])) == (seconds == 0.0)


def test_runs_whose_workers_are_all_lost_are_not_taken_as_done(store):
    with pytest.raises(WorkerError, match="3 of 3 runs are not done, because their workers were lost"):
        run_plan(SPECS, store, executor=lambda work, workers, scheduler: {})


def test_a_run_that_failed_elsewhere_is_not_repeated_in_the_same_sweep(store):
    store.fail(store.open(SPECS[0], "test"), "an old fault")
    scheduler = RunScheduler(SPECS[:2], store, {run_id(SPECS[0]): 1})
    assert scheduler.next() is SPECS[0]
    store.fail(store.open(SPECS[0], "test"), "a new fault")
    assert scheduler.next() is SPECS[1]
    with pytest.raises(WorkerError, match="a new fault"):
        scheduler.raise_first_error()


def test_only_the_first_worker_waits_for_runs_of_other_processes(store, monkeypatch):
    monkeypatch.setattr(scheduling, "WAIT_SECONDS", 0.01)
    directory = store.open(SPECS[0], "test")
    assert RunScheduler(SPECS[:1], store, waits_for_others=False).next() is None
    waiting = threading.Thread(target=RunScheduler(SPECS[:1], store).next, daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    store.finish(directory, {})
    waiting.join(20)
    assert not waiting.is_alive()


# Paused stores, and the state of a sweep


def test_a_paused_store_starts_no_run_until_it_is_resumed(store, monkeypatch):
    monkeypatch.setattr(scheduling, "WAIT_SECONDS", 0.01)
    pause(store)
    with pytest.raises(StoreError, match="is paused; continue with `prunus runs resume`"):
        run_plan(SPECS, store, executor="inline")
    specs, lines = [], []
    scheduler = RunScheduler(SPECS, store, log=lines.append)
    waiting = threading.Thread(target=lambda: specs.append(scheduler.next()), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    assert not specs
    resume(store)
    waiting.join(20)
    assert specs == [SPECS[0]]
    assert lines == ["paused: no run is started before `prunus runs resume`"]
    resume(store)
    assert not is_paused(store)


def test_the_state_of_a_sweep_has_the_steps_and_the_remaining_time(store):
    def interrupt(*step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(SPECS, store, executor="inline", progress=lambda what, done, total: done and interrupt())
    ids = [run_id(spec) for spec in SPECS]
    status = sweep_status(store)
    assert (status.waiting, status.seconds_left) == (tuple(ids), None)
    run_plan(SPECS[:1], store, executor="inline")
    directory = store.open(SPECS[1], "test")
    directory.write_steps(2, 8)
    status = sweep_status(store)
    assert (status.finished, dict(status.running)) == (tuple(ids[:1]), {ids[1]: (2, 8)})
    assert (status.failed, status.waiting, status.paused) == ((), (ids[2],), False)
    assert status.seconds_left == pytest.approx(store.run(ids[0]).seconds * 1.75)
    store.finish(directory, {})
    assert not list(directory.path.glob(".*"))


def test_runs_watch_pause_and_resume(store, run_cli):
    run_plan(SPECS[:2], store, executor="inline")
    folder = f"--store={store.path}"
    assert run_cli("runs", "watch", folder).out == "2 of 2 runs finished\n"
    assert "paused; 0 runs running" in run_cli("runs", "pause", folder).err
    assert '"paused": true' in run_cli("runs", "watch", folder, "--json").out
    assert "resumed" in run_cli("runs", "resume", folder).err
    assert "was not paused" in run_cli("runs", "resume", folder).err
    assert "There is no store" in run_cli("runs", "pause", "--store=none", code=8).err


def test_watching_ends_after_a_failure_and_after_a_command_that_was_ended(store, run_cli):
    """A ticket, which depends on a dense network that fails, is not waited for; neither is what nobody computes."""
    ticket, id = TicketSpec(DENSE, rounds=1), run_id(DENSE)
    planned = make_plan([ticket, *SPECS[1:2]], store)
    write_sweep(store, planned)
    folder = f"--store={store.path}"
    assert run_cli("runs", "watch", folder).out == (
        "0 of 3 runs finished, 3 waiting; no command computes them: run it again\n"
    )
    with starting_workers(store):
        assert sweep_status(store).active
    store.fail(store.open(DENSE, "test"), "a fault")
    status = sweep_status(store)
    assert (set(status.failed), status.waiting) == ({id, run_id(ticket)}, (run_id(SPECS[1]),))
    store.finish(store.open(SPECS[1], "test"), {})
    assert run_cli("runs", "watch", folder).out == "1 of 3 runs finished, 2 failed\n"


def test_watching_goes_on_while_a_command_works_on_the_store(store, run_cli, monkeypatch):
    write_sweep(store, make_plan(SPECS[:1], store))
    seen = []

    def sleep(seconds):
        seen.append(sweep_status(store).active)
        if len(seen) == 2:
            store.finish(store.open(SPECS[0], "test"), {})
            command.__exit__(None, None, None)

    monkeypatch.setattr("prunus.cli.runs_watch.time.sleep", sleep)
    command = starting_workers(store)
    command.__enter__()
    printed = run_cli("runs", "watch", f"--store={store.path}").out.splitlines()
    assert (seen, printed[-1]) == ([True, True], "1 of 1 runs finished")
    assert printed[0].startswith("0 of 1 runs finished, 1 waiting; the remaining time is known after")


def test_the_plan_tells_how_many_workers_an_executor_takes_by_itself(store, monkeypatch):
    monkeypatch.setattr("prunus.runs.executors.os.cpu_count", lambda: 2)

    def first_line(executor, workers, specs=SPECS):
        class Shown(Exception):
            pass

        def log(line):
            raise Shown(line)

        with pytest.raises(Shown) as error:
            run_plan(specs, store, executor=executor, workers=workers, log=log)
        return str(error.value)

    assert first_line("processes", None).endswith(" on 2 workers")
    assert first_line("processes", None, SPECS[:1]).endswith(" on 1 worker")
    assert first_line("slurm", None).endswith(" on 3 workers")
    assert first_line(partial(on_slurm, cluster="local"), 5).endswith(" on 5 workers")
    assert first_line("inline", None).endswith(" on 1 worker")
    for executor in ("ray", lambda work, workers, scheduler: {}):
        assert "worker" not in first_line(executor, None)
    for workers in (0, -1):
        with pytest.raises(WorkerError, match=f"Expected at least 1 worker, got {workers}"):
            run_plan(SPECS, store, workers=workers)


def test_progress_tells_that_workers_are_started(store):
    texts = []
    with pytest.raises(WorkerError, match="3 of 3 runs are not done"):
        run_plan(
            SPECS, store, executor=lambda work, workers, scheduler: {},
            progress=lambda text, done, total: texts.append(text),
        )  # fmt: skip
    assert texts == ["estimating how long the runs take", "starting workers"]


@pytest.mark.parametrize(
    ("options", "address"),
    [
        (["--ray"], "local"),
        (["--ray", "h:1"], "h:1"),
        (["--ray", "auto"], "auto"),
        (["--ray", "--smoke"], "local"),
    ],
)
def test_ray_takes_an_address_or_none(options, address, run_cli, monkeypatch):
    def stop(*arguments, executor, **others):
        raise WorkerError(f"address {executor.keywords['address']}")

    monkeypatch.setattr("prunus.experiments.running.run_experiment", stop)
    for arguments in (["zhou2019.zeros", *options], [*options, "zhou2019.zeros"]):
        assert f"error: address {address}" in run_cli("run", *arguments, code=8).err
    assert "alternatives" in run_cli("run", "zhou2019.zeros", "--slurm", *options, code=2).err


# Real clusters

EPOCHS = 50


def check_equals_inline(store, tmp_path, epochs=EPOCHS, lost=1):
    """All runs have the numbers and bits of the executor `inline`, and `lost` attempts were lost, each of a run."""
    inline = Store(tmp_path / "inline")
    run_plan(plan(epochs), inline, executor="inline")
    assert store.ids() == inline.ids()
    check_same(store, inline, plan(epochs))
    assert sorted(run.attempts for run in store.runs()) == [1] * (len(store.ids()) - lost) + [2] * lost


def when_two_runs_are_running(store, act):
    """Call `act` in a thread as soon as two runs have been running for a moment."""

    def wait():
        while sum(run.state == "running" for run in store.runs()) < 2:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_local_ray_gives_the_bits_of_inline(store, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), *sys.path]))
    run_plan(plan(), store, executor="ray", workers=2)
    assert not ray.is_initialized()
    assert {run.environment["executor"] for run in store.runs()} == {"ray"}
    check_equals_inline(store, tmp_path, epochs=2, lost=0)


@pytest.mark.slow
def test_a_ray_node_that_is_lost_loses_no_run(store, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), *sys.path]))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default 15, which takes hours on a busy machine
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        killer = when_two_runs_are_running(store, partial(cluster.remove_node, node, allow_graceful=False))
        run_plan(plan(EPOCHS), store, executor=partial(on_ray, address=cluster.address), workers=2)
        assert not killer.is_alive()
    finally:
        ray.shutdown()
        cluster.shutdown()
    check_equals_inline(store, tmp_path)


def jobs_of(folder):
    """The process IDs of the jobs that submitit's local executor runs from a folder."""
    process_ids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text().split("\0")
        except OSError:
            continue
        if "submitit.core._submit" in command and str(folder) in " ".join(command):
            process_ids.append(int(path.parent.name))
    return process_ids


# submitit does not wait for a process that it has told to end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_a_job_that_is_killed_loses_no_run(store, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), *sys.path]))
    lines = []
    killer = when_two_runs_are_running(store, lambda: os.kill(jobs_of(store.path)[-1], signal.SIGKILL))
    executor = partial(on_slurm, cluster="local")
    run_plan(plan(EPOCHS), store, executor=executor, workers=2, log=lines.append)
    assert not killer.is_alive()
    assert sum("was lost" in line for line in lines) == 1
    check_equals_inline(store, tmp_path)
