"""The statements of the literature that prunus tests, and the claims of experiments that are their parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALL_CLAIMS = ("",)
"""Every text begins with it."""


@dataclass(frozen=True)
class Statement:
    """A statement of the literature, and the claims of experiments that are its parts."""

    number: int
    text: str
    parts: Mapping[str, Sequence[str]]
    """For each experiment, the words that the texts of its claims begin with."""


STATEMENTS = (
    Statement(
        1, "Pruning costs nothing up to about 2 times fewer weights without retraining, up to far fewer with "
        "retraining and to still fewer when it is iterated; with retraining L2 beats L1, without it L1 beats L2.",
        {"han2015.tradeoff": ("Half", "With", "At", "Iterative pruning loses")},
    ),
    Statement(
        2, "Iterative pruning reaches a higher sparsity than pruning once.",
        {"han2015.tradeoff": ("Iterative pruning reaches",), "frankle2019.one_shot": ("Iterative",)},
    ),
    Statement(
        3, "Second-order methods beat magnitude, without retraining and after it.",
        {
            "lecun1990.deletion": ("OBD increases the error less than magnitude",),
            "one_shot": ("At",),
            "lecun1990.retraining": ("With retraining, OBD",),
            "hassibi1993.xor": ("OBS deletes the cheapest weight more often than magnitude",),
            "hassibi1993.monks": ("OBS keeps fewer weights than magnitude",),
        },
    ),
    Statement(
        4, "Deep Compression makes networks 9 to 13 times smaller by pruning, 27 to 31 times with quantization added, "
        "and 35 to 49 times with Huffman coding added, without loss of accuracy.",
        {"han2015.tables": ALL_CLAIMS, "han2016.tables": ("After", "The compressed network")},
    ),
    Statement(
        5, "A winning ticket trains as well as the dense network and stops as early as claimed; a random "
        "reinitialization does not.",
        {"frankle2019.lenet": ALL_CLAIMS, "frankle2019.conv": ALL_CLAIMS},
    ),
    Statement(6, "Zeros matter: the value of pruned weights decides the accuracy.", {"zhou2019.zeros": ALL_CLAIMS}),
    Statement(7, "Signs matter: the signs of initial weights suffice.", {"zhou2019.signs": ALL_CLAIMS}),
    Statement(
        8, "Masks alone work: a mask over weights that are not trained makes an accurate network.",
        {"zhou2019.supermasks": ("A mask of a criterion", "Signed constants", "A learned mask is")},
    ),
    Statement(
        9, "Learned masks with dynamic weight rescaling come near training.",
        {"zhou2019.supermasks": ("A learned mask with",)},
    ),
    Statement(
        10, "At a learning rate of 0.1 winning tickets gain nothing over a random initialization; at 0.01 they do, but "
        "both end lower.",
        {"liu2019.tickets": ALL_CLAIMS},
    ),
    Statement(
        11, "The structure of a network of fewer filters matters, not the weights that it inherits.",
        {"liu2019.filters": ALL_CLAIMS, "liu2019.structures": ALL_CLAIMS},
    ),
    Statement(
        12, "A pruned network generalizes better and needs fewer examples.", {"lecun1990.generalization": ALL_CLAIMS}
    ),
    Statement(
        13, "Filter pruning is faster without a sparse library; weight pruning is not, until a kernel is made for it.",
        {"speed.filters_and_weights": ALL_CLAIMS},
    ),
    Statement(
        14, "Without loss of accuracy, pruning and its combination with quantization give smaller files than low rank, "
        "quantization alone, a smaller dense network and distillation into it.",
        {"families.compression": ALL_CLAIMS},
    ),
    Statement(
        15, "Biases are few and decisive: pruning them costs more error per parameter than pruning weights.",
        {"families.biases": ALL_CLAIMS},
    ),
    Statement(
        16, "ReLU makes activations sparse, and pruning weights changes how sparse they are.",
        {"families.activations": ALL_CLAIMS},
    ),
)  # fmt: skip
