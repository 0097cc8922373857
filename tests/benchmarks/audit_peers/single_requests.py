"""One photo at a time, as an endpoint without batches answers them: fetch, Pillow, torchvision's transforms, float32.
The HTTP request to the endpoint itself is left out, in its favour. `--uris FILE --bundle DIR`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from model.bundle import load_bundle
from tests.benchmarks.audit_peers.data_loader import DEVICE, Photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uris", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    network = bundle.network.to(DEVICE, memory_format=torch.contiguous_format).eval()
    photos = Photos(json.loads(options.uris.read_text()), bundle.info.preprocessing)
    marks = []
    with torch.no_grad():
        for number in range(len(photos)):
            torch.softmax(network(photos[number][None].to(DEVICE)), dim=1).argmax().item()
            marks.append((time.time(), number + 1))
    print(json.dumps({"marks": marks}))


if __name__ == "__main__":
    main()
