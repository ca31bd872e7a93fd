"""Liu et al. 2019: the paper's settings, the arms of a pruned network, the budget of Scratch-B, and the verdicts."""

import copy
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prunus.data import load_data
from prunus.errors import DensityError, NoEffectWarning, SpecError, UnknownNameError
from prunus.experiments import EXPERIMENTS, liu2019_pruned
from prunus.experiments.liu2019_methods import METHODS, PenalizedNetwork, train_penalized_network
from prunus.experiments.liu2019_pruned import (
    FINE_TUNED,
    SCRATCH_B,
    SCRATCH_E,
    TICKET,
    PrunedNetwork,
    recipe_of,
    removal_of,
    starting_network,
    train_pruned_network,
)
from prunus.experiments.running import draw_experiment, run_experiment
from prunus.pruning.structured.macs import count_macs
from prunus.pruning.weight_layers import layer_kinds
from prunus.runs.spec import code_digests
from prunus.runs.store import Store
from prunus.seeds import derive_seed
from prunus.tickets.ticket import make_outline
from prunus.training import Recipe, train

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

SETTINGS = {"data": "digits", "examples": "300", "batch_size": "30"}
SETTINGS |= {"model": "tiny_networks:normed_convolutions"}
TINY = PrunedNetwork(
    Recipe(2, 0.05, 30), "tiny_networks:normed_convolutions", "digits", 300, calibration_examples=60
)


def run(name, folder, **settings):
    return run_experiment(
        EXPERIMENTS[name], "smoke", folder / "out", store=folder / "store", executor="inline",
        settings=SETTINGS | settings,
    )  # fmt: skip


def full_specs(name, size="full"):
    return EXPERIMENTS[name].labeled_runs(size, [0], {})


def test_full_size_of_the_figure_has_the_settings_of_the_paper():
    recipe = Recipe(160, 0.1, 64, "sgd", 0.9, 1e-4, "steps", augmentation="flip_crop")
    runs = full_specs("liu2019.tickets")
    for label, ticket in runs:
        rate = float(label["curve"].rpartition(" ")[2])
        baseline = ticket.baseline
        assert baseline.recipe.replace(source="") == recipe.replace(learning_rate=rate)
        assert (baseline.data, baseline.examples, ticket.scope, ticket.criterion) == (
            "cifar-10", None, "global", "large_final",
        )  # fmt: skip
        network = make_outline(baseline.model)
        kinds = layer_kinds(network)
        pruned = set(ticket.weights_of(network))
        assert pruned == {name for name, kind in kinds.items() if kind == "conv"}
        assert len(kinds) - len(pruned) == 1
        assert len(pruned) == {"vgg-16": 13, "resnet-50": 49}[label["group"]]
        assert code_digests(ticket) == {}  # a change of the code of prunus is no other run
    assert {label["over"] for label, _ in runs} == {"iterative", "one-shot"}


@pytest.mark.parametrize("size", ["smoke", "default", "full"])
def test_every_ticket_has_a_control_with_its_masks_and_its_learning_rate(size):
    runs = full_specs("liu2019.tickets", size)
    assert len(runs) == 16
    for (label, ticket), (other, control) in zip(runs[::2], runs[1::2], strict=True):
        start, rate = label["curve"].split(", ")
        assert (start, other["curve"]) == ("winning ticket", f"random initialization, {rate}")
        assert label["over"] == other["over"]
        assert control == replace(ticket, mask1="reinitialize", masks_from=ticket)
        if label["over"] == "one-shot":
            assert ticket.trained_levels == tuple(range(2, ticket.rounds + 1))


