"""The experiment of supermasks: the cells of the paper's table, on which networks, and what its rows say."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest

import prunus
from prunus.compression.container import pack
from prunus.compression.container.load import load
from prunus.errors import ModelMismatchError, SpecError
from prunus.experiments.page import level_differences, size_differences
from prunus.experiments.presets import NETWORKS
from prunus.experiments.results import cell
from prunus.experiments.running import run_experiment, table_of
from prunus.experiments.zhou2019_supermasks import (
    CONVOLUTIONS,
    RAMANUJAN,
    REPORTED,
    SIGNED,
    criterion_supermasks,
    supermasks,
)
from prunus.runs.requests import Request
from prunus.runs.settings import all_settings
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.tickets.export import load_trained_network
from prunus.tickets.supermask.learned_supermask import PUBLISHED, LearnedSupermaskSpec
from prunus.training import evaluate

SMALL = {"model": "tests.helpers.small:mlp", "data": "digits", "examples": "85", "epochs": "2", "every": "3"}


@pytest.mark.parametrize("size", ["smoke", "default", "full"])
def test_every_published_value_belongs_to_a_run(size):
    entries = supermasks.labeled_runs(size, [0], {})
    made = {(label["group"], label["curve"]) for label, spec in entries if spec.kind != "function"}
    models = {ticket.dense.model: key for key, ticket in NETWORKS.items()}
    published = {(models[of.partition(",")[0]], curve) for of, values in REPORTED.items() for curve in values}
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
        assert (learned.mask.start, learned.samples, learned.dense.examples) == (0.5, 10, None)
        assert runs[network, "edge-popup"].recipe == RAMANUJAN
        assert runs[network, "signed supermask"].recipe == SIGNED
        assert runs[network, "trained"] == learned.dense


def test_scores_are_never_trained_for_longer_than_the_logits():
    for size in ("smoke", "default"):
        entries = supermasks.labeled_runs(size, [0], {"recipe.epochs": "2"})
        assert {spec.recipe.epochs for _, spec in entries if isinstance(spec, LearnedSupermaskSpec)} == {2}


@pytest.mark.parametrize(
    ("own", "networks"),
    [
        ({"model": "tests.helpers.small:mlp"}, ["lenet"]),
        ({"model": "tests.helpers.small:mlp", "data": "cifar-10"}, ["lenet"]),
        ({"data": "fashion-mnist"}, ["lenet"]),
        ({"data": "mnist"}, ["lenet"]),
        ({"data": "cifar-10"}, ["conv-2", "conv-4", "conv-6"]),
        ({"dense.data": "digits"}, ["lenet"]),
        ({"epochs": "2"}, list(NETWORKS)),
    ],
)
def test_a_model_or_data_of_ones_own_asks_for_what_fits_it(own, networks):
    assert supermasks.networks_and_settings(own) == (networks, own)
    assert supermasks.networks_and_settings({"network": "conv-2,conv-4", **own}) == (
        ["conv-2", "conv-4"],
        own,
    )
    with pytest.raises(SpecError, match="names lenet twice"):
        supermasks.labeled_runs("smoke", [0], {"network": "lenet,lenet"})


@pytest.mark.filterwarnings("ignore::prunus.errors.NoEffectWarning")
def test_networks_that_are_left_out_are_said(tmp_path):
    said = []
    arguments = {"executor": "inline", "report": said.append, "store": tmp_path / "store"}
    run_experiment(supermasks, "smoke", tmp_path / "a", settings=SMALL, **arguments)
    assert said[0] == "on lenet alone; --set network=lenet,conv-2,conv-4,conv-6 selects others"
    said.clear()
    result = run_experiment(
        supermasks, "smoke", tmp_path / "b", settings={**SMALL, "network": "conv-4,conv-6"}, **arguments
    )
    assert not any("alone" in line for line in said)
    groups = [row["group"] for row in result.table]
    assert groups.count("conv-4") == groups.count("conv-6") == len(groups) / 2, (
        "though their runs are the same"
    )


def test_the_page_says_how_every_kind_of_mask_is_shortened(tmp_path):
    store = Store(tmp_path)
    lines = size_differences(supermasks, store, Request("", "default", {"network": "lenet"}, ()))
    (learned,) = (line for line in lines if line.startswith("learned, initial weights; "))
    (popup,) = (line for line in lines if line.startswith("edge-popup: "))
    (signed,) = (line for line in lines if line.startswith("signed supermask: "))
    assert "the scores' epochs 40 instead of 2000, the scores' learning rate 0.1 instead of 100" in learned
    assert "the scores' epochs 40 instead of 100, the scores' learning rate 0.001 instead of 0.1" in popup
    assert signed == "signed supermask: the scores' epochs 40 instead of 100"
    smoke = size_differences(supermasks, store, Request("", "smoke", {"network": "lenet"}, ()))
    assert not any(line.startswith("trained") for line in smoke), "it has no scores"
    specs = [all_settings(spec) for _, spec in criterion_supermasks.labeled_runs("default", [0], {})]
    assert level_differences(specs)[-1].startswith("levels 1, 2, 3, 4, 5, 6, 8,")
    criteria = size_differences(criterion_supermasks, store, Request("", "default", {}, ()))
    assert not any("scores" in line for line in criteria)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The smoke size on digits, two replicates: the store, the entries, and the rows of the table by their curve."""
    folder: Path = tmp_path_factory.mktemp("supermasks")
    store = folder / "store"
    result = run_experiment(
        supermasks, "smoke", folder / "out", replicates=2, store=store, executor="inline", settings=SMALL
    )
    told = json.loads((folder / "out" / "zhou2019.supermasks.json").read_text())["table"]
    assert told == list(result.table)
    return Store(store), supermasks.labeled_runs("smoke", [0, 1], SMALL), {row["curve"]: row for row in told}


