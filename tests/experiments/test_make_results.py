"""docs/make_results.py writes a page of documentation for every file of docs/evidence."""

import re
import runpy
from pathlib import Path

import pytest

from prunus.experiments import EXPERIMENTS
from prunus.experiments.running import run_experiment
from prunus.runs.store import Store
from prunus.runs.transfer import export_runs

SCRIPT = Path(__file__).parents[2] / "docs" / "make_results.py"
SMALL = {
    "model": "tests.helpers.tiny_networks:mlp",
    "data": "digits",
    "examples": "85",
    "epochs": "2",
    "eval_every": "3",
}


@pytest.mark.parametrize(
    ("name", "settings"), [("hassibi1993.xor", {"networks": "3"}), ("zhou2019.signs", SMALL)]
)
def test_page_is_made_of_exported_rows(name, settings, tmp_path):
    store = tmp_path / "store"
    arguments = {"store": store, "executor": "inline", "settings": settings}
    result = run_experiment(EXPERIMENTS[name], "smoke", tmp_path / "out", replicates=2, **arguments)
    (tmp_path / "evidence").mkdir()
    export_runs(Store(store), tmp_path / "evidence" / f"{name}.jsonl")
    main = runpy.run_path(str(SCRIPT))["main"]
    (page,) = main(tmp_path)
    assert page == tmp_path / "results" / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {name}: ")
    assert EXPERIMENTS[name].question in text
    position = 0
    for line in result.text.splitlines():
        if line.startswith("| "):
            position = text.index(f"{line}\n", position)  # the tables with n and spread, in their order
    for claim in EXPERIMENTS[name].claims:
        assert f"| {claim.text} ({claim.source}) | no verdict (smoke size) |" in text
    settings_text = "".join(f" --set {key}={value}" for key, value in settings.items())
    assert re.search(rf"`prunus run {name} --smoke[^`]*{re.escape(settings_text)} --store store`", text)
    assert str(tmp_path) not in text
    for link in re.findall(r"\]\((\.\./[^)]+)\)", text):
        assert (page.parent / link).exists()
    assert len(re.findall(r"!\[", text)) == len(EXPERIMENTS[name].figures)
    first = text
    main(tmp_path)
    assert page.read_text(encoding="utf-8") == first


def test_page_names_all_files_of_its_rows(tmp_path):
    store = Store(tmp_path / "store")
    settings = {"networks": "3"}
    for replicates in (1, 2):
        run_experiment(
            EXPERIMENTS["hassibi1993.xor"], "smoke", tmp_path / "out", store=store.path, executor="inline",
            settings=settings, replicates=replicates,
        )  # fmt: skip
        (tmp_path / "evidence").mkdir(exist_ok=True)
        export_runs(store, tmp_path / "evidence" / f"rows-{replicates}.jsonl")
    (page,) = runpy.run_path(str(SCRIPT))["main"](tmp_path)
    expected = ", ".join(f"[rows-{n}.jsonl](../evidence/rows-{n}.jsonl)" for n in (1, 2))
    assert f"Rows of every run: {expected}. This page" in page.read_text(encoding="utf-8")
    assert f"| {expected} |" in (tmp_path / "results" / "README.md").read_text(encoding="utf-8")