def test_full_size_of_the_tables_has_the_settings_of_the_paper():
    by_group = {}
    for label, run in full_specs("liu2019.structures"):
        by_group.setdefault(label["group"], []).append((label, run.settings))
    assert {group: runs[0][1].model for group, runs in by_group.items()} == {
        "vgg": "vgg-16-bn-cifar", "resnet": "resnet-56", "preresnet": "preresnet-164", "densenet": "densenet-40",
    }  # fmt: skip
    penalties = {"vgg": 1e-4, "preresnet": 1e-5, "densenet": 1e-5}  # authors' code
    for group, runs in by_group.items():
        for label, settings in runs:
            assert settings.recipe.epochs == 160
            if label["curve"] == FINE_TUNED:
                assert (settings.finetune.epochs, settings.finetune.learning_rate) == (40, 1e-3)
                assert settings.finetune.lr_schedule == "constant"
            if label["over"] == "slimming":
                assert settings.penalty == penalties[group]
    assert {label["over"] for runs in by_group.values() for label, _ in runs} == set(METHODS)


def test_every_method_and_network_has_four_arms_from_one_large_network():
    for _, spec in full_specs("liu2019.structures", "default"):
        assert len({need.settings for need in spec.dependencies().values()}) <= 1
    groups = {}
    for label, spec in full_specs("liu2019.structures", "default"):
        groups.setdefault((label["group"], label["over"]), {})[label["curve"]] = spec
    for arms in groups.values():
        assert list(arms) == ["unpruned", FINE_TUNED, SCRATCH_E, SCRATCH_B]
        assert {arms[name].inputs for name in (FINE_TUNED, SCRATCH_E, SCRATCH_B)} == {(arms["unpruned"],)}
    large = {over: arms["unpruned"] for (group, over), arms in groups.items() if group == "vgg"}
    assert large["l1"] == large["thinet"] == large["regression"] != large["slimming"]


def test_random_filters_at_half_of_the_macs_are_the_runs_of_scratch_e():
    scratch = {
        spec for label, spec in full_specs("liu2019.structures", "default") if label["curve"] == SCRATCH_E
    }
    shared = [label for label, spec in full_specs("liu2019.filters", "default") if spec in scratch]
    assert {(label["group"], label["curve"]) for label in shared} == {
        (group, f"{schedule}random initialization, learning rate 0.1")
        for group in ("vgg", "resnet")
        for schedule in ("", "iterative ")
    }


@pytest.mark.parametrize(("kept_fraction", "epochs"), [(1.0, 160), (0.5, 320), (0.34, 471)])
def test_scratch_b_has_the_multiply_accumulates_of_the_large_training(kept_fraction, epochs):
    settings = PrunedNetwork(Recipe(160, 0.1, 64), arm=SCRATCH_B)
    assert recipe_of(settings, kept_fraction).epochs == epochs
    assert recipe_of(replace(settings, arm=SCRATCH_E), kept_fraction).epochs == 160
    assert recipe_of(replace(settings, arm=FINE_TUNED), kept_fraction).epochs == 40


def starting_weights(settings, data, method, arm):
    """The weights of the two convolutions that training starts from, and the kept channels of the first one."""
    settings, trained = replace(settings, method=method, arm=arm), settings.network(seed=99)
    remove = removal_of(settings, trained, data, {}, 0)
    small = starting_network(settings, trained, [remove], 0)
    assert small[3].weight.shape[1] == len(small[0].weight) < 8
    return small[0].weight.detach(), small[3].weight.detach(), small[1].weight.detach()


def rows_in(small, large):
    """Whether each filter is one of those of the large layer, in their order."""
    positions = [next((i for i, row in enumerate(large) if torch.equal(row, x)), -1) for x in small]
    return positions == sorted(set(positions)) and -1 not in positions


