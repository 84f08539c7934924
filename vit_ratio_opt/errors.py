"""The exceptions that mean "the caller can fix this"."""

from __future__ import annotations

__all__ = ["CannotWriteError", "InputError", "UnsupportedModelError"]


class InputError(ValueError):
    """What was asked for cannot be done, and the message says why and what can.

    Everything in this package that a user can get wrong (a ratio, a path, a storage URL, a model
    that is not supported) raises it before anything is written. The command line prints the
    message alone and exits with code 2; every other exception is a bug and keeps its traceback.
    """


class CannotWriteError(InputError):
    """A file, a folder or a store cannot be written: a full disk, a missing permission, S3 away.

    It says nothing against what was to be written. So a trial that ends with it is tried again,
    and the process that has met it stops.
    """


class UnsupportedModelError(InputError):
    """The model has a module whose heads or neurons this package cannot remove exactly."""
