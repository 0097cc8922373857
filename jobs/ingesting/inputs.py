"""What an ingest is given: the keys of all photos, and those of all records or the records of an export."""

from __future__ import annotations

import logging
from typing import Any

from jobs.config.ingest import IngestConfig
from jobs.ingesting.exchange import Chunks, choose_bounds, collect, exchange
from jobs.ingesting.exports import find_export, is_export, make_records, read_export
from jobs.ingesting.inventory import are_in_one_bucket, read_inventories
from jobs.ingesting.keys import IMAGE_SUFFIXES, RECORD_SUFFIXES, Folder, list_keys
from jobs.platform import storage
from jobs.platform.uris import absolute, is_bucket
from schemas.errors import InputError

logger = logging.getLogger("jobs.ingest")


def list_inputs(config: IngestConfig) -> tuple[Chunks, Chunks]:
    """The keys of all images, and those of all records or, from an export, the records themselves.

    Raises InputError where there are none.
    """
    images_uri, records_uri = absolute(config.images_uri), absolute(config.records_uri)
    if is_export(records_uri):
        found = [entry.version for entry in find_export(records_uri, anonymous=config.anonymous)]
        lines_sources, names_images = read_export(records_uri, anonymous=config.anonymous)
        images = Folder(images_uri, IMAGE_SUFFIXES, config.anonymous, key_is_uri=names_images)
        image_sources = _start_listing(images, config)
        lines = collect("lines of the export", lines_sources)
        # of one that was still being written the rest would be bins that nobody audits
        if [entry.version for entry in find_export(records_uri, anonymous=config.anonymous)] != found:
            raise InputError(
                f"{records_uri}: was written while it was read; run the same command again once it is whole"
            )
        if not lines.num_rows:
            raise InputError(f"{records_uri}: expected lines of a WMS export below the header, found none")
        num_lines = lines.num_rows
        bin_ranges = exchange(lines, choose_bounds(lines))
        named_below = images_uri if names_images else None
        record_sources = [make_records.remote(records_uri, named_below, *pieces) for pieces in bin_ranges]
        chunks, records = _list_folder("images", images, image_sources), collect("records", record_sources)
        if 2 * records.num_repeated >= num_lines:  # a few may be pallets that are alike
            logger.warning(
                "%s: %s of %s lines are those of another one in every column that is read (such as %s), as where an export "
                "stands in the file or folder twice; their pieces are added up",
                records_uri,
                f"{records.num_repeated:,}",
                f"{num_lines:,}",
                "; ".join(records.repeated),
            )
        return chunks, records
    images = Folder(images_uri, IMAGE_SUFFIXES, config.anonymous)
    documents = Folder(records_uri, RECORD_SUFFIXES, config.anonymous)
    image_sources, record_sources = _start_listing(images, config), _start_listing(documents, config)
    return _list_folder("images", images, image_sources), _list_folder("records", documents, record_sources)


def _start_listing(folder: Folder, config: IngestConfig) -> list[Any]:
    # the images' inventory stands for the records too where both are in one bucket
    if config.inventory_uri and are_in_one_bucket(folder.uri, absolute(config.images_uri)):
        return read_inventories([absolute(uri) for uri in config.inventory_uri], folder)
    return [list_keys.remote(folder)]


def _list_folder(what: str, folder: Folder, sources: list[Any]) -> Chunks:
    """Follows the listing to its end. Raises InputError where the folder holds nothing of the kind."""
    chunks = collect(what, sources)
    others = f"{chunks.num_others:,} other objects (such as {', '.join(chunks.others)})"
    if not chunks.num_rows:
        if not is_bucket(folder.uri) and storage.describe(folder.uri, anonymous=folder.anonymous) is not None:
            export = (
                ", or a WMS export (.csv, .csv.gz, .parquet; save a workbook as CSV UTF-8)" if what == "records" else ""
            )
            raise InputError(f"{folder.uri}: expected a folder of {what}{export}, found a file of another kind")
        raise InputError(
            f"{folder.uri}: expected {what} ({', '.join(folder.suffixes)}), found "
            f"{others if chunks.num_others else 'nothing'}; check --{what}-uri"
        )
    if chunks.num_others:
        logger.info("%s: %s passed over", what, others)
    return chunks
