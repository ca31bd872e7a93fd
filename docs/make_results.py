"""Write docs/results and docs/claims.md, with the figures in docs/images, from the files of docs/evidence.

A file of docs/evidence is written by `prunus runs export STORE --out docs/evidence/NAME.jsonl`.
"""

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from textwrap import wrap

from prunus.experiments import EXPERIMENTS
from prunus.experiments.claim_list import ListedClaim, claims
from prunus.experiments.results import Result
from prunus.experiments.running import draw_experiment
from prunus.registry import lookup
from prunus.runs.store import Store
from prunus.runs.transfer import import_runs

DOCS = Path(__file__).parent
VERDICTS = ("holds", "does not hold", "not shown", None)
ABOUT_CLAIMS = """# Which claims of the literature hold here?

Each statement has one verdict per part, computed from the rows in [`docs/evidence`](evidence) by `make results`;
`prunus claims` prints the same list, and `prunus claims --store DIR` that of your own runs. The verdict of a part is
that of the page of its experiment: replicates are paired, and p-values are corrected by Holm's method for all claims
of the experiment on all of its networks, of which those without runs count as not shown. The interval is a 95 %
interval that is not corrected. Some sizes, numbers of replicates and tests were changed after rows were known;
decisions [30](decisions/0030-rethinking-pruning.md) and [31](decisions/0031-the-list-of-claims.md) say which and why.

A verdict counts at the default size of the experiment, which is stated below each table. "Not shown" is given only when
all replicates of that size are finished. "±" is half the width of the interval. "Shown from" is the smallest distance
from the limit (zero, the number that is compared with, or the margin) that would have been shown with this spread,
whatever the other claims of the experiment are: its p is below 0.05 at the strictest step of Holm's correction. A
smaller distance can be shown where other claims have smaller p-values. "Effect" is what "shown from" is to be compared
with, the published difference or the margin within which two values count as equal: where "shown from" is smaller than
the effect, an effect of this size would have been shown. Where no effect is given, no difference is published in this
unit. A claim whose interval excludes the limit is still "not shown" if its corrected p is 0.05 or more; the table then
gives p. "At" is where a claim is measured; the values at several points are averaged. "Second-hand" published values
were read in another publication than the paper. A network in parentheses is the smaller one, with fewer channels and
sometimes fewer layers, that was trained in place of the paper's."""
ABOUT_DATA = {
    "cifar-10": "The committed rows of CIFAR-10 were computed on CIFAR-10 (JPEG q75): images that a third party "
    "re-encoded as JPEG with quality 75. Accuracies on them are lower than on the original images.",
}
"""What is to be known about the data of the rows in docs/evidence, by the name of the data set."""
ABOUT_RESULTS = """# Results

One page per experiment; `frankle2019.learning_rates` is on the page of `frankle2019.optimizers`,
`frankle2020.interpolation` on that of `frankle2020.instability`, and `han2016.sizes` has none. Each page states the
command, n, and how the run differs from the paper. Pages whose rows are named are generated from the rows in
[`docs/evidence`](../evidence) by `make results`, as is this table. Pages whose rows are "not kept" show numbers of
version 0.1.0, whose rows were not stored with the repository.
[Claims](../claims.md) has the verdicts on all claims.

| experiment | page | rows |
| --- | --- | --- |"""
NEXT_RESULTS = (
    "Next: [run an experiment](../experiments.md); [benchmarks](../benchmarks.md) has sizes and speed."
)


def main(docs: Path = DOCS) -> list[Path]:
    """Write the pages of all experiments whose runs are in `docs`/evidence, and return their paths."""
    pages = []
    with tempfile.TemporaryDirectory() as folder:
        store, sources = Store(Path(folder) / "store"), dict[str, list[str]]()
        for evidence in sorted((docs / "evidence").glob("*.jsonl")):
            import_runs(evidence, store)
            lines = [json.loads(line) for line in evidence.read_text(encoding="utf-8").splitlines()]
            for name in dict.fromkeys(line["request"]["experiment"] for line in lines if "request" in line):
                sources.setdefault(name, []).append(evidence.name)
        for name, files in sources.items():
            experiment = lookup("experiment", EXPERIMENTS, name)
            result = draw_experiment(experiment, store, Path(folder) / "drawn", log=print)
            pages.append(write_page(docs, files, result, str(store.path)))
        write_claims(docs, claims(store.path), str(store.path))
    write_overview(docs / "results")
    return sorted(pages)


