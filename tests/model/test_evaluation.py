from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from model import evaluation
from model.evaluation import Evaluation, nll_of_guessing, selection_figures
from model.micro_batches import MicroBatch, PreparedBatch, TrainingSet
from model.network import CountingNetwork, build_network
from model.recipe import Recipe
from model.splitting import id_hashes
from model.train_worker import TrainWorker
from schemas.bundle import Preprocessing


class CountedPhotos:
    """A `PhotoSource`: photos whose every value is their row's number."""

    def __init__(self) -> None:
        self.num_read = 0

    def __call__(self, micro_batches: Sequence[MicroBatch]) -> Iterator[PreparedBatch]:
        for batch in micro_batches:
            self.num_read += len(batch.rows)
            side = batch.image_size
            yield PreparedBatch(np.tile(batch.rows.astype(np.uint8)[:, None, None, None], (1, side, side, 3)), {})


def _evaluation(rank: int = 0, num_workers: int = 1) -> tuple[Evaluation, CountedPhotos]:
    numbers, photos = np.arange(60), CountedPhotos()
    splits = np.array(["train", "selection", "test"])[numbers % 3]
    bins = TrainingSet(id_hashes([str(number) for number in numbers]), numbers, numbers, splits)
    network = CountingNetwork(build_network("resnet18", 7), auxiliary=False)
    preprocessing = Preprocessing(image_size=32)
    worker = TrainWorker(torch.device("cpu"), rank, num_workers, mixed=False, preprocessing=preprocessing)
    return Evaluation(network, bins, photos, Recipe(micro_batch_size=8), worker), photos


def _rows(asked: Evaluation, split: str, image_size: int) -> dict[int, int]:
    """Row of the training set by place in the split."""
    found = {}
    for start, pixels in asked._plain_batches(split, image_size):
        assert pixels.shape[1:] == (image_size, image_size, 3)
        found.update({start + place: int(photo[0, 0, 0]) for place, photo in enumerate(pixels)})
    return found


def test_photos_of_the_selection_are_read_once_for_each_size() -> None:
    asked, photos = _evaluation()
    expected = dict(enumerate(range(1, 60, 3)))
    for image_size, num_read in ((32, 20), (32, 20), (48, 40), (48, 40), (32, 60)):
        assert _rows(asked, "selection", image_size) == expected
        assert photos.num_read == num_read
    # those of the test come once, and don't push the others out
    assert _rows(asked, "test", 32) == dict(enumerate(range(2, 60, 3)))
    assert _rows(asked, "selection", 32) == expected
    assert photos.num_read == 80


def test_too_many_photos_are_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, photos = _evaluation()
    monkeypatch.setattr(evaluation, "KEPT_BYTES", 20 * 32 * 32 * 3 - 1)
    assert _rows(asked, "selection", 32) == _rows(asked, "selection", 32)
    assert photos.num_read == 40


def test_workers_share_a_split() -> None:
    shares = [_rows(_evaluation(rank, 2)[0], "selection", 32) for rank in (0, 1)]
    assert [len(share) for share in shares] == [12, 8]
    assert shares[0] | shares[1] == dict(enumerate(range(1, 60, 3)))


def test_logits_are_those_of_the_state_asked_about_as_the_audit_scores() -> None:
    asked, _ = _evaluation()
    photos = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)

    def as_from_ray(plan: Sequence[MicroBatch]) -> Iterator[PreparedBatch]:
        for batch in plan:
            pixels = photos[batch.rows]
            pixels.flags.writeable = False
            yield PreparedBatch(pixels, {})

    asked.photos = as_from_ray
    torch.manual_seed(0)
    other = CountingNetwork(build_network("resnet18", 7), auxiliary=False).eval()
    inputs = asked.worker.inputs(photos[asked.bins.rows_of("selection")])
    with torch.no_grad():
        plain, mirrored = (other(each)[0].double().numpy() for each in (inputs, inputs.flip(3)))
    asked.network.train()
    for mirror, expected in ((False, plain), (True, (plain + mirrored) / 2)):
        found = asked.logits(other.state_dict(), "selection", image_size=32, mirror=mirror)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_answers_that_ignore_the_photo_are_no_better_than_a_guess_whatever_the_selection_holds() -> None:
    """Else `nothing_learned` could not tell: biases that are fitted to the selection know what is common there."""
    histogram, labels = [7, 7, 7, 7], np.zeros(8, np.int64)
    constant = np.tile(np.log(np.array(histogram) / sum(histogram)), (8, 1))
    # a guess has log 4; biases that were fitted to it 0.25
    assert selection_figures(constant, labels, histogram)["selection_nll"] > 1
    train = np.repeat(np.arange(4), histogram)
    assert nll_of_guessing(train, labels, 4) == pytest.approx(np.log(4))


def test_epochs_are_told_apart_by_counts_too_where_there_are_any() -> None:
    labels, histogram = np.arange(4).repeat(5), [10] * 4
    right = 5 * np.eye(4)[labels]
    figures = selection_figures(right, labels, histogram)
    assert (figures["selection_exact"], figures["selection_mae"]) == (1, 0) and figures["selection_nll"] < 0.01
    assert set(selection_figures(right[:5], labels[:5], histogram)) == {"selection_nll"}, "empty bins alone"
    right[3, 2] = np.nan
    assert selection_figures(right, labels, histogram) == {"selection_nll": np.inf}
