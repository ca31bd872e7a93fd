"""Who is working on which run: one SQLite table, safe for many processes on one machine.

A run is free to claim when it has no row, when it failed, or when its holder is dead: a process that is gone, or,
where that cannot be seen (another container, no /proc), one without a sign of life for 120 seconds. Whoever
claims a run writes a new random word, `attempt`, into its row; a holder that finds another word there has lost
the run (LeaseLostError), so that two never write the same results.

The ledger holds nothing that cannot be lost. A damaged or deleted one is made anew from the folders.
SQLite's write-ahead log needs a file system of this machine; over a network, give each machine its own store.
"""

import secrets
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from prunus.errors import LeaseLostError, StoreError
from prunus.runs.files import store_errors, write
from prunus.runs.locking import file_lock
from prunus.runs.process_identity import Process, is_alive, this_process

SILENT_SECONDS = 120.0
BUSY_SECONDS = 60.0


@dataclass(frozen=True)
class LeaseRecord:
    """A row of the ledger."""

    id: str
    kind: str
    state: str
    """running, done or failed."""
    host: str = ""
    pid: int = 0
    pid_started: str = ""
    heartbeat: float = 0.0
    attempt: str = ""
    """A random word, another one each time the run is claimed."""
    attempts: int = 0
    started: float = 0.0
    finished: float | None = None
    seconds: float = 0.0
    """Of earlier attempts; once it is done or has failed, of all."""
    error: str | None = None

    @property
    def held(self) -> bool:
        """Whether a living process works on it."""
        if self.state != "running":
            return False
        living = is_alive(Process(self.host, self.pid, self.pid_started))
        return time.time() - self.heartbeat <= SILENT_SECONDS if living is None else living

    @property
    def worked(self) -> float:
        """The seconds of all attempts, of one under way or cut short until its last sign of life."""
        return self.seconds + (max(0.0, self.heartbeat - self.started) if self.state == "running" else 0.0)


COLUMNS = [column.name for column in fields(LeaseRecord)]
_TABLE = f"""CREATE TABLE runs (
    {", ".join(COLUMNS)},
    PRIMARY KEY (id), CHECK (state IN ('running', 'done', 'failed'))
) WITHOUT ROWID"""
_PUT = f"INSERT OR REPLACE INTO runs VALUES ({', '.join('?' * len(COLUMNS))})"
_GET = f"SELECT {', '.join(COLUMNS)} FROM runs"


class Lease:
    """This process's hold on a run."""

    def __init__(self, ledger: "LeaseTable", entry: LeaseRecord) -> None:
        self.ledger = ledger
        self.entry = entry

    def beat(self) -> None:
        """A sign of life; raises LeaseLostError where the run has been taken over."""
        with self._mine() as connection:
            connection.execute("UPDATE runs SET heartbeat = ? WHERE id = ?", (time.time(), self.entry.id))

    def finish(self, act: Callable[[], None] = lambda: None) -> None:
        """Do `act`, which makes the results final, and mark the run done; nobody can take it over in between."""
        with self._mine() as connection:
            act()
            self._end(connection, "done", None)

    def fail(self, error: str, act: Callable[[], None] = lambda: None) -> None:
        """Do `act`, let go of the run, and say why."""
        with self._mine() as connection:
            act()
            self._end(connection, "failed", error)

    def seconds(self) -> float:
        """The seconds worked on the run, those of earlier attempts included."""
        return self.entry.seconds + max(0.0, time.time() - self.entry.started)

    def _end(self, connection: sqlite3.Connection, state: str, error: str | None) -> None:
        now = time.time()
        connection.execute(
            "UPDATE runs SET state = ?, finished = ?, heartbeat = ?, seconds = ?, error = ? WHERE id = ?",
            (state, now, now, self.seconds(), error, self.entry.id),
        )

    @contextmanager
    def _mine(self) -> Iterator[sqlite3.Connection]:
        with self.ledger.writing() as connection:
            entry = _one(connection, self.entry.id)
            if entry is None or (entry.state, entry.attempt) != ("running", self.entry.attempt):
                raise LeaseLostError(
                    f"The run {self.entry.id} is no longer this process's: "
                    f"{'nobody holds it' if entry is None else f'it is {entry.state}, by process {entry.pid}'}; "
                    "what it was computing is dropped."
                )
            yield connection


