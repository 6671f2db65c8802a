"""The exceptions that Puna raises on purpose.

Every one carries a message written for the person who reads it: what was wrong, where, what is allowed and what to do.
The command line prints the message alone (a traceback only with `--debug`); the server maps each class to an HTTP
status in one place. Anything that is not a `PunaError` is a bug.
"""

from __future__ import annotations


class PunaError(Exception):
    """Base of all errors that Puna raises deliberately."""


class InputError(PunaError, ValueError):
    """The caller asked for something invalid. `param` names the offending field, where there is one."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ModelFileError(PunaError):
    """A model file is truncated, corrupt, hostile or of a kind that Puna does not know."""


class ModelNotFoundError(PunaError):
    """No model answers to that name."""


class TemplateError(InputError):
    """A chat template is broken, refuses the conversation or tries something the sandbox forbids."""


class MemoryBudgetError(PunaError):
    """What was asked for does not fit into the memory this process may use."""


class OverloadedError(PunaError):
    """Admission limits are reached; try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineError(PunaError):
    """The engine process failed, or answered with something that is not in the protocol."""


class CulpritError(PunaError):
    """This very request ends engines, so it is not tried again."""
