"""Real traffic, agents, a server of ours and one of ClickHouse's, which is killed and comes back.

Ours inserts over TCP as a user with a password and the grants that docs/clickhouse.md names, into a database
of its own.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.beds.metered_world import MeteredWorld, expected

pytestmark = [pytest.mark.root, pytest.mark.chdb, pytest.mark.timeout(300)]


def test_a_clickhouse_that_is_killed_again_and_again_loses_and_doubles_nothing(tmp_path: Path) -> None:
    moments = random.Random(6)
    with MeteredWorld(tmp_path, clickhouse=True) as metered:
        metered.start()
        assert metered.server is not None
        assert metered.clickhouse is not None
        metered.begin_traffic(seed=6)
        for away in (0.0, 6.0, 0.0):
            # Reports come every few seconds: one at least finds nobody, while that is away for six.
            metered.run_for(1.5 + moments.random())
            metered.clickhouse.kill()
            metered.run_for(away)
            metered.clickhouse.start()
        metered.run_for(2)
        metered.end_traffic()
        retries = metered.server.metrics()["kubenetmon_worker_insert_retries_total"]
        assert metered.server.metrics()["kubenetmon_server_exactly_once"] == 1
        flows = metered.finish()
        assert metered.stored() == expected(flows)
        assert retries > 0, "no kill hit an insert: nothing was tried"
