"""How often a fault is injected, and at which requests."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def times(count: int, *, quick: int = 0) -> pytest.MarkDecorator:
    """Repeats a fault `count` times with `make faults`, and `quick` times in `make test`."""
    repeated = [pytest.param(n, marks=[pytest.mark.slow] if n >= quick else []) for n in range(count)]
    return pytest.mark.parametrize("attempt", repeated)


def gets(part: str) -> Callable[[str, str], bool]:
    return lambda method, path: method == "GET" and part in path


def puts(part: str) -> Callable[[str, str], bool]:
    """But for the try, before anything is scored, whether a folder can be written."""
    return lambda method, path: method == "PUT" and part in path and not path.endswith("/_writable")
