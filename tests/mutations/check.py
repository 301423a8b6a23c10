"""Which changes to important lines do the tests notice?

    python -m tests.mutations.check                      # all of changes.yaml, about half an hour on two cores
    python -m tests.mutations.check gan.py "real, fake"  # those with one of these words in file, old or new text

Each change is made in a copy of the working tree, where the tests that it names run until the first one fails: killed.
If all pass, it survived, and a test is missing. Results are kept in `--results`, so that a stopped check goes on; a
change whose lines, tests or file have changed since is tried again. The working tree itself stays as it is.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from queue import Queue

import yaml

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 900  # s; a change after which nothing ends is noticed, too


@dataclass(frozen=True)
class Change:
    """Text of a file that is replaced, and the tests that should notice.

    Attributes:
        file: path from the root of the repository.
        old: text that occurs in it once.
        new: what takes its place.
        tests: files of tests, or single ones as pytest names them.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The file's `text` with the change.

        Raises:
            ValueError: the old text does not occur exactly once.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.file} has {self.old!r} {count} times; expected once")
        return text.replace(self.old, self.new)

    @property
    def key(self) -> str:
        """The same as long as neither the change nor the files that it is about change."""
        files = {name.partition("::")[0] for name in (self.file, *self.tests)}
        parts = [repr(self), *((ROOT / name).read_text(encoding="utf-8") for name in sorted(files))]
        return blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: {old}  ->  {new or '(nothing)'}"


def read_changes() -> list[Change]:
    """All of changes.yaml."""
    groups = yaml.safe_load((Path(__file__).parent / "changes.yaml").read_text(encoding="utf-8"))
    return [
        Change(group["file"], entry["old"], entry["new"], tuple(group["tests"]))
        for group in groups
        for entry in group["changes"]
    ]


@contextmanager
def copies(count: int) -> Iterator[Queue[Path]]:
    """Copies of the working tree's files, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = [name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()]
    trees: Queue[Path] = Queue()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            tree = Path(folder) / str(number)
            for name in names:
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, tree / name)
            trees.put(tree)
        yield trees


def passes(tree: Path, tests: tuple[str, ...]) -> bool:
    """Whether `tests` pass in `tree`.

    Raises:
        RuntimeError: there are no such tests.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        run = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return False
    if run.returncode in (4, 5):
        raise RuntimeError(f"pytest finds nothing to run in {tests}:\n{run.stdout}{run.stderr}")
    return run.returncode == 0


def outcome(change: Change, trees: Queue[Path]) -> str:
    """`killed` or `survived`."""
    tree = trees.get()
    file = tree / change.file
    text = file.read_text(encoding="utf-8")
    try:
        file.write_text(change.applied(text), encoding="utf-8")
        return "survived" if passes(tree, change.tests) else "killed"
    finally:
        file.write_text(text, encoding="utf-8")
        trees.put(tree)


def check(changes: list[Change], results: Path, jobs: int) -> dict[str, str]:
    """Try the changes that have no result yet; {key: outcome} of all that were ever tried."""
    known: dict[str, str] = json.loads(results.read_text()) if results.is_file() else {}
    waiting = [change for change in changes if change.key not in known]
    with copies(jobs) as trees, ThreadPoolExecutor(jobs) as pool:
        if waiting and not passes(trees.queue[0], tuple(sorted({test for change in waiting for test in change.tests}))):
            raise SystemExit("The tests fail without any change: mend them first.")
        for change, found in zip(waiting, pool.map(lambda one: outcome(one, trees), waiting), strict=True):
            known[change.key] = found
            results.parent.mkdir(parents=True, exist_ok=True)
            results.write_text(json.dumps(known, indent=1))
            print(f"{found:<9} {change}", flush=True)
    return known


def main() -> int:
    """Print the outcome of each change and the share that was killed; the exit code is 1 below 95 %."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only changes with one of these in file, old or new text")
    parser.add_argument("--jobs", type=int, default=2, help="changes tried at once")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "mutations.json")
    given = parser.parse_args()
    changes = [c for c in read_changes() if not given.words or any(word in str(c) for word in given.words)]
    known = check(changes, given.results, given.jobs)
    survived = [change for change in changes if known[change.key] == "survived"]
    for change in survived:
        print(f"survived: {change}")
    killed = len(changes) - len(survived)
    print(f"{killed} of {len(changes)} killed ({100 * killed / max(1, len(changes)):.0f} %)")
    return int(killed < 0.95 * len(changes))


if __name__ == "__main__":
    sys.exit(main())
