"""Ray's documented batch prediction (its example "Image Classification Batch Inference with PyTorch"): `read_images`,
a `map` that transforms, one float32 actor that asks for nothing but the GPU where there is one. `--uris FILE --bundle DIR`; prints when how many were done.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.fs
import ray
import torch
from torchvision import transforms

from model.bundle import load_bundle

DEVICE, BATCH_SIZE = ("cuda", 720) if torch.cuda.is_available() else ("cpu", 32)


class ResnetModel:
    def __init__(self, folder: Path) -> None:
        self.network = load_bundle(folder).network.to(DEVICE, memory_format=torch.contiguous_format).eval()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            inputs = torch.from_numpy(batch["transformed_image"]).to(DEVICE)
            predicted = self.network(inputs).argmax(dim=1)
        return {
            "predicted": predicted.cpu().numpy(),
            "original_image": batch["original_image"],
            "at": np.full(len(predicted), time.time()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uris", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    options = parser.parse_args()
    preprocessing = load_bundle(options.bundle).info.preprocessing
    transform = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize((preprocessing.image_size, preprocessing.image_size)),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )

    def preprocess_image(row: dict) -> dict:
        return {"original_image": row["image"], "transformed_image": transform(row["image"]).numpy()}

    ray.init(include_dashboard=False, log_to_driver=False)
    filesystem = pyarrow.fs.S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL"], region=os.environ["AWS_REGION"]
    )
    paths = [uri.removeprefix("s3://") for uri in json.loads(options.uris.read_text())]
    predictions = (
        ray.data.read_images(paths, mode="RGB", filesystem=filesystem)
        .map(preprocess_image)
        .map_batches(
            ResnetModel,
            fn_constructor_args=[options.bundle],
            compute=ray.data.ActorPoolStrategy(size=1),
            batch_size=BATCH_SIZE,
            num_gpus=1 if DEVICE == "cuda" else None,
        )
    )
    times = np.sort(np.concatenate([batch["at"] for batch in predictions.iter_batches()]))
    ray.shutdown()
    print(json.dumps({"marks": [(float(at), int((times <= at).sum())) for at in np.unique(times)]}))


if __name__ == "__main__":
    main()
