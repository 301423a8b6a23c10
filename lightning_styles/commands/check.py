"""`check`: what is installed, what this machine has, and every file that a config needs."""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from pathlib import Path

from lightning_styles import __version__
from lightning_styles.commands import LightParser
from lightning_styles.errors import UserError

PACKAGES = ("torch", "torchvision", "lightning", "jsonargparse", "diffusers", "transformers", "peft", "lpips")
LEAST_DISK_GB = 2.0
TORCHAO = "0.16"  # older ones than this, though unused here, keep peft from adding any adapter
TENSORBOARD = "2.21"  # older ones need pkg_resources, which setuptools no longer has
SETUPTOOLS = "82"

Report = list[tuple[bool, str]]


def parser() -> argparse.ArgumentParser:
    """The options of `check`."""
    options = LightParser(
        "check",
        usage="python -m lightning_styles check [--config FILE ...] [--key value ...]",
        description="Report versions, devices, free disk and, for a config, every file that it needs, found "
        "or missing with what mends it. Takes the config and keys of fit. Exit code 1: something is missing.",
    )
    options.add_argument("-c", "--config", action="append", metavar="FILE", help="config of an experiment")
    return options


def versions() -> Report:
    """Each package that the project imports, with its version."""
    report: Report = [(True, f"lightning_styles {__version__}, Python {platform.python_version()}, {sys.platform}")]
    for name in PACKAGES:
        try:
            report.append((True, f"{name} {importlib.metadata.version(name)}"))
        except importlib.metadata.PackageNotFoundError:
            report.append((False, f"{name} is not installed: run pip install -e . in the project's folder"))
    return report


def build_of(package: str) -> str | None:
    """What a torch package was built for, such as cpu or cu130, read from its version file, not imported."""
    spec = importlib.util.find_spec(package)
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if file is None or not file.is_file():
        return None
    match = re.search(r"__version__\s*=\s*['\"][^'\"+]*\+(\w+)", file.read_text(encoding="utf-8"))
    return match.group(1) if match else None


def builds() -> Report:
    """Whether torch and torchvision fit together; importing Lightning fails with an obscure error if not."""
    torch, vision = build_of("torch"), build_of("torchvision")
    if torch and vision and torch != vision:
        text = f"torch is built for {torch}, torchvision for {vision}: install both from one package index"
        return [(False, text)]
    return [(True, f"torch and torchvision are both built for {torch}")] if torch and vision else []


def neighbours() -> Report:
    """Packages that break another one by their versions."""
    report: Report = []
    if older("torchao", TORCHAO):
        text = f"torchao {older('torchao', TORCHAO)} is installed, with which peft adds no LoRA"
        report.append((False, f'{text}: run pip install "torchao>={TORCHAO}", or pip uninstall torchao'))
    if older("tensorboard", TENSORBOARD) and not older("setuptools", SETUPTOOLS):
        text = f"tensorboard {older('tensorboard', TENSORBOARD)} does not start with setuptools {SETUPTOOLS} or newer"
        report.append((False, f'{text}: run pip install "tensorboard>={TENSORBOARD}"'))
    return report


def older(package: str, than: str) -> str | None:
    """The version of a package that is installed and older than another version, else None."""
    from packaging.version import Version

    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    return found if Version(found) < Version(than) else None


def machine() -> Report:
    """Devices and free disk."""
    import torch

    report: Report = [(True, f"CPU: {os.cpu_count()} cores")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        report.append((True, f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    if torch.backends.mps.is_available():
        report.append((True, "mps: Apple GPU"))
    free = shutil.disk_usage(".").free / 1e9
    report.append((free >= LEAST_DISK_GB, f"disk: {free:.0f} GB free here (at least {LEAST_DISK_GB:.0f} wanted)"))
    return report


def siblings() -> Report:
    """Whether the three packages lie beside each other."""
    from lightning_styles.__main__ import check_siblings

    try:
        check_siblings()
    except UserError as error:
        return [(False, str(error))]
    return [(True, "packages: lightning_styles, datamodules, callbacks")]


def config_files(arguments: list[str]) -> Report:
    """The files that the model, the data and the callbacks of a config need."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # to look, not to download
    from lightning.pytorch import LightningDataModule

    from lightning_styles.cli import parse_only
    from lightning_styles.required_files import required_files
    from lightning_styles.trained import build

    config = parse_only(["fit", *arguments])
    report: Report = [(True, f"config: {config['model']['class_path']}")]
    for file in required_files(config):
        found = file.path is not None
        report.append((found, f"{file.kind} {file.name}: {file.path} ({file.about})" if found else file.mend))
    if config.get("data"):
        try:
            build(LightningDataModule, config["data"]["class_path"], config["data"].get("init_args") or {}, "data")
        except UserError as error:
            report.append((False, f"data: {error}"))
        else:
            report.append((True, f"data: {config['data']['class_path']}"))
    return report


def main(arguments: list[str]) -> int:
    """Run `check`; 1 when something is missing."""
    options, others = parser().parse_known_args(arguments)
    if others and not options.config:
        raise UserError(f"check got {' '.join(others)} without a config; add --config FILE.")
    report: Report = []

    def add(lines: Report) -> bool:
        for good, text in lines:
            print(f"{'ok     ' if good else 'MISSING'}  {text}", flush=True)
        report.extend(lines)
        return all(good for good, _ in lines)

    usable = add(versions()) & add(builds()) & add(neighbours()) & add(siblings())
    if usable:
        add(machine())
    if usable and options.config:
        add(config_files(arguments))
    count = sum(not good for good, _ in report)
    if count:
        print(f"{count} thing{'s' if count > 1 else ''} to mend, see the lines marked MISSING.")
        return 1
    files = " ".join(f"--config {file}" for file in options.config or ["FILE"])
    print(f"All is there. Next: python -m lightning_styles fit {files}")
    return 0
