"""Write docs/results/NAME.md, with its figures in docs/images, from every file of docs/evidence.

A file of docs/evidence is written by `prunus runs export STORE --out docs/evidence/NAME.jsonl`.
"""

import shutil
import tempfile
from pathlib import Path

from prunus.experiments import EXPERIMENTS
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


def write_page(docs: Path, evidence: str, result: Result, store: str) -> Path:
    """Copy the page of one experiment and its figures.

    Args:
        docs: The folder with the folders "results" and "images".
        evidence: Name of the file that its runs were read from.
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
    source = (
        f"Rows of every run: [{evidence}](../evidence/{evidence}). This page is written by `make results`."
    )
    page.write_text(f"{text.rstrip()}\n\n{source}\n", encoding="utf-8")
    return page


def image_name(experiment: str, figure: Path) -> str:
    """Return the name of a figure in docs/images.

    >>> image_name("zhou2019.zeros", Path("zhou2019.zeros.accuracy.png"))
    'zhou2019.zeros-accuracy.png'
    """
    return f"{experiment}-{figure.name.removeprefix(f'{experiment}.')}"


if __name__ == "__main__":
    for path in main():
        print(path)
