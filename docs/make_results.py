"""Write docs/results/NAME.md, with its figures in docs/images, from every file of docs/evidence.

A file of docs/evidence is written by `prunus runs export STORE --out docs/evidence/NAME.jsonl`.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.experiments import EXPERIMENTS
from prunus.experiments.page import SIZES_IN_WORDS
from prunus.experiments.results import Result
from prunus.experiments.running import draw_experiment
from prunus.runs.store import Store
from prunus.runs.transfer import import_runs

DOCS = Path(__file__).parent


def main(docs: Path = DOCS) -> list[Path]:
    """Write the pages of all experiments whose runs are in `docs`/evidence, and return their paths."""
    pages = []
    for evidence in sorted((docs / "evidence").glob("*.jsonl")):
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder) / "store")
            import_runs(evidence, store)
            for name in dict.fromkeys(request.experiment for request in store.requests()):
                if name in EXPERIMENTS:
                    result = draw_experiment(EXPERIMENTS[name], store, Path(folder) / "drawn", report=print)
                    pages.append(write_page(docs, evidence.name, result, str(store.path)))
    return pages


def without_verdicts(text: str) -> str:
    """Leave out the lines of the verdicts, which have a table of their own."""
    verdicts = ("- holds:", "- does not hold:", "- not shown:")
    return "\n".join(line for line in text.splitlines() if not line.startswith(verdicts)).rstrip()


def write_page(docs: Path, evidence: str, result: Result, store: str) -> Path:
    """Write the page of one experiment and copy its figures.

    Args:
        docs: The folder with the folders "results" and "images".
        evidence: Name of the file that its runs were read from.
        result: The experiment as drawn.
        store: The path of the temporary store, which the page does not show.
    """
    content, page = result.content, docs / "results" / f"{result.name}.md"
    figures = [
        (path, docs / "images" / image_name(result.name, path))
        for path in result.files
        if path.suffix == ".png"
    ]
    for folder in (page.parent, docs / "images"):
        folder.mkdir(parents=True, exist_ok=True)
    for figure, image in figures:
        shutil.copyfile(figure, image)
    images = "\n\n".join(
        f"![{title_of(result.name, figure)}](../images/{image.name})" for figure, image in figures
    )
    parts = [
        f"# {result.name}: {EXPERIMENTS[result.name].title}",
        content["question"],
        introduction(content, evidence),
        section("Claims", table(verdict_columns(verdict) for verdict in content["verdicts"])),
        section("Figures", images),
        section("Numbers", without_verdicts(result.text)),
        section("Published values", table(published_columns(value) for value in content["published"])),
        section(
            "Differences from the paper",
            "\n".join(f"- {text}." for text in sentences(content["differences"])),
        ),
    ]
    text = "\n\n".join(filter(None, parts)).replace(store, "store")
    page.write_text(f"{text}\n", encoding="utf-8")
    return page


def introduction(content: Mapping[str, Any], evidence: str) -> str:
    """Say which experiment of which paper this is, how to repeat it, and where its rows are."""
    place = EXPERIMENTS[content["experiment"]].place
    about_size = SIZES_IN_WORDS[content["size"]][1]
    machine = "; ".join(content["evidence"][key] for key in ("libraries", "machine", "device"))
    return (
        f"{content['paper']}{f', {place}' if place else ''}. {about_size}\n\n"
        f"Command: `{content['command']}`. Rows of every run: [{evidence}](../evidence/{evidence}). Computed with "
        f"{machine}. This page is written by `make results`."
    )


def section(title: str, text: str) -> str:
    """Return a section; an empty text where it has no content."""
    return f"## {title}\n\n{text}" if text else ""


def table(rows: Any) -> str:
    """Format rows of one shape as a Markdown table; an empty text where there are none."""
    rows = list(rows)
    if not rows:
        return ""
    lines: list[Sequence[str]] = [
        list(rows[0]),
        ["---"] * len(rows[0]),
        *(list(row.values()) for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict_columns(verdict: Mapping[str, Any]) -> dict[str, str]:
    """Format a verdict as a row of a table."""
    interval = verdict["interval"]
    measured = "–" if verdict["measured"] is None else f"{verdict['measured']:.3g}"
    return {
        "claim": f"{verdict['claim']} ({verdict['source']})",
        "verdict": f"**{verdict['verdict']}**",
        "measured difference (95 % interval)": f"{measured} ({interval[0]:.3g} to {interval[1]:.3g})"
        if interval
        else measured,
        "published": verdict["published"] or "–",
        "n": str(verdict["n"]),
        "at": verdict["where"] or "–",
    }


def published_columns(value: Mapping[str, Any]) -> dict[str, str]:
    """Format a published value as a row of a table."""
    where = ", ".join(str(part) for part in value["where"].values())
    return {
        "row": where,
        "metric": value["metric"],
        "value": f"{value['value']:g}",
        "source": value["source"],
    }


def image_name(experiment: str, figure: Path) -> str:
    """Return the name of a figure in docs/images.

    >>> image_name("zhou2019.zeros", Path("zhou2019.zeros.accuracy.png"))
    'zhou2019.zeros-accuracy.png'
    """
    return f"{experiment}-{figure.name.removeprefix(f'{experiment}.')}"


def title_of(experiment: str, figure: Path) -> str:
    """Return the title of a figure, by its file name."""
    suffix = figure.stem.removeprefix(f"{experiment}.")
    figures = EXPERIMENTS[experiment].figures
    return next((spec.title for spec in figures if f"{suffix}.".startswith(f"{spec.suffix}.")), suffix)


def sentences(texts: Sequence[str]) -> list[str]:
    """Return texts without their final full stops."""
    return [text.removesuffix(".") for text in texts]


if __name__ == "__main__":
    for path in main():
        print(path)