@pytest.mark.parametrize("method", ["l1", "regression"])
def test_arms_start_from_trained_original_and_new_weights_of_the_same_channels(method):
    data = load_data("digits").take(300, 100)
    first, second, scales = {}, {}, {}
    for arm in (FINE_TUNED, TICKET, SCRATCH_E, SCRATCH_B):
        first[arm], second[arm], scales[arm] = starting_weights(TINY, data, method, arm)
    trained, initial = TINY.network(99), TINY.network(derive_seed(0, "model"))
    assert rows_in(first[FINE_TUNED], trained[0].weight)
    assert rows_in(first[TICKET], initial[0].weight)
    rows = [i for i, row in enumerate(trained[0].weight) if (row == first[FINE_TUNED]).all((1, 2, 3)).any()]
    assert torch.equal(first[TICKET], initial[0].weight[rows])
    assert rows_in(second[FINE_TUNED], trained[3].weight[:, rows]) == (
        method == "l1"
    )  # regression refits them
    assert torch.equal(first[SCRATCH_E], first[SCRATCH_B])
    assert not rows_in(first[SCRATCH_E], initial[0].weight)
    assert scales[SCRATCH_E].eq(1).all()
    deviation = second[SCRATCH_E].std() * (second[SCRATCH_E][0].numel() / 2) ** 0.5
    assert 0.7 < deviation < 1.3  # Kaiming's of the small layer


def test_selected_blocks_are_those_with_the_smallest_factors():
    data, settings = load_data("digits").take(300, 100), replace(TINY, method="sss", macs=0.75)
    settings = replace(settings, model="tiny_networks:residual_blocks")
    trained = settings.network(99)
    factors = {"3.convolution": 0.5, "1.convolution": -0.1, "2.convolution": 0.0}
    small = removal_of(settings, trained, data, factors, 0)(settings.network(99))
    assert count_macs(small, data.train.inputs[:1]) <= 0.75 * count_macs(trained, data.train.inputs[:1])
    assert [hasattr(small[i].convolution, "weight") for i in (1, 2, 3)] == [True, False, True]
    with pytest.raises(DensityError, match=r"Expected to keep 0\.01 of the multiply-accumulates by removing"):
        removal_of(replace(settings, macs=0.01), trained, data, factors, 0)


def test_tables_are_run_end_to_end(tmp_path):
    result = run("liu2019.structures", tmp_path, methods="l1,slimming", **{"recipe.epochs": "3"})
    rows = {(row["curve"], row["over"]): row for row in result.content["rows"]}
    assert len(rows) == 8
    for method in ("l1", "slimming"):
        unpruned = rows["unpruned", method]["test accuracy"]
        for arm in (FINE_TUNED, SCRATCH_E, SCRATCH_B):
            row = rows[arm, method]
            assert row["change"] == pytest.approx(row["test accuracy"] - unpruned)
            assert 20 < row["MACs %"] <= 50
            assert row["epochs"] == {SCRATCH_E: 3, SCRATCH_B: round(300 / row["MACs %"])}.get(arm, 1)
    assert rows["unpruned", "l1"]["run"] != rows["unpruned", "slimming"]["run"]
    decided = {verdict["claim"]: verdict for verdict in result.content["verdicts"]}
    assert len(decided) == 2
    assert all(verdict["reason"] == "one replicate is not enough" for verdict in decided.values())


@pytest.mark.parametrize("arm", [TICKET, SCRATCH_E])
def test_iterative_removal_rewinds_and_trains_what_the_last_round_kept(arm, monkeypatch):
    settings = replace(TINY, arm=arm, macs=0.25, removal_rounds=2)
    data, large = settings.dataset(), settings.network(99)
    monkeypatch.setattr(PrunedNetwork, "load", lambda self, directory: copy.deepcopy(large))
    starts, train = [], liu2019_pruned.train

    def recorded_train(network, *args, **options):
        starts.append((count_macs(network, data.train.inputs[:1]), network[0].weight.detach().clone()))
        train(network, *args, **options)

    monkeypatch.setattr(liu2019_pruned, "train", recorded_train)
    (row,) = train_pruned_network(settings, 0, FinishedLarge())
    macs, initial = count_macs(large, data.train.inputs[:1]), settings.network(derive_seed(0, "model"))
    assert [0.25 < starts[0][0] / macs <= 0.5, 0 < starts[1][0] / macs <= 0.25] == [True, True]
    assert row["MACs %"] == pytest.approx(100 * starts[1][0] / macs)
    from_initial = rows_in(starts[0][1], initial[0].weight), rows_in(starts[1][1], initial[0].weight)
    assert from_initial == (True, arm == TICKET)
    (once,) = train_pruned_network(replace(settings, macs=0.5, removal_rounds=1), 0, FinishedLarge())
    assert (starts[2][0] == starts[0][0], torch.equal(starts[2][1], starts[0][1])) == (True, arm == TICKET)
    assert once["MACs %"] == pytest.approx(100 * starts[0][0] / macs)


