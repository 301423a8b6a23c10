"""One config out of layers: files over files, flags over files, key by key. The parser sees only what comes of it.

A layer replaces values and lists, and goes into mappings, so that `weights: {style: 0.5}` keeps the other weights. A
class in the place of another one takes over the settings that both have, which is said.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from lightning_styles.errors import UserError
from lightning_styles.parser import dump, find_config, mapping_of, read_config
from lightning_styles.references import check_circles, check_variables
from lightning_styles.required_files import import_class
from lightning_styles.signatures import alternatives, parameters_of, text_of, types_of

Tree = dict[str, Any]
SECTIONS = ("model", "data")
SPECIFICATION = ("class_path", "init_args", "dict_kwargs")
PATHS = {"run": str | None, "ckpt_path": str | None, "trainer.default_root_dir": str | None}  # text that has no class
CONFIG = re.compile(r"(?:--config=|-c=?)(.+)")


@dataclass
class Layered:
    """The words of a command line, put together.

    Attributes:
        tree: the config.
        words: flags that are left for the parser.
        notes: what to tell about classes that took the place of others.
    """

    tree: Tree = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_words(self) -> list[str]:
        """A command line that says the same, for the parser."""
        return [*([f"--config={dump(self.tree)}"] if self.tree else []), *self.words]

    def lay(self, layer: Tree) -> None:
        """Put one more layer on top."""
        self.tree = self._over(self.tree, layer, "")

    def _over(self, before: Tree, layer: Tree, path: str) -> Tree:
        merged = dict(before)
        for key, value in layer.items():
            old, place = merged.get(key), f"{path}{key}"
            plain = str(key).removesuffix("+")
            if plain != key and isinstance(merged.get(plain), list):
                merged[plain] = [*merged[plain], *(value if isinstance(value, list) else [value])]
            elif isinstance(old, dict) and "class_path" in old:
                merged[key] = self._over_class(old, value, place)
            elif isinstance(old, dict) and isinstance(value, dict):
                merged[key] = self._over(old, value, f"{place}.")
            else:
                merged[key] = value
        return merged

    def _over_class(self, before: Tree, value: Any, place: str) -> Any:
        value = {"class_path": value} if isinstance(value, str) else value
        if not isinstance(value, dict):
            return value
        value = spelled_out(value)
        own = value.get("init_args") or {}
        if not isinstance(own, dict):
            return {**before, **value}
        settings = self._over(self._carried(before, value, place), own, f"{place}.init_args.")
        merged = {**before, **value, "init_args": settings}
        return merged if settings else {key: merged[key] for key in merged if key != "init_args"}

    def _carried(self, before: Tree, value: Tree, place: str) -> Tree:
        """The settings that a class takes over from the one whose place it takes."""
        settings = before.get("init_args") or {}
        old, new = before["class_path"], value.get("class_path", before["class_path"])
        try:
            if old == new or import_class(old) is import_class(new):
                return settings
            known = parameters_of(import_class(new))
        except (UserError, TypeError, AttributeError):  # the parser says so, with a hint
            return settings
        kept = {key: setting for key, setting in settings.items() if key in known}
        shared = [key for key in kept if key not in (value.get("init_args") or {})]
        dropped = [key for key in settings if key not in kept]
        parts = [f"{verb} {', '.join(keys)}" for verb, keys in (("keeps", shared), ("drops", dropped)) if keys]
        if parts:
            self.notes.append(f"{place}: {new} in the place of {old} {' and '.join(parts)} of the earlier settings.")
        return kept

    def take(self, words: list[str]) -> None:
        """Lay those flags over the config whose meaning the parser would change; leave it the others.

        These are classes, mappings over mappings, and texts, which arrive as they are typed.
        """
        waiting = list(words)
        while waiting:
            word = waiting.pop(0)
            key, equals, value = word.removeprefix("--").partition("=")
            follows = bool(waiting) and not equals and not re.match("--[a-z]", waiting[0])
            layer = self._layer(key, waiting[0] if follows else value) if word[:2] == "--" else None
            if layer is None or not (equals or follows):
                self.words.append(word)
                continue
            if follows:
                waiting.pop(0)
            self.lay(layer)

    def _layer(self, key: str, value: str) -> Tree | None:
        """The layer that `--key value` stands for, None where it is the parser's."""
        parts = key.removesuffix("+").split(".")
        if parts in ([s] for s in SECTIONS) and re.fullmatch(r"[\w.]+\.\w+", value):
            parts = [*parts, "class_path"]
        elif parts[0] in SECTIONS and len(parts) > 1 and parts[1] not in (*SPECIFICATION, "help"):
            parts = [parts[0], "init_args", *parts[1:]]
        if parts[0] in SECTIONS and parts[1:] == ["class_path"]:
            return nested(parts, value)
        if not key.endswith("+"):
            with suppress(ValueError):
                return nested(parts, text_of(self._type(parts), value))
        if value.startswith("{") and isinstance(at(self.tree, parts), dict):
            mapping = mapping_of(value)
            return None if mapping is None else nested(parts, mapping)
        return None

    def _type(self, parts: list[str]) -> Any:
        """What the setting at a place of the config must be; None where that is not known."""
        section = at(self.tree, parts[:1])
        if parts[0] not in SECTIONS or len(parts) < 3 or not isinstance(section, dict):
            return PATHS.get(".".join(parts))
        try:
            hint = types_of(import_class(section["class_path"])).get(parts[2])
        except (UserError, KeyError, TypeError, AttributeError):
            return None
        for _ in parts[3:]:
            values = [kind.__args__[1] for kind in alternatives(hint) if getattr(kind, "__origin__", None) is dict]
            hint = values[0] if values else None
        return hint


