"""From a command line to an exit code, the same for every job.

0: complete (whatever the verdicts); 1: could not complete, or a quality gate failed; 2: bad arguments or inputs.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar, get_origin

import tyro

from jobs.config.base import JobConfig
from schemas.errors import GateError, InputError

Config = TypeVar("Config", bound=JobConfig)


def run_command(
    config_type: type[Config],
    run: Callable[[Config], None],
    *,
    job: str,
    argv: Sequence[str] | None,
) -> int:
    """Parses `argv`, runs the job and returns its exit code (2 also for flags that don't parse)."""
    try:
        # prog: under `ray job submit` the default is a long temporary path
        arguments = join_repeats(config_type, sys.argv[1:] if argv is None else argv)
        config = tyro.cli(config_type, prog=f"python -m jobs.{job}", args=arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as stopped:
        return int(stopped.code or 0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("botocore").setLevel(logging.WARNING)  # says once a process where credentials come from
    # Ray's coming default; unset, every start warns of the change.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        run(config)
    except InputError as error:
        print(f"error: {message(error)}", file=sys.stderr)
        return 2
    except GateError as error:
        print(f"failed: {message(error)}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, SystemExit) as stopped:  # the latter, with 0, is how Ray Train ends what is interrupted
        print("failed: interrupted; the same command goes on", file=sys.stderr)
        if argv is None and isinstance(stopped, KeyboardInterrupt):
            # of an ordinary end a shell would think that Ctrl-C was dealt with, and begin its script's next line
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def join_repeats(config_type: type[JobConfig], argv: Sequence[str]) -> list[str]:
    """`--flag a --flag b` as `--flag a b` for the flags that take several values: the parser knows either form alone,
    and of a repeated flag it would keep the last one without a word, which of the other flags is said. Raises InputError for
    one of those without a value, as an unset variable leaves it."""
    lists = {
        f"--{name.replace('_', '-')}"
        for name, field in config_type.model_fields.items()
        if get_origin(field.annotation) is tuple
    }
    found: dict[str, list[str]] = {}
    single: set[str] = set()
    rest: list[str] = []
    values = rest
    for argument in argv:
        flag, equals, value = argument.partition("=")
        flag = flag.replace("_", "-")
        if flag in lists:
            values = found.setdefault(flag, [])
            values += [value] if equals else []
            continue
        if argument.startswith("--"):
            if flag in single:
                print(
                    f"warning: {flag}: given more than once; it takes one value, and the last one counts",
                    file=sys.stderr,
                )
            single.add(flag)
            values = rest
        values.append(argument)
    for flag, given in found.items():
        if not given:
            raise InputError(f"{flag}: expected a value, found none; give one, or leave the flag out")
    return rest + [part for flag, given in found.items() for part in (flag, *given)]


def message(error: BaseException) -> str:
    """What the error says, without what Ray adds to one that a worker raised: the worker's traceback as the text
    (`cause` is the error itself), and Ray Data's advice on its own retries (ray.data._internal.util)."""
    cause: BaseException = error
    while (inner := getattr(cause, "cause", None)) is not None:
        cause = inner
    return str(cause).partition("\nFailed to apply UDF transform after")[0]
