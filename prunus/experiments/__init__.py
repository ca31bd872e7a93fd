"""Experiments: figures and tables of papers, by name; all run and drawn by `run_experiment` and `draw_experiment`."""

from collections.abc import Iterator, Mapping
from importlib import import_module

from prunus.experiments.experiment import Experiment

__all__ = ["EXPERIMENTS", "PAPERS", "Experiment", "experiments_of"]

_MODULES = {
    "lecun1990": ("deletion", "prediction", "retraining"),
    "lecun1990_generalization": ("generalization",),
    "hassibi1993": ("xor", "monks"),
    "one_shot": ("one_shot",),
    "han2015": ("tradeoff", "tables"),
    "han2016": ("tables", "kmeans_init", "sizes"),
    "frankle2019": ("lenet", "conv", "curves", "one_shot", "learning_rates", "optimizers"),
    "zhou2019": (
        "criteria", "criteria_iterative", "zeros", "zeros_iterative", "signs", "signs_iterative",
    ),
    "zhou2019_supermasks": ("supermasks", "criterion_supermasks"),
    "frankle2020": ("rewinding", "instability", "interpolation"),
    "renda2020": ("retraining",),
    "liu2019": ("tickets",),
    "liu2019_structures": ("filters", "structures"),
    "speed": ("filters_and_weights",),
    "families_compression": ("compression",),
    "families_biases": ("biases",),
    "families_activations": ("activations",),
}  # fmt: skip
"""The experiments of each module. Their names are PAPER.EXPERIMENT, or SUBJECT.EXPERIMENT where several papers ask."""


class _Experiments(Mapping[str, Experiment]):
    """All experiments by name; the module of one is imported when it is looked up."""

    def __init__(self) -> None:
        self._places = {
            "one_shot" if module == "one_shot" else f"{module.partition('_')[0]}.{name}": (module, name)
            for module, names in _MODULES.items()
            for name in names
        }

    def __getitem__(self, name: str) -> Experiment:
        module, attribute = self._places[name]
        experiment: Experiment = getattr(import_module(f"prunus.experiments.{module}"), attribute)
        return experiment

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


EXPERIMENTS: Mapping[str, Experiment] = _Experiments()

PAPERS = tuple(dict.fromkeys(name.partition(".")[0] for name in EXPERIMENTS if "." in name))
"""Names that stand for all experiments of a paper or of a subject."""


def experiments_of(name: str) -> list[str]:
    """Return the names of the experiments of a paper, in the paper's order; of an experiment, its own name.

    >>> experiments_of("han2015"), experiments_of("han2015.tables")
    (['han2015.tradeoff', 'han2015.tables'], ['han2015.tables'])
    """
    return [each for each in EXPERIMENTS if name in (each, each.partition(".")[0])]
