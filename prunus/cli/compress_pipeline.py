"""What `compress` and `demo` do: train where need be, compress, save, load the file back, look once at the
test split, print what came of it, and write the page."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prunus.cli.output import echo, echo_json, echo_table, log, stdout
from prunus.cli.progress import added_up, epoch_lines, num_epochs, num_steps, report
from prunus.compression.container import FileInspection, inspect, load
from prunus.compression.deep_compression import (
    Compressed,
    bits_by_name,
    check_inputs,
    deep_compress,
    planned_densities,
)
from prunus.compression.recipes import CompressionRecipe
from prunus.compression.save import save
from prunus.diagnostics import why_not_writable
from prunus.errors import CorruptFileError, OutputError
from prunus.files import after_writing, check_writable, has_control_characters
from prunus.pruning.density import densities_by_name
from prunus.pruning.prunable import coverage, describe_skipped
from prunus.pruning.weights import copied
from prunus.report import formatting
from prunus.report.compression_page import write_page
from prunus.report.stage_sizes import on_disk, sizes
from prunus.report.templating import environment
from prunus.seeds import derive_seed
from prunus.training import Evaluation, train
from prunus.training import evaluate as measure
from prunus.types import Dataset


@dataclass(frozen=True)
class CompressOptions:
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
class CompressReport:
    """What came of a job. The tests are of the network before, and of the one in the file."""

    job: CompressOptions
    compressed: Compressed
    inspection: FileInspection
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


def run_compress(job: CompressOptions) -> CompressReport:
    """Do it. Raises before the work what can be known before it."""
    began = time.perf_counter()
    model = copied(job.model)
    rounds = _check(job)
    epoch_line = epoch_lines(num_epochs(job.recipe, rounds, not job.trained))
    progress = added_up(num_steps(job.recipe, rounds, not job.trained, job.data), report)
    if not job.trained:
        train(
            model,
            job.data,
            job.recipe.dense,
            seed=derive_seed(job.seed, "dense"),
            checkpoint=job.checkpoints / "dense.safetensors" if job.checkpoints else None,
            report=lambda epoch: epoch_line("dense", epoch),
            progress=progress,
        )
    compressed = deep_compress(
        model,
        job.data,
        job.recipe,
        include=job.include,
        exclude=job.exclude,
        seed=job.seed,
        checkpoints=job.checkpoints,
        report=epoch_line,
        progress=progress,
    )
    report("writing the file", 0, 0)
    save(compressed, job.out, made={"data": job.data.name})
    again = _load_back(job, compressed)
    with after_writing(job.out):
        dense_test = measure(model, job.data.test, progress=report)
        test = measure(again, job.data.test, progress=report)
        seconds = time.perf_counter() - began
        return CompressReport(job, compressed, inspect(job.out), dense_test, test, seconds)


def check_outputs(
    out: Path, page: Path, checkpoints: Path | None, *, force: bool, inputs: Sequence[Path]
) -> None:
    """Check before the work that the file, its page and the checkpoints can be written, and destroy no input."""
    if checkpoints is not None:
        if has_control_characters(checkpoints):
            raise OutputError(
                f"Checkpoints cannot be written to {str(checkpoints)!r}: its name has control characters; name another "
                "folder with --checkpoints."
            )
        if reason := why_not_writable(checkpoints):
            raise OutputError(
                f"Checkpoints cannot be written to {checkpoints}: {reason}; name a folder with --checkpoints."
            )
        inputs = [
            *inputs,
            *(checkpoints / path.name for path in (out, page) if path.suffix == ".safetensors"),
        ]
    check_writable(out, force=force, inputs=inputs)
    check_writable(page, force=force, inputs=[*inputs, out])


def finish(outcome: CompressReport, as_json: bool) -> None:
    """Print the numbers, then write the page, also where nobody reads what is printed."""
    job = outcome.job
    report("writing the page", 0, 0)
    with after_writing(job.out):
        try:
            show_compress(outcome, as_json)
            stdout().flush()
        finally:
            write_page(
                job.page,
                outcome.compressed,
                outcome.inspection,
                title=job.title,
                dense_test=outcome.dense_test,
                test=outcome.test,
                seconds=outcome.seconds,
                provenance=job.data.provenance,
            )
    if not as_json:
        echo(f"page  {job.page}")


def _check(job: CompressOptions) -> int:
    """The rounds of pruning, after saying what will be pruned; raises what would otherwise be raised late."""
    environment()  # that of the page, which is written last
    weights = check_inputs(job.model, job.data, job.recipe, job.include, job.exclude)
    densities = densities_by_name(job.recipe.density, list(weights))
    rounds = len(planned_densities(job.recipe, weights))
    bits = bits_by_name(job.model, list(weights), job.recipe.bits)
    together = job.recipe.scope == "global"
    for name, weight in weights.items():
        shape, to = " × ".join(map(str, weight.shape)), "" if together else f" to density {densities[name]:g}"
        log(f"will prune {name} ({shape}){to}, and share it in {bits[name]} bits")
    if together:
        log(f"will rank them together, to density {job.recipe.density:g} of all")
    whole = [name for name, _ in job.model.named_parameters() if name not in weights]
    if whole:
        log(f"will keep whole: {', '.join(whole)}")
    return rounds


def _load_back(job: CompressOptions, compressed: Compressed) -> nn.Module:
    """The network in the file, which must be the one that was saved, bit for bit."""
    built_in = hasattr(compressed.model, "built_in")
    again = load(job.out, None if built_in else copy.deepcopy(job.model)).to(job.data.test.inputs.device)
    state = again.state_dict()
    for name, tensor in compressed.model.state_dict().items():
        if not torch.equal(_bits(tensor), _bits(state[name])):
            raise CorruptFileError(f"{job.out} does not give {name} back bit for bit; is the disk sound?")
    return again


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def show_compress(outcome: CompressReport, as_json: bool) -> None:
    """Print the sizes after each stage, and what is in the file."""
    if as_json:
        echo_json(outcome.to_json())
        return
    echo_table(
        ("stage", "bytes", "smaller", "density (sparsity)", "validation error", "Han et al. 2016"),
        [
            (row.name, row.bytes, row.ratio, row.density, row.error, row.paper)
            for row in sizes(outcome.compressed, outcome.inspection).rows
        ],
        title=outcome.job.title,
    )
    file = outcome.inspection
    echo(
        f"file  {outcome.job.out}: {formatting.format_int(file.file_bytes)} bytes, {formatting.format_ratio(file.ratio)} smaller"
    )
    echo(
        f"test  {formatting.format_error(outcome.dense_test)} wrong before, {formatting.format_error(outcome.test)} after"
    )
    echo(f"rest  {describe_skipped(outcome.job.model, outcome.compressed.skipped)}")
