"""A bundle that would run code when it is unpickled is refused, and the code does not run."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.bundle import load_bundle
from model.bundle_files import INFO_FILE, TRAINING_IMAGES_FILE, WEIGHTS_FILE, read_bundle_info, read_training_images
from schemas.bundle import content_id
from schemas.errors import InputError
from tests.dump import write_bundle


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def trust_files(folder: Path) -> None:
    """Makes bundle.json vouch for the other files as they are, as whoever planted them would."""
    fields = json.loads((folder / INFO_FILE).read_text())
    for name, file in (("weights_sha256", WEIGHTS_FILE), ("training_images_sha256", TRAINING_IMAGES_FILE)):
        fields[name] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    fields["bundle_id"] = content_id(fields)
    (folder / INFO_FILE).write_text(json.dumps(fields))


@pytest.mark.parametrize("name", [WEIGHTS_FILE, INFO_FILE, TRAINING_IMAGES_FILE])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_under_a_bundles_name_is_refused_unopened(tmp_path: Path, name: str, form: str) -> None:
    import torch

    folder, marker = write_bundle(tmp_path / "bundle"), tmp_path / "it-ran"
    if form == "pickle":
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    else:
        torch.save({"fc.weight": Payload(marker)}, folder / name)
    if name != INFO_FILE:
        trust_files(folder)
    with pytest.raises(InputError, match=name):
        read_training_images(folder, load_bundle(folder).info)
    assert not marker.exists()
    # the payload is a real one
    if form == "pickle":
        pickle.loads((folder / name).read_bytes())  # noqa: S301
        assert marker.exists()


def test_training_images_of_other_types_are_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    table = pq.read_table(folder / TRAINING_IMAGES_FILE)
    place = table.schema.get_field_index("bin_id")
    pq.write_table(
        table.set_column(place, "bin_id", pa.array([7] * table.num_rows, pa.int64())), folder / TRAINING_IMAGES_FILE
    )
    trust_files(folder)
    with pytest.raises(
        InputError, match=r"training_images\.parquet: columns: expected .*bin_id: string.*bin_id: int64"
    ):
        read_training_images(folder, read_bundle_info(folder))


@pytest.mark.parametrize("name", ["bundle_id", "data_fingerprint"])
def test_half_a_surrogate_is_no_text(tmp_path: Path, name: str) -> None:
    folder = write_bundle(tmp_path / "bundle")
    fields = json.loads((folder / INFO_FILE).read_text())
    (folder / INFO_FILE).write_text(json.dumps(fields | {name: "\ud800"}))
    with pytest.raises(InputError, match=r"bundle\.json: expected JSON, found a damaged file .*surrogates"):
        read_bundle_info(folder)
