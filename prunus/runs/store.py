"""The store: a folder a run, worked on under work/ and renamed to runs/ when it is whole.

    STORE/runs/ID/                       finished, by construction: results, never touched again
    STORE/work/ID/                       under way, or cut short and to be resumed
    STORE/experiments/NAME.SIZE.HEX.json what experiments asked for, each request once
    STORE/ledger.sqlite                  who works on what; can be lost

The folders are the truth: a run is done when it is under runs/, whatever the ledger says.
"""

import secrets
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunus.errors import StoreError
from prunus.files import sync_folder
from prunus.runs.directory import FINISHED, RunFolder
from prunus.runs.environment import environment
from prunus.runs.files import store_errors
from prunus.runs.leases import Lease, LeaseRecord, LeaseTable
from prunus.runs.requests import Request, read_requests, write_request
from prunus.runs.run_info import RunInfo, status, summarize_invariants
from prunus.runs.settings import all_settings, check_settings_match
from prunus.runs.spec import RunSpec, nondefault_settings, run_id


class Store:
    """Runs under the folder `path`, which is made where it is not there (unless `create` is False)."""

    def __init__(self, path: Path | str, *, create: bool = True) -> None:
        self.path = Path(path)
        self.finished, self.work = self.path / FINISHED, self.path / "work"
        self.experiments = self.path / "experiments"
        if not create and not self.finished.is_dir():
            raise StoreError(f"There is no store of runs at {self.path}.")
        with store_errors(self.path):
            for folder in (self.work, self.experiments, self.finished):
                folder.mkdir(parents=True, exist_ok=True)
        self.ledger = LeaseTable(self.path / "ledger.sqlite", self._survey)

    def done(self, id: str) -> bool:
        """Whether the run is finished."""
        return (self.finished / id).is_dir()

    def folder(self, id: str) -> RunFolder:
        """The folder of a finished run, to read."""
        if not self.done(id):
            raise StoreError(f"The run {id} is not finished in the store {self.path}.")
        return RunFolder(self.finished / id, reading=True)

    def look(self, id: str) -> RunFolder:
        """The folder of a run, finished or not, to read."""
        return self.folder(id) if self.done(id) else RunFolder(self.work / id, reading=True)

    def folders(self) -> list[RunFolder]:
        """The folders of all finished runs, to read."""
        return [RunFolder(path, reading=True) for path in sorted(self.finished.iterdir()) if path.is_dir()]

    def begin(self, spec: RunSpec, engine: str, device: str = "cpu") -> RunFolder | None:
        """Claim the run and open its folder, with what an earlier attempt left there.

        None where it is done, or another process is at it. Raises StoreError where the folder is of another spec.
        """
        id = run_id(spec)
        if self.done(id):
            return None
        claim = self._claim(id, spec.kind)
        if claim is None:
            return None
        if self.done(id):  # its holder was killed after the last rename
            claim.finish()
            return None
        folder = RunFolder(self.work / id, claim)
        try:
            with store_errors(folder.path):
                folder.path.mkdir(exist_ok=True)
            folder.tidy()
            folder.write_claim(asdict(claim.entry))
            self._sign(folder, spec)
            folder.write_environment(environment(engine, device))
        except BaseException as error:
            claim.fail(f"{type(error).__name__}: {error}", folder.let_go)
            raise
        return folder

    def finish(self, folder: RunFolder, summary: Mapping[str, Any], seconds: float | None = None) -> None:
        """Write result.json and make the run final.

        `seconds` is the time that the run took; None: the time since it was begun, and that of earlier attempts.
        Raises LeaseLostError, and leaves everything as it is, where another took over.
        """
        claim = self._claim_of(folder)
        place = self.finished / folder.id

        def publish() -> None:
            result = {
                "summary": dict(summary),
                "invariants": summarize_invariants(folder.rows()),
                "seconds": round(claim.seconds() if seconds is None else seconds, 3),
                "attempts": claim.entry.attempts,
                "cost": folder.spec()["cost"],
            }
            folder.let_go()
            folder.tidy()
            folder.write_result(result)
            with store_errors(place):
                sync_folder(folder.path)
                folder.path.rename(place)
                sync_folder(self.finished)
                sync_folder(self.work)

        claim.finish(publish)
        folder.path, folder.reading, folder.claim = place, True, None

    def fail(self, folder: RunFolder, error: BaseException | str) -> None:
        """Let go of the run; its folder stays, to be resumed."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._claim_of(folder).fail(text, folder.let_go)
        folder.claim = None

    def runs(self) -> list[RunInfo]:
        """Every run that has a folder, finished or not, in the order of their identities."""
        entries = self.ledger.entries()
        folders = list(self._folders())
        asked = self._asked(folders)
        found = {}
        for folder in folders:
            try:
                found[folder.id] = self._run(folder, entries.get(folder.id), asked.get(folder.id, []))
            except StoreError as error:
                if folder.path.is_dir():  # else it was finished or removed while we looked
                    warnings.warn(f"The run {folder.id} is left out: {error}", stacklevel=2)
        return [found[id] for id in sorted(found)]

    def run(self, id: str) -> RunInfo:
        """A run that has a folder, finished or not. Raises StoreError where its files cannot be read."""
        folder = self.look(id)
        return self._run(
            folder, self.ledger.entries().get(id), self._asked(list(self._folders())).get(id, [])
        )

    def _asked(self, folders: Sequence[RunFolder]) -> dict[str, list[str]]:
        """For each run, the experiments that asked for it, or for what was made of it."""
        needs: dict[str, list[str]] = {}
        for folder in folders:
            with suppress(StoreError):  # `runs` warns of a folder that cannot be read
                needs[folder.id] = folder.spec()["needs"]
        asked: dict[str, dict[str, None]] = {}
        for request in self.requests():
            stack = [entry.id for entry in request.entries]
            while stack:
                id = stack.pop()
                if request.name not in asked.setdefault(id, {}):
                    asked[id][request.name] = None
                    stack += needs.get(id, ())
        return {id: list(names) for id, names in asked.items()}

    def find(self, prefix: str) -> str:
        """The identity that begins with `prefix`, or has a hash that does."""
        ids = {folder.id for folder in self._folders()}
        near = sorted(id for id in ids if id.startswith(prefix) or id.rpartition("-")[2].startswith(prefix))
        if prefix in ids or len(near) == 1:
            return prefix if prefix in ids else near[0]
        if near:
            more = f" and {len(near) - 5} more" if len(near) > 5 else ""
            raise StoreError(f"{prefix!r} could be {', '.join(near[:5])}{more}; write more of it.")
        raise StoreError(f"The store {self.path} has no run {prefix!r}; `prunus runs list` names them.")

    def request(
        self,
        experiment: str,
        size: str,
        entries: list[tuple[dict[str, Any], RunSpec]],
        settings: Mapping[str, Any],
    ) -> Request:
        """Note which runs an experiment asks for, each with its label there; what it asked for before stays."""
        return write_request(self.experiments, experiment, size, entries, settings)

    def requests(self) -> list[Request]:
        """What experiments asked for, by name, the latest of a name last."""
        return read_requests(self.experiments)

    def remove(self, id: str, *, force: bool = False) -> None:
        """Remove a run, finished or not; with `force` also one that another run was made from, or is being made from.

        Raises StoreError for a run that is under way, and, without `force`, where a run that is finished or under way
        reads it, or where of another run it cannot be read what that needs.
        """
        if not force:
            self._check_unused(id)
        found = [folder.path for folder in self._folders() if folder.id == id]
        if not found:
            raise StoreError(f"The store {self.path} has no run {id!r}.")
        # Moved out of the way at one stroke first: what is under runs/ is whole.
        bins = [self.path / f"removed-{secrets.token_hex(4)}" for _ in found]

        def move() -> None:
            with store_errors(self.path):
                for path, place in zip(found, bins, strict=True):
                    path.rename(place)

        if not self.ledger.forget(id, move):
            raise StoreError(f"The run {id} is under way; stop its process first.")
        with store_errors(self.path):
            for place in self.path.glob("removed-*"):
                shutil.rmtree(place, ignore_errors=True)

    def _check_unused(self, id: str) -> None:
        """Raise StoreError unless it is certain that no run that is finished or under way reads this one."""
        entries = self.ledger.entries()
        users: dict[str, list[str]] = {"done": [], "running": []}
        for folder in self._folders():
            finished = folder.path.parent == self.finished
            if folder.id == id or not (finished or folder.has_spec()):
                continue  # one killed before it wrote what it is has read nothing
            try:
                needs = folder.spec()["needs"]
            except StoreError as error:
                if not folder.path.is_dir():
                    continue  # it was finished or removed while we looked
                raise StoreError(
                    f"Whether the run {folder.id} was made from {id} cannot be read: {error} Remove {folder.id} "
                    "first, or force it."
                ) from error
            if id in needs:
                users.get(status(finished, entries.get(folder.id)), []).append(folder.id)
        done, running = (", ".join(found[:3]) for found in users.values())
        said = [f"was read by the finished {done}"] * bool(done)
        said += [f"is read by {running}, under way"] * bool(running)
        if said:
            ways = " or ".join(["remove"] * bool(done) + ["stop"] * bool(running))
            that = "that" if sum(map(len, users.values())) == 1 else "those"
            raise StoreError(f"The run {id} {' and '.join(said)}; {ways} {that} first, or force it.")

    def _claim(self, id: str, kind: str) -> Lease | None:
        claim = self.ledger.claim(id, kind)
        if claim is None:
            entry = self.ledger.entries().get(id)
            gone = entry is not None and entry.state == "done" and not self.done(id)  # removed by hand
            if gone and self.ledger.forget(id, only="done"):
                claim = self.ledger.claim(id, kind)
        return claim

    def _claim_of(self, folder: RunFolder) -> Lease:
        if not isinstance(folder.claim, Lease):
            raise StoreError(f"The run {folder.id} was not begun by this process, or is finished already.")
        return folder.claim

    def _sign(self, folder: RunFolder, spec: RunSpec) -> None:
        """Write spec.json, or check that the one there is the same."""
        unit, number = spec.cost()
        mine = {
            "id": folder.id,
            "kind": spec.kind,
            "settings": nondefault_settings(spec),
            "complete": all_settings(spec),
            "needs": [run_id(need) for need in spec.needs()],
            "cost": {"unit": unit, "number": number},
        }
        if folder.has_spec():
            check_settings_match(folder.path, folder.spec(), mine)
        else:
            folder.write_spec(mine)

    def _folders(self) -> Iterator[RunFolder]:
        for path in sorted(self.work.iterdir()):
            if path.is_dir() and not self.done(path.name):
                yield RunFolder(path, reading=True)
        yield from self.folders()

    def _run(self, folder: RunFolder, entry: LeaseRecord | None, asked: list[str]) -> RunInfo:
        finished = folder.path.parent == self.finished
        spec = folder.spec() if folder.has_spec() or finished else {}
        result, cost = folder.result(), spec.get("cost")
        return RunInfo(
            id=folder.id,
            kind=spec.get("kind", folder.id.rpartition("-")[0]),
            experiments=tuple(asked),
            spec=spec.get("settings", {}),
            status=status(finished, entry),
            invariants=result.get("invariants") if finished else summarize_invariants(folder.rows()),
            summary=result.get("summary", {}),
            seconds=result.get("seconds") if finished else (entry.worked if entry else None),
            attempts=result.get("attempts", entry.attempts if entry else 0),
            cost=(cost["unit"], cost["number"]) if cost else None,
            needs=tuple(spec.get("needs", ())),
            error=entry.error if entry and entry.state == "failed" else None,
        )

    def _survey(self) -> Iterator[LeaseRecord]:
        """What the folders know of the ledger: what is done, and what was claimed last and not let go of."""
        for folder in self._folders():
            if self.done(folder.id):
                yield LeaseRecord(folder.id, folder.id.rpartition("-")[0], "done")
            elif claimed := folder.claimed():
                yield LeaseRecord(**{**claimed, "heartbeat": time.time()})
