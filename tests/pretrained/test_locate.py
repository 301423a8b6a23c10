"""From a name to a file: the order of places, the refusals and the fingerprint."""

import re
from pathlib import Path
from typing import Any

import pytest

import lightning_styles.pretrained as pretrained
from lightning_styles.errors import UserError
from lightning_styles.pretrained import fingerprint, locate, registry

SD, LORA, KIDS = "stable-diffusion-v1-5", "lora", "coolkids-v2.5"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of models, and a working directory without anything."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    folder = tmp_path / "models"
    monkeypatch.setenv("LIGHTNING_STYLES_MODELS", str(folder))
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Stands in for the hub: remembers its calls; `cached` and `online` on disk say what it has."""
    import huggingface_hub

    calls: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        calls.append({"repository": repository} | options)
        found = tmp_path / ("cached" if options["local_files_only"] else "online")
        if not found.is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("nothing here")
        return str(found)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def make(path: Path) -> Path:
    """A file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


def test_a_path_comes_first(tmp_path: Path, models: Path) -> None:
    mine = make(tmp_path / "mine.safetensors")
    assert locate(str(mine), LORA) == mine
    make(models / KIDS)
    assert locate(KIDS, LORA) == models / KIDS
    make(Path(KIDS))
    assert locate(KIDS, LORA) == Path(KIDS)


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    mine = make(tmp_path / "mine.safetensors")
    assert locate("~/mine.safetensors", LORA) == mine


def test_the_package_comes_before_the_models_folder(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "TINY", tmp_path / "package")
    in_folder = make(models / "tiny" / "lora-cartoon")
    assert locate("tiny/lora-cartoon", LORA) == in_folder
    shipped = make(tmp_path / "package" / "loras" / "cartoon.safetensors")
    assert locate("tiny/lora-cartoon", LORA) == shipped


def test_the_models_folder_is_searched_by_name_then_by_file_name(models: Path) -> None:
    by_file = make(models / "COOLKIDS_MERGE_V2.5.safetensors")
    assert locate(KIDS, LORA) == by_file
    by_name = make(models / KIDS)
    assert locate(KIDS, LORA) == by_name


def test_the_models_folder_comes_before_the_hub(models: Path, hub: list[dict[str, Any]]) -> None:
    make(models / SD / "model_index.json")
    assert locate(SD, "stable-diffusion") == models / SD
    assert hub == []


