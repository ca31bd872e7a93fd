"""The experiment of supermasks: its runs, its networks, and the values in its table."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest

import prunus
from prunus.compression.container import pack
from prunus.data import load_data
from prunus.errors import ModelMismatchError, SpecError
from prunus.experiments.page import size_differences
from prunus.experiments.presets import NETWORKS
from prunus.experiments.provenance import run_settings
from prunus.experiments.running import run_experiment
from prunus.experiments.table import cell, table_of
from prunus.experiments.zhou2019_supermasks import (
    CONV_CURVES,
    CONVOLUTIONS,
    RAMANUJAN,
    REPORTED,
    SIGNED,
    criterion_supermasks,
    supermasks,
)
from prunus.runs.requests import Request, RequestedRun
from prunus.runs.settings import all_settings
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.tickets.export import load_trained_network
from prunus.tickets.supermask.learned_supermask import PUBLISHED, LearnedSupermaskSpec
from prunus.training import evaluate

SMALL = {
    "model": "tests.helpers.tiny_networks:mlp",
    "data": "digits",
    "examples": "85",
    "epochs": "2",
    "eval_every": "3",
}


@pytest.mark.parametrize("size", ["smoke", "default", "full"])
def test_every_published_value_belongs_to_a_run(size):
    entries = supermasks.labeled_runs(size, [0], {})
    made = {(label["group"], label["curve"]) for label, spec in entries if spec.kind != "function"}
    models = {ticket.baseline.model: key for key, ticket in NETWORKS.items()}
    published = {(models[of.partition(",")[0]], curve) for of, values in REPORTED.items() for curve in values}
    if size == "default":
        conv_only = {(network, curve) for network, curve in published if network != "lenet"}
        published -= {entry for entry in conv_only if entry[1] not in CONV_CURVES}
        assert {curve for network, curve in made if network == "conv-6"} == set(CONV_CURVES)
    assert published <= made
    assert len(made) == len([spec for _, spec in entries if spec.kind != "function"])
    files = {label["curve"] for label, spec in entries if spec.kind == "function"}
    assert files == {"learned + DWR, signs from a seed", "edge-popup", "signed supermask"}


def test_the_full_size_has_the_published_settings():
    entries = supermasks.labeled_runs("full", [0], {})
    runs = {(label["group"], label["curve"]): spec for label, spec in entries if spec.kind != "function"}
    for network in NETWORKS:
        learned = runs[network, "learned + DWR, signed constants"]
        assert learned.recipe == CONVOLUTIONS.get(network, PUBLISHED)
        assert (learned.mask.start, learned.samples, learned.baseline.examples) == (0.5, 10, None)
        assert runs[network, "edge-popup"].recipe == RAMANUJAN
        assert runs[network, "signed supermask"].recipe == SIGNED
        assert runs[network, "trained"] == learned.baseline


def test_scores_are_never_trained_for_longer_than_the_logits():
    for size in ("smoke", "default"):
        entries = supermasks.labeled_runs(size, [0], {"recipe.epochs": "2"})
        assert {spec.recipe.epochs for _, spec in entries if isinstance(spec, LearnedSupermaskSpec)} == {2}


@pytest.mark.parametrize(
    ("settings", "networks"),
    [
        ({"model": "tests.helpers.tiny_networks:mlp"}, ["lenet"]),
        ({"model": "tests.helpers.tiny_networks:mlp", "data": "cifar-10"}, ["lenet"]),
        ({"data": "fashion-mnist"}, ["lenet"]),
        ({"data": "mnist"}, ["lenet"]),
        ({"data": "cifar-10"}, ["conv-2", "conv-4", "conv-6"]),
        ({"baseline.data": "digits"}, ["lenet"]),
        ({"epochs": "2"}, list(NETWORKS)),
    ],
)
def test_networks_follow_from_model_and_data_settings(settings, networks):
    assert supermasks.networks_and_settings(settings) == (networks, settings)
    assert supermasks.networks_and_settings({"network": "conv-2,conv-4", **settings}) == (
        ["conv-2", "conv-4"],
        settings,
    )
    with pytest.raises(SpecError, match="names lenet twice"):
        supermasks.labeled_runs("smoke", [0], {"network": "lenet,lenet"})


@pytest.mark.filterwarnings("ignore::prunus.errors.NoEffectWarning")
def test_omitted_networks_are_reported(tmp_path):
    messages = []
    arguments = {"executor": "inline", "log": messages.append, "store": tmp_path / "store"}
    run_experiment(supermasks, "smoke", tmp_path / "a", settings=SMALL, **arguments)
    assert messages[0] == "on lenet alone; --set network=lenet,conv-2,conv-4,conv-6 selects others"
    messages.clear()
    result = run_experiment(
        supermasks, "smoke", tmp_path / "b", settings={**SMALL, "network": "conv-4,conv-6"}, **arguments
    )
    assert not any("alone" in line for line in messages)
    groups = [row["group"] for row in result.table]
    assert groups.count("conv-4") == groups.count("conv-6") == len(groups) / 2, (
        "though their runs are the same"
    )


def differences(experiment, size, settings):
    labeled = experiment.labeled_runs(size, [0], settings)
    curves = [(label["curve"], run_settings(all_settings(spec))) for label, spec in labeled]
    entries = tuple(RequestedRun(label, run_id(spec), {}) for label, spec in labeled)
    return size_differences(experiment, Request("", size, settings, entries), curves)


def test_page_describes_the_reduced_size_of_every_kind_of_mask():
    lines = differences(supermasks, "default", {"network": "lenet"})
    parts = [line.rpartition(": ") for line in lines]
    curves = {text: curves for curves, _, texts in parts for text in texts.split("; ")}
    some = [curves for curves, _, _ in parts if curves]
    assert len(some) == len(set(some)), "the differences of the same curves are one line"
    learned = curves["the scores' epochs 40 instead of 2000"]
    assert learned == curves["the scores' learning rate 0.1 instead of 100"]
    assert learned.startswith("learned, initial weights; learned")
    assert curves["the scores' epochs 40 instead of 100"] == "edge-popup; signed supermask"
    assert curves["the scores' learning rate 0.001 instead of 0.1"] == "edge-popup"
    smoke = differences(supermasks, "smoke", {"network": "lenet"})
    assert not any(line.startswith("trained") for line in smoke), "it has no scores"
    criteria = differences(criterion_supermasks, "default", {})
    assert criteria[-1].startswith("all runs have no other levels than 1, 2, 3, 4, 5, 6, 8,")
    assert not any("scores" in line for line in criteria)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The smoke size on digits with two replicates: the store, the runs, and the rows of the table by curve."""
    folder: Path = tmp_path_factory.mktemp("supermasks")
    store = folder / "store"
    result = run_experiment(
        supermasks, "smoke", folder / "out", replicates=2, store=store, executor="inline", settings=SMALL
    )
    printed = json.loads((folder / "out" / "zhou2019.supermasks.json").read_text())["table"]
    assert printed == list(result.table)
    return (
        Store(store),
        supermasks.labeled_runs("smoke", [0, 1], SMALL),
        {row["curve"]: row for row in printed},
    )


