"""Files of a model taken whole into Hugging Face's cache: what is missing, and going on where an earlier try broke off."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, hf_hub_download

import workbench as wb
from tests.helpers.hub_server import HubServer
from tests.helpers.hubs import single, weights
from workbench.errors import ModelError
from workbench.sources import fetching
from workbench.sources.crew import PIECE
from workbench.sources.fetching import arrived, fetch
from workbench.sources.hub import HubSource

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A model whose weights come in several pieces."""
    made = single(weights(2))
    assert len(made[WEIGHTS]) > 8 * PIECE
    return made


@pytest.fixture
def source(hub: HubServer, files: dict[str, bytes]) -> HubSource:
    hub.add("org/model", files)
    opened = wb.open_model("org/model")
    assert isinstance(opened, HubSource)
    hub.forget()
    return opened


def partial_of(source: HubSource) -> Path:
    blob = source.blob(WEIGHTS)
    assert blob is not None
    return blob.with_name(f"{blob.name}.workbench.incomplete")


def first_bytes(hub: HubServer) -> list[int]:
    """Where each part begins that the weights' host was asked for: also by a thread of a fetch that has just broken off."""
    asked = [request.range for request in hub.requests if request.server == "cdn"]
    return [int(str(range).removeprefix("bytes=").partition("-")[0]) for range in asked]


class Broken(Exception):
    """What ends a fetch in the middle."""


def break_off(source: HubSource) -> None:
    """Fetches until two pieces are on the disk."""

    def watching(done: int, total: int) -> None:
        if partial_of(source).stat().st_size >= 2 * PIECE:
            raise Broken

    with pytest.raises(Broken):
        fetch(source, {WEIGHTS: source.missing([WEIGHTS])[WEIGHTS]}, watching)


def test_what_is_missing_is_known_before_anything_is_fetched(
    hub: HubServer, source: HubSource, files: dict[str, bytes]
) -> None:
    wanted = ["config.json", WEIGHTS]
    assert source.missing(wanted) == {name: len(files[name]) for name in wanted}
    hf_hub_download("org/model", "config.json")
    assert source.missing(wanted) == {WEIGHTS: len(files[WEIGHTS])}


def test_a_model_is_fetched_whole_into_hugging_faces_cache(source: HubSource, files: dict[str, bytes]) -> None:
    told: list[tuple[int, int]] = []
    folder = fetch(source, source.missing(list(files)), lambda done, total: told.append((done, total)))
    assert folder == source.folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert hf_hub_download("org/model", WEIGHTS, revision=source.revision, local_files_only=True) == str(folder / WEIGHTS)
    assert told == sorted(told)
    assert told[-1] == (size := sum(map(len, files.values())), size)
    assert wb.open_model("org/model").path == folder


def test_what_has_arrived_is_not_fetched_again(hub: HubServer, source: HubSource, files: dict[str, bytes]) -> None:
    break_off(source)
    wanted, kept = source.missing([WEIGHTS]), partial_of(source).stat().st_size
    assert 2 * PIECE <= kept < len(files[WEIGHTS])
    assert arrived(source, wanted) == kept
    hub.forget()
    told: list[int] = []
    fetch(source, wanted, lambda done, total: told.append(done))
    assert told[0] == kept, "what an earlier try left counts from the beginning"
    assert min(first_bytes(hub)) == kept, "no byte of what was kept is asked for"
    assert (source.folder / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert not partial_of(source).exists()


def test_it_ends_at_once_when_it_is_no_longer_wanted_and_keeps_what_arrived(source: HubSource) -> None:
    done = 0

    def told(now: int, total: int) -> None:
        nonlocal done
        done = now

    with pytest.raises(InterruptedError):
        fetch(source, source.missing([WEIGHTS]), told, lambda: done > PIECE)
    assert partial_of(source).exists()


def test_bytes_that_are_not_what_the_hub_lists_are_thrown_away(
    hub: HubServer, source: HubSource, files: dict[str, bytes]
) -> None:
    break_off(source)
    with partial_of(source).open("r+b") as file:
        file.write(b"other")
    with pytest.raises(ModelError, match="its hash is another"):
        fetch(source, source.missing([WEIGHTS]))
    fetch(source, source.missing([WEIGHTS]))
    assert (source.folder / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_a_server_without_parts_gives_the_whole_file(hub: HubServer, files: dict[str, bytes], source: HubSource) -> None:
    hub.fail(path=WEIGHTS, server="cdn", ranges=False, times=1_000)
    fetch(source, source.missing([WEIGHTS]))
    assert (source.folder / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_content_that_the_cache_has_of_another_commit_is_only_linked(
    hub: HubServer, source: HubSource, files: dict[str, bytes]
) -> None:
    fetch(source, source.missing(list(files)))
    newer = {**files, "config.json": files["config.json"] + b" "}
    hub.add("org/model", newer, commit="b" * 40, older={"a" * 40: files})
    opened = wb.open_model("org/model")
    assert isinstance(opened, HubSource)
    wanted = opened.missing(list(files))
    assert wanted == {"config.json": len(newer["config.json"]), WEIGHTS: 0}
    hub.forget()
    fetch(opened, wanted)
    assert hub.sent < 20_000
    assert (opened.folder / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_a_full_disk_says_where(source: HubSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(blob: Path) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetching, "_partial", full)
    with pytest.raises(ModelError, match="No space left") as caught:
        fetch(source, {WEIGHTS: source.missing([WEIGHTS])[WEIGHTS]})
    assert constants.HF_HUB_CACHE in caught.value.where
    assert "HF_HOME" in caught.value.remedy


def test_two_at_once_fetch_a_file_once(hub: HubServer, source: HubSource, files: dict[str, bytes]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    wanted = source.missing([WEIGHTS])
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(fetch, source, wanted) for _ in range(2)]:
            done.result(60)
    assert (source.folder / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert hub.sent < 1.5 * len(files[WEIGHTS])
