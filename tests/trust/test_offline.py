"""No network: the suite has none, and a model that is not here is named at once instead of waited for."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from lightning_styles.errors import UserError
from lightning_styles.pretrained import locate
from tests.offline.sitecustomize import attempts

REFUSED = "there is no network in the tests"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a folder of models nor anything in the hub's cache."""
    import huggingface_hub.constants

    monkeypatch.delenv("LIGHTNING_STYLES_MODELS", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)


# ---- the suite


def test_an_address_or_a_name_outside_is_refused_and_remembered() -> None:
    with socket.socket() as own, pytest.raises(ConnectionRefusedError, match=REFUSED):
        own.connect(("192.0.2.1", 80))
    with pytest.raises(ConnectionRefusedError, match=REFUSED):
        socket.create_connection(("huggingface.co", 443))
    assert attempts == ["socket.connect ('192.0.2.1', 80)", "socket.getaddrinfo huggingface.co"]
    attempts.clear()


def test_loopback_is_let_through() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        client.close()


def test_libraries_do_not_get_out() -> None:
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen("https://huggingface.co", timeout=5)
    attempts.clear()


def test_subprocesses_have_no_network_either() -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 80))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert REFUSED in done.stderr
    assert {os.environ["HTTP_PROXY"], os.environ["HTTPS_PROXY"]} == {"http://127.0.0.1:9"}


# ---- a base that is not here


@pytest.mark.usefixtures("models")
def test_a_missing_base_is_named_within_two_seconds() -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"'stable-diffusion-v1-5' is not on this machine"):
        locate("stable-diffusion-v1-5", "stable-diffusion")
    assert time.monotonic() - start < 2


@pytest.mark.usefixtures("models")
def test_without_the_offline_switch_an_unreachable_hub_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"'stable-diffusion-v1-5' is not on this machine"):
        locate("stable-diffusion-v1-5", "stable-diffusion")
    print(time.monotonic()-start, attempts)
    assert 0
