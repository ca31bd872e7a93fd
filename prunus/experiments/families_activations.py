"""How sparse ReLU makes activations, and whether pruning makes them sparser."""

from collections.abc import Sequence

from prunus.experiments.claims import Claim
from prunus.experiments.experiment import Experiment, FigureSpec, labeled
from prunus.experiments.function_run import FunctionRun
from prunus.experiments.han2015 import PAPER
from prunus.experiments.lecun1990_generalization import PrunedBesideDense, prune_beside_dense
from prunus.experiments.trained_networks import LENETS
from prunus.runs.content import Row


def zeros_of_layers(rows: Sequence[Row]) -> list[Row]:
    """Make a row of each layer: one curve per layer whose inputs are activations.

    Args:
        rows: The rows of `prune_beside_dense`.

    Returns:
        Rows with "zeros %" and, of the dense network trained as long, "dense zeros %"; and "zeros added", the
        difference.
    """
    result = []
    for row in rows:
        for key in (key for key in row if key.startswith("zeros in ")):
            layer = key.removeprefix("zeros in ").removesuffix(" %")
            zeros, dense = row[key], row[f"dense {key}"]
            columns = {"curve": f"inputs of {layer}", "zeros %": zeros, "dense zeros %": dense}
            result.append({**row, **columns, "zeros added": zeros - dense})
    return result


def _claims(layer: str, published: str, networks: Sequence[str] = LENETS) -> tuple[Claim, Claim]:
    of, source = f"the inputs of {layer}, which follow a ReLU,", "Han et al. 2015"
    return (
        Claim(
            f"In the dense network, more than half of {of} are zero", f"inputs of {layer}", "higher", 50.0, "zeros %",
            source, at={"density %": (100.0,)}, networks=networks,
        ),
        Claim(
            f"Pruning makes {of} sparser than training the dense network as long", f"inputs of {layer}", "higher", 0.0,
            "zeros added", source, at={"density %": (20.0, 10.0, 5.0)}, published=published, networks=networks,
        ),
    )  # fmt: skip


activations = Experiment(
    name="families.activations",
    paper=PAPER,
    place="Tables 2 and 3",
    title="Zeros among the activations, against the density of the weights",
    question="Does ReLU make activations sparse, and does pruning weights make them sparser?",
    template=lambda model, size: FunctionRun.of(prune_beside_dense, PrunedBesideDense.of_size(model, size)),
    runs=lambda template, size: labeled({template.settings.model: template}),
    figures=(
        FigureSpec(
            "zeros", "zeros %", "zeros among the inputs (%)", "Zeros among the inputs of each layer",
            point="density %", select=zeros_of_layers,
        ),
        FigureSpec(
            "added", "zeros added", "zeros, more than in the dense network (pp)",
            "How many more inputs are zero than in a dense network trained as long",
            point="density %", select=zeros_of_layers,
        ),
    ),
    claims=(
        *_claims("fc2", "62 % zeros in LeNet-300-100, 45 % in LeNet-5, at density 8 %"),
        *_claims("fc3", "35 % zeros at density 8 %", networks=("lenet-300-100",)),
    ),
    differences=(
        "There are 20,000 training examples; weights are pruned by magnitude, in rounds with retraining, and beside "
        "each pruned network the dense one is trained for as many steps.",
        "Only fc1 of LeNet-5 is followed by a ReLU, as in Caffe; its convolutions are not.",
    ),
    networks=LENETS,
    metrics=("zeros %", "dense zeros %", "zeros added", "test error %"),
    points=("density %",),
    select=zeros_of_layers,
    note="Zeros are counted where a layer reads its inputs, on 1,000 validation examples; those of the image are left "
    "out. The dense zeros are those of the dense network trained as long.",
)  # fmt: skip
