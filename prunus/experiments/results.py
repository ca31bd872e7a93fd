"""The files of an experiment: numbers as JSON, a page as Markdown and HTML, figures as CSV, PNG, SVG and HTML."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.files import after_writing, create_folder, write_atomic
from prunus.report.figure_data import FigureData, to_csv
from prunus.report.figures import files_of, save_images, save_numbers
from prunus.report.interactive_figure import chart, render_with_script
from prunus.report.templating import load_template
from prunus.runs.content import Row


@dataclass(frozen=True)
class Result:
    """What an experiment found, and the files that contain and draw it."""

    name: str
    content: Mapping[str, Any]
    """What NAME.json contains."""
    text: str
    """The verdicts, the table and the comparisons as Markdown."""
    files: Sequence[Path]
    """The page first."""

    @property
    def table(self) -> Sequence[Row]:
        """The rows summarized over the replicates."""
        rows: Sequence[Row] = self.content["table"]
        return rows


def write_results(content: Mapping[str, Any], figures: Mapping[str, FigureData], out: Path) -> Result:
    """Write the files of an experiment; the numbers first.

    Args:
        content: What `prunus.experiments.page.describe` returned.
        figures: The figures by the part of their file names that follows the name of the experiment.
        out: The folder, which is created if it does not exist.

    Returns:
        The content, its text and the paths of all files.

    Raises:
        PrunusError: A file cannot be written, or a figure cannot be drawn; then the message names the files of
            numbers, which are complete.
    """
    name = content["experiment"]
    create_folder(out)
    paths = {out / f"{name}.{suffix}": figure for suffix, figure in figures.items()}
    page, numbers, document, comparisons = (
        out / f"{name}.{suffix}" for suffix in ("html", "json", "md", "comparisons.csv")
    )
    for path, figure in paths.items():
        save_numbers(path, figure)
    write_atomic(numbers, json.dumps(content, indent=1) + "\n")
    images = [(path.name, figure.title) for path, figure in paths.items()]
    text = _render("numbers.md", content, has_verdict_table=False)
    write_atomic(document, _render("experiment.md", content, images=images, has_verdict_table=True) + "\n")
    files = [numbers, document, *(file for path in paths for file in files_of(path))]
    if content["comparisons"]:
        write_atomic(comparisons, to_csv(content["comparisons"]))
        files.append(comparisons)
    with after_writing(*(file for file in files if file.suffix in (".json", ".md", ".csv"))):
        for path, figure in paths.items():
            save_images(path, figure)
    with after_writing(*files):
        charts = []
        for path, figure in paths.items():
            _, svg, _, table = files_of(path)
            charts.append(chart(figure, table.name, svg.read_text(encoding="utf-8")))
        names = [file.name for file in files]
        write_atomic(page, render_with_script("experiment.html", page=content, charts=charts, files=names))
    return Result(name, content, text, [page, *files])


def _render(template: str, content: Mapping[str, Any], **more: Any) -> str:
    """Render a template in Markdown, without the empty lines that its conditions leave."""
    return re.sub(r"\n{3,}", "\n\n", load_template(template).render(content, **more)).strip()


def merge_results(name: str, results: Sequence[Result]) -> Result:
    """Join the results of the experiments of a paper.

    Args:
        name: Name of the paper.
        results: The results of its experiments, in the order of the paper.

    Returns:
        A result whose content is that of each experiment by name, and whose text has a heading per experiment.
    """
    text = "\n\n".join(f"## {result.name}\n\n{result.text}" for result in results)
    content = {result.name: result.content for result in results}
    return Result(name, content, text, [file for result in results for file in result.files])
