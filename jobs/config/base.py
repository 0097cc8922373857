"""What all job settings share."""

from pydantic import BaseModel, ConfigDict


class JobConfig(BaseModel):
    """Frozen, and a misspelt name is an error; the docstring below a field is its `--help`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
