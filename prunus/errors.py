"""Every error that prunus raises. A message says what was expected, what was given, and what to do.

    PrunusError                       exit code 1
    ├── OutputError                   1   a file that cannot be written, or must not be replaced
    ├── UnknownNameError              2   a name that no registry contains
    ├── DataError                     3   a data set that is missing, damaged, or cannot be fetched
    ├── ModelError                    4   a model prunus cannot work on
    │   ├── NoPrunableWeightsError
    │   └── TiedWeightsError
    ├── DensityError                  5   a density that is out of range or cannot be reached
    ├── NonFiniteError                5   NaN or infinity
    ├── StatisticsError               5   a criterion without the statistics that it needs
    ├── QuantizationError             5   a codebook that cannot be made
    ├── AccuracyError                 5   no settings keep the required accuracy
    ├── SpecError                     2   an invalid setting of a run
    ├── StoreError                    8   a store of runs that cannot be used
    │   ├── StoreVersionError             a file of a store that another version of prunus wrote
    │   └── WorkerError                   a worker process that could not start, or was killed
    ├── TrainingError                 6
    │   ├── DivergenceError
    │   └── CheckpointError
    └── ContainerError                7   a file that is not a valid prunus file
        ├── NotAContainerError
        ├── UnsupportedVersionError
        ├── TruncatedFileError
        ├── CorruptFileError
        ├── SizeLimitError
        └── ModelMismatchError            a valid file for another model

    NoEffectWarning                   a setting or a step has no effect
    NotPrunedWarning                  weights that prunus cannot prune are not changed
    UpdateRejectedWarning             an update of the remaining weights was worse than none
    InvariantWarning                  an invariant of a ticket does not hold
    EmptyLayerWarning                 all weights of a layer are pruned
    UnusedCentroidsWarning            a codebook has fewer values than its bits allow

The exit code is what the command line returns; 2 is also what it returns for a wrong option.
"""


class PrunusError(Exception):
    """The base class; the message is one sentence that says what a user can do."""

    exit_code = 1


class OutputError(PrunusError):
    """A file that cannot be written, or that must not be replaced."""


class UnknownNameError(PrunusError):
    """The name of a model, data set, criterion, scope, schedule, codec or experiment that does not exist."""

    exit_code = 2


class DataError(PrunusError):
    """A data set that is missing, damaged, or cannot be fetched or written."""

    exit_code = 3


class ModelError(PrunusError):
    """A model that prunus cannot work on as it is."""

    exit_code = 4


class NoPrunableWeightsError(ModelError):
    """The model, or the part of it that the name patterns select, has no weight that can be pruned."""


class TiedWeightsError(ModelError):
    """Two names are one tensor, so that pruning one would silently prune the other."""


class DensityError(PrunusError):
    """A density outside (0, 1], or one that cannot be reached from the current masks."""

    exit_code = 5


class NonFiniteError(PrunusError):
    """NaN or infinity in weights, inputs or scores."""

    exit_code = 5


class StatisticsError(PrunusError):
    """A criterion was not given the statistics that it needs (initial weights, calibration examples)."""

    exit_code = 5


class SpecError(PrunusError):
    """A setting of a run that is unknown, of the wrong type, or contradicts another."""

    exit_code = 2


class StoreError(PrunusError):
    """A store of runs, or a run in it, that is missing, damaged, or cannot be written."""

    exit_code = 8


class StoreVersionError(StoreError):
    """A file of a store that another version of prunus wrote, and that this one cannot read."""


class WorkerError(StoreError):
    """A worker process that could not start, or that ended before its work was done."""


class QuantizationError(PrunusError):
    """A codebook that cannot be made with these settings."""

    exit_code = 5


class AccuracyError(PrunusError):
    """No settings that were tried keep the required accuracy."""

    exit_code = 5


class TrainingError(PrunusError):
    """Training that cannot continue."""

    exit_code = 6


class DivergenceError(TrainingError):
    """The loss became NaN or infinite."""


class CheckpointError(TrainingError):
    """A checkpoint that is damaged, or of another run."""


class ContainerError(PrunusError):
    """A file that is not a valid prunus file, or is for another model."""

    exit_code = 7


class NotAContainerError(ContainerError):
    """The file does not start like a prunus file."""


class UnsupportedVersionError(ContainerError):
    """The file has a version that this library does not read."""


class TruncatedFileError(ContainerError):
    """The file ends before the content that its header announces."""


class CorruptFileError(ContainerError):
    """A checksum fails, or the content contradicts itself."""


class SizeLimitError(ContainerError):
    """The content that the file announces is larger than the limit of the reader."""


class ModelMismatchError(ContainerError):
    """The file is valid, but it was written for another model."""


class NoEffectWarning(UserWarning):
    """A setting or a step has no effect."""


class NotPrunedWarning(UserWarning):
    """The model has weights that prunus cannot prune; they are not changed and count in no density."""


class UpdateRejectedWarning(UserWarning):
    """The update of the remaining weights was worse than only setting the pruned ones to zero, and was not applied."""


class InvariantWarning(UserWarning):
    """An invariant of a lottery ticket does not hold."""


class EmptyLayerWarning(UserWarning):
    """All weights of a layer are pruned, so that no signal passes it."""


class UnusedCentroidsWarning(UserWarning):
    """A codebook has fewer centroids than its bits allow, although the weights are not represented exactly."""


def reason_of(error: BaseException) -> str:
    """The first line of the message of an error that is not blank; the name of its class where there is none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def describe_cause(error: BaseException) -> str:
    """The type of an error, and the first line of its message that is not blank, without a period at the end.

    >>> describe_cause(ValueError("Too large.")), describe_cause(KeyError())
    ('ValueError: Too large', 'KeyError')
    """
    line = next((line for line in str(error).splitlines() if line.strip()), "").strip().rstrip(".")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
