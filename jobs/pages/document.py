"""HTML pages that need nothing but themselves: no network, no script but our own; light, dark and on paper."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

MISSING = "–"


def render_page(template: str, *, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Fills `jobs/templates/<template>`. Everything is escaped but what is Markup (our own plots). `filters`: the template's
    own, by name."""
    environment = Environment(
        loader=PackageLoader("jobs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": format_percent,
        "decimal": format_decimal,
        "integer": format_integer,
        "signed": format_signed,
        **(filters or {}),
    }
    return environment.get_template(template).render(**values)


def read_source(name: str) -> str:
    """The style sheet or script `jobs/templates/<name>`."""
    return resources.files("jobs").joinpath("templates", name).read_text(encoding="utf-8")


def source_hash(text: str) -> str:
    """What a content security policy names a style sheet or script by, behind `sha256-`."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def format_percent(share: float | None, digits: int = 1) -> str:
    return MISSING if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def format_decimal(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"


def format_signed(value: float | None, digits: int = 3) -> str:
    if value is None:
        return MISSING
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def format_integer(value: float | None) -> str:
    return format_decimal(value, 0)
