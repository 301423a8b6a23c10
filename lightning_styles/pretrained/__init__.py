"""Pretrained files: a name in a config -> a file on this machine -> its fingerprint.

Resolution order: a path; what ships with the package; the folder LIGHTNING_STYLES_MODELS; the hub cache; the hub.
"""

import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lightning_styles.errors import UserError

TINY = Path(__file__).parent / "tiny"
HUB_FILES = ["*.json", "*.txt", "*.safetensors", "*.model"]


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
        known = ", ".join(n for n, e in registry().items() if e["kind"] == kind)
        raise UserError(f"{kind} {name!r} is neither a file or folder nor a known name; known are: {known}.")
    if entry["kind"] != kind:
        raise UserError(f"{name!r} is a {entry['kind']}, but a {kind} is needed here.")
    for candidate in _local_candidates(name, entry):
        if candidate.exists():
            return candidate
    found = _from_hub(entry["hub"]) if "hub" in entry else None
    if found is None:
        raise UserError(_how_to_provide(name, entry))
    return found


def _local_candidates(name: str, entry: dict[str, Any]) -> list[Path]:
    candidates = [TINY / entry["package"]] if "package" in entry else []
    if folder := os.environ.get("LIGHTNING_STYLES_MODELS"):
        candidates += [Path(folder).expanduser() / part for part in (name, entry.get("file")) if part]
    return candidates


def _from_hub(repository: str) -> Path | None:
    """The snapshot of `repository` from the cache, else from the hub unless that is off or out of reach."""
    from huggingface_hub import snapshot_download

    for local_files_only in (True, False):
        try:
            found = snapshot_download(
                repository, allow_patterns=HUB_FILES, local_files_only=local_files_only, etag_timeout=5
            )
        except Exception:  # the hub raises one class per cause; every one means: not from here
            continue
        if (Path(found) / "model_index.json").exists():
            return Path(found)
    return None


def _how_to_provide(name: str, entry: dict[str, Any]) -> str:
    source = f"https://huggingface.co/{entry['hub']}" if "hub" in entry else entry.get("url", "the package itself")
    target = entry.get("file", name)
    size = f", {entry['size']}" if "size" in entry else ""
    return (
        f"{entry['kind']} {name!r} is not on this machine. It comes from {source} ({entry['licence']}{size}); "
        f"give its path in the config, or put it at $LIGHTNING_STYLES_MODELS/{target}."
    )


@cache
def fingerprint(path: Path) -> str:
    """sha256 over the weights (or the one file) at `path`; equal for equal contents wherever they lie."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*.safetensors") if p.is_file())
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path).as_posix()).encode())
        with file.open("rb") as stream:
            for chunk in iter(lambda: stream.read(1 << 20), b""):
                digest.update(chunk)
    return digest.hexdigest()