def runs_of(drawn, curve):
    """The finished rows of a curve, a list a replicate, and their specs."""
    store, entries, _ = drawn
    mine = [spec for label, spec in entries if label["curve"] == curve and spec.kind != "function"]
    return [(spec, store.directory(run_id(spec)).rows()) for spec in mine]


def test_a_row_is_the_mean_of_the_replicates_with_their_spread(drawn):
    _, entries, table = drawn
    assert list(table) == list(dict.fromkeys(label["curve"] for label, _ in entries))
    for curve, row in table.items():
        # of several levels, the one that is best on the validation split; the dense network is nobody's level
        best = [
            max(
                (one for one in rows if one["level"] or curve == "trained"),
                key=lambda one: one["final_validation_accuracy"],
            )
            for _, rows in runs_of(drawn, curve)
        ]
        accuracies = [one["final_test_accuracy"] for one in best]
        assert row["n"] == 2
        assert row["final_test_accuracy"] == pytest.approx(mean(accuracies))
        assert row["final_test_accuracy ±"] == pytest.approx(stdev(accuracies))
        assert row["density %"] == pytest.approx(100 * mean(one["density"] for one in best), abs=6e-3)
        kept, holes = (float(cell(row, key)[0]) for key in ("density %", "sparsity %"))
        assert kept + holes == pytest.approx(100, abs=1e-9), "as they are printed"
        assert "published final_test_accuracy" not in row, "nothing is published of this network"


def test_the_likely_mask_and_the_file_are_those_of_the_runs(drawn, tmp_path):
    *_, table = drawn
    for curve in ("learned + DWR, signs from a seed", "edge-popup", "signed supermask"):
        sizes, accuracies, densities = [], [], []
        for spec, (row,) in runs_of(drawn, curve):
            model, generated, factors = load_trained_network(spec, drawn[0].directory(run_id(spec)))
            sizes.append(len(pack(model.state_dict(), generated=generated, factors=factors)))
            prunus.save(model, tmp_path / "one.prunus", generated=generated, factors=factors)
            loaded = prunus.load(tmp_path / "one.prunus", into=spec.dense.network())
            test = load("digits").take(85, 28).test
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


def test_the_ticket_beside_a_learned_mask_is_exactly_as_dense(drawn):
    *_, table = drawn
    beside = table["a ticket of the same density"]["density %"]
    assert beside == table["weights trained under the learned mask"]["density %"]
    assert beside == pytest.approx(
        table["learned + DWR, signed constants"]["density % of the most likely mask"], abs=6e-3
    )


@pytest.mark.parametrize("density", [8.012, 8.047, 4.237, 36.515, 0.3, 99.96])
def test_a_density_and_its_sparsity_add_up_as_they_are_printed(density):
    rows = [{"curve": "a", "replicate": 0, "density %": density}]
    (row,) = table_of(replace(supermasks, published=()), rows)
    assert sum(float(cell(row, f"{key} %")[0]) for key in ("density", "sparsity")) == pytest.approx(
        100, abs=1e-9
    )


def test_a_model_that_has_changed_is_named(drawn):
    store, entries, _ = drawn
    spec = next(spec for label, spec in entries if label["curve"] == "edge-popup")
    other = replace(spec, dense=replace(spec.dense, model="lenet-300-100"))
    with pytest.raises(
        ModelMismatchError, match="lenet-300-100 does not make the network that the run ended with"
    ):
        load_trained_network(other, store.directory(run_id(spec)))


def test_the_network_of_a_run_is_a_file_that_works(drawn, called, tmp_path):
    store, entries, _ = drawn
    file, test = tmp_path / "one.prunus", load("digits").take(85, 28).test
    seeded = 0
    networks = [entry for entry in entries if entry[1].kind != "function"]
    for label, spec in networks[: len(networks) // 2]:
        id = run_id(spec)
        arguments = ["runs", "save", id, file, "--store", store.path]
        if spec.kind == "found":
            said = called(*arguments, code=1).err
            assert (
                said == f"error: {id} has no network to write: the result of a run of its kind is numbers.\n"
            )
            continue
        told = json.loads(called(*arguments, "--json", "--force").out)
        assert told["run"] == prunus.inspect(file).made["run"] == id
        assert told["bytes"] == file.stat().st_size
        row = store.directory(id).rows()[-1]
        accuracy = row.get("most_likely_final_test_accuracy", row["final_test_accuracy"])
        dense = spec if spec.kind == "dense" else spec.dense
        assert evaluate(prunus.load(file, into=dense.network()), test).accuracy == accuracy, label["curve"]
        if told["generated"]:
            seeded += 1
            assert told["bytes"] < 0.2 * sum(4 * weight.numel() for weight in dense.network().parameters())
    assert seeded == 3
    said = called("runs", "save", id, file, "--store", store.path, code=1).err
    assert said == f"error: {file} exists; pass --force to replace it, or name another file.\n"
    assert "parameters in" in called("runs", "save", id, file, "--store", store.path, "--force").out


def test_a_criterion_looks_the_same_over_all_weights(tmp_path):
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
    told = {}
    for suffix, weights in (("initial", "initial weights"), ("signed", "signed constants")):
        base = tmp_path / "out" / f"zhou2019.criterion_supermasks.{suffix}"
        names = re.findall(r"<!-- (\w+) \(n = 1\) -->", base.with_name(f"{base.name}.svg").read_text())
        assert names == ["large_final_same_sign", "large_final", "random"], "without words on the weights"
        with base.with_name(f"{base.name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        told |= {(weights, row["name"], float(row["x"])): float(row["mean"]) for row in rows}
    assert told == table
