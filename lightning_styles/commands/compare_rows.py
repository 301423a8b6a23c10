"""The rows of a comparison: what its file says, the settings of every run, and the key that tells runs apart."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from lightning_styles.errors import UserError
from lightning_styles.reading import SHOWN, expect

KEYS = ("config", "set", "fit", "rows", "repeat", "plot")
FILE: dict[str, Any] = {"config?": str | list[str] | None, "set?": dict | None, "fit?": bool | None}
OF_A_ROW: dict[str, Any] = {"config?": str | list[str] | None, "fit?": bool | None, "label?": str | int | float}
# Names become folders and files, are listed with commas, and stand in messages.
NAME = re.compile(r"[\w+=@%()-][\w .+=@%()-]{0,49}(?<! )")
# Settings of the trainer that change no number.
SILENT = ("default_root_dir", "callbacks", "logger", "enable_progress_bar")


class Row(NamedTuple):
    """One run of one row: its own settings as a YAML tree and the command line that they belong to.

    Attributes:
        row: name of the row in the file; all repetitions share it, and `label`.
        repeat: name of the repetition, None in a comparison without.
        fit: whether it trains first.
        trained_by: the row whose checkpoint of the same repetition it tests, None for its own or none.
    """

    row: str
    repeat: str | None
    label: str
    files: list[str]
    settings: dict[str, Any]
    flags: list[str]
    out: Path
    fit: bool
    trained_by: str | None = None

    @property
    def parent(self) -> str | None:
        """Name of the run whose checkpoint this one tests."""
        if self.trained_by is None or self.repeat is None:
            return self.trained_by
        return f"{self.trained_by}/{self.repeat}"

    @property
    def name(self) -> str:
        """Name of the run: the row's, or row/repeat."""
        return self.row if self.repeat is None else f"{self.row}/{self.repeat}"

    @property
    def settings_file(self) -> Path:
        """Where the settings of the run lie as a config file, the last one of its command line."""
        return self.out / "rows" / f"{self.name}.yaml"

    @property
    def arguments(self) -> list[str]:
        """The words after `fit` and `test`."""
        files = [*self.files, str(self.settings_file)]
        return [word for file in files for word in ("--config", file)] + self.flags


class Axes(NamedTuple):
    """The two metrics of the plot."""

    x: str
    y: str


