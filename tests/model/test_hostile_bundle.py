"""A bundle that would run code when it is unpickled is refused, and the code does not run."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest

from model.bundle import load_bundle
from model.bundle_files import INFO_FILE, TRAINING_IMAGES_FILE, WEIGHTS_FILE, read_training_images
from schemas.bundle import content_id
from schemas.errors import InputError
from tests.dump import write_bundle


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def trust_weights(folder: Path) -> None:
    """Makes bundle.json vouch for the weights file as it is, as whoever planted it would."""
    fields = json.loads((folder / INFO_FILE).read_text())
    fields["weights_sha256"] = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
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
    if name == WEIGHTS_FILE:
        trust_weights(folder)
    with pytest.raises(InputError, match=name):
        read_training_images(folder, load_bundle(folder).info)
    assert not marker.exists()
    # the payload is a real one
    if form == "pickle":
        pickle.loads((folder / name).read_bytes())  # noqa: S301
        assert marker.exists()
