"""What `compress` and `demo` do: train where need be, compress, save, load the file back, look once at the
test split, write the page, and print what came of it."""

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prunus.cli.files import check_writable
from prunus.cli.networks import check_fit
from prunus.cli.progress import epochs, total
from prunus.cli.show import put, put_json, put_table, say
from prunus.compression.container import Inspection, inspect, load
from prunus.compression.deep_compression import Compressed, bits_by_name, deep_compress, reachable
from prunus.compression.recipes import CompressionRecipe
from prunus.compression.save import save
from prunus.errors import CorruptError, PrunusError
from prunus.nouns import Dataset
from prunus.pruning.masks import densities_by_name
from prunus.pruning.prunable import coverage, describe_skipped, prunable
from prunus.report import text
from prunus.report.page import write_page
from prunus.report.stages import on_disk, sizes
from prunus.seeds import derive
from prunus.training import Evaluation, train
from prunus.training import evaluate as measure


@dataclass(frozen=True)
class Job:
    """One network to compress, and where the file and the page go."""

    title: str
    model: nn.Module
    trained: bool
    data: Dataset
    recipe: CompressionRecipe
    out: Path
    page: Path
    seed: int = 0
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    checkpoints: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a job. The tests are of the network before, and of the one in the file."""

    job: Job
    compressed: Compressed
    inspection: Inspection
    dense_test: Evaluation
    test: Evaluation
    seconds: float

    def to_json(self) -> dict[str, object]:
        """The same as JSON has it; errors in percent."""
        return {
            "file": str(self.job.out),
            "page": str(self.job.page),
            "file_bytes": self.inspection.file_bytes,
            "original_bytes": self.inspection.original_bytes,
            "ratio": self.inspection.ratio,
            "density": self.compressed.density,
            "coverage": coverage(self.job.model, self.compressed.skipped),
            "dense_test_error": self.dense_test.error,
            "test_error": self.test.error,
            "n": self.test.n,
            "seconds": self.seconds,
            "stages": [
                {"name": s.name, "bytes": s.bytes, "kept": s.kept, "validation_error": s.validation.error}
                for s in on_disk(self.compressed, self.inspection)
            ],
        }


def carry_out(job: Job) -> Outcome:
    """Do it. Raises before the work what can be known before it."""
    began = time.perf_counter()
    rounds = _check(job)
    model = copy.deepcopy(job.model)
    with epochs(total(job.recipe, rounds, train=not job.trained)) as report:
        if not job.trained:
            train(
                model,
                job.data,
                job.recipe.dense,
                seed=derive(job.seed, "dense"),
                checkpoint=job.checkpoints / "dense.safetensors" if job.checkpoints else None,
                report=lambda epoch: report("dense", epoch),
            )
        compressed = deep_compress(
            model,
            job.data,
            job.recipe,
            include=job.include,
            exclude=job.exclude,
            seed=job.seed,
            checkpoints=job.checkpoints,
            report=report,
        )
    save(compressed, job.out, made={"data": job.data.name})
    again = _load_back(job, compressed)
    dense_test, test = measure(model, job.data.test), measure(again, job.data.test)
    seconds = time.perf_counter() - began
    outcome = Outcome(job, compressed, inspect(job.out), dense_test, test, seconds)
    write_page(
        job.page,
        compressed,
        outcome.inspection,
        title=job.title,
        dense_test=dense_test,
        test=test,
        seconds=seconds,
        provenance=job.data.provenance,
    )
    return outcome


def _check(job: Job) -> int:
    """The rounds of pruning, after saying what will be pruned; raises what would otherwise be raised late."""
    if job.page == job.out:
        raise PrunusError(f"{job.out} would be both the file and its page; name another with --page.")
    check_writable(job.out)
    check_writable(job.page)
    check_fit(job.model, job.data)
    weights = prunable(job.model, job.include, job.exclude)
    densities = densities_by_name(job.recipe.density, list(weights))
    rounds = len(reachable(job.recipe, weights))
    bits = bits_by_name(job.model, list(weights), job.recipe.bits)
    together = job.recipe.scope == "global"
    for name, weight in weights.items():
        shape, to = " × ".join(map(str, weight.shape)), "" if together else f" to density {densities[name]:g}"
        say(f"will prune {name} ({shape}){to}, and share it in {bits[name]} bits")
    if together:
        say(f"will rank them together, to density {job.recipe.density:g} of all")
    whole = [name for name, _ in job.model.named_parameters() if name not in weights]
    if whole:
        say(f"will keep whole: {', '.join(whole)}")
    return rounds


def _load_back(job: Job, compressed: Compressed) -> nn.Module:
    """The network in the file, which must be the one that was saved, bit for bit."""
    built_in = hasattr(compressed.model, "built_in")
    again = load(job.out, None if built_in else copy.deepcopy(job.model)).to(job.data.test.inputs.device)
    state = again.state_dict()
    for name, tensor in compressed.model.state_dict().items():
        if not torch.equal(_bits(tensor), _bits(state[name])):
            raise CorruptError(f"{job.out} does not give {name} back bit for bit; is the disk sound?")
    return again


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def show(outcome: Outcome, as_json: bool) -> None:
    """Print the sizes after each stage, and what is in the file."""
    if as_json:
        put_json(outcome.to_json())
        return
    put_table(
        ("stage", "bytes", "smaller", "density (sparsity)", "validation error", "Han et al. 2016"),
        [
            (row.name, row.bytes, row.ratio, row.density, row.error, row.paper)
            for row in sizes(outcome.compressed, outcome.inspection).rows
        ],
        title=outcome.job.title,
    )
    file = outcome.inspection
    put(f"file  {outcome.job.out}: {text.integer(file.file_bytes)} bytes, {text.ratio(file.ratio)} smaller")
    put(f"test  {text.error(outcome.dense_test)} wrong before, {text.error(outcome.test)} after")
    put(f"rest  {describe_skipped(outcome.job.model, outcome.compressed.skipped)}")
    put(f"page  {outcome.job.page}")