def runs_of(finished, curve):
    """The specs of a curve, each with its finished rows."""
    store, entries, _ = finished
    own_specs = [spec for label, spec in entries if label["curve"] == curve and spec.kind != "function"]
    return [(spec, store.directory(run_id(spec)).rows()) for spec in own_specs]


def test_row_is_the_mean_over_replicates_with_their_spread(finished):
    _, entries, table = finished
    assert list(table) == list(dict.fromkeys(label["curve"] for label, _ in entries))
    for curve, row in table.items():
        # of several levels, the one that is best on the validation split
        best = [
            max(
                (row for row in rows if row["level"] or curve == "trained"),
                key=lambda row: row["final_validation_accuracy"],
            )
            for _, rows in runs_of(finished, curve)
        ]
        accuracies = [row["final_test_accuracy"] for row in best]
        assert row["n"] == 2
        assert row["final_test_accuracy"] == pytest.approx(mean(accuracies))
        assert row["final_test_accuracy ±"] == pytest.approx(stdev(accuracies))
        assert row["density %"] == pytest.approx(100 * mean(row["density"] for row in best), abs=6e-3)
        density, sparsity = (float(cell(row, key)[0]) for key in ("density %", "sparsity %"))
        assert density + sparsity == pytest.approx(100, abs=1e-9), "as they are printed"
        assert "published final_test_accuracy" not in row, "nothing is published of this network"


def test_most_likely_mask_and_file_size_are_those_of_the_runs(finished, tmp_path):
    *_, table = finished
    for curve in ("learned + DWR, signs from a seed", "edge-popup", "signed supermask"):
        sizes, accuracies, densities = [], [], []
        for spec, (row,) in runs_of(finished, curve):
            model, generated, factors = load_trained_network(
                spec.baseline, finished[0].directory(run_id(spec))
            )
            sizes.append(len(pack(model.state_dict(), generated=generated, factors=factors)))
            prunus.save(model, tmp_path / "one.prunus", generated=generated, factors=factors)
            loaded = prunus.load(tmp_path / "one.prunus", into=spec.baseline.make_network())
            test = load_data("digits").take(85, 28).test
            accuracies.append(evaluate(loaded, test).accuracy)
            densities.append(row["most_likely_density"])
        assert table[curve]["test accuracy of the most likely mask (%)"] == pytest.approx(
            mean(accuracies), abs=1e-9
        )
        assert table[curve]["density % of the most likely mask"] == pytest.approx(
            100 * mean(densities), abs=6e-3
        )
        assert table[curve]["sparsity % of the most likely mask"] == pytest.approx(
            100 - 100 * mean(densities), abs=6e-3
        )
        assert table[curve]["file bytes"] == round(mean(sizes))
    for curve in (
        "trained",
        "criterion, initial weights",
        "learned, initial weights",
        "weights trained under the learned mask",
    ):
        assert table[curve]["file bytes"] == ""


