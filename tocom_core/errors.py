"""Every error that ``tocom_core`` raises on purpose.

    TocomError
    ├── UnsupportedModelError      a timm model whose blocks or pooling the method does not cover
    ├── CheckpointError            a model file that cannot be found, read or fitted
    ├── BankError                  a bank file that cannot be read, or does not fit the model
    │   └── DegreeError            a degree that the bank holds no compensation for
    ├── ScheduleError              an ``r`` that is no valid schedule for this model
    ├── DeviceError                a device that this machine does not have
    ├── DataError                  a data set that cannot be found or read
    ├── ProfileError               a latency profile that cannot be read, or contradicts itself
    └── TrainingError              a run that cannot go on (wrong resume, contradicting options)
        └── DivergedError          its loss or its gradients are not finite any more

Each message names the value that was wrong, what was expected, and how to mend it.
"""


class TocomError(Exception):
    """Root of all errors raised by ``tocom_core``."""


class UnsupportedModelError(TocomError):
    """The model's architecture is outside of what the method covers; the message says why."""


class CheckpointError(TocomError):
    """A model checkpoint cannot be found, read, or fitted to its architecture."""


class BankError(TocomError):
    """A bank cannot be read, is malformed, or does not fit the model."""


class DegreeError(BankError, ValueError):
    """A degree lies outside of ``0…K``, so the bank has no compensation for it."""


class ScheduleError(TocomError, ValueError):
    """``r`` is not a non-negative int, or a sequence with one such value per block."""


class DeviceError(TocomError, ValueError):
    """The named device is not on this machine."""


class DataError(TocomError):
    """A data set or one of its columns cannot be found or read."""


class ProfileError(TocomError):
    """A latency profile cannot be read or written, or holds a value that cannot be."""


class TrainingError(TocomError):
    """A training run cannot go on; what was learned so far is kept in its last checkpoint."""


class DivergedError(TrainingError):
    """Loss or gradients are not finite any more; what was learned before is in the checkpoint."""


class BankMismatchWarning(UserWarning):
    """The bank was trained on another backbone than the one it is used with."""


class DataWarning(UserWarning):
    """Something in a data set is bad and was passed over; the message names it."""
