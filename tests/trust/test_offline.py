"""No network: the suite has none, and a model that is not here is named at once instead of waited for."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_styles.__main__ import main
from lightning_styles.cli import parse_only
from lightning_styles.errors import UserError
from lightning_styles.pretrained import locate, registry
from lightning_styles.required_files import required_files
from tests.offline.sitecustomize import attempts
from tests.shipped import CONFIGS

REFUSED = "there is no network in the tests"
Checked = Callable[[str], tuple[int, list[str]]]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a folder of models nor anything in the hub's cache."""
    import huggingface_hub.constants

    monkeypatch.delenv("LIGHTNING_STYLES_MODELS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
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
    start, used = time.monotonic(), time.process_time()
    with pytest.raises(UserError, match=r"'stable-diffusion-v1-5' is not on this machine"):
        locate("stable-diffusion-v1-5", "stable-diffusion")
    assert time.process_time() - used < 2
    assert time.monotonic() - start < 20  # much on a busy machine, and less than any timeout with its retries


@pytest.mark.usefixtures("models")
def test_a_hub_out_of_reach_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"'stable-diffusion-v1-5' is not on this machine"):
        locate("stable-diffusion-v1-5", "stable-diffusion")
    assert time.monotonic() - start < 20
    attempts.clear()


# ---- what the shipped experiments need


@pytest.fixture
def checked(models: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Checked:
    """Runs `check` on a config without any models; the exit code and the lines."""
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])

    def run(config: str) -> tuple[int, list[str]]:
        return main(["check", "--config", config]), capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize("name", CONFIGS)
def test_check_says_what_a_shipped_config_needs(name: str, checked: Checked) -> None:
    code, lines = checked(name)
    needed = required_files(parse_only(["fit", "--config", name]))
    assert code == any(line.startswith("MISSING") for line in lines)
    for file in needed:
        if file.path is not None:
            (line,) = [line for line in lines if line.startswith(f"ok       {file.kind} {file.name}: ")]
            assert re.search(r"\(\d+\.\d [MG]B, .+, .+\)$", line), line
        elif file.name not in registry():  # the user's own, or the result of an earlier experiment
            assert f"MISSING  {file.mend}" in lines
        else:
            (line,) = [line for line in lines if line.startswith(f"MISSING  {file.kind} {file.name!r} is not on")]
            entry = registry()[file.name]
            assert {"hub", "url"} & entry.keys()
            assert all(entry[key] in line for key in ("hub", "url", "licence", "size") if key in entry)
            assert "$LIGHTNING_STYLES_MODELS/" in line


def test_check_tells_how_to_get_each_file_of_sms(checked: Checked) -> None:
    code, lines = checked("configs/sms_ghibli.yaml")
    assert code == 1
    base, lora, lpips, inception, styles, photo = [line for line in lines if line.startswith("MISSING")]
    assert [base, lora, styles, photo] == [
        "MISSING  stable-diffusion 'stable-diffusion-v1-5' is not on this machine (4.3 GB, CreativeML OpenRAIL-M). "
        "Source: https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5. With a network it is downloaded "
        "by itself; by hand: hf download stable-diffusion-v1-5/stable-diffusion-v1-5 model_index.json "
        "unet/{config.json,diffusion_pytorch_model.safetensors} vae/{config.json,diffusion_pytorch_model.safetensors} "
        "text_encoder/{config.json,model.safetensors} "
        "tokenizer/{vocab.json,merges.txt,tokenizer_config.json,special_tokens_map.json} "
        "scheduler/scheduler_config.json --local-dir $LIGHTNING_STYLES_MODELS/stable-diffusion-v1-5",
        "MISSING  lora 'pyramid-lora-ghibli-n3' is not on this machine (see the page of the LoRA). Source: "
        "https://civitai.com/models/54233?modelVersionId=125985. Save it as "
        "$LIGHTNING_STYLES_MODELS/Pyramid_lora_Ghibli_n3.safetensors, or give its path in the config.",
        "MISSING  There is no file styles/; put it there or give its path in the config.",
        "MISSING  data: 'photo.jpg' does not exist; expected an image file or a folder of images.",
    ]
    assert "download.pytorch.org/models/alexnet-owt-7be5be79.pth. Save it as $LIGHTNING_STYLES_MODELS/" in lpips
    assert "https://huggingface.co/matthias-wright/art_inception. Save it as $LIGHTNING_STYLES_MODELS/" in inception


def test_check_of_the_smallest_experiment_finds_all_in_the_package(checked: Checked) -> None:
    code, lines = checked("configs/tiny/sms.yaml")
    assert code == 0
    found = [line for line in lines if "ships with lightning_styles" in line]
    assert {"tiny/stable-diffusion:", "tiny/lora-cartoon:", "tiny/perceptual:"} <= {line.split()[2] for line in found}
    assert all(line.endswith("ships with lightning_styles, Apache-2.0)") for line in found)
