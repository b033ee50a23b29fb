"""What measuring costs is forecast to take, before anything is begun and without any process."""

import json

import workbench as wb
from workbench.cost.jobs import Job, effort

SOURCE = wb.open_model("builtin")


def test_the_memory_is_the_one_that_the_measuring_checks_for_and_time_grows_with_the_losses():
    few, many = (effort(SOURCE, wb.TrainConfig(), losses) for losses in (1, 101))
    assert few.nbytes == many.nbytes == Job(SOURCE, wb.TrainConfig()).memory_needed
    assert few.nbytes > Job(SOURCE, wb.TrainConfig()).nbytes_16bit
    assert 0 < few.seconds < many.seconds


def test_tokens_follow_rows_and_their_length_where_a_file_has_a_row_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "word " * n}) + "\n" for n in (2, 2_000, 2)))

    def tokens(**fields):
        return effort(SOURCE, wb.TrainConfig(dataset=str(path), eval_dataset=str(path), **fields), 1).tokens

    assert 100 < tokens(max_length=100) < 130  # the long row is cut
    assert tokens(max_length=512, max_eval_rows=1) < 10
    assert tokens(max_length=512) > 512


def test_rows_that_are_not_here_yet_are_taken_to_be_as_long_as_they_may():
    far = wb.TrainConfig(dataset="org/rows", eval_split="test", max_length=100, max_eval_rows=7, text_column="text")
    assert effort(SOURCE, far, 1).tokens == 700
