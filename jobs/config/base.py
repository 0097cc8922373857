"""What all job settings share."""

import logging
import re
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from schemas.errors import InputError
from schemas.manifest import NIGHT_YEARS

MOST = 2**32 - 1
"""No whole number of a setting is above it: arrays and calendars don't take any that Python does."""

Seed = Annotated[int, Field(ge=0, le=MOST)]
"""What every generator takes; scikit-learn's and Optuna's take no more."""

NightDate = Annotated[date, Field(ge=date(NIGHT_YEARS[0], 1, 1), le=date(NIGHT_YEARS[-1], 12, 31))]
"""`--audit-date`."""

PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16", "int8"]
"""`--precision`."""


logger = logging.getLogger("jobs.config")


def tell_future_night(night: date, place: str, now: datetime) -> None:
    """Warns, naming `place`, of a night beyond tomorrow, such as one of a mistyped year: committed, it stays the last one, and
    no count of it is taken in before its day. `now` in UTC, by a clock that may be wrong."""
    # a night's date is the warehouse's own, and the easternmost zone is 14 hours ahead
    latest = (now + timedelta(hours=14)).date() + timedelta(days=1)
    if night > latest:
        logger.warning(
            "%s: expected a night up to %s, found %s: no count of it can be taken in before its day; is the date mistyped, or "
            "this machine's clock wrong?",
            place,
            latest,
            night,
        )


class JobConfig(BaseModel):
    """Frozen, and a misspelt name is an error; the docstring below a field is its `--help`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """`--help` wraps its texts itself: where their lines end in the source is no matter of its."""
        for field in cls.model_fields.values():
            if field.description is not None:
                field.description = re.sub(r"(?<!\n)\n(?!\n)", " ", field.description)

    def __init__(self, **settings: Any) -> None:
        """Raises InputError that says of each wrong setting what was expected and found."""
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise InputError("; ".join(_explain(problem) for problem in error.errors())) from error
        for name, value in self:
            flag = name.replace("_", "-")
            if isinstance(value, int) and value > MOST:
                raise InputError(f"--{flag}: expected at most {MOST}, found more")
            if name.endswith("_uri") and isinstance(value, str) and any(character < " " for character in value):
                raise InputError(f"--{flag}: expected a place, found {value!a} (the line's end of a YAML block?)")


def _explain(problem: ErrorDetails) -> str:
    """In the words of a command line, without pydantic's links."""
    if problem["type"] == "value_error":  # a validator of ours, which says it all
        return str(problem["ctx"]["error"])
    flag = ".".join(str(part) for part in problem["loc"]).replace("_", "-")
    wanted = problem["msg"].removeprefix("Input should be ")
    found = problem["input"]
    return f"--{flag}: expected {wanted}, found {found if isinstance(found, date) else repr(found)}"
