"""The same job as a Daft query, as Daft's own image classification benchmark builds it: its URL download, its image
functions, one batch class. `--uris FILE --bundle DIR`; prints when how many were done."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import daft
import numpy as np
import torch
from daft import DataType, col
from daft.functions import decode_image, download, resize
from daft.io import IOConfig, S3Config

from model.bundle import load_bundle

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@daft.cls(max_concurrency=1, gpus=int(DEVICE.type == "cuda"))
class Classifier:
    def __init__(self, folder: str) -> None:
        bundle = load_bundle(Path(folder))
        self.network = bundle.network.to(device=DEVICE, memory_format=torch.contiguous_format).eval()
        preprocessing = bundle.info.preprocessing
        self.mean = torch.tensor(preprocessing.mean, device=DEVICE).view(1, 3, 1, 1)
        self.std = torch.tensor(preprocessing.std, device=DEVICE).view(1, 3, 1, 1)

    @daft.method.batch(return_dtype=DataType.float64(), batch_size=32)
    def predict(self, images: daft.Series) -> list[float]:
        pixels = torch.from_numpy(np.stack(images.to_pylist())).to(DEVICE).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            self.network((pixels - self.mean) / self.std).argmax(dim=1).cpu()
        return [time.time()] * len(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uris", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    options = parser.parse_args()
    side = load_bundle(options.bundle).info.preprocessing.image_size
    storage = S3Config(
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        region_name=os.environ["AWS_REGION"],
        key_id=os.environ["AWS_ACCESS_KEY_ID"],
        access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        use_ssl=os.environ["AWS_ENDPOINT_URL"].startswith("https"),
    )
    photos = daft.from_pydict({"uri": json.loads(options.uris.read_text())})
    photos = photos.with_column("image", decode_image(download(col("uri"), io_config=IOConfig(s3=storage)), mode="RGB"))
    photos = photos.with_column("image", resize(col("image"), side, side))
    photos = photos.with_column("at", Classifier(str(options.bundle)).predict(col("image")))
    times = np.sort(photos.select("at").to_pydict()["at"])
    print(json.dumps({"marks": [(float(at), int((times <= at).sum())) for at in np.unique(times)]}))


if __name__ == "__main__":
    main()