class FinishedLarge:
    """The directory of a large network with a known accuracy."""

    def rows(self):
        return [{"test accuracy": 50.0}]


def test_iterative_curves_have_one_more_round_at_each_fraction_and_leave_the_runs_of_the_others():
    def runs_to(size):
        return {
            (label["curve"], label["kept MACs %"]): (
                run.settings.arm,
                run.settings.macs,
                run.settings.removal_rounds,
            )
            for label, run in full_specs("liu2019.filters", size)
            if label["kept MACs %"] < 100
        }

    for rate in ("0.1", "0.01"):
        for start, arm in (("winning ticket", TICKET), ("random initialization", SCRATCH_E)):
            curve = f"{start}, learning rate {rate}"
            for size, points in (("smoke", 1), ("default", 2), ("full", 2)):
                runs = runs_to(size)
                once = [(arm, 0.5, 1), (arm, 0.25, 1)][:points]
                assert [run for (name, _), run in runs.items() if name == curve] == once
                iterative = [run for (name, _), run in runs.items() if name == f"iterative {curve}"]
                assert iterative == [(arm, 0.5, 1), (arm, 0.25, 2)]


def test_filters_are_run_end_to_end_in_a_store_of_before_the_iterative_curves(tmp_path):
    experiment, store = EXPERIMENTS["liu2019.filters"], tmp_path / "store"

    def runs_of_before(template, size):
        return [
            run for run in experiment.runs(template, size) if not run[0]["curve"].startswith("iterative ")
        ]

    before = replace(experiment, runs=runs_of_before)
    run_experiment(before, "smoke", tmp_path, store=store, executor="inline", settings=SETTINGS)
    result = draw_experiment(experiment, Store(store), tmp_path / "drawn")
    assert [path.name for path in result.files if path.suffix == ".png"] == ["liu2019.filters.accuracy.png"]
    (figure,) = (path.read_text() for path in result.files if path.suffix == ".svg")
    assert "network normed convolutions; " in figure
    assert "training examples 300" in figure

    result = run("liu2019.filters", tmp_path)
    settings = [
        *result.content["size_differences"],
        *(line for line in figure.splitlines() if "epochs" in line),
    ]
    assert any("epochs 2" in line or "epochs 1" in line for line in settings)
    assert not any("finetune" in line or "penalty" in line for line in settings)
    points = {(row["curve"], row["kept MACs %"]) for row in result.content["rows"]}
    assert len(points) == 20
    for iterative in (False, True):
        kept_macs = {macs for curve, macs in points if curve.startswith("iterative ") == iterative}
        assert kept_macs == ({25.0, 50.0, 100.0} if iterative else {50.0, 100.0})
        figure = "iterative" if iterative else "accuracy"
        curves = {row.split(",")[0] for row in drawn_rows(tmp_path, figure)}
        assert {curve.startswith('"iterative ') for curve in curves} == {iterative}
    claims = [verdict["claim"] for verdict in result.content["verdicts"]]
    assert [claim.partition(" a ticket")[0] for claim in claims] == [
        "At the learning rate 0.1", "At the learning rate 0.01",
    ]  # fmt: skip


