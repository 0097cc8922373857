"""What only a GPU shows; skipped without one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.bundle import load_bundle
from model.scoring import Precision, Scorer
from tests.dump import write_bundle

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05), ("fp16", 0.01)])
def test_a_gpu_answers_as_a_processor_and_alone_as_in_company(
    tmp_path: Path, precision: Precision, tolerance: float
) -> None:
    bundle = load_bundle(write_bundle(tmp_path))
    scorer = Scorer(bundle, device="cuda", precision=precision, batch_size=8)
    pixels = np.random.default_rng(5).integers(0, 256, (203, 32, 32, 3), dtype=np.uint8)
    together = scorer.score(pixels)
    expected = Scorer(bundle, device="cpu", precision="fp32", batch_size=8).score(pixels)
    assert np.allclose(together, expected, atol=tolerance)
    assert np.array_equal(together, np.concatenate([scorer.score(photo[None]) for photo in pixels]))
