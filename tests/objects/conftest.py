"""One broker for the tests of a file; at the end of each everything has come back."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from object_helpers import comes_back

import shmpool


@pytest.fixture(scope="module")
def module_broker() -> Iterator[shmpool.Broker]:
    with shmpool.Broker(memory_limit="256MiB", max_clients=16) as broker:
        yield broker


@pytest.fixture
def pool(module_broker: shmpool.Broker) -> Iterator[shmpool.Pool]:
    with module_broker.connect() as pool:
        yield pool
    gc.collect()
    assert comes_back(module_broker.address)
