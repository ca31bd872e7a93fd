"""Ask a store in SQL: tables `runs`, `metrics` and `curves`, over DuckDB, which is optional.

runs      a row a run: id, kind, status, receipt, seconds, attempts, experiments, spec, summary
metrics   a row a level of a finished run: id, and what the run appended
curves    a row a level and step of a finished run: id, and what the run appended
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.errors import PrunusError
from prunus.files import write_atomic
from prunus.runs.store import Store

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


READING = ("SELECT", "EXPLAIN", "PRAGMA", "MULTI")
"""The types of statements that return rows and change no table; DuckDB calls a PIVOT "MULTI"."""


def query(store: Store, sql: str) -> list[dict[str, Any]]:
    """The rows that `sql` selects from the tables of this file's card.

    The statement sees nothing but these tables: no file can be read or written from it.

    Raises PrunusError where DuckDB is not installed or refuses the statement.
    """
    try:
        import duckdb
    except ImportError as error:
        raise PrunusError('A query needs DuckDB: pip install "prunus[runs]"') from error
    with duckdb.connect(":memory:") as connection:
        _fill(connection, store, sql.lower())
        connection.execute("SET enable_external_access = false; SET lock_configuration = true")
        try:
            kinds = [statement.type.name for statement in connection.extract_statements(sql)]
            if len(kinds) != 1 or kinds[0] not in READING:
                raise PrunusError(
                    f"The query cannot be answered: expected one SELECT statement, got {', '.join(kinds) or 'nothing'}."
                )
            connection.execute(sql)
            names = [column[0] for column in connection.description or []]
            return [dict(zip(names, row, strict=True)) for row in connection.fetchall()]
        except duckdb.Error as error:
            raise PrunusError(f"The query cannot be answered: {str(error).splitlines()[0]}.") from error


def _fill(connection: "DuckDBPyConnection", store: Store, sql: str) -> None:
    """Make the tables that the statement speaks of."""
    if "runs" in sql:
        rows = [{key: value for key, value in asdict(run).items() if key != "cost"} for run in store.runs()]
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "runs.jsonl"
            write_atomic(file, "".join(f"{json.dumps(row)}\n" for row in rows))
            _load(connection, "runs", "* EXCLUDE (filename)", [file])
    with_id = "parse_path(filename)[-2] AS id, * EXCLUDE (filename)"
    if "metrics" in sql:
        _load(connection, "metrics", with_id, [folder.metrics_path for folder in store.folders()])
    if "curves" in sql:
        _load(connection, "curves", with_id, [folder.curves_path for folder in store.folders()])


def _load(connection: "DuckDBPyConnection", table: str, columns: str, files: Sequence[Path]) -> None:
    """The rows of JSON lines as a table; what only some of them have is NULL in the others."""
    full = [str(file) for file in files if file.exists() and file.stat().st_size]
    options = "format = 'newline_delimited', union_by_name = true, sample_size = -1, filename = true"
    if full:
        connection.execute(
            f"CREATE TABLE {table} AS SELECT {columns} FROM read_json_auto(?, {options})", [full]
        )
    else:
        connection.execute(f"CREATE TABLE {table} (id VARCHAR)")
