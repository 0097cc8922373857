import subprocess
import sys
from pathlib import Path

import pytest

from jobs.platform.parquet import read_table, write_table
from tests.dump import NIGHT, manifest_table, write_bundle, write_photos


@pytest.mark.ray
@pytest.mark.slow
def test_an_audit_runs_on_a_cluster_with_a_gpu(tmp_path: Path) -> None:
    """Two files of different size, so that shards are: Ray must hand each of them over as it is."""
    images_uri = f"{tmp_path}/bin-images"
    quantities = [number % 8 for number in range(300)]
    write_photos(images_uri, quantities)
    whole = manifest_table(images_uri, quantities)
    for name, part in (("a", whole.slice(0, 270)), ("b", whole.slice(270))):
        write_table(f"{tmp_path}/manifest/{name}.parquet", part)
    command = ["--manifest-uri", f"{tmp_path}/manifest", "--output-uri", f"{tmp_path}/audits", "--precision", "fp32"]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.gpu_cluster", *command, "--bundle-uri", str(write_bundle(tmp_path / "bundle"))],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "fp32 on cuda" in ended.stderr
    summary = read_table(f"{tmp_path}/audits/summary/audit_date={NIGHT}/summary.parquet").to_pylist()[0]
    assert (summary["num_bins"], summary["num_scored"]) == (300, 300)
