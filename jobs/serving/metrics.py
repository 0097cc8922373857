"""The Prometheus page: what Ray Serve and we count, of all nodes.

Ray gathers every replica's metrics in one agent per node. Asking a replica for its own registry instead would give
another replica's figures at every scrape.
"""

from __future__ import annotations

import asyncio
import re

import aiohttp
import ray
from ray.serve.metrics import Counter

from jobs.serving.problems import Problem

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_KEPT = re.compile(r"(?:# (?:HELP|TYPE) )?(ray_(?:serve|stock_audit)_\w+)")
_SUFFIX = re.compile(r"_(?:bucket|sum|count)$")


def count_photos() -> Counter:
    """`ray_stock_audit_photos_total` by outcome: `counted`, or the cause of the problem."""
    return Counter("stock_audit_photos", description="Photos by what became of them.", tag_keys=("outcome",))


async def gather_metrics() -> str:
    """Prometheus text of the whole cluster. Raises Problem where no node answers."""
    nodes = await asyncio.to_thread(ray.nodes)
    addresses = [(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in nodes if node["Alive"]]
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        pages = await asyncio.gather(*(_fetch(session, host, port) for host, port in addresses))
    found = [page for page in pages if page is not None]
    if not found:
        raise Problem("unavailable", f"none of {len(addresses)} metrics agents answered")
    return merge_pages(found)


async def _fetch(session: aiohttp.ClientSession, host: str, port: int) -> str | None:
    try:
        async with session.get(f"http://{host}:{port}/metrics") as answer:
            return await answer.text() if answer.ok else None
    except (aiohttp.ClientError, TimeoutError):
        return None  # a node on its way out takes its series with it


def merge_pages(pages: list[str]) -> str:
    """Our families of several pages, each family's head once and its samples together, as the format demands."""
    heads: dict[str, dict[str, str]] = {}
    samples: dict[str, list[str]] = {}
    for page in pages:
        histograms: set[str] = set()
        for line in page.splitlines():
            match = _KEPT.match(line)
            if match is None:
                continue
            name = match[1]
            if line.startswith("#"):
                kind = line[2:6]
                heads.setdefault(name, {}).setdefault(kind, line)
                if kind == "TYPE" and line.endswith((" histogram", " summary")):
                    histograms.add(name)
                continue
            base = _SUFFIX.sub("", name)
            samples.setdefault(base if base in histograms else name, []).append(line)
    lines: list[str] = []
    for name in sorted(samples):
        lines += [*(heads.get(name, {}).values()), *samples[name]]
    return "\n".join(lines) + "\n"
