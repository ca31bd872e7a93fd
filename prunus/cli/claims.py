"""`prunus claims`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from prunus.cli.options import AsJson, optional
from prunus.cli.output import echo_json, echo_table


def claims(
    store: Annotated[
        Path | None, optional("DIR", "Run store. By default the committed rows in docs/evidence.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the claims that the experiments test, with the verdict on each and the numbers behind it.

    Verdicts are those of the default size of each experiment, or of the full
    size if more of its runs are finished. If runs are missing, the reason is
    shown instead.

    Example: prunus claims --json
    """
    from prunus.experiments.claim_list import claims as decide

    listed = decide(store)
    if as_json:
        echo_json([asdict(claim) for claim in listed])
        return
    rows = [
        (c.id, c.claim, c.verdict or c.note, c.measured_text, c.published or "–", str(c.n)) for c in listed
    ]
    echo_table(("id", "claim", "verdict", "measured (95 % interval)", "published", "n"), rows, text_columns=5)