def layered(words: list[str]) -> Layered:
    """Read the config files among `words` in their order and lay the flags over them, wherever these stand.

    Raises:
        UserError: a file is missing or no config, or a variable has no effect.
    """
    paths, flags = config_paths(words)
    files = [_dotted(read_config(find_config(path))) for path in paths]
    result = Layered()
    for content in files:
        result.lay(content)
    result.take(flags)
    for name, section in ((name, result.tree.get(name)) for name in SECTIONS):
        if isinstance(section, dict) and "class_path" not in section:
            raise UserError(f"{name} names no class; add {name}.class_path, or a config that has it.")
        if isinstance(section, dict) and not isinstance(section.get("init_args", {}), dict):
            raise UserError(f"{name}.init_args is {section['init_args']!r}; expected settings, such as {{seed: 1}}.")
    check_variables(files, flags)
    check_circles(result.tree)
    return result


def config_paths(words: list[str]) -> tuple[list[str], list[str]]:
    """The config files that `words` name, and the other words."""
    paths, others, waiting = [], [], list(words)
    while waiting:
        word = waiting.pop(0)
        if word in ("-c", "--config") and waiting:
            paths.append(waiting.pop(0))
        elif match := CONFIG.fullmatch(word):
            paths.append(match.group(1))
        else:
            others.append(word)
    return paths, others


def spelled_out(value: Tree) -> Tree:
    """A section of a later layer with its settings below init_args, where they can be left out."""
    short = {key: value[key] for key in value if key not in SPECIFICATION}
    own = value.get("init_args") or {}
    if not short or not isinstance(own, dict):
        return value
    return {**{key: value[key] for key in value if key not in short}, "init_args": {**own, **short}}


def texts_like_null(tree: Any, parts: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Place and text of every string that the parser takes for nothing where that is possible, such as #x and ~."""
    if isinstance(tree, str) and (tree.strip() in ("~", "null") or tree.lstrip().startswith("#")):
        yield parts, tree
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield from texts_like_null(value, (*parts, str(key)))


def nested(parts: list[str], value: Any) -> Tree:
    """Mappings within mappings with `value` at the place `parts`."""
    for part in reversed(parts):
        value = {part: value}
    return value


def at(tree: Any, parts: list[str]) -> Any:
    """What lies at the place `parts`, None for nothing."""
    for part in parts:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _dotted(content: Tree) -> Tree:
    """`content` with keys such as `trainer.max_steps` at its top as mappings within mappings."""
    result = Layered()
    for key, value in content.items():
        result.lay(nested(key.split("."), _filled(value)) if isinstance(key, str) else {key: value})
    return result.tree


def _filled(tree: Any) -> Any:
    """`tree` without empty `init_args:`."""
    if isinstance(tree, dict):
        return {key: _filled(value) for key, value in tree.items() if key != "init_args" or value is not None}
    return [_filled(value) for value in tree] if isinstance(tree, list) else tree
