"""The errors that corebatch raises about its input and its state.

Every error about input derives from `CorebatchError` and from `ValueError`, so that callers may catch
either, and its message says what was expected and what was found.
"""

UNTOUCHED = "pool_factor 1, micro_batches plain"
"""The settings with which corebatch leaves a Trainer's batches as they are, for messages."""


class CorebatchError(Exception):
    """Base class of all errors that corebatch raises on purpose."""


class InputError(CorebatchError, ValueError):
    """An argument, a tensor or a batch is not what it should be."""


class ConfigError(InputError):
    """A setting is unknown, out of range, or does not go with another setting."""


class DataError(InputError):
    """A data file or a row cannot be used; the message names the file and the line or row."""


class UnsupportedModelError(InputError):
    """The model, or what wraps it, has not the parts that a scorer or the weighted loss needs."""


class LossMismatchError(InputError):
    """The loss computed by corebatch is not the loss that the trainer minimises."""


class NonFiniteError(InputError):
    """A loss or a feature is NaN or infinite; the message names the step and the rows."""


class CheckpointError(InputError):
    """A checkpoint is incomplete, damaged, or another run's; or it, or the record, could not be written."""


class MissingExtraError(CorebatchError, ImportError):
    """An optional package is needed for what was asked, and not installed."""


class RankError(InputError):
    """Another rank could not do its part of a step, or could not be reached; the message names the rank."""