def test_setting_that_only_the_tables_use_is_warned_of_in_the_figure_of_filters():
    changes = {"finetune.epochs": "9"}
    with pytest.warns(NoEffectWarning, match=r"finetune.epochs=9 changes nothing in liu2019.filters"):
        EXPERIMENTS["liu2019.filters"].warn_of_no_effect("smoke", [0], changes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EXPERIMENTS["liu2019.structures"].warn_of_no_effect("smoke", [0], changes)


def drawn_rows(folder, figure):
    text = (folder / "out" / f"liu2019.filters.{figure}.csv").read_text(encoding="utf-8")
    return text.splitlines()[1:]


def test_figure_is_run_end_to_end(tmp_path):
    result = run("liu2019.tickets", tmp_path, exclude="7.weight")
    rows = result.content["rows"]
    assert {row["curve"] for row in rows} == {
        f"{start}, learning rate {rate}"
        for start in ("winning ticket", "random initialization")
        for rate in ("0.1", "0.01")
    }
    assert sorted({row["level"] for row in rows if row["over"] == "one-shot"}) == [0, 2]
    assert all(row.get("passed", True) for row in rows)
    assert len(result.content["verdicts"]) == 4


@pytest.mark.parametrize(
    ("settings", "error", "expected_message"),
    [
        ({"method": "magic"}, UnknownNameError, "Unknown method 'magic'"),
        ({"arm": "Scratch-C"}, SpecError, "got 'Scratch-C'"),
        ({"macs": 0.0}, SpecError, r"macs above 0 and at most 1, a fraction to keep, got 0\.0"),
        ({"macs": 40.0}, SpecError, r"got 40\.0"),
        ({"method": "sss", "removal_rounds": 2}, SpecError, "Expected removal_rounds=1 for the method sss"),
        ({"method": "slimming", "removal_rounds": 3}, SpecError, r"removal_rounds=1 .* got 3"),
    ],
)
def test_impossible_pruned_network_is_refused_before_its_large_network_is_trained(
    settings, error, expected_message
):
    with pytest.raises(error, match=expected_message):
        replace(TINY, **settings).run()


@pytest.mark.parametrize("rounds", [0, -1])
def test_rounds_below_one_are_refused_before_the_work(rounds):
    with pytest.raises(SpecError, match=f"Expected removal_rounds to be at least 1, got {rounds}"):
        replace(TINY, removal_rounds=rounds).run().cost()


def test_unknown_method_of_a_table_is_refused_before_the_work(tmp_path):
    with pytest.raises(UnknownNameError, match="Unknown method 'thinnet'; did you mean 'thinet'"):
        run("liu2019.structures", tmp_path, methods="l1,thinnet")
    assert not (tmp_path / "out").exists()


def test_table_without_a_method_is_refused_before_the_work(tmp_path):
    with pytest.raises(SpecError, match="at least one of the methods l1, thinet"):
        run("liu2019.structures", tmp_path, methods="")
    assert not (tmp_path / "out").exists()


def test_criterion_of_the_user_is_a_method_of_the_tables(tmp_path):
    methods = ("tiny_networks:largest_filters", "taylor")
    result = run("liu2019.structures", tmp_path, methods=",".join(methods))
    assert {row["over"] for row in result.content["rows"]} == set(methods)
    settings = replace(TINY, method=methods[0])
    assert list(code_digests(settings.run())) == ["tiny_networks:largest_filters", TINY.model]
    data, trained = settings.dataset(), settings.network(1)
    smaller = removal_of(settings, trained, data, {}, 0)(copy.deepcopy(trained))
    norms = smaller[0].weight.flatten(1).norm(dim=1)
    of_all = trained[0].weight.flatten(1).norm(dim=1).sort().values
    assert torch.allclose(norms.sort().values, of_all[: len(norms)])


def test_penalized_training_smooths_labels_as_others_do(tmp_path):
    smooth = TINY.recipe.replace(label_smoothing=0.2, epochs=1)
    settings = PenalizedNetwork(smooth, TINY.model, TINY.data, TINY.examples, "scales", 1e-12)
    penalized = train_penalized_network(settings, 0).tensors
    plain = settings.network(derive_seed(0, "model"))
    train(plain, settings.dataset(), smooth, seed=derive_seed(0, "dense"), backend="dense")
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(penalized[name], tensor, rtol=1e-4, atol=1e-5)
