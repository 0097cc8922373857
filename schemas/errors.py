"""Errors that a caller must tell apart from a defect in our own code."""


class InputError(ValueError):
    """Bad arguments or inputs that break a schema: a job that meets it exits with code 2.

    The message names the file, row or field, what was expected, what was found and what to do.
    """


class GateError(RuntimeError):
    """A run that could not complete or failed a quality gate: a job that meets it exits with code 1."""
