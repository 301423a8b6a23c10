"""The changes of `check.py` fit the code as it is, and the check itself tells killed from survived."""

from pathlib import Path

import pytest

from tests.mutations import check
from tests.mutations.check import Change, read_changes


def test_every_change_fits_its_file() -> None:
    changes = read_changes()
    assert len(changes) >= 80
    assert len(set(changes)) == len(changes)
    for change in changes:
        text = (check.ROOT / change.file).read_text(encoding="utf-8")
        assert change.applied(text) != text
        for test in change.tests:
            assert (check.ROOT / test.partition("::")[0]).is_file(), test


def test_what_a_test_notices_is_killed_and_the_tree_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, test = (
        "def add(a, b):\n    return a + b  # of two\n",
        "from code_here import add\n\ndef test_it():\n    assert add(2, 2) == 4\n",
    )
    (tmp_path / "code_here.py").write_text(code)
    (tmp_path / "test_it.py").write_text(test)
    check.subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.setattr(check, "ROOT", tmp_path)
    changes = [
        Change("code_here.py", old, new, ("test_it.py",)) for old, new in (("a + b", "a - b"), ("a + b", "a * b"))
    ]
    known = check.check(changes, tmp_path / "results" / "known.json", 1)
    assert [known[change.key] for change in changes] == ["killed", "survived"]
    assert (tmp_path / "code_here.py").read_text() == code
    monkeypatch.setattr(check, "passes", None)
    assert check.check(changes, tmp_path / "results" / "known.json", 1) == known, "nothing is tried twice"
    assert "killed    code_here.py: a + b  ->  a - b" in capsys.readouterr().out
    (tmp_path / "test_it.py").write_text(test.replace("2, 2", "2, 3"))
    assert changes[1].key not in known
    with pytest.raises(ValueError, match="has 'a' 4 times; expected once"):
        Change("code_here.py", "a", "b", ()).applied("aaaa")
