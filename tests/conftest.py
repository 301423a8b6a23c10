"""What holds for every test: no network, one thread, fixed seeds."""

import os
import random
import socket
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import numpy as np
import pytest
import torch

LOOPBACK = ("127.", "localhost", "::1", "0.0.0.0")


def _refuse_network(connect: Callable[..., object]) -> Callable[..., object]:
    def guarded(self: socket.socket, address: object) -> object:
        inside = self.family == socket.AF_UNIX or str(address[0]).startswith(LOOPBACK)  # type: ignore[index]
        if not inside:
            raise ConnectionRefusedError(f"a test tried to reach {address}")
        return connect(self, address)

    return guarded


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only unix sockets and the loopback interface can be reached."""
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, _refuse_network(getattr(socket.socket, name)))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
