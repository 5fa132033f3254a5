"""One broker for the tests of a file; at the end of each everything has come back."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from patience import settle

import shmpool
from shmpool.stats import query


@pytest.fixture(scope="module")
def module_broker() -> Iterator[shmpool.Broker]:
    with shmpool.Broker(memory_limit="64MiB", max_clients=32) as broker:
        yield broker


@pytest.fixture
def pool(module_broker: shmpool.Broker) -> Iterator[shmpool.Pool]:
    with module_broker.connect() as pool:
        yield pool
        shmpool.uninstall()
    gc.collect()
    assert settle(lambda: query(module_broker.address).active_buffers) == 0