class LeaseTable:
    """The table in the file `path`; `survey` says what the folders know, for making a lost one anew."""

    def __init__(self, path: Path, survey: Callable[[], Iterable[LeaseRecord]] = lambda: ()) -> None:
        self.path = path
        self.survey = survey

    def claim(self, id: str, kind: str) -> Lease | None:
        """Take the run, if it is free."""
        me, now = this_process(), time.time()
        with self.writing() as connection:
            old = _one(connection, id)
            if old is not None and (old.state == "done" or old.held):
                return None
            entry = LeaseRecord(
                id=id,
                kind=kind,
                state="running",
                host=me.host,
                pid=me.pid,
                pid_started=me.started,
                heartbeat=now,
                attempt=secrets.token_hex(8),
                attempts=1 if old is None else old.attempts + 1,
                started=now,
                seconds=0.0 if old is None else old.worked,
            )
            connection.execute(_PUT, astuple(entry))
        return Lease(self, entry)

    def forget(self, id: str, act: Callable[[], None] = lambda: None, *, only: str | None = None) -> bool:
        """Do `act` and drop the row, unless the run is held; with `only`, unless its state is another."""
        with self.writing() as connection:
            entry = _one(connection, id)
            if entry is not None and (entry.held or only not in (None, entry.state)):
                return False
            act()
            connection.execute("DELETE FROM runs WHERE id = ?", (id,))
        return True

    def entries(self) -> dict[str, LeaseRecord]:
        """All rows, by id."""
        with self._connected() as connection:
            return {row[0]: LeaseRecord(*row) for row in connection.execute(_GET)}

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other process's overlaps."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:  # a full disk has rolled it back already
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        # One connection an operation: it may be used from any thread, and after a fork.
        try:
            connection = self._sound() or self._rebuilt()
            with closing(connection):
                yield connection
        except sqlite3.Error as error:
            raise StoreError(
                f"The ledger {self.path} cannot be used: {error}; should that last, delete it: it is made anew."
            ) from error

    def _sound(self) -> sqlite3.Connection | None:
        """A connection, unless there is no file or it is no ledger; an error that may pass (a full disk) is raised."""
        if not self.path.exists():
            return None
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(uri, timeout=BUSY_SECONDS, isolation_level=None, uri=True)
        try:
            connection.execute("PRAGMA synchronous=OFF")  # after a power cut it is made anew, if need be
            connection.execute(f"{_GET} LIMIT 0")
            if connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",):
                return connection
            connection.close()
            return None
        except sqlite3.DatabaseError as error:
            connection.close()
            if isinstance(error, sqlite3.OperationalError) and "no such" not in str(error):
                raise
            return None

    def _rebuilt(self) -> sqlite3.Connection:
        """A new ledger from the folders; the damaged one is set aside."""
        with file_lock(self.path.with_name("ledger.lock")), store_errors(self.path):
            connection = self._sound()
            if connection is not None:
                return connection  # another process was faster
            entries = list(self.survey())
            if self.path.exists() or entries:
                warnings.warn(
                    f"The ledger {self.path} is {'damaged' if self.path.exists() else 'missing'}; it was made anew "
                    "from the folders of the runs.",
                    stacklevel=2,
                )
            beside = self.path.with_name(f"ledger.{secrets.token_hex(4)}.new")
            with closing(sqlite3.connect(beside, isolation_level=None)) as new:
                new.execute("PRAGMA journal_mode=WAL")
                new.execute(_TABLE)
                new.executemany(_PUT, [astuple(entry) for entry in entries])
            if self.path.exists():
                write(self.path.with_name("ledger.damaged"), self.path.read_bytes())
            for log in ("-wal", "-shm"):  # of the old file: it would be played into the new one
                self.path.with_name(self.path.name + log).unlink(missing_ok=True)
            beside.replace(self.path)
            connection = self._sound()
            if connection is None:
                raise StoreError(f"The ledger {self.path} was made anew, and cannot be read.")
            return connection


def _one(connection: sqlite3.Connection, id: str) -> LeaseRecord | None:
    row = connection.execute(f"{_GET} WHERE id = ?", (id,)).fetchone()
    return LeaseRecord(*row) if row else None
