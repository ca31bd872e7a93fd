"""An experiment on two networks whose rows are made up, so that no run takes time."""

from specs import finish

from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, labeled
from prunus.experiments.function_run import FunctionRun
from prunus.experiments.hassibi1993 import Xor
from prunus.runs.spec import run_id
from prunus.runs.store import Store

NETWORKS = {"first": 1, "second": 2}
SMALL = Experiment(
    name="test.small",
    paper="",
    place="",
    title="",
    question="",
    template=lambda network, size: FunctionRun(
        "prunus.none:none", Xor(networks=NETWORKS[network] + 10 * (size == "smoke"))
    ),
    runs=lambda template, size: labeled({curve: template.changed(method=curve) for curve in ("a", "b")}),
    claims=(
        Claim("A is lower than B", "a", "lower", "b", "error", "Table 1", published="2", effect=2.0),
        Claim("A is 1, within 0.5", "a", "equal", 1.0, "error", "Table 1", margin=0.5),
    ),
    networks=tuple(NETWORKS),
    replicates=(1, 3, 3),
)
ERRORS = {"a": [1.0, 1.1, 1.05, 1.02], "b": [3.0, 3.2, 3.1, 3.05]}


def do(store: Store, size="default", replicates=3, errors=ERRORS, **settings):
    """Request runs of the small experiment, and record them as done."""
    entries = SMALL.labeled_runs(size, range(replicates), settings)
    store.request(SMALL.name, size, entries, settings)
    for label, spec in entries:
        if not store.is_done(run_id(spec)):
            finish(store, spec, [{"error": errors[label["curve"]][label["replicate"]]}])
