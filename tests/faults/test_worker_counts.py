"""The same night on clusters of other sizes gives the same tables, bit for bit."""

from __future__ import annotations

import pytest

from tests.faults.disturbed_runs import TABLES, Site, Trial, assert_same_rows, read_views
from tests.faults.ray_nodes import RayNodes

pytestmark = [pytest.mark.ray, pytest.mark.s3]

SLOW = [pytest.param(cpus, marks=pytest.mark.slow) for cpus in ((1,), (1, 1, 1, 1))]


@pytest.mark.parametrize("cpus", [(2, 2), *SLOW], ids=str)
def test_tables_do_not_depend_on_the_number_of_workers(site: Site, trial: Trial, cpus: tuple[int, ...]) -> None:
    """CPUs node by node; the undisturbed run had one node of two. Each node has a scoring actor, those of two CPUs compute
    two shards at once."""
    nodes = RayNodes(site.environment, num_cpus=cpus[0])
    try:
        for num_cpus in cpus[1:]:
            nodes.add(num_cpus=num_cpus)
        audit = site.start(trial.output_uri, ray_address=nodes.address)
        assert audit.wait() == 0, audit.log()
    finally:
        nodes.stop()
    found = read_views(trial.output_uri)
    for table in TABLES:
        assert_same_rows(site.undisturbed[table], found[table], table)
    assert found["results"]["run_id"].to_pylist() == site.undisturbed["results"]["run_id"].to_pylist()
