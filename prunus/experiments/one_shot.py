"""One-shot pruning without retraining of a trained ResNet-20 on CIFAR-10, from magnitude to SparseGPT and ExactOBS.

All methods rank each layer alone, so that every layer has the same density; magnitude and the Fisher with several
recomputations also rank all weights together, and ExactOBS also distributes one density by the errors of the layers.

Source: the protocol is that of Frantar & Alistarh 2022: one shot, 1024 calibration examples, BatchNorm
recalibrated.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from prunus.data import load_data
from prunus.data.examples import Examples, sample_examples
from prunus.data.files import data_root
from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec, LabeledRuns, labeled
from prunus.experiments.function_run import FunctionRun, Output
from prunus.masks import all_kept, apply_masks
from prunus.models.loading import load_weights, make_model
from prunus.pruning.criteria import CRITERIA
from prunus.pruning.methods import CriterionMethod, pruning_method, with_options
from prunus.pruning.obs.densities import allocate_densities, error_curves, relative_error_curves
from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.obs.fisher import Fisher
from prunus.pruning.obs.objective import make_objective
from prunus.pruning.obs.sparse_gpt import SparseGpt
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.recalibrate import recalibrate_batchnorm
from prunus.pruning.scopes import SCOPES
from prunus.pruning.weights import with_weights
from prunus.runs.content import Row
from prunus.runs.directory import RunDirectory
from prunus.training import Recipe, evaluate, train
from prunus.types import Density, Params, numel_by_name

TRAINED = "resnet20-cifar10-jpeg.safetensors"
"""Weights in the data root, with a test accuracy of 88.30 %."""
RECIPE = Recipe(
    epochs=12, learning_rate=0.1, batch_size=128, optimizer="nesterov", momentum=0.9, weight_decay=1e-4,
    lr_schedule="cosine", augmentation="flip_crop",
    source="He et al. 2016, section 4.2, for 12 epochs with a cosine instead of 164 with steps",
)  # fmt: skip
EXACT_OBS, ALLOCATED, SPARSE_GPT = "ExactOBS", "ExactOBS, one budget", "SparseGPT"
MAGNITUDE, MAGNITUDE_GLOBAL = "magnitude", "magnitude, global"
OBD, FISHER = "OBD", "Fisher"
OBC, SGPT = "Frantar & Alistarh 2022", "Frantar & Alistarh 2023"

PruneTo = Callable[[float], Params]
"""Maps a density to the pruned weights."""


@dataclass(frozen=True)
class OneShot:
    """The settings of one group of methods."""

    kind: ClassVar[str] = "one-shot"

    recipe: Recipe = RECIPE
    """Of the network, where `weights` names no file."""
    weights: str = ""
    """A file in the data root."""
    model: str = "resnet-20"
    data: str = "cifar-10"
    examples: int | None = None
    """Training examples of the network; None means all."""
    sparsities: tuple[int, ...] = (60, 80)
    """In percent."""
    calibration_examples: int = 1024
    test_examples: int = 1000
    recomputations: int = 4
    """Of the Fisher, while weights are pruned."""
    methods: str = ""
    """A key of METHODS."""

    def network(self) -> nn.Module:
        """Make the network, with the weights of the file where there is one. Raises as `load_weights`."""
        model = make_model(self.model, 0)
        if self.weights:
            load_weights(model, data_root() / self.weights)
        return model

    def tensors_of_files(self) -> dict[str, Params]:
        """Return the tensors of the network by the name of its file, which alone is in the ID; none without a file."""
        has_file = self.weights and (data_root() / self.weights).exists()
        return {self.weights: self.network().state_dict()} if has_file else {}


def _template(_: str, size: str) -> FunctionRun:
    settings = OneShot(weights=TRAINED if (data_root() / TRAINED).exists() else "")
    if size == "smoke":
        settings = replace(
            settings, sparsities=(60,), calibration_examples=64, test_examples=200, recomputations=2, examples=1000,
            recipe=RECIPE.replace(epochs=1),
        )  # fmt: skip
    elif size == "full":
        sparsities = tuple(range(50, 100, 5))
        settings = replace(settings, sparsities=sparsities, test_examples=10_000, recomputations=16)
    return FunctionRun.of(accuracy_per_sparsity, settings)


def one_run_per_method(template: FunctionRun, size: str) -> LabeledRuns:
    """One run per group of methods, on calibration examples that differ by replicate, and on the same network.

    Args:
        template: The run of `accuracy_per_sparsity`, without its input and methods.
        size: "smoke", "default" or "full"; not used here, because the template has the settings of its size.

    Returns:
        One run per group of METHODS; its rows name their curves, one per method, in place of the group.
    """
    s = template.settings
    settings = OneShot(s.recipe, s.weights, s.model, s.data, s.examples)
    network = FunctionRun.of(trained_network, settings, replicate=None)
    return labeled({methods: template.changed(network, methods=methods) for methods in METHODS})


def trained_network(settings: OneShot, replicate: None) -> Output:
    """Load the trained network from the data root, or train it.

    Args:
        settings: The model, and the file of its weights, or the data and the recipe to train it with.
        replicate: None, because all replicates share the network.

    Returns:
        All tensors of the network, and no rows.

    Raises:
        ModelError: The file is missing or cannot be read.
        ModelMismatchError: The file has the weights of another model.
    """
    model = settings.network()
    if not settings.weights:
        data = load_data(settings.data)
        if settings.examples is not None:
            data = data.take(settings.examples, settings.examples // 10)
        train(model, data, settings.recipe, seed=0, backend="dense")
    return Output(tensors=model.state_dict())


def accuracy_per_sparsity(settings: OneShot, replicate: int, network: RunDirectory) -> list[Row]:
    """Prune to every sparsity, and measure the accuracy with and without recalibrating BatchNorm.

    Args:
        settings: The group of methods, the sparsities in percent, and the numbers of examples for calibration and test.
        replicate: Number of the replicate, the seed of the calibration examples and of ties.
        network: The finished run of `trained_network`.

    Returns:
        One row per method and sparsity: "curve", the method; "sparsity %"; and the test accuracies "as pruned",
        "recalibrated" and "dense accuracy" in percent.

    Raises:
        StoreError: The stored tensors of an input are missing or damaged.
    """
    data, model = load_data(settings.data), make_model(settings.model, 0)
    model.load_state_dict(network.load_tensors("tensors"))
    model.eval()
    test = data.test.take(settings.test_examples)
    dense = evaluate(model, test, backend="dense").accuracy
    calibration = sample_examples(data.train, settings.calibration_examples, replicate)
    rows: list[Row] = []
    for method, prune_to in METHODS[settings.methods](model, calibration, replicate, settings).items():
        for sparsity in settings.sparsities:
            pruned = with_weights(model, prune_to(1 - sparsity / 100))
            row: Row = {"curve": method, "sparsity %": sparsity}
            row["as pruned"] = evaluate(pruned, test, backend="dense").accuracy
            recalibrate_batchnorm(pruned, calibration.inputs)
            row["recalibrated"] = evaluate(pruned, test, backend="dense").accuracy
            rows.append({**row, "dense accuracy": dense})
    return rows


def _weights(model: nn.Module) -> Params:
    return {name: weight.detach() for name, weight in prunable_weights(model).items()}


def _magnitude(model: nn.Module, calibration: Examples, seed: int, settings: OneShot) -> dict[str, PruneTo]:
    """Magnitude, by layers and globally."""
    method, weights = CriterionMethod(CRITERIA["magnitude"]), _weights(model)

    def in_scope(scope: str) -> PruneTo:
        return lambda density: method.prune(model, weights, density, scope, seeds=(seed, seed)).weights

    return {MAGNITUDE: in_scope("layer"), MAGNITUDE_GLOBAL: in_scope("global")}


def _obd(model: nn.Module, calibration: Examples, seed: int, settings: OneShot) -> dict[str, PruneTo]:
    """Saliencies with the diagonal of the Fisher, which at a minimum is that of the Hessian and never negative."""
    weights = _weights(model)
    objective = make_objective(model, weights, calibration.inputs, calibration.labels)
    scores = Fisher(block_size=1).examiner(objective)(weights, all_kept(weights)).scores()
    return {OBD: lambda density: apply_masks(weights, SCOPES["layer"].select(scores, density, seed=seed))}


def _fisher(model: nn.Module, calibration: Examples, seed: int, settings: OneShot) -> dict[str, PruneTo]:
    """The blockwise Fisher, computed once and recomputed several times."""
    weights, examples = _weights(model), sample_examples(calibration, len(calibration), seed)

    def in_scope(scope: str, num_steps: int) -> PruneTo:
        prune = with_options(pruning_method("fisher"), num_steps=num_steps).prune
        return lambda density: prune(model, weights, density, scope, examples, seeds=(seed, seed)).weights

    recomputations = settings.recomputations
    return {
        FISHER: in_scope("layer", 1),
        f"Fisher, global, {recomputations} recomputations": in_scope("global", recomputations),
    }


def _layerwise(model: nn.Module, calibration: Examples, seed: int, settings: OneShot) -> dict[str, PruneTo]:
    """SparseGPT and ExactOBS, from the same Hessians for all densities."""
    weights = _weights(model)
    state = ExactObs().examiner(model, calibration.inputs)(weights, all_kept(weights))
    scores = state.scores()
    curves = relative_error_curves(error_curves(scores, state.masks), state.hessians, weights)
    prune_layers = SparseGpt().prune_layers

    def even(density: Density) -> Params:
        return state.prune_to(SCOPES["layer"].select(scores, density, seed=seed)).weights

    return {
        SPARSE_GPT: lambda density: (
            prune_layers(state.hessians, weights, density, SCOPES["layer"], seed=seed).weights
        ),
        EXACT_OBS: even,
        ALLOCATED: lambda density: even(allocate_densities(curves, numel_by_name(weights), density)),
    }


METHODS: dict[str, Callable[[nn.Module, Examples, int, OneShot], dict[str, PruneTo]]] = {
    "magnitude": _magnitude,
    OBD: _obd,
    FISHER: _fisher,
    "layer-wise": _layerwise,
}

one_shot = Experiment(
    name="one_shot",
    paper="Frantar & Alistarh 2022, \"Optimal Brain Compression\"; Frantar & Alistarh 2023, \"SparseGPT\"",
    title="ResNet-20 pruned in one shot, from magnitude to SparseGPT, with and without BatchNorm recalibration",
    question="Which method loses the least accuracy when a trained network is pruned once and not retrained?",
    template=_template,
    runs=one_run_per_method,
    figures=tuple(
        FigureSpec(
            key.replace(" ", "_"), key, "test accuracy (%)", f"Pruned in one shot: {key}", x="sparsity %",
            x_label="deleted weights (sparsity, %)",
        )
        for key in ("as pruned", "recalibrated")
    ),
    claims=tuple(
        Claim(
            f"At {sparsity} % sparsity and after recalibration, {method} is more accurate than {rival}",
            method, "higher", rival, "recalibrated", source, at={"sparsity %": (sparsity,)},
        )
        for sparsity in (60, 80)
        for method, source in (
            (EXACT_OBS, OBC), (ALLOCATED, OBC), (SPARSE_GPT, SGPT), (OBD, "LeCun et al. 1990"),
            (FISHER, "Singh & Alistarh 2020"),
        )
        for rival in (MAGNITUDE, MAGNITUDE_GLOBAL)
    ),
    differences=(
        "The papers prune ResNet-50 on ImageNet and language models; here it is ResNet-20 on CIFAR-10.",
        f"The network is {TRAINED} of the data root, or, where there is none, a ResNet-20 trained for 12 epochs; the "
        "size line says which.",
        "All replicates prune this one network, from calibration examples of their own. Intervals are about these "
        "examples, not about networks.",
    ),
    networks=("resnet-20",),
    against=MAGNITUDE,
    metrics=("as pruned", "recalibrated", "dense accuracy"),
    described=("recalibrated",),
    points=("sparsity %",),
    note="Test accuracy in percent. The spread is over calibration examples.",
    differs_by="calibration examples of one network",
    unused=lambda settings: ("epochs", "examples") if settings.get("weights") else (),
)  # fmt: skip
