"""What holds for every test: no network, one thread, fixed seeds."""

import os
import random
from collections.abc import Iterator
from multiprocessing import set_forkserver_preload
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
# For subprocesses: Python finds sitecustomize.py, and other programs a proxy where nobody listens.
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (Path(__file__).parent / "offline", Path(__file__).parent.parent)))
os.environ.update(dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"), NO_PROXY="localhost,127.0.0.1")

import numpy as np
import pytest
import torch

from tests.offline.sitecustomize import attempts

# Processes that tests start are forked from one that has imported everything.
set_forkserver_preload(["pytest", "lightning_styles.cli", "callbacks", "tests.trust.heavy"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of whole runs and processes come first: what is left at the end is short, and all workers end together."""
    items.sort(key=lambda item: not (item.path.parent.name == "trust" or item.path.name == "test_readme.py"))


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """No test tries to leave this machine, not even in vain and unnoticed."""
    attempts.clear()
    yield
    assert attempts == []


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
