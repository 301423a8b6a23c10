"""Pretrained files: a name in a config -> a file on this machine -> its fingerprint.

Resolution order: a path; what ships with the package; the folder LIGHTNING_STYLES_MODELS; what torchvision has
downloaded; the hub cache; the hub.
"""

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lightning_styles.errors import UserError

TINY = Path(__file__).parent / "tiny"
# What a model of the hub needs and no more, by folder: repositories hold each weight several times. The first file
# is the one that makes a snapshot whole.
HUB_FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "stable-diffusion": {
        "": ("model_index.json",),
        "unet": ("config.json", "diffusion_pytorch_model.safetensors"),
        "vae": ("config.json", "diffusion_pytorch_model.safetensors"),
        "text_encoder": ("config.json", "model.safetensors"),
        "tokenizer": ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
        "scheduler": ("scheduler_config.json",),
    },
    "clip": {"": ("open_clip_config.json", "open_clip_model.safetensors")},
    "vae": {"": ("config.json", "diffusion_pytorch_model.safetensors")},
}
HUB_FILES["stable-diffusion-xl"] = HUB_FILES["stable-diffusion"] | {
    "text_encoder_2": ("config.json", "model.safetensors"),
    "tokenizer_2": ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
}

V1_5 = "use stable-diffusion-v1-5, which has the same files"
V2 = "use stable-diffusion-v1-5 or stable-diffusion-xl; the second generation was never supported here"
REMOVED = {
    "runwayml/stable-diffusion-inpainting": "use stable-diffusion-v1-5; models for inpainting are not supported here",
    "runwayml/": V1_5,
    "stabilityai/stable-diffusion-2": V2,
    "stabilityai/stable-diffusion-v2": V2,
}  # what the names of removed repositories begin with -> what to do


@cache
def registry() -> dict[str, dict[str, Any]]:
    """All known names with kind, source, licence and size."""
    return yaml.safe_load((Path(__file__).parent / "registry.yaml").read_text(encoding="utf-8"))


def locate(name: str, kind: str) -> Path:
    """The file or folder behind `name`, which is a path or a name of the registry.

    Raises:
        UserError: it is nowhere; the message says where it comes from and where to put it.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    entry = registry().get(name)
    if entry is None:
        for repository, way_out in REMOVED.items():
            if name.startswith(repository):
                raise UserError(f"{kind} {name!r} is no longer on the hub, its owner removed it: {way_out}.")
        known = ", ".join(n for n, e in registry().items() if e["kind"] == kind)
        raise UserError(f"{kind} {name!r} is neither a file or folder nor a known name; known are: {known}.")
    if entry["kind"] != kind:
        raise UserError(f"{name!r} is a {entry['kind']}, but a {kind} is needed here.")
    for candidate in _local_candidates(name, entry):
        if candidate.exists():
            _check_content(candidate, name, entry)
            return candidate
    found = _from_hub(entry) if "hub" in entry else None
    if found is None:
        raise UserError(_how_to_provide(name, entry))
    return found


def _local_candidates(name: str, entry: dict[str, Any]) -> list[Path]:
    candidates = [TINY / entry["package"]] if "package" in entry else []
    if folder := os.environ.get("LIGHTNING_STYLES_MODELS"):
        candidates += [Path(folder).expanduser() / part for part in (name, entry.get("file")) if part]
    if "sha256" in entry:  # a file of torchvision, whose downloads all lie in one folder
        cache_folder = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        torch_home = Path(os.environ.get("TORCH_HOME", f"{cache_folder}/torch")).expanduser()
        candidates.append(torch_home / "hub" / "checkpoints" / entry["file"])
    return candidates


def _check_content(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Refuse a file that is not the one of the registry, where that says how its sha256 begins."""
    expected = entry.get("sha256", "")
    found = fingerprint(path)[: len(expected)] if expected else ""
    if found != expected:
        raise UserError(
            f"{path} is not {name!r}: its sha256 begins with {found}, expected {expected}; "
            f"it is damaged or another file. Download it again from {entry['url']}."
        )


def _hub_files(entry: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """What an entry of the registry needs of its repository: that of its kind, or of the `layout` that it names."""
    return HUB_FILES[entry.get("layout", entry["kind"])]


def _from_hub(entry: dict[str, Any]) -> Path | None:
    """The snapshot of a repository from the cache, else from the hub unless that is off or out of reach."""
    from huggingface_hub import snapshot_download

    files = [f"{folder}/{name}".lstrip("/") for folder, names in _hub_files(entry).items() for name in names]
    for local_files_only in (True, False):
        try:
            found = snapshot_download(
                entry["hub"], allow_patterns=files, local_files_only=local_files_only, etag_timeout=5
            )
        except Exception:  # the hub raises one class per cause; every one means: not from here
            continue
        if (Path(found) / files[0]).exists():
            return Path(found)
    return None


def describe(name: str, path: Path) -> str:
    """Size, source and licence of what was found at `path` for `name`."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    entry = registry().get(name, {"url": "your own path", "licence": "licence as its author says"})
    return f"{_megabytes(sum(file.stat().st_size for file in files))}, {_source(entry)}, {entry['licence']}"


def _megabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _source(entry: dict[str, Any]) -> str:
    """Where a file of the registry comes from."""
    if "package" in entry:
        return "ships with lightning_styles"
    return f"https://huggingface.co/{entry['hub']}" if "hub" in entry else entry["url"]


def _how_to_provide(name: str, entry: dict[str, Any]) -> str:
    """What is missing, how large it is and under which licence, and the exact way to get it."""
    target = f"$LIGHTNING_STYLES_MODELS/{entry.get('file', name)}"
    size = f"{entry['size']}, " if "size" in entry else ""
    what = f"{entry['kind']} {name!r} is not on this machine ({size}{entry['licence']}). "
    if "hub" in entry:
        files = " ".join(_shell_word(folder, names) for folder, names in _hub_files(entry).items())
        get = f"hf download {entry['hub']} {files} --local-dir {target}"
        return f"{what}Source: {_source(entry)}. With a network it is downloaded by itself; by hand: {get}"
    if "package" in entry:
        return f"{what}It ships with lightning_styles: reinstall the project, or give another path in the config."
    return f"{what}Source: {entry['url']}. Save it as {target}, or give its path in the config."


def _shell_word(folder: str, names: tuple[str, ...]) -> str:
    """The files of a folder as one word, which a shell takes apart again."""
    if not folder:
        return " ".join(names)
    return f"{folder}/{{{','.join(names)}}}" if len(names) > 1 else f"{folder}/{''.join(names)}"


@cache
def fingerprint(path: Path) -> str:
    """sha256 over the weights (or the one file) at `path`; equal for equal contents wherever they lie."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if _is_weights(p) and p.is_file())
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path).as_posix()).encode())
        with file.open("rb") as stream:
            for chunk in iter(lambda: stream.read(1 << 20), b""):
                digest.update(chunk)
    return digest.hexdigest()


def _is_weights(path: Path) -> bool:
    """Whether a file of a model's folder counts: not the .bin beside the safetensors of the same model."""
    return path.suffix in (".safetensors", ".pth", ".tar") or path.name == "adapter_model.bin"