def write_page(docs: Path, evidence: Sequence[str], result: Result, store: str) -> Path:
    """Copy the page of one experiment and its figures.

    Args:
        docs: The folder with the folders "results" and "images".
        evidence: Names of the files that its runs were read from.
        result: The experiment as drawn.
        store: The path of the temporary store, which the page does not show.
    """
    page, images = docs / "results" / f"{result.name}.md", docs / "images"
    for folder in (page.parent, images):
        folder.mkdir(parents=True, exist_ok=True)
    document = next(path for path in result.files if path.suffix == ".md")
    text = document.read_text(encoding="utf-8").replace(store, "store")
    for figure in (path for path in result.files if path.suffix == ".png"):
        image = images / image_name(result.name, figure)
        shutil.copyfile(figure, image)
        text = text.replace(f"]({figure.name})", f"](../images/{image.name})")
    for sentence in about_data(result.content["data"]):
        text = text.replace("\n\nCommand: ", f"\n\n{sentence}\n\nCommand: ", 1)
    files = ", ".join(f"[{name}](../evidence/{name})" for name in evidence)
    source = f"Rows of every run: {files}. This page is written by `make results`."
    page.write_text(f"{text.rstrip()}\n\n{source}\n", encoding="utf-8")
    return page


def about_data(names: str) -> list[str]:
    """Return what is to be known about data sets.

    >>> about_data("mnist; cifar-10") == [ABOUT_DATA["cifar-10"]]
    True
    """
    return [sentence for name, sentence in ABOUT_DATA.items() if name in names]


def image_name(experiment: str, figure: Path) -> str:
    """Return the name of a figure in docs/images.

    >>> image_name("zhou2019.zeros", Path("zhou2019.zeros.accuracy.png"))
    'zhou2019.zeros-accuracy.png'
    """
    return f"{experiment}-{figure.name.removeprefix(f'{experiment}.')}"


def write_overview(results: Path) -> None:
    """Write the README of the folder of pages: a table of the experiment, the page and the rows of each."""
    lines = []
    for page in sorted(path for path in results.glob("*.md") if path.name != "README.md"):
        text = page.read_text(encoding="utf-8")
        title = text.partition("\n")[0].partition(": ")[2]
        rows = re.search(r"^Rows of every run: (.*?\))\.", text, re.MULTILINE)
        lines.append(
            f"| {title[:1].upper()}{title[1:]} | [{page.stem}]({page.name}) | {rows[1] if rows else 'not kept'} |"
        )
    text = "\n".join([ABOUT_RESULTS, *lines, "", NEXT_RESULTS])
    (results / "README.md").write_text(f"{text}\n", encoding="utf-8")


def write_claims(docs: Path, listed: Sequence[ListedClaim], store: str) -> None:
    """Write claims.md: the number of verdicts per statement, then a table of the parts of each.

    Args:
        docs: The folder that the page is written to.
        listed: The claims in the order of the page.
        store: The path of the temporary store, which the page does not show.
    """
    statements = [list(parts) for _, parts in groupby(listed, key=lambda claim: claim.statement)]
    lines = [
        ABOUT_CLAIMS,
        "",
        *(line for sentence in ABOUT_DATA.values() for line in (*wrap(sentence, 120), "")),
        "| statement | holds | does not hold | not shown | no verdict |",
        "| --- |" + " --- |" * 4,
    ]
    for parts in statements:
        counts = Counter(part.verdict for part in parts)
        number = re.match(r"\d+", parts[0].id)[0]
        lines.append(f"| {number}. {parts[0].statement} | {' | '.join(str(counts[v]) for v in VERDICTS)} |")
    for parts in statements:
        lines += ["", f"## {re.match(r'[0-9]+', parts[0].id)[0]}. {parts[0].statement}", ""]
        lines += [claim_table(parts).replace(store, "store"), ""]
        for name, of_experiment in groupby(parts, key=lambda part: part.experiment):
            of_one, page = list(of_experiment), f"results/{name}.md"
            commands = dict.fromkeys(f"`{part.command.replace(store, 'store')}`" for part in of_one)
            link = f"[{name}]({page})" if (docs / page).exists() else name
            size = of_one[0].default_size
            about = "".join(f" {sentence}" for sentence in about_data(size))
            lines.append(f"- {link}, default size: {size}. {' or '.join(commands)}{about}")
    lines += ["", "Next: [all results](results/README.md); [run an experiment](experiments.md)."]
    (docs / "claims.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def claim_table(parts: Sequence[ListedClaim]) -> str:
    """Make the table of the parts of a statement."""
    lines = [
        "| part | claim | at | verdict | measured (95 % interval) | published | ± | shown from | effect | n |",
        "| --- |" + " --- |" * 9,
    ]
    for part in parts:
        verdict = f"**{part.verdict}**" if part.verdict else "no verdict"
        note = f": {part.note}" if part.note else ""
        half = (part.interval[1] - part.interval[0]) / 2 if part.interval else None
        widths = [
            f"{float(f'{width:.2g}'):g}" if width is not None else "–" for width in (half, part.shown_from)
        ]
        effect = f"{part.effect:g}" if part.effect else "–"
        texts = (
            part.id, part.claim, part.at or "–", verdict + note, part.measured_text, part.published or "–", *widths,
            effect,
        )  # fmt: skip
        lines.append(f"| {' | '.join(texts)} | {part.n} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for path in main():
        print(path)
