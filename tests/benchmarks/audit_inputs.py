"""What the audit's benchmark runs on: photos in a real S3 server, a manifest over them, a bundle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

from jobs.platform import storage
from jobs.platform.parquet import write_table
from jobs.platform.uris import absolute, join
from tests.conftest import S3_ENVIRONMENT, free_port, start_s3_server
from tests.dump import manifest_table, photo, write_bundle

IMAGES_URI, MANIFEST_URI, SHORT_MANIFEST_URI = (
    "s3://bench/bin-images",
    "s3://bench/manifest",
    "s3://bench/short-manifest",
)
SHORT_SHARE = 0.25
"""Of the bins, those of the short manifest."""
MAX_OBJECTS = 4096
"""Photos that the S3 server holds; bins beyond show the same ones again."""


@contextmanager
def serve_photos(photos_uri: str | None, num_images: int, folder: Path) -> Iterator[list[str]]:
    """Starts an S3 server that holds `num_images` photos (MAX_OBJECTS at most), those below `photos_uri` over and over
    (generated ones of a bin photo's usual size without it), a manifest of so many bins over them and a short one of the
    first of these. Yields the URIs, one a bin; child processes inherit the server's address.
    """
    num_objects = min(num_images, MAX_OBJECTS)
    photos = read_photos(photos_uri, num_objects)
    port = free_port()
    # a peer (Daft) would report its use over the internet
    os.environ |= {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "DO_NOT_TRACK": "true"}
    server = start_s3_server(folder, port)
    try:
        import boto3

        boto3.client("s3").create_bucket(Bucket="bench")
        objects = [f"{IMAGES_URI}/{number:05d}.jpg" for number in range(num_objects)]
        for uri, data in zip(objects, cycle(photos), strict=False):
            storage.write_bytes(uri, data)
        uris = list(islice(cycle(objects), num_images))
        table = manifest_table(IMAGES_URI, [number % 6 for number in range(num_images)], image_uri=uris)
        for uri, number in ((MANIFEST_URI, num_images), (SHORT_MANIFEST_URI, round(SHORT_SHARE * num_images))):
            write_table(join(uri, "part-0.parquet"), table.slice(0, number))
        yield uris
    finally:
        server.terminate()
        server.wait(timeout=60)


def read_photos(photos_uri: str | None, num_images: int) -> list[bytes]:
    if photos_uri is None:
        return [photo(number % 7, number, size=(468, 334)) for number in range(min(64, num_images))]
    found = (entry.uri for entry in storage.list_objects(absolute(photos_uri)))
    photos = [storage.read_bytes(uri) for uri in islice((uri for uri in found if uri.endswith(".jpg")), num_images)]
    if not photos:
        raise SystemExit(f"{photos_uri}: expected .jpg files, found none")
    return photos


def make_bundle(folder: Path) -> Path:
    """A ResNet50 at 224 pixels with random weights: what it counts is nonsense, what it costs is not."""
    return write_bundle(folder, image_size=224, architecture="resnet50")
