"""Checks of Deep Compression before any work: the weights to compress, their bits, and a trial of the last steps."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.compression.container import EncodingConfig, encode_tensors
from prunus.compression.density_plan import planned_densities
from prunus.compression.presets import STAGES_TRAINED, TRAINING_SETTINGS, CompressionRecipe
from prunus.compression.quantization import quantize_weights
from prunus.compression.quantization.codebook import check_bits
from prunus.compression.quantization.kmeans_init import KMEANS_INITS
from prunus.data.validation import check_dataset
from prunus.errors import ModelError, NoEffectWarning, NoPrunableWeightsError, QuantizationError, SpecError
from prunus.masks import all_kept
from prunus.modules import check_initialized
from prunus.pruning.masks import check_finite
from prunus.pruning.methods import pruning_method
from prunus.pruning.prunable import DTYPES, grouped_by_reason, prunable_weights
from prunus.pruning.scopes import Global, Layer, parse_scope
from prunus.pruning.views import why_no_layer_inputs
from prunus.pruning.weight_layers import layer_kinds, weight_layers
from prunus.registry import lookup
from prunus.training.checks import check_model, check_trainable
from prunus.training.evaluation import evaluate
from prunus.training.losses import find_loss
from prunus.training.recipe_checks import check_recipe
from prunus.types import Dataset, Params

LAYER_KINDS = ("conv", "linear")
"""The kinds of layers for which a recipe may give bits."""

PRUNED_ENCODING = EncodingConfig(codec="bitpack", use_codebook=False)
"""The encoding of the pruned network."""

CODECS_BY_STAGE = {"quantized": "bitpack", "huffman": "huffman", "range": "range"}
"""The codec of each stage after pruning."""

TRAINING_ONLY = {*STAGES_TRAINED, *TRAINING_SETTINGS, "rounds", "schedule"}
"""Settings that have no effect without training."""

TRIAL_SAMPLE = 1_000
"""Entries per tensor that are quantized and encoded in the trial."""


def check_compressible(
    model: nn.Module,
    data: Dataset,
    recipe: CompressionRecipe,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    *,
    trains_by_recipe: bool = True,
    calibrates: bool = False,
    task: Mapping[str, Any] | None = None,
) -> Params:
    """Check everything that would make `compress` fail later, except what depends on trained weights.

    Nothing is changed. A sample of each tensor is quantized and encoded as a trial.

    Args:
        model, data, recipe, include, exclude: See `compress`.
        trains_by_recipe: Whether the recipes train the model; they are not checked otherwise.
        calibrates: Whether the output errors of the layers are used, as without training and in a search.
        task: The arguments forward, loss and metric of `evaluate`; None: all are None.

    Returns:
        The weights to compress, by name.

    Raises:
        PrunusError: See `compress`.
    """
    check_initialized(model)
    weights = weights_to_compress(model, include, exclude)
    if calibrates:
        _check_output_errors(model, weights)
    check_finite_state(model)
    trainings = (recipe.retrain, recipe.final_retrain, recipe.finetune) if trains_by_recipe else ()
    for training in trainings:
        check_recipe(training)
    pruning_method(recipe.criterion)
    lookup("initialization of k-means", KMEANS_INITS, recipe.kmeans_init)
    bits = check_bits(bits_by_name(model, list(weights), recipe.bits), list(weights))
    planned_densities(recipe, weights)
    _try_encoding(model, recipe, weights, bits)
    check_dataset(data, ("train", "validation"))
    forward, loss, metric = ((task or {}).get(name) for name in ("forward", "loss", "metric"))
    if metric is None:
        check_model(model, data, forward=forward, loss=find_loss(loss))
    else:
        evaluate(model, data.validation.take(2), forward=forward, loss=loss, metric=metric)
    for training in trainings:
        check_trainable(model, data, training, forward=forward, loss=find_loss(loss))
    return weights


def _check_output_errors(model: nn.Module, weights: Params) -> None:
    """Raise ModelError where the output error of a layer is not known, or its weight is computed from parameters."""
    layers = weight_layers(model)
    reasons = {
        name: f"its weight is computed by {layer.computed.function}"
        for name in weights
        if (layer := layers.get(name)) and layer.computed
    } | why_no_layer_inputs(model, weights)
    if reasons:
        raise ModelError(
            "Expected layers whose output errors are known for compression without training and for "
            f"max_accuracy_drop, got {grouped_by_reason(reasons)}; exclude them, remove their parametrization "
            "(torch.nn.utils.parametrize.remove_parametrizations), or train without a search."
        )


def check_options(
    recipe: CompressionRecipe,
    settings: Mapping[str, object],
    *,
    train: bool,
    training: Mapping[str, object],
    max_accuracy_drop: float | None,
    has_metric: bool = False,
) -> None:
    """Raise SpecError where an option has no effect, or contradicts another.

    Args:
        recipe: The recipe with the settings.
        settings: The settings that were changed, by name; None: not changed.
        train, max_accuracy_drop: See `compress`.
        training: The arguments of `compress` that have no effect without training, by name; None: not given. The
            backend is one of them where it is "sparse", which applies to retraining only.
        has_metric: Whether `max_accuracy_drop` is in units of a metric, which may be larger than 100.

    Raises:
        SpecError: An option has no effect without training, or fixes what is searched for.
    """
    changed = {name for name, value in {**settings, **training}.items() if value is not None}
    if not train and (unused := sorted(changed & {*TRAINING_ONLY, *training})):
        raise SpecError(
            f"Expected only options that have an effect without training, got {', '.join(unused)}; leave them out, or "
            "train."
        )
    if training.get("fit") is not None and (
        unused := sorted(changed & {*STAGES_TRAINED, *TRAINING_SETTINGS, "backend"})
    ):
        raise SpecError(
            f"Expected either fit, which trains in the place of the recipes, or settings of them, got fit and "
            f"{', '.join(unused)}; leave out one of them."
        )
    if max_accuracy_drop is None:
        return
    is_number = isinstance(max_accuracy_drop, int | float) and not isinstance(max_accuracy_drop, bool)
    highest = math.inf if has_metric else 100
    if not is_number or not 0 <= max_accuracy_drop <= highest:
        unit = "0 or more units of the metric" if has_metric else "0 to 100 percentage points"
        raise SpecError(
            f"Expected max_accuracy_drop to be {unit}, got {max_accuracy_drop!r}; use a value such as 1.0."
        )
    if "density" in changed:
        raise SpecError(
            f"Expected either max_accuracy_drop or a density, got {max_accuracy_drop} points and "
            f"{settings['density']}; leave one of them out."
        )
    if parse_scope(recipe.scope) not in (Layer(), Global()):
        raise SpecError(
            "Expected the scope layer or global with max_accuracy_drop, which chooses a density for each layer, "
            f"got {parse_scope(recipe.scope).name!r}; give a density instead."
        )


def check_finite_state(model: nn.Module) -> None:
    """Raise NonFiniteError where a parameter of `model` holds NaN or infinity; buffers, such as masks, may."""
    check_finite({n: t for n, t in model.named_parameters() if t.dtype in DTYPES}, "The tensor")


def weights_to_compress(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> Params:
    """Return the prunable weights that require a gradient, by name; a NoEffectWarning names the frozen ones.

    Args:
        model, include, exclude: See `prunable_weights`.

    Returns:
        The parameters to compress by name, at least one; they are not copied.

    Raises:
        NoPrunableWeightsError: The patterns select no weight, or all selected weights are frozen.
        TiedWeightsError, ModelError: See `prunable_weights`.
    """
    weights = prunable_weights(model, include, exclude)
    frozen = [name for name, weight in weights.items() if not weight.requires_grad]
    if len(frozen) == len(weights):
        raise NoPrunableWeightsError(
            f"Expected a weight to compress that is not frozen, but none has requires_grad = True, {frozen}; call "
            "model.requires_grad_(True) to compress them."
        )
    if frozen:
        warnings.warn(
            f"{frozen} have requires_grad=False and are neither pruned nor quantized.",
            NoEffectWarning,
            stacklevel=4,
        )
    return {name: weight for name, weight in weights.items() if name not in frozen}


def bits_by_name(model: nn.Module, names: Sequence[str], bits: int | Mapping[str, int]) -> dict[str, int]:
    """Return the bits of each tensor: by its own name, else by the kind of its layer ("conv", "linear").

    Args:
        model: The model whose layers have the kinds.
        names: Names of the weights to quantize.
        bits: One number for all, or numbers by name or kind.

    Returns:
        The bits of each of `names`, in that order; `check_bits` checks their range.

    Raises:
        QuantizationError: A key is neither a name nor a kind, or a weight has no bits.

    Example:
        >>> bits_by_name(nn.Sequential(nn.Linear(2, 2)), ["0.weight"], {"conv": 8, "linear": 5})
        {'0.weight': 5}
    """
    if not isinstance(bits, Mapping):
        return dict.fromkeys(names, bits)
    # A weight that is included by name, such as an embedding, has no kind of its own.
    kinds = dict.fromkeys(names, "linear") | layer_kinds(model)
    unknown = sorted(str(key) for key in bits if key not in names and key not in LAYER_KINDS)
    if unknown:
        raise QuantizationError(
            f"Expected bits by kind of layer ({', '.join(LAYER_KINDS)}) or by name of a weight to quantize, "
            f"{list(names)}, got bits for {unknown}; correct or remove these keys."
        )
    missing = [name for name in names if name not in bits and kinds[name] not in bits]
    if missing:
        raise QuantizationError(
            f"Expected bits for {missing[0]!r}, a {kinds[missing[0]]} weight, got {dict(bits)}; add them by name or "
            "by kind of layer."
        )
    return {name: bits[name if name in bits else kinds[name]] for name in names}


def stage_encodings(recipe: CompressionRecipe) -> dict[str, EncodingConfig]:
    """The encodings of the quantized network, by stage."""
    return {stage: replace(recipe.encoding, codec=codec) for stage, codec in CODECS_BY_STAGE.items()}


def _try_encoding(
    model: nn.Module, recipe: CompressionRecipe, weights: Params, bits: Mapping[str, int]
) -> None:
    """Quantize and encode samples of the tensors of `model`, so that errors come before the work."""
    state = {
        name: value.detach().flatten()[:TRIAL_SAMPLE]
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
        else value
        for name, value in model.state_dict().items()
    }
    samples = {name: weight.detach().flatten()[:TRIAL_SAMPLE] for name, weight in weights.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about samples mean nothing
        quantize_weights(samples, all_kept(samples), bits, recipe.kmeans_init)
    for encoded in encode_tensors(state, [PRUNED_ENCODING, *stage_encodings(recipe).values()]):
        encoded.to_bytes()
