"""Every exception of the project, one tree.

AceError
├── InputError            what was asked cannot be done as asked (CLI exit code 2)
│   ├── ConditionError    instruction, image count, {image} names, history
│   ├── ImageError        a picture that is missing, broken, too large or of the wrong kind
│   ├── MaskError         a mask of another size, uniform, or without its image
│   ├── ConfigError       an unknown or impossible setting
│   ├── OutputError       a result that cannot be written where it was asked for
│   ├── ModelNotFoundError  a model name or folder with nothing behind it
│   ├── DataError         a data set, shard or row that is missing, changed or of another kind
│   └── SessionError      a session folder or node that cannot be read
├── ShapeError            tensors whose shapes do not fit (a caller's bug)
├── CheckpointError       weights that are wrong, partial or hostile
├── BusyError             a server that has no room now (`retry_after_s`)
├── StoppedError          accepted work that was not finished: cancelled, or the server went down
└── MissingDependencyError  an optional package that this call needs

Messages say what is wrong and what to do, in one line.
"""


class AceError(Exception):
    """Root of all errors raised on purpose by this package."""


class InputError(AceError):
    """The request is wrong; the message says how to put it right."""


class ConditionError(InputError):
    """A condition unit that breaks a rule: instruction, number of images, `{image}` names, history."""


class ImageError(InputError):
    """A picture that cannot be used."""


class MaskError(InputError):
    """A mask that cannot be used."""


class ConfigError(InputError):
    """A setting that is unknown or impossible."""


class OutputError(InputError):
    """A result that cannot be written."""


class ModelNotFoundError(InputError):
    """No model behind this name."""


class DataError(InputError):
    """A data set, shard or row that cannot be used."""


class SessionError(InputError):
    """A session folder or node that cannot be read."""


class ShapeError(AceError):
    """Tensors whose shapes do not fit together."""


class CheckpointError(AceError):
    """Weights that are wrong, partial or hostile."""


class BusyError(AceError):
    """No room now. retry_after_s: when there may be some."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoppedError(AceError):
    """Accepted work that was not finished: cancelled (by who asked for it), or the server went down."""

    def __init__(self, message: str, cancelled: bool = False) -> None:
        super().__init__(message)
        self.cancelled = cancelled


class MissingDependencyError(AceError):
    """An optional package is needed; the message names the extra that brings it."""
