"""What is said before a run on Colab, on Kaggle and elsewhere: the GPUs by name, where to get one, and all of them by DDP."""

from __future__ import annotations

import pytest

from workbench.training.runtime import COLAB, KAGGLE, hosted_by, runtime_advice

T4 = "Tesla T4"


def test_colab_and_kaggle_are_known_by_what_their_kernels_hold() -> None:
    assert hosted_by({"google.colab"}, {}) == COLAB
    assert hosted_by(set(), {"COLAB_RELEASE_TAG": "release"}) == COLAB, "in a process that a Colab kernel started"
    assert hosted_by({"google.colab"}, {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}) == KAGGLE
    assert hosted_by(set(), {}) == ""


@pytest.mark.parametrize(("host", "way"), [(COLAB, "Runtime → Change runtime type → T4"), (KAGGLE, "Accelerator → GPU T4")])
def test_without_a_gpu_the_way_to_one_is_named(host: str, way: str) -> None:
    said = runtime_advice(host=host, gpus=[])
    assert "no GPU" in said
    assert way in said


def test_a_gpu_is_named_and_where_files_stay() -> None:
    said = runtime_advice(host=COLAB, gpus=[T4])
    assert "Colab runtime has Tesla T4." in said
    assert "/content/drive/MyDrive" in said
    assert "no GPU" not in said


@pytest.mark.parametrize("host", [KAGGLE, ""])
def test_of_two_gpus_the_second_is_offered_until_it_is_taken(host: str) -> None:
    assert "DDP" in (one := runtime_advice(1, host=host, gpus=[T4, T4]))
    assert "2 × Tesla T4" in one
    assert "nproc_per_node" in one
    assert "DDP" not in runtime_advice(2, host=host, gpus=[T4, T4])


def test_elsewhere_there_is_nothing_to_say_of_one_gpu_or_none() -> None:
    assert runtime_advice(host="", gpus=[]) == runtime_advice(host="", gpus=[T4]) == ""
