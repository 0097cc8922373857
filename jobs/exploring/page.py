"""The exploration's page."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
from markupsafe import Markup

from jobs.exploring.survey import MAX_IDENTICAL, Survey
from jobs.pages.document import render_page
from jobs.pages.plots import bar_plot, box_plot, histogram_plot
from schemas.bundle import class_names

TOP_COUNT = 6
"""Photos are shown for each count below this, and for this or more: the default classes of `jobs.train`."""
NAMES = class_names(TOP_COUNT)
PHOTOS_PER_COUNT = 6
PHOTOS_PER_LIST = 6
SHOWN_QUANTITIES, SHOWN_SKUS, SHOWN_SIZES = 20, 10, 8
MAX_FAILED = 30


def choose_photos(survey: Survey) -> dict[str, list[dict[str, Any]]]:
    """Which photos of the sample each list shows, by the list's name."""
    photos = survey.photos
    empty = [photo for photo in photos if photo["expected_qty"] == 0]
    chosen = {f"count {name}": _spread_out(found) for name, found in _by_count(photos).items()}
    return chosen | {
        "empty": sorted(empty, key=lambda photo: -photo["detail"])[:PHOTOS_PER_LIST],
        "dark": sorted(photos, key=lambda photo: photo["brightness"])[:PHOTOS_PER_LIST],
        "flat": sorted(photos, key=lambda photo: photo["contrast"])[:PHOTOS_PER_LIST],
    }


