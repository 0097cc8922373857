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


def read_style(name: str) -> str:
    """The style sheet `jobs/templates/<name>` behind the colours that all pages share."""
    return read_source("palette.css") + read_source(name)


def source_hash(text: str) -> str:
    """What a content security policy names a style sheet or script by, behind `sha256-`."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def format_percent(share: float | None, digits: int = 1) -> str:
    """A percentage. What is not all reads `> 99.9 %` at most, and what is not nothing `< 0.1 %` at least."""
    if share is None:
        return MISSING
    share = round(share, 9)  # sums of shares miss 1 by their last digits
    step = 10.0**-digits / 100
    sign = "<\N{NO-BREAK SPACE}" if 0 < share < step else ">\N{NO-BREAK SPACE}" if 1 - step < share < 1 else ""
    shown = min(max(share, step), 1 - step) if sign else share
    return f"{sign}{100 * shown:.{digits}f}\N{NO-BREAK SPACE}%"


def format_decimal(value: float | None, digits: int = 3) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"


def format_signed(value: float | None, digits: int = 3) -> str:
    if value is None:
        return MISSING
    rounded = round(value, digits)
    return f"{rounded:+,.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def format_integer(value: float | None) -> str:
    return format_decimal(value, 0)
