"""The experiments that ship: files in configs/ but those of `compare`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml") if not path.name.startswith("compare_")
)
CONFIGS = [name for name in FILES if "class_path" in (ROOT / name).read_text("utf-8")]
OVERLAYS = [name for name in FILES if name not in CONFIGS]  # settings to layer over one of CONFIGS
