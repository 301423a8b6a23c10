"""The config parser: layered YAML files and flags, with errors of a few lines instead of a usage page."""

import difflib
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import set_dumper, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from lightning_styles.errors import UserError
from lightning_styles.files import places
from lightning_styles.long_lists import make_linear
from lightning_styles.messages import hints, shorten

MOST_VALUES = 100_000  # in one config file

# `${vars.x}` in a file means the root of that file although the tree hangs below `fit` in the parser.
set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
make_linear()
# What it reads is counted before, in `read_config`; a folder's pictures as a list are more than its own limit.
os.environ.setdefault("OMEGACONF_MAX_YAML_EXPANDED_NODES", str(10 * MOST_VALUES))


def find_config(path: str) -> Path:
    """A config file, looked up in the current folder and then, for `configs/...`, beside the package.

    Raises:
        UserError: when there is no such file.
    """
    given, possible = Path(path), places(path)
    for place in possible:
        if place.is_file():
            return place
    if given.exists():
        kind = "a folder" if given.is_dir() else "no regular file"
        raise UserError(f"There is no config file {path}: that is {kind}; name a YAML file with --config.")
    folder = next((place.parent for place in possible if place.parent.is_dir()), None)
    names = sorted(file.name for file in folder.glob("*.yaml") if file.is_file()) if folder else []
    close = difflib.get_close_matches(given.name, names, n=1)
    hint = f"did you mean {given.parent / close[0]}?" if close else "check the path given with --config."
    raise UserError(f"There is no config file {path}: {hint}")


def read_config(path: Path) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        UserError: naming file, line and column when it is not YAML, or when it holds no keys.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(f"{place}: not valid YAML: {error.problem or error.context}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: no UTF-8 text at byte {error.start}; save it as UTF-8.") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # such as the date 2026-13-45
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"{path} holds {kind}, expected keys such as model: and trainer:.")
    if not has_at_most(MOST_VALUES, content):
        raise UserError(f"{path} holds more than {MOST_VALUES} values once its aliases (*name) are written out.")
    return content


def mapping_of(text: str) -> dict[str, Any] | None:
    """The mapping that `text` is in YAML, None if it is none."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return found if isinstance(found, dict) else None


def has_at_most(count: int, tree: Any) -> bool:
    """Whether nested dicts and lists hold at most `count` values; a few aliases can stand for billions."""
    waiting = [tree]
    while waiting and count >= 0:
        count -= 1
        node = waiting.pop()
        waiting += list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    return count >= 0


def users_mistake(error: BaseException | None) -> UserError | FileNotFoundError | None:
    """The user's mistake behind `error`: the parser reports one made in a constructor as a wrong type."""
    while error is not None and not isinstance(error, (UserError, FileNotFoundError)):
        error = error.__cause__
    return error


class Quoting(yaml.SafeDumper):
    """Writes YAML with quotes around text, such as 1e3, that the parser would read as a number."""


# YAML 1.1 has no number without a point before its exponent; jsonargparse and OmegaConf read such.
Quoting.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[\d_.]+[eE][-+]?\d+"), list("-+.0123456789"))


def dump(tree: Any) -> str:
    """YAML that the parser reads as exactly these values."""
    return yaml.dump(tree, Dumper=Quoting, sort_keys=False, allow_unicode=True)


set_dumper("yaml", dump)


class StylesParser(LightningArgumentParser):
    """Lightning's parser with exact option names only and short errors that suggest the likely key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one message and exit with 2; nested parsers raise instead, which Union types rely on."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        keys = [action.dest for action in parser._actions]
        for line in (f"error: {shorten(message)}", *(f"hint: {hint}" for hint in hints(message, keys))):
            print(line, file=sys.stderr)
        raise SystemExit(2)
