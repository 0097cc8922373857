"""The two pages: one to drop a photo on, one that describes the API. Nothing is loaded from elsewhere."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from jobs.pages.document import read_source, read_style, render_page, source_hash
from schemas.bundle import BundleInfo


def render_drop_page(bundle: BundleInfo, *, needs_token: bool) -> tuple[str, str]:
    """HTML and its Content-Security-Policy."""
    style, script = read_style("serve.css"), read_source("serve.js")
    html = render_page(
        "serve.html",
        style=Markup(style),
        script=Markup(script),
        bundle=bundle,
        needs_token=needs_token,
    )
    return html, _policy(style, script)


def render_docs(openapi: dict[str, Any]) -> tuple[str, str]:
    """HTML and its Content-Security-Policy."""
    style = read_style("serve.css")
    operations = [
        {"method": method.upper(), "path": path, **operation}
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    html = render_page(
        "serve_docs.html",
        style=Markup(style),
        info=openapi["info"],
        operations=operations,
        dump=lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    )
    return html, _policy(style, None)


def _policy(style: str, script: str | None) -> str:
    parts = [
        "default-src 'none'",
        f"style-src 'sha256-{source_hash(style)}'",
        f"script-src 'sha256-{source_hash(script)}'" if script else "script-src 'none'",
        "img-src blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return "; ".join(parts)
