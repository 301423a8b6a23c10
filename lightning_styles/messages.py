"""Short texts from the parser's long ones: what is wrong in one line, and the key that was probably meant."""

import difflib
import importlib
import inspect
import re

from lightning_styles.signatures import parameters_of

# Lines that say how Union types were tried; what matters stands in the lines between them.
NOISE = re.compile(
    r"Does not validate against any of the Union|Subtypes:|Errors:|Expected a <class 'NoneType'>|usage:|tip:"
    r"|Subclass types expect one of|a class path \(str\)|a dict with"
    r"|Given value|Expected a path but .* either not accessible or invalid$"
)
REWORD = (
    (re.compile(r"^Subcommand '\w+' does not accept option '(.*)'"), r"there is no key '\1'"),
    (re.compile(r'^Parser key "(.*)":'), r"\1:"),
    (re.compile(r"^Problem with given class_path '(.*)':$"), r"in \1:"),
    (re.compile(r"^Expected a (?:<class ')?(.*?)(?:'>)?(?:\. Got value: (.*))?$"), r"expected \1, got \2"),
    (re.compile(r"typing\.Literal\[(.*?)\]"), r"one of \1"),
)
UNKNOWN_ARGUMENT = re.compile(r"Option '([\w.]+)' is not accepted")
UNKNOWN_KEY = re.compile(r"does not accept option '([\w.]+)'|[Uu]nrecognized arguments?: (?:--)?([\w.+-]+)")
CLASS_PATH = re.compile(r"class_path '([\w.]+)'|import path string: (\S+)")
LACKING = re.compile(r"arguments are required: .*\b(model|data)\b")
GIVEN = re.compile(r"^\s*Given value: (.*)$", re.MULTILINE)


def shorten(message: str) -> str:
    """The parser's message without its account of how each alternative type failed, on one line."""
    parts: list[str] = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if not text or NOISE.match(text):
            continue
        for pattern, replacement in REWORD:
            text = pattern.sub(replacement, text)
        text = text.removesuffix(", got ")
        if text not in parts:
            parts.append(text)
    given = GIVEN.search(message)
    if given and "expected" in parts[-1] and ", got " not in parts[-1]:
        parts.append(f"got {given.group(1)}")
    return "".join(part + (" " if part.endswith(":") else "; ") for part in parts).rstrip("; ")


def hints(message: str, keys: list[str]) -> list[str]:
    """Suggestions for what `message` calls unknown.

    Args:
        message: the parser's full text.
        keys: every key that the parser accepts, dotted.
    """
    class_path = next((m.group(1) or m.group(2) for m in CLASS_PATH.finditer(message)), "")
    found = []
    for word in dict.fromkeys(UNKNOWN_ARGUMENT.findall(message)):
        found += _closest(word, [name for name in _arguments_of(class_path) if name != word])
    for match in UNKNOWN_KEY.finditer(message):
        found += _closest(match.group(1) or match.group(2), keys)
    if lacking := LACKING.search(message):
        found.append(f"give an experiment with --config FILE, or its {lacking.group(1)} section.")
    if "no attribute" in message or "import path string" in message or "No module named" in message:
        found += _class_hints(class_path)
    return found


def _closest(word: str, candidates: list[str]) -> list[str]:
    head = word.partition(".")[0]
    for asked in dict.fromkeys((word, head)):
        if asked not in candidates and (close := difflib.get_close_matches(asked, candidates, n=1)):
            return [f"'{asked}': did you mean '{close[0]}'?"]
    return [f"'{word}' is not among {', '.join(candidates)}."] if 0 < len(candidates) <= 30 else []


def _arguments_of(class_path: str) -> list[str]:
    """Names of the arguments of a class; none where there is no such class."""
    module, _, name = class_path.rpartition(".")
    try:
        return list(parameters_of(getattr(importlib.import_module(module), name)))
    except (ImportError, AttributeError, ValueError):
        return []


def _class_hints(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    if not module:
        return [f"'{class_path}': write the full import path, such as lightning_styles.methods.sms.SMS."]
    try:
        names = [n for n, value in vars(importlib.import_module(module)).items() if inspect.isclass(value)]
    except ImportError as error:
        return [f"'{module}' cannot be imported: {error}."]
    close = [] if name in names else difflib.get_close_matches(name, names, n=1)
    return [f"'{class_path}': did you mean '{module}.{close[0]}'?"] if close else []
