"""The built-in names for shell completion, listed here so that completion does not import torch.

A test compares them with the registries.
"""

from collections.abc import Callable

NAMES: dict[str, tuple[str, ...]] = {
    kind: tuple(names.split())
    for kind, names in {
        "model": """
            lenet-300-100 lenet-5 conv-2 conv-4 conv-6 resnet-20 resnet-32 resnet-44 resnet-56 resnet-110
            preresnet-56 preresnet-110 preresnet-164 densenet-40 densenet-bc-100
            vgg-11 vgg-13 vgg-16 vgg-19 vgg-11-bn vgg-13-bn vgg-16-bn vgg-19-bn
            vgg-11-bn-cifar vgg-13-bn-cifar vgg-16-bn-cifar vgg-19-bn-cifar
            resnet-18 resnet-34 resnet-50 densenet-121 mobilenet-v2 vit-small
        """,
        "data set": "mnist fashion-mnist cifar-10 digits monks-1 monks-2 monks-3",
        "criterion": """
            magnitude large_final scaled_magnitude random wanda small_final large_init small_init
            large_init_large_final small_init_small_final magnitude_increase movement
            large_final_same_sign large_final_diff_sign magnitude_increase_same_sign magnitude_increase_diff_sign
            snip gradient grasp synflow obd obs sparse_gpt admm fisher full_obs obd_hutchinson
        """,
        "filter criterion": """
            l1 l2 bn_scale taylor geometric_median activation apoz thinet lasso obs obd_hutchinson random
        """,
        "scope": "layer global 2:4 4:8 1x4",
        "preset": """
            lenet-300-100 lenet-5 demo han2016-lenet-300-100 han2016-lenet-5 default cnn without-training
        """,
        "experiment": """
            lecun1990 hassibi1993 han2015 han2016
            frankle2019 zhou2019 frankle2020 renda2020 liu2019 speed families
            lecun1990.deletion lecun1990.prediction lecun1990.retraining lecun1990.generalization
            hassibi1993.xor hassibi1993.monks one_shot han2015.tradeoff han2015.tables
            han2016.tables han2016.kmeans_init han2016.sizes
            frankle2019.lenet frankle2019.conv frankle2019.curves frankle2019.one_shot
            frankle2019.learning_rates frankle2019.optimizers
            zhou2019.criteria zhou2019.criteria_iterative zhou2019.zeros zhou2019.zeros_iterative
            zhou2019.signs zhou2019.signs_iterative zhou2019.supermasks zhou2019.criterion_supermasks
            frankle2020.rewinding frankle2020.instability frankle2020.interpolation
            renda2020.retraining liu2019.tickets liu2019.filters liu2019.structures
            speed.filters_and_weights families.compression families.biases families.activations
        """,
        "executor": "inline processes ray slurm",
        "size": "smoke default full",
    }.items()
}


def completion(kind: str) -> Callable[[str], list[str]]:
    """Make a function for `typer.Option(autocompletion=...)` that completes a name.

    >>> completion("scope")("l")
    ['layer']
    """
    return lambda incomplete: [name for name in NAMES[kind] if name.startswith(incomplete)]
