"""Stacked: replicates of one setting trained as one network, in as many processes as there are workers.

Runs that differ only in their replicate go on together, training by training; each has its own folder, claim and
receipt. The numbers agree with those of the other engines to rounding, which makes them other runs: see ARITHMETIC.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from prunus.errors import LostClaimError, PrunusError
from prunus.nouns import Progress
from prunus.runs.engines.pool import Outcome, sent, share_out
from prunus.runs.engines.queue import Queue
from prunus.runs.engines.work import Procedure, Say, Work, begin
from prunus.runs.progress import RunsProgress
from prunus.runs.settings import canonical, settings
from prunus.runs.store import Store
from prunus.training import Epoch
from prunus.training.stacked import train_stacked


def stacked(
    todo: Sequence[Procedure],
    store: Store,
    *,
    workers: int = 2,
    say: Say,
    progress: RunsProgress | None = None,
) -> None:
    """Do `todo`, replicates together. Raises at the end, where runs failed, what the first raised."""
    share_out(Queue(todo, store, progress), together, lambda ready: groups(ready, workers), workers, say)


def groups(ready: Sequence[Procedure], workers: int) -> list[list[Procedure]]:
    """The runs that differ only in their replicate, in groups; a setting that is alone is shared among the workers."""
    alike: dict[str, list[Procedure]] = {}
    for spec in ready:
        alike.setdefault(canonical([spec.kind, _without_replicate(settings(spec))]), []).append(spec)
    if len(alike) >= workers:
        return list(alike.values())
    return [part for specs in alike.values() for part in _parts(specs, workers)]


def _parts(specs: list[Procedure], count: int) -> list[list[Procedure]]:
    cuts = [len(specs) * place // count for place in range(count + 1)]
    return [specs[low:high] for low, high in pairwise(cuts) if high > low]


def _without_replicate(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _without_replicate(value) for key, value in found.items() if key != "replicate"}
    return found


def together(specs: Sequence[Procedure], path: Path, progress: Progress | None = None) -> list[Outcome]:
    """In a worker: do some runs in step."""
    store = Store(path)
    works = [(spec, _begun(spec, store, len(specs), progress)) for spec in specs]
    _note([work for _, work in works if isinstance(work, Work) and work.job is not None])
    while going := [work for _, work in works if isinstance(work, Work) and work.job is not None]:
        _train(going)
    return [_outcome(spec, work) for spec, work in works]


def _begun(spec: Procedure, store: Store, share: int, progress: Progress | None) -> Work | Exception | None:
    try:
        return begin(spec, store, "stacked", share, progress)
    except Exception as error:  # a user's own function may fail in any way at all
        return error


def _note(works: list[Work]) -> None:
    """Write down who goes on together: the bits of each hang on how many they are."""
    members = [work.folder.id for work in works]
    for work in works:
        try:
            work.folder.add_environment({"together": members})
        except PrunusError as error:
            work.failed(error)


def _train(works: list[Work]) -> None:
    results: Sequence[list[Epoch] | Exception]
    try:
        results = train_stacked([work.job for work in works if work.job is not None])
    except Exception as error:
        results = [error] * len(works)
    except BaseException as error:
        for work in works:
            work.store.fail(work.folder, error)
        raise
    for work, result in zip(works, results, strict=True):
        if isinstance(result, Exception):
            work.failed(result)
        else:
            work.trained(result)


def _outcome(spec: Procedure, work: Work | Exception | None) -> Outcome:
    error = work.error if isinstance(work, Work) else work
    if work is None or isinstance(error, LostClaimError):
        return spec, False, None
    return spec, error is None, None if error is None else sent(error)
