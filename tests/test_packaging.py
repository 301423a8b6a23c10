"""What a wheel would carry: every module, every shipped model file, every experiment."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lightning_styles", "datamodules", "callbacks")


@pytest.fixture
def setuptools_table() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {file.parent for name in PACKAGES for file in (ROOT / name).rglob("*.py")}
    assert [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


def test_every_shipped_file_matches_the_package_data(setuptools_table: dict[str, Any]) -> None:
    endings = [Path(pattern).name for pattern in setuptools_table["package-data"]["lightning_styles"]]
    files = [f for f in (ROOT / "lightning_styles").rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    left_out = [f.name for f in files if not any(fnmatch(f.name, ending) for ending in [*endings, "*.py"])]
    assert left_out == []


def test_every_config_folder_is_in_the_wheel(setuptools_table: dict[str, Any]) -> None:
    patterns = {pattern for patterns in setuptools_table["data-files"].values() for pattern in patterns}
    files = [file.relative_to(ROOT) for ending in ("yaml", "png") for file in (ROOT / "configs").rglob(f"*.{ending}")]
    assert {f"{file.parent.as_posix()}/*{file.suffix}" for file in files} <= patterns