def test_ticket_has_exactly_the_density_of_the_learned_mask(finished):
    *_, table = finished
    ticket_density = table["a ticket of the same density"]["density %"]
    assert ticket_density == table["weights trained under the learned mask"]["density %"]
    assert ticket_density == pytest.approx(
        table["learned + DWR, signed constants"]["density % of the most likely mask"], abs=6e-3
    )


@pytest.mark.parametrize("density", [8.012, 8.047, 4.237, 36.515, 0.3, 99.96])
def test_printed_density_and_sparsity_add_up(density):
    rows = [{"curve": "a", "replicate": 0, "density %": density}]
    (row,) = table_of(replace(supermasks, published=()), rows)
    assert sum(float(cell(row, f"{key} %")[0]) for key in ("density", "sparsity")) == pytest.approx(
        100, abs=1e-9
    )


def test_changed_model_is_named(finished):
    store, entries, _ = finished
    spec = next(spec for label, spec in entries if label["curve"] == "edge-popup")
    other = replace(spec.baseline, model="lenet-300-100")
    with pytest.raises(
        ModelMismatchError, match="Expected lenet-300-100 to make the network of the run, got another one"
    ):
        load_trained_network(other, store.directory(run_id(spec)))


def test_network_of_a_run_can_be_saved_and_loaded(finished, run_cli, tmp_path):
    store, entries, _ = finished
    file, test = tmp_path / "one.prunus", load_data("digits").take(85, 28).test
    seeded = 0
    networks = [entry for entry in entries if entry[1].kind != "function"]
    for label, spec in networks[: len(networks) // 2]:
        id = run_id(spec)
        arguments = ["runs", "save", id, file, "--store", store.path]
        if spec.kind == "criterion_supermask":
            messages = run_cli(*arguments, code=1).err
            assert messages == f"error: {id} has no network to write: runs of its kind store only numbers.\n"
            continue
        printed = json.loads(run_cli(*arguments, "--json", "--force").out)
        assert printed["run"] == prunus.inspect(file).metadata["run"] == id
        assert printed["bytes"] == file.stat().st_size
        row = store.directory(id).rows()[-1]
        accuracy = row.get("most_likely_final_test_accuracy", row["final_test_accuracy"])
        dense = spec if spec.kind == "baseline" else spec.baseline
        assert evaluate(prunus.load(file, into=dense.make_network()), test).accuracy == accuracy, label[
            "curve"
        ]
        if printed["generated"]:
            seeded += 1
            assert printed["bytes"] < 0.2 * sum(
                4 * weight.numel() for weight in dense.make_network().parameters()
            )
    assert seeded == 3
    messages = run_cli("runs", "save", id, file, "--store", store.path, code=1).err
    assert messages == f"error: {file} exists; pass --force to replace it, or name another file.\n"
    assert "parameters in" in run_cli("runs", "save", id, file, "--store", store.path, "--force").out


def test_criterion_has_one_name_over_all_weights(tmp_path):
    result = run_experiment(
        criterion_supermasks,
        "smoke",
        tmp_path / "out",
        store=tmp_path / "store",
        executor="inline",
        settings=SMALL,
    )
    table = {
        (row["over"], row["curve"], row["density %"]): row["final_test_accuracy"] for row in result.table
    }
    assert len(table) == len(result.table) == 2 * 3 * 4, "two kinds of weights, three criteria, four levels"
    printed = {}
    for suffix, weights in (("initial", "initial weights"), ("signed", "signed constants")):
        base = tmp_path / "out" / f"zhou2019.criterion_supermasks.{suffix}"
        names = re.findall(r"<!-- (\w+) \(n = 1\) -->", base.with_name(f"{base.name}.svg").read_text())
        assert names == ["large_final_same_sign", "large_final", "random"], "without words on the weights"
        with base.with_name(f"{base.name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        printed |= {(weights, row["name"], float(row["x"])): float(row["mean"]) for row in rows}
    assert printed == table
