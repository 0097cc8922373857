"""A PyTorch DataLoader script: `plain` as the tutorials write it (boto3, Pillow, torchvision's transforms, float32),
or `tuned` with the audit's own fetch, decoding and network settings. `--workers` counts its worker processes."""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from pathlib import Path

import boto3
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from jobs.platform import storage
from jobs.stages.resources import CPU_BATCH, read_cards, resolve_precision
from model.bundle import load_bundle
from model.images import decode_image
from model.processor import read_processor
from model.scoring import Scorer
from schemas.bundle import Preprocessing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH_SIZE = 128 if DEVICE == "cuda" else CPU_BATCH


class Photos(Dataset):
    def __init__(self, uris: list[str], preprocessing: Preprocessing) -> None:
        self.uris, self.client = uris, None
        side = preprocessing.image_size
        self.transform = transforms.Compose(
            [
                transforms.Resize((side, side)),
                transforms.ToTensor(),
                transforms.Normalize(preprocessing.mean, preprocessing.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.uris)

    def __getitem__(self, index: int) -> torch.Tensor:
        self.client = self.client or boto3.client("s3")
        bucket, key = self.uris[index].removeprefix("s3://").split("/", 1)
        body = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return self.transform(Image.open(io.BytesIO(body)).convert("RGB"))


class TunedPhotos(Photos):
    def __init__(self, uris: list[str], preprocessing: Preprocessing) -> None:
        self.uris, self.preprocessing = uris, preprocessing

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(decode_image(storage.read_bytes(self.uris[index]), self.preprocessing))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uris", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--kind", choices=("plain", "tuned"), required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--precision", default="auto", help="of the tuned kind")
    options = parser.parse_args()
    uris, bundle = json.loads(options.uris.read_text()), load_bundle(options.bundle)
    kind = Photos if options.kind == "plain" else TunedPhotos
    photos = DataLoader(kind(uris, bundle.info.preprocessing), batch_size=BATCH_SIZE, num_workers=options.workers)
    network = bundle.network.to(DEVICE, memory_format=torch.contiguous_format).eval()
    if options.kind == "tuned":
        precision = resolve_precision(options.precision, DEVICE, read_cards(), [read_processor()])
        scorer = Scorer(bundle, device=DEVICE, precision=precision, batch_size=BATCH_SIZE)
    marks, done = [], 0
    with torch.no_grad():
        for batch in photos:
            if options.kind == "plain":
                rows = torch.softmax(network(batch.to(DEVICE)), dim=1).cpu().numpy()
            else:
                rows = scorer.score(batch.numpy())
            assert np.isfinite(rows).all()
            done += len(rows)
            marks.append((time.time(), done))
    print(json.dumps({"marks": marks}))


if __name__ == "__main__":
    main()
