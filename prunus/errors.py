"""Every error prunus raises. Each says what was asked, what was found, and what to do.

    PrunusError                       exit code 1
    ├── OutputError                   1   a file that cannot be written, or must not be replaced
    ├── UnknownNameError              2   a name that is in no table
    ├── DataError                     3   a data set that is missing, damaged, or cannot be fetched
    ├── ModelError                    4   a model prunus cannot work on
    │   ├── NoPrunableWeightsError
    │   └── TiedWeightsError
    ├── DensityError                  5   a density that is out of range or cannot be reached
    ├── NonFiniteError                5   NaN or infinity where numbers are needed
    ├── StatisticsError               5   a criterion that was not given what it looks at
    ├── QuantizationError             5   a codebook that cannot be made
    ├── SpecError                     2   a setting that no run can have
    ├── StoreError                    8   a store of runs that cannot be used
    │   └── WorkerError                   a worker process that could not start, or was killed
    ├── TrainingError                 6
    │   ├── DivergenceError
    │   └── CheckpointError
    └── ContainerError                7   a file that is not what it claims to be
        ├── NotAContainerError
        ├── UnsupportedVersionError
        ├── TruncatedFileError
        ├── CorruptFileError
        ├── SizeLimitError
        └── ModelMismatchError            a good file, for another model

    NoEffectWarning                   something was asked that changes nothing
    NotPrunedWarning                  weights that prunus cannot prune are left as they are
    UpdateRejectedWarning             an update of the kept weights was worse than no update
    InvariantWarning                  an invariant of a ticket does not hold
    EmptyLayerWarning                 a layer has no weight left
    UnusedCentroidsWarning            a codebook has fewer values than its bits allow

The exit code is what the command line returns; 2 is also what it returns for a wrong option.
"""


class PrunusError(Exception):
    """Anything prunus refuses to do; the message is one sentence a user can act on."""

    exit_code = 1


class OutputError(PrunusError):
    """A file that cannot be written, or that must not be replaced."""


class UnknownNameError(PrunusError):
    """A model, data set, criterion, scope, schedule, codec or experiment that no table holds."""

    exit_code = 2


class DataError(PrunusError):
    """A data set that is missing, damaged, or cannot be fetched or written."""

    exit_code = 3


class ModelError(PrunusError):
    """A model that prunus cannot work on as it is."""

    exit_code = 4


class NoPrunableWeightsError(ModelError):
    """The model, or what the name patterns left of it, has no weight that may be pruned."""


class TiedWeightsError(ModelError):
    """Two names are one tensor, so that pruning one would silently prune the other."""


class DensityError(PrunusError):
    """A density outside (0, 1], or one that cannot be reached from the masks at hand."""

    exit_code = 5


class NonFiniteError(PrunusError):
    """NaN or infinity where numbers are needed."""

    exit_code = 5


class StatisticsError(PrunusError):
    """A criterion was not given what it looks at (initial weights, a probe)."""

    exit_code = 5


class SpecError(PrunusError):
    """A setting of a run that is unknown, of the wrong type, or contradicts another."""

    exit_code = 2


class StoreError(PrunusError):
    """A store of runs, or a run in it, that is missing, damaged, or cannot be written."""

    exit_code = 8


class WorkerError(StoreError):
    """A worker process that could not start, or that ended before its work was done."""


class QuantizationError(PrunusError):
    """A codebook that cannot be made as asked."""

    exit_code = 5


class TrainingError(PrunusError):
    """Training that cannot go on."""

    exit_code = 6


class DivergenceError(TrainingError):
    """The loss became NaN or infinite."""


class CheckpointError(TrainingError):
    """A checkpoint that is damaged, or of another run."""


class ContainerError(PrunusError):
    """A file that is not what it claims to be."""

    exit_code = 7


class NotAContainerError(ContainerError):
    """The file does not start as a prunus file does."""


class UnsupportedVersionError(ContainerError):
    """The file is of a version this library does not read."""


class TruncatedFileError(ContainerError):
    """The file ends before what it announces."""


class CorruptFileError(ContainerError):
    """A checksum fails, or the content contradicts itself."""


class SizeLimitError(ContainerError):
    """What the file announces is larger than the reader was told to accept."""


class ModelMismatchError(ContainerError):
    """The file is sound, but it was written for another model."""


class NoEffectWarning(UserWarning):
    """Something was asked that changes nothing."""


class NotPrunedWarning(UserWarning):
    """The model has weights that prunus cannot prune; they stay as they are, and count in no density."""


class UpdateRejectedWarning(UserWarning):
    """A method's update of the kept weights lost more than setting the pruned weights to zero, and was replaced."""


class InvariantWarning(UserWarning):
    """An invariant that the receipt of a ticket checks does not hold."""


class EmptyLayerWarning(UserWarning):
    """A layer has no weight left: nothing passes it any more."""


class UnusedCentroidsWarning(UserWarning):
    """Weights are stored in fewer shared values than their bits allow, and not exactly."""