# ---- settings


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with dotted keys opened up: {"a.b": 1} -> {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        value = nested(value) if isinstance(value, dict) else value
        for part in reversed(str(key).split(".")):
            value = {part: value}
        tree = merged(tree, value)
    return tree


def merged(tree: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Both trees in one; where they disagree `over` wins."""
    result = dict(tree)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def listed(files: str | list[str] | None) -> list[str]:
    """One file or several as a list."""
    return [files] if isinstance(files, str) else list(files or [])


# ---- the file


def read_rows(path: Path, out: Path, flags: list[str], configs: list[str]) -> list[Row]:
    """The runs of a comparison, row by row, on its common config files with `configs` over them.

    Settings lie over each other in this order: those of the file's `set`, of the row, of the repetition.

    Raises:
        UserError: the file has other keys than those, or no rows.
    """
    content = read_comparison(path)
    entries = _entries(path, content, "rows")
    if not entries:
        raise UserError(f"{path} has no rows; add rows: {{name: {{key: value}}}}.")
    common = merged({"trainer": {"devices": 1, "default_root_dir": str(out)}}, nested(content.get("set") or {}))
    base, rows = listed(content.get("config")) + configs, []
    for name, own in entries.items():
        expect(own, OF_A_ROW, f"{path}: row {name}", "change it")
        label, files = str(own.pop("label", name)), base + listed(own.pop("config", None))
        trained_by = own.pop("trained_by", None)
        fit = bool(own.pop("fit", trained_by is None and content.get("fit", False)))
        if trained_by is not None and (fit or trained_by not in [row.row for row in rows if row.fit]):
            raise UserError(f"{path}: row {name} is trained_by {trained_by!r}; name a row above it that trains.")
        row = Row(name, None, label, files, merged(common, nested(own)), flags, out, fit, trained_by)
        rows += _repeated(row, _entries(path, content, "repeat"))
    return rows


def read_plot(path: Path) -> Axes | None:
    """What a comparison plots, None for nothing.

    Raises:
        UserError: its `plot` is something else than the names of two metrics.
    """
    plot = read_comparison(path).get("plot")
    if plot is None:
        return None
    named = isinstance(plot, dict) and plot.keys() == {"x", "y"} and all(isinstance(v, str) for v in plot.values())
    if not named:
        raise UserError(f"{path}: plot is {plot!r}; expected two metrics, such as {{x: content, y: twin}}.")
    return Axes(**plot)


def read_comparison(path: Path) -> dict[str, Any]:
    """The keys of a comparison.

    Raises:
        UserError: it has others than those that a comparison can have.
    """
    from lightning_styles.parser import read_config

    content = read_config(path)
    unknown = sorted(str(key) for key in content.keys() - set(KEYS))
    if unknown:
        raise UserError(f"{path} has the key {', '.join(unknown)}; a comparison has {', '.join(KEYS)}.")
    expect(content, FILE, path, "change it")
    return content


def _entries(path: Path, content: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """The named settings below `key`, as copies."""
    entries = content.get(key) or {}
    if not isinstance(entries, dict):
        raise UserError(f"{path}: {key} is {entries!r}; expected {{name: {{key: value}}}}.")
    for name, entry in entries.items():
        if not NAME.fullmatch(str(name)):
            raise UserError(
                f"{path}: {key} has the name {str(name)[:SHOWN]!r}, after which a file is called; expected up to 50 "
                "letters, digits, spaces and any of _ . + = @ % ( ) -, no dot first and no space last."
            )
        if not isinstance(entry or {}, dict):
            what = f"{key.removesuffix('s')} {name}"  # row a, repeat one
            raise UserError(
                f"{path}: {what} is {entry!r}; expected settings, such as {{data.init_args.batch_size: 4}}."
            )
    return {str(name): dict(entry or {}) for name, entry in entries.items()}


def _repeated(row: Row, repeats: dict[str, dict[str, Any]]) -> list[Row]:
    """The repetitions of `row`, each with a folder of its own; the row itself where there are none."""
    runs = []
    for name, settings in repeats.items():
        folder = {"trainer": {"default_root_dir": str(row.out / row.row / name)}}
        tree = merged(merged(row.settings, folder), nested(settings))
        runs.append(row._replace(repeat=name, settings=tree))
    return runs or [row]


def chosen(rows: list[Row], names: str | None) -> list[Row]:
    """The runs called `names`, separated by commas, in the order of the file; all of them for None.

    The name of a row stands for all its repetitions, row/repeat for one. Runs that train for others come with them.
    """
    if names is None:
        return rows
    wanted = [name.strip() for name in names.split(",")]
    known = {name for row in rows for name in (row.row, row.name)}
    for name in wanted:
        if name not in known:
            raise UserError(f"There is no row {name!r}; the rows are {', '.join(dict.fromkeys(r.row for r in rows))}.")
    found = [row for row in rows if row.row in wanted or row.name in wanted]
    parents = {row.parent for row in found}
    return [row for row in rows if row in found or row.name in parents]


# ---- what a run depends on


def key_of(values: dict[str, Any]) -> str:
    """A hash of everything that a run's numbers depend on: resolved settings, pretrained files, version."""
    from lightning_styles import __version__
    from lightning_styles.pretrained import fingerprint
    from lightning_styles.required_files import required_files

    trainer = {key: value for key, value in (values.get("trainer") or {}).items() if key not in SILENT}
    settings = {key: value for key, value in values.items() if key not in ("config", "trainer")}
    files = {f"{file.kind} {file.name}": fingerprint(file.path) for file in required_files(values) if file.path}
    checkpoint = values.get("ckpt_path")
    if checkpoint and Path(checkpoint).is_file():
        files["checkpoint"] = fingerprint(Path(checkpoint))
    everything = {**settings, "trainer": trainer, "files": files, "version": __version__}
    text = json.dumps(everything, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolve(row: Row, parent: str | None = None) -> str:
    """Write the settings of the run as a config file; return the key of the whole, `parent` being that of its parent.

    Raises:
        UserError: they are no valid config.
    """
    import yaml

    from lightning_styles.cli import parse_only
    from lightning_styles.files import replacing

    with replacing(row.settings_file) as file:
        file.write_text(yaml.safe_dump(row.settings, sort_keys=False), encoding="utf-8")
    trained = {"trained_by": parent} if parent else {"fit": row.fit}
    try:
        return key_of(parse_only(["test", *row.arguments]) | trained)
    except SystemExit as stop:
        raise UserError("the settings cannot be read, see the error above") from stop