def _spread_out(photos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """PHOTOS_PER_COUNT of them, evenly spaced: neighbours often show the same products."""
    places = np.linspace(0, len(photos) - 1, min(PHOTOS_PER_COUNT, len(photos))).round().astype(int)
    return [photos[place] for place in places]


def photos_to_show(survey: Survey) -> list[str]:
    """The image URIs that the page needs thumbnails of."""
    listed = [photo for found in choose_photos(survey).values() for photo in found]
    listed += survey.records.inconsistent + survey.records.largest + survey.identical
    return list(dict.fromkeys(entry["image_uri"] for entry in listed))


def render_exploration(survey: Survey, thumbnails: dict[str, str], about: dict[str, Any]) -> str:
    """`thumbnails`: data URIs by image URI. `about`: manifest_uri, fingerprint, audit_date, num_bins, explored_at,
    config, versions, git_commit."""
    records, photos = survey.records, survey.photos
    counts = _by_count(photos)
    chosen = choose_photos(survey)
    bins_by_count = dict.fromkeys(NAMES, 0)
    for quantity, bins in records.quantities.items():
        bins_by_count[_name(quantity)] += bins
    return render_page(
        "exploration.html",
        about=about,
        records=records,
        num_photos=len(photos),
        failed=survey.failed[:MAX_FAILED],
        num_failed=len(survey.failed),
        failed_by_status=dict(Counter(look["status"] for look in survey.failed)),
        quantity_plot=_counter_plot(
            records.quantities, SHOWN_QUANTITIES, title="Bins by recorded quantity", x="pieces in the bin", size=(8, 3)
        ),
        sku_plot=_counter_plot(
            records.num_skus, SHOWN_SKUS, title="Bins by number of SKUs", x="different SKUs", size=(5.6, 2.7)
        ),
        group_plot=_group_plot(survey.group_sizes),
        group_sizes=_spread(survey.group_sizes),
        num_groups=sum(survey.group_sizes.values()),
        photo_plots=_photo_plots(photos, counts),
        sizes=_common_sizes(photos),
        spreads=_spreads(photos),
        counts=[(name, bins, bins / records.num_bins, chosen[f"count {name}"]) for name, bins in bins_by_count.items()],
        chosen=chosen,
        identical=survey.identical,
        more_identical=len(survey.identical) == MAX_IDENTICAL,
        filled=[(name, filled, filled / records.num_bins) for name, filled in records.filled.items()],
        thumbnails=thumbnails,
        made=json.dumps({name: about[name] for name in ("config", "versions", "git_commit")}, indent=1),
    )


def _by_count(photos: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for photo in photos:
        found[_name(photo["expected_qty"])].append(photo)
    return found


def _name(quantity: int) -> str:
    return NAMES[min(quantity, TOP_COUNT)]


def _counter_plot(counts: Counter[int], last: int, *, title: str, x: str, size: tuple[float, float]) -> Markup:
    """Bars for 0..last - 1 and one for `last` and more (no further than there is anything)."""
    end = min(last, max(counts, default=0) + 1)
    names, values = [str(value) for value in range(end)], [counts[value] for value in range(end)]
    above = sum(bins for value, bins in counts.items() if value >= end)
    if above:
        names, values = [*names, f"{end}+"], [*values, above]
    return bar_plot(names, values, title=title, x=x, size=size)


def _group_plot(sizes: Counter[int]) -> Markup | None:
    if not sizes:
        return None
    if len(sizes) <= SHOWN_SKUS:
        ordered = sorted(sizes.items())
        names, groups = [f"{size:,}" for size, _ in ordered], [groups for _, groups in ordered]
        return bar_plot(names, groups, title="Sizes of groups", x="bins in the group", y="groups")
    values, counts = np.array(sorted(sizes.items())).T
    return histogram_plot(values, counts=counts, title="Sizes of groups", x="bins in the group", y="groups")


def _spread(sizes: Counter[int]) -> dict[str, int] | None:
    if not sizes:
        return None
    values = np.array(sorted(sizes))
    ends = np.cumsum([sizes[value] for value in values.tolist()])
    return {
        "smallest": int(values[0]),
        "median": int(values[np.searchsorted(ends, ends[-1] / 2)]),
        "largest": int(values[-1]),
    }


def _photo_plots(photos: list[dict[str, Any]], counts: dict[str, list[dict[str, Any]]]) -> list[tuple[Markup, str]]:
    if not photos:
        return []
    several = {name: [photo["detail"] for photo in found] for name, found in counts.items() if found}
    return [
        (
            histogram_plot(
                _values(photos, "brightness"), title="Brightness", x="brightness (mean grey value, 0 to 255)"
            ),
            "Dark and overexposed photos lie at the ends.",
        ),
        (
            histogram_plot(
                _values(photos, "contrast"), title="Contrast", x="contrast (standard deviation of grey values)"
            ),
            "Near 0 a photo shows nothing: a lens cap, a blank frame.",
        ),
        (
            histogram_plot(_values(photos, "num_bytes") / 1024, title="File size", x="file size in KiB"),
            "A few sizes far off the rest are worth a look: truncated files, or another camera.",
        ),
        (
            box_plot(
                several, title="Detail by recorded quantity", x="pieces in the bin", y="detail (mean |Laplacian|)"
            ),
            "Fuller bins show more edges. Boxes: middle half and median; whiskers: 5 % to 95 %.",
        ),
    ]


def _values(photos: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([photo[name] for photo in photos], dtype=np.float64)


def _common_sizes(photos: list[dict[str, Any]]) -> list[tuple[str, int]]:
    sizes = Counter((photo["width"], photo["height"]) for photo in photos)
    listed = sorted(sizes.items(), key=lambda entry: (-entry[1], entry[0]))
    rows = [(f"{width} × {height}", count) for (width, height), count in listed[:SHOWN_SIZES]]
    rest = sum(count for _, count in listed[SHOWN_SIZES:])
    return [*rows, (f"{len(listed) - SHOWN_SIZES} other sizes", rest)] if rest else rows


def _spreads(photos: list[dict[str, Any]]) -> list[tuple[str, list[float]]]:
    """Smallest, 5 %, median, 95 %, largest of each measure."""
    if not photos:
        return []
    found = []
    for name in ("num_bytes", "width", "height", "brightness", "contrast", "detail"):
        spread = np.percentile(_values(photos, name), [0, 5, 50, 95, 100]).tolist()
        found.append((name.removeprefix("num_"), spread))
    return found
