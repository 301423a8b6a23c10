"""The commands that need no config and answer `--help` at once."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class LightParser(argparse.ArgumentParser):
    """argparse with exact option names and errors of one or two lines."""

    def __init__(self, command: str, **kwargs: object) -> None:
        super().__init__(f"python -m lightning_styles {command}", allow_abbrev=False, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the closest known word, and exit with 2."""
        print(f"error: {message}", file=sys.stderr)
        known = [word for action in self._actions for word in (*action.option_strings, *(action.choices or ()))]
        for word in re.findall(r"(?:arguments: |choice: ')([\w-]+)", message):
            for close in [] if word in known else difflib.get_close_matches(word, known, n=1):
                print(f"hint: '{word}': did you mean '{close}'?", file=sys.stderr)
        print(f"hint: {self.prog} --help lists the options.", file=sys.stderr)
        raise SystemExit(2)


@contextmanager
def saying_when_interrupted(state: Callable[[], str]) -> Iterator[None]:
    """Prints, when Ctrl-C or a signal ends the block, the `state` that it leaves things in."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, KeyboardInterrupt) or (isinstance(stop.code, int) and stop.code > 128):
            print(f"Interrupted: {state()}.", flush=True)
        raise
