"""A folder of measurements belongs to one process at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.cost.process import Folder, Measuring
from workbench.errors import RunError

# A second parent, in a process of its own, that asks the same folder for something else.
OTHER = """
import sys
from pathlib import Path
from workbench.cost.process import Measuring
from workbench.errors import RunError

other = Measuring(Path(sys.argv[1]), "tests.helpers.idle", lambda: {"asked by": "the other"}, lambda: None, 0)
started = []
try:
    other.until(lambda: False, lambda: bool(started), lambda: started.append(True))
except RunError as error:
    print(error.what)
finally:
    other.close()
"""


def test_a_second_parent_is_refused_and_leaves_the_first_ones_request(tmp_path: Path) -> None:
    """Also before the measuring process has run its first line: ``tests.helpers.idle`` never takes a lock of its own."""
    request = tmp_path / "request.json"
    answers: list[str] = []

    def ask_as_another() -> None:
        answers.append(
            subprocess.run([sys.executable, "-c", OTHER, tmp_path], capture_output=True, text=True, check=True).stdout
        )

    first = Measuring(tmp_path, "tests.helpers.idle", lambda: {"asked by": "the first"}, lambda: None, 0)
    try:
        assert not first.until(lambda: False, lambda: bool(answers), ask_as_another)
        assert answers == ["another process is measuring into this folder.\n"]
        assert json.loads(request.read_text()) == {"asked by": "the first"}
    finally:
        first.close()


def test_a_folder_is_free_again_once_its_process_has_ended(tmp_path: Path) -> None:
    def begin_and_end() -> None:
        process = Measuring(tmp_path, "tests.helpers.idle", dict, lambda: None, 0)
        ticks: list[None] = []
        assert not process.until(lambda: False, lambda: bool(ticks), lambda: ticks.append(None))
        process.close()

    begin_and_end()
    begin_and_end()


def test_a_process_that_ends_without_a_word_is_named(tmp_path: Path) -> None:
    process = Measuring(tmp_path, "tests.helpers.no_such_module", dict, lambda: None, 0)
    with pytest.raises(RunError, match="ended with exit code 1"):
        process.until(lambda: False, lambda: False, lambda: None)


@pytest.mark.parametrize("text", ["", "[]", '{"identity": []}', '{"identity": 5}', '{"identity": ["ab"]}', '{"more": 1}'])
def test_a_folder_whose_record_is_none_is_refused_and_left_as_it_is(text: str, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(RunError) as refused:
        Folder(tmp_path, {"fingerprint": "0"}, {})
    assert refused.value.remedy
    assert (tmp_path / "job.json").read_text() == text