def test_the_hubs_cache_is_asked_before_the_hub(tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    make(tmp_path / "online" / "model_index.json")
    assert locate(SD, "stable-diffusion") == tmp_path / "online"
    assert [call["local_files_only"] for call in hub] == [True, False]
    hub.clear()
    make(tmp_path / "cached" / "model_index.json")
    assert locate(SD, "stable-diffusion") == tmp_path / "cached"
    assert [call["local_files_only"] for call in hub] == [True]
    assert hub[0]["repository"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert not any(pattern.endswith((".bin", ".ckpt")) for pattern in hub[0]["allow_patterns"])


def test_a_clip_comes_in_the_layout_of_open_clip(tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="open_clip_config.json open_clip_model.safetensors --local-dir"):
        locate("clip-vit-b-32", "clip")
    assert hub[0]["allow_patterns"] == ["open_clip_config.json", "open_clip_model.safetensors"]


def test_half_a_snapshot_is_not_taken(tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    make(tmp_path / "cached" / "unet" / "config.json")
    with pytest.raises(UserError, match="not on this machine"):
        locate(SD, "stable-diffusion")


def test_what_is_nowhere_is_named_with_source_licence_and_place(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError) as error:
        locate(SD, "stable-diffusion")
    message = str(error.value)
    for part in (
        "stable-diffusion 'stable-diffusion-v1-5' is not on this machine",
        "https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5",
        "(4.3 GB, CreativeML OpenRAIL-M)",
        "hf download stable-diffusion-v1-5/stable-diffusion-v1-5 model_index.json unet/{config.json,",
        "$LIGHTNING_STYLES_MODELS/stable-diffusion-v1-5",
    ):
        assert part in message
    with pytest.raises(UserError, match=r"civitai.com/models/67980. .*MODELS/COOLKIDS_MERGE_V2.5.safetensors"):
        locate(KIDS, LORA)
    assert all(call["repository"].startswith("stable-diffusion-v1-5/") for call in hub), "no LoRA comes from the hub"


def test_a_name_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(UserError, match=f"'{re.escape(KIDS)}' is a lora, but a stable-diffusion is needed"):
        locate(KIDS, "stable-diffusion")


def test_an_unknown_name_is_answered_with_the_known_ones_of_its_kind() -> None:
    with pytest.raises(UserError, match="lora 'nothing' is neither") as error:
        locate("nothing", LORA)
    known = {name for name, entry in registry().items() if entry["kind"] == LORA}
    assert all(name in str(error.value) for name in known)
    assert SD not in str(error.value)


def test_every_entry_of_the_registry_says_where_it_comes_from() -> None:
    for name, entry in registry().items():
        assert {"kind", "licence"} <= entry.keys(), name
        assert entry.keys() & {"package", "hub", "url"}, name


# ---- files of torchvision, named after their hash


@pytest.mark.parametrize("name", [name for name, entry in registry().items() if "sha256" in entry])
def test_the_hash_of_the_registry_is_that_of_the_file_name(name: str) -> None:
    entry = registry()[name]
    assert entry["file"].endswith(f"-{entry['sha256']}.pth")
    assert entry["url"].endswith(f"/{entry['file']}")


def test_what_torchvision_has_downloaded_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    entry = registry()["vgg16-imagenet"]
    file = make(tmp_path / "hub" / "checkpoints" / entry["file"])
    monkeypatch.setitem(entry, "sha256", "9a129038")  # that of b"weights"
    assert locate("vgg16-imagenet", "lpips") == file


def test_a_damaged_or_other_file_is_refused_by_its_hash(models: Path) -> None:
    make(models / "vgg16-397923af.pth")
    with pytest.raises(UserError, match=r"sha256 begins with 9a129038, expected 397923af; .* Download it again from"):
        locate("vgg16-imagenet", "lpips")


@pytest.mark.parametrize(("name", "kind"), [("squeezenet1.1-imagenet", "lpips"), ("inception-fid", "inception")])
def test_networks_of_metrics_are_named_with_their_source(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    entry = registry()[name]
    with pytest.raises(UserError) as error:
        locate(name, kind)
    assert f"{kind} '{name}' is not on this machine" in str(error.value)
    assert f"Source: {entry['url']}. Save it as $LIGHTNING_STYLES_MODELS/{entry['file']}" in str(error.value)


# ---- fingerprints


@pytest.fixture(autouse=True)
def no_memory() -> None:
    """Fingerprints are remembered by path; a test changes files in place."""
    fingerprint.cache_clear()


def folder_of(path: Path) -> Path:
    make(path / "unet" / "model.safetensors")
    make(path / "vae" / "model.safetensors")
    return path


def test_equal_contents_have_equal_fingerprints_wherever_they_lie(tmp_path: Path) -> None:
    one, two = folder_of(tmp_path / "one"), folder_of(tmp_path / "elsewhere" / "two")
    (two / "README.md").write_text("not a weight")
    assert fingerprint(one) == fingerprint(two)
    assert len(fingerprint(one)) == 64
    file, copy = make(tmp_path / "a.safetensors"), make(tmp_path / "b.safetensors")
    assert fingerprint(file) == fingerprint(copy)
    # sha256 of b"weights", as `sha256sum` prints it
    assert fingerprint(file) == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"


def test_one_byte_a_name_or_a_place_changes_the_fingerprint(tmp_path: Path) -> None:
    original = fingerprint(folder_of(tmp_path / "one"))
    changed, renamed = folder_of(tmp_path / "two"), folder_of(tmp_path / "three")
    (changed / "vae" / "model.safetensors").write_bytes(b"weighty")
    (renamed / "vae").rename(renamed / "vae2")
    assert len({original, fingerprint(changed), fingerprint(renamed)}) == 3
