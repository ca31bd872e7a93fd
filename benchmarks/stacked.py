"""Five replicates as one stacked network beside the same five one after the other: steps a CPU second of one core."""

import shutil
import tempfile
from collections.abc import Callable, Sequence

from benchmarks.timing import interleaved, table
from prunus.runs.engines.inline import inline
from prunus.runs.engines.stacked import together
from prunus.runs.engines.work import OneThread, Procedure
from prunus.runs.spec import identity
from prunus.runs.store import Store
from prunus.tickets.dense import Dense
from prunus.tickets.ticket import Ticket
from prunus.training import RECIPES

REPLICATES = 5


def tickets(arithmetic: str, epochs: int) -> list[Ticket]:
    recipe = RECIPES["lenet-300-100"].but(epochs=epochs)
    return [
        Ticket(
            Dense(recipe=recipe, replicate=replicate, arithmetic=arithmetic),
            schedule="one_shot",
            rounds=11,
            levels=(11,),
        )
        for replicate in range(REPLICATES)
    ]


def anew(specs: Sequence[Procedure], store: Store, engine: str) -> None:
    """Carry out the runs, whether or not they are there."""
    for spec in specs:
        shutil.rmtree(store.finished / identity(spec), ignore_errors=True)
    if engine == "stacked":
        assert all(done and error is None for _, done, error in together(specs, store.path))
    else:
        inline(specs, store, say=lambda line: None)


def run(rounds: int = 5, epochs: int = 1) -> str:
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder, OneThread():
        store = Store(folder)
        made = {
            engine: tickets(engine if engine == "stacked" else "single", epochs)
            for engine in ("inline", "stacked")
        }
        dense = {engine: [spec.dense for spec in specs] for engine, specs in made.items()}
        for what, specs in (("dense", dense), ("tickets of density 0.086", made)):
            steps = sum(spec.cost()[1] for spec in specs["inline"])
            functions: dict[str, Callable[[], object]] = {
                engine: lambda engine=engine, specs=specs: anew(specs[engine], store, engine)
                for engine in specs
            }
            timed = interleaved(functions, rounds=rounds)
            rows += [
                [what, engine, f"{steps / timed.median(engine):,.0f}", timed.ratio("inline", engine)]
                for engine in functions
            ]
    return table(
        [
            f"LeNet-300-100, R = {REPLICATES}, {epochs} epoch, n = {rounds}",
            "engine",
            "network-steps/CPU s",
            "times inline",
        ],
        rows,
    )
