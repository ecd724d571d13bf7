"""One tree of errors for the person at the terminal.

Every message names the file or key, says what was wrong and what to do. The command line prints the message
without a traceback and exits with 2; anything that is not a `SemisegError` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class SemisegError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(SemisegError):
    """A setting has a wrong name or value."""


class DataError(SemisegError):
    """A scan, a label map or a dataset folder cannot be used as it is."""


class UnsupportedError(DataError):
    """The input is well formed, but semiseg does not do this (regions, 2D networks)."""


class ModelError(SemisegError):
    """A model folder or a checkpoint is damaged, incomplete or of another kind than asked for."""


class TrainingError(SemisegError):
    """Training had to stop: a non-finite loss, or no memory left on the device."""


class SharingError(SemisegError):
    """A model hub cannot be reached, or refuses what was asked for."""
