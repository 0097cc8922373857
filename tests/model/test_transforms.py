from __future__ import annotations

import cv2
import numpy as np
import pytest

from model.images import resize_image
from model.transforms import augment
from schemas.bundle import Preprocessing

HALF = Preprocessing(image_size=48)


def test_augmentation_is_keyed_and_gives_the_size_that_was_asked_for() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    before = photo.copy()
    first = augment(photo, 17, 1.0, 32)
    assert np.array_equal(first, augment(photo, 17, 1.0, 32))
    assert not np.array_equal(first, augment(photo, 18, 1.0, 32))
    assert np.array_equal(photo, before)
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8


def test_without_strength_a_photo_is_only_mirrored() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    plain = resize_image(photo, HALF)
    for key in range(20):
        found = augment(photo, key, 0.0, HALF.image_size).astype(int)
        assert min(abs(found - plain).max(), abs(found - plain[:, ::-1]).max()) <= 1


@pytest.mark.parametrize(
    ("shape", "side", "most"),
    [
        ((90, 130), 48, 0.5),
        ((130, 60), 48, 0.5),
        ((334, 468), 224, 0.5),
        ((200, 280), 48, 4),  # shrunk first
    ],
    ids=str,
)
def test_a_photo_that_is_only_mirrored_is_the_one_that_the_network_is_asked_about(
    shape: tuple[int, int], side: int, most: float
) -> None:
    """To the pixel, of noise as fine as the photo: interpolated at the final size it would differ by 20 levels."""
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    plain = resize_image(photo, Preprocessing(image_size=side))
    for key in range(10):
        found = augment(photo, key, 0.0, side).astype(int)
        assert min(abs(found - plain).mean(), abs(found - plain[:, ::-1]).mean()) < most


@pytest.mark.parametrize(
    ("shape", "side"), [((96, 96), 48), ((90, 130), 48), ((300, 400), 48), ((334, 468), 224)], ids=str
)
def test_augmented_photos_are_as_sharp_as_those_that_the_network_is_asked_about(
    shape: tuple[int, int], side: int
) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    photo = cv2.GaussianBlur(photo, (0, 0), max(1.5, 0.75 * min(shape) / side))
    plain = detail(resize_image(photo, Preprocessing(image_size=side)))
    ratios = [detail(augment(photo, key, 0.1, side)) / plain for key in range(40)]
    assert 0.9 < np.median(ratios) < 1.1


def detail(photo: np.ndarray) -> float:
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    # contrast cancels out: augmentation changes the light too
    return float(np.abs(cv2.Laplacian(grey, cv2.CV_64F)).mean() / grey.std())


def test_augmentation_mirrors_half_of_the_photos_and_keeps_the_content_in_view() -> None:
    photo = np.zeros((96, 96, 3), np.uint8)
    photo[36:60, 12:30] = 200
    found = [augment(photo, key, 1.0, HALF.image_size).astype(int) for key in range(200)]
    assert 0.4 < np.mean([one[:, :24].sum() > one[:, 24:].sum() for one in found]) < 0.6
    assert min(one.sum() for one in found) > 0.4 * resize_image(photo, HALF).sum()


def test_augmentation_leaves_the_top_of_a_bin_at_the_top() -> None:
    photo = np.zeros((96, 96, 3), np.uint8)
    photo[8:24, 40:56] = 200
    found = [augment(photo, key, 1.0, HALF.image_size).astype(float).sum(axis=(1, 2)) for key in range(100)]
    assert max(rows @ np.arange(48) / rows.sum() for rows in found) < 20
