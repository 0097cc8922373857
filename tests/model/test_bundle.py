"""A bundle comes back exactly as it was saved, or is refused with a message."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.bundle import load_bundle, save_bundle
from model.bundle_files import read_bundle_info, read_training_images, read_weights
from model.network import build_network
from model.scoring import Scorer, normalisation, to_inputs
from schemas.bundle import BundleInfo, Preprocessing
from schemas.errors import InputError

TRAINING_IMAGES = pa.table({"image_sha256": ["00"], "bin_id": ["00001"], "split": ["train"]})


def fields(**changes: Any) -> dict[str, Any]:
    generator = np.random.default_rng(3)
    return {
        "architecture": "resnet18",
        "top_class": 6,
        "preprocessing": {"image_size": 32},
        "calibration": {
            "method": "matrix",
            "weight": (np.eye(7) + generator.normal(0, 0.1, (7, 7))).tolist(),
            "bias": generator.normal(0, 0.1, 7).tolist(),
        },
        "prediction_set_threshold": 0.93,
        "num_calibration": 500,
        "record_outside_set_share": 0.1,
        "num_independent": 500,
        "activation_ranges": {},
        "label_histogram": [1, 2, 3, 4, 5, 6, 7],
    } | changes


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(1)
    network = build_network("resnet18", 7)
    for name, parameter in network.named_parameters():
        if name.endswith("bn2.weight"):
            torch.nn.init.ones_(parameter)
    return network.train(False)


def save(folder: Path, network: torch.nn.Module, **changes: Any) -> BundleInfo:
    return save_bundle(
        folder, network=network, fields=fields(**changes), training_images=TRAINING_IMAGES, report_html=""
    )


def test_a_saved_bundle_loads_with_the_same_outputs(tmp_path: Path, network: torch.nn.Module) -> None:
    info = save(tmp_path, network)
    bundle = load_bundle(tmp_path)
    assert bundle.info == info
    inputs = torch.rand(2, 3, 32, 32)
    assert torch.equal(bundle.network(inputs), network(inputs))
    assert read_training_images(tmp_path, info).to_pylist() == TRAINING_IMAGES.to_pylist()
    assert bundle.info.classes == ["0", "1", "2", "3", "4", "5", "6+"]


def test_the_bundle_id_covers_weights_and_calibration_but_not_metrics(tmp_path: Path, network: torch.nn.Module) -> None:
    first = save(tmp_path / "a", network).bundle_id
    assert save(tmp_path / "b", network, metrics={"exact": 0.4}).bundle_id == first
    assert save(tmp_path / "c", network, prediction_set_threshold=0.94).bundle_id != first
    torch.nn.init.zeros_(network.fc.bias)
    assert save(tmp_path / "d", network).bundle_id != first


def test_a_missing_bundle_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bundle\.json: not found"):
        load_bundle(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["bundle.json", "weights.safetensors", "training_images.parquet"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, network: torch.nn.Module, name: str) -> None:
    info = save(tmp_path, network)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()  # root may read everything else
    with pytest.raises(InputError, match=name):
        read_bundle_info(tmp_path)
        read_weights(tmp_path, info)
        read_training_images(tmp_path, info)


def test_the_training_images_of_another_bundle_are_refused(tmp_path: Path, network: torch.nn.Module) -> None:
    info = save(tmp_path / "a", network)
    other = save_bundle(
        tmp_path / "b",
        network=network,
        fields=fields(),
        training_images=TRAINING_IMAGES.slice(1),
        report_html="",
    )
    assert other.bundle_id != info.bundle_id
    shutil.copy(tmp_path / "b" / "training_images.parquet", tmp_path / "a")
    with pytest.raises(InputError, match=r"training_images\.parquet: SHA-256: expected"):
        read_training_images(tmp_path / "a", info)


def test_another_format_version_is_refused(tmp_path: Path, network: torch.nn.Module) -> None:
    save(tmp_path, network)
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(InputError, match="format_version: expected 1, found 2"):
        read_bundle_info(tmp_path)


def test_an_architecture_that_is_not_known_is_refused(tmp_path: Path, network: torch.nn.Module) -> None:
    save(tmp_path, network)
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architecture": "vgg"}))
    with pytest.raises(InputError, match="architecture: Input should be 'resnet18'"):
        read_bundle_info(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path, network: torch.nn.Module) -> None:
    save(tmp_path, network)
    path = tmp_path / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="SHA-256"):
        load_bundle(tmp_path)


def test_an_edited_bundle_is_refused(tmp_path: Path, network: torch.nn.Module) -> None:
    save(tmp_path, network)
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_calibration": 501}))
    with pytest.raises(InputError, match="bundle_id"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_document_is_refused(tmp_path: Path, network: torch.nn.Module, text: str) -> None:
    save(tmp_path, network)
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(InputError, match=r"bundle\.json"):
        load_bundle(tmp_path)


def test_weights_of_another_architecture_are_refused_when_loading(tmp_path: Path, network: torch.nn.Module) -> None:
    save(tmp_path, network, architecture="resnet34")
    with pytest.raises(InputError, match="doesn't fit resnet34"):
        load_bundle(tmp_path)


def photos(n: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_photo_scores_the_same_alone_and_in_any_company(
    tmp_path: Path, network: torch.nn.Module, precision: Any
) -> None:
    save(tmp_path, network, test_time_flip=True)
    scorer = Scorer(load_bundle(tmp_path), device="cpu", precision=precision, batch_size=8)
    pixels = photos(21)
    together = scorer.score(pixels)
    assert together.shape == (21, 7)
    assert together.dtype == np.float32
    assert np.allclose(together.sum(axis=1), 1, atol=1e-5)
    assert len(np.unique(together[:, 0])) == 21
    alone = np.concatenate([scorer.score(pixels[i : i + 1]) for i in range(21)])
    assert np.array_equal(together, alone)
    assert np.array_equal(together[::-1], scorer.score(pixels[::-1]))


def test_threads_share_a_scorer(tmp_path: Path, network: torch.nn.Module) -> None:
    save(tmp_path, network, test_time_flip=True)
    scorer = Scorer(load_bundle(tmp_path), device="cpu", precision="fp32", batch_size=8)
    shards = np.split(photos(240), 20)
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(scorer.score, shards))
    assert np.array_equal(together, [scorer.score(shard) for shard in shards])


def test_a_mirrored_photo_scores_the_same_with_test_time_flip(tmp_path: Path, network: torch.nn.Module) -> None:
    save(tmp_path, network, test_time_flip=True)
    scorer = Scorer(load_bundle(tmp_path), device="cpu", precision="fp32", batch_size=4)
    pixels = photos(4)
    assert np.allclose(scorer.score(pixels), scorer.score(pixels[:, :, ::-1]), atol=1e-6)
    save(tmp_path, network, test_time_flip=False)
    plain = Scorer(load_bundle(tmp_path), device="cpu", precision="fp32", batch_size=4)
    assert not np.allclose(plain.score(pixels), plain.score(pixels[:, :, ::-1]), atol=1e-6)


def test_no_photos_give_no_rows_and_wrong_shapes_are_refused(tmp_path: Path, network: torch.nn.Module) -> None:
    save(tmp_path, network)
    scorer = Scorer(load_bundle(tmp_path), device="cpu", precision="fp32", batch_size=4)
    assert scorer.score(photos(0)).shape == (0, 7)
    with pytest.raises(ValueError, match="pixels"):
        scorer.score(np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(InputError, match="fp16"):
        Scorer(load_bundle(tmp_path), device="cpu", precision="fp16", batch_size=4)


def test_a_network_s_input_is_scaled_as_imagenet_s_networks_know_it() -> None:
    pixels = photos(2)
    scale, shift = normalisation(Preprocessing(image_size=32), torch.device("cpu"))
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    found = to_inputs(torch.from_numpy(pixels), scale, shift).numpy()
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_a_histogram_of_another_number_of_classes_is_refused(tmp_path: Path, network: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=r"label_histogram has 6 entries, expected top_class \+ 1 = 7"):
        save(tmp_path, network, label_histogram=[1] * 6)


@pytest.mark.parametrize(
    "changes",
    [
        {"calibration": fields()["calibration"] | {"bias": [0.5] * 7}},
        {"label_histogram": [7, 6, 5, 4, 3, 2, 1]},
        {"label_noise": {"rate": 0.05}},
        {"preprocessing": {"image_size": 64}},
        {"test_time_flip": True},
        {"record_outside_set_share": 0.2},
        {"num_calibration": 600},
        {"num_independent": 400},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_an_answer_or_its_use_makes_another_bundle(
    tmp_path: Path, network: torch.nn.Module, changes: dict[str, Any]
) -> None:
    assert save(tmp_path / "a", network, **changes).bundle_id != save(tmp_path / "b", network).bundle_id
