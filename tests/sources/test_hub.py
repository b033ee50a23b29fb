"""Models on the Hub by byte range: the real huggingface_hub against a Hub on the loopback interface."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants, hf_hub_download

import workbench as wb
from tests.helpers import tiny
from tests.helpers.hub_server import TOKEN, HubServer
from tests.helpers.hubs import BIG, environment, header_length, of_files, sharded, single, weights
from workbench.errors import Unreachable, WholeFileOnly
from workbench.sources import crew
from workbench.sources.hub import HubSource


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray[Any, Any]]:
    return weights()


@pytest.fixture
def model(hub: HubServer, tensors: dict[str, np.ndarray[Any, Any]]) -> wb.Source:
    """A model in three shards, open, with the counting begun anew."""
    hub.add("org/model", sharded(tensors, 3))
    source = wb.open_model("org/model")
    hub.forget()
    return source


def test_a_model_opens_by_its_id_and_reads_like_its_folder(hub: HubServer, tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "llama", "llama", tiny.LLAMA, max_shard_size="60KB")
    hub.add("org/llama", folder, card={"license": "apache-2.0"})
    local, remote = wb.open_model(folder), wb.open_model("org/llama")
    assert (remote.name, remote.path, remote.licence) == ("org/llama", None, "apache-2.0")
    assert isinstance(remote, HubSource)
    assert remote.revision == "a" * 40
    assert remote.config == local.config
    assert remote.tensors() == local.tensors()
    for info in local.tensors():
        assert remote.read(info.name).tobytes() == local.read(info.name).tobytes()


def test_one_tensor_moves_little_more_than_itself_and_the_headers(
    hub: HubServer, tensors: dict[str, np.ndarray[Any, Any]]
) -> None:
    """Everything counts: what the Hub says of the repository, index, configuration, redirects, and HTTP's own headers."""
    files = sharded(tensors, 3)
    hub.add("org/model", files)
    source = wb.open_model("org/model")
    assert source.read(BIG).tobytes() == tensors[BIG].tobytes()
    headers = sum(header_length(data) for name, data in files.items() if name.endswith(".safetensors"))
    ratio = hub.sent / (headers + tensors[BIG].nbytes)
    print(f"{hub.sent:,} bytes for {headers:,} of headers and {tensors[BIG].nbytes:,} of a tensor: {ratio:.4f}")
    assert ratio <= 1.05
    assert all(request.range for request in of_files(hub)), "no file was asked for whole"


def test_a_part_of_a_tensor_moves_that_part(hub: HubServer, model: wb.Source, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    rows = np.empty((4, 1024), tensors[BIG].dtype)
    model.read_into(BIG, rows, start=7 * 1024)
    assert rows.tobytes() == tensors[BIG][7:11].tobytes()
    assert rows.nbytes < hub.sent < rows.nbytes + 2_000


def test_a_large_tensor_comes_in_pieces_and_chunks_run_ahead(
    hub: HubServer, model: wb.Source, tensors: dict[str, np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "PIECE", 100_000)
    seen: list[tuple[int, int]] = []
    assert model.read(BIG, progress=lambda *at: seen.append(at)).tobytes() == tensors[BIG].tobytes()
    assert len(hub.requests) == -(-tensors[BIG].nbytes // 100_000)
    assert seen == sorted(seen)
    assert seen[-1] == (tensors[BIG].nbytes, tensors[BIG].nbytes)
    other = BIG.replace("up", "gate")
    chunks = [chunk.copy() for chunk in model.chunks(other, 33_333)]
    assert np.concatenate(chunks).tobytes() == tensors[other].tobytes()
    hub.forget()
    first = next(model.chunks(BIG.replace("1", "0"), 1_000))
    assert first.size == 1_000
    assert len(hub.requests) <= 4, "what is not asked for is not fetched, but for a few pieces ahead"


def test_what_was_read_is_kept_for_the_next_time(hub: HubServer, model: wb.Source) -> None:
    first = model.read(BIG)
    hub.forget()
    again = wb.open_model("org/model")
    assert again.tensors() == model.tensors()
    assert again.read(BIG).tobytes() == first.tobytes()
    assert [request.path for request in hub.requests] == ["/api/models/org/model?blobs=true"]


def test_a_source_goes_to_another_process_whole(hub: HubServer, model: wb.Source, tensors: dict[str, Any]) -> None:
    sent = pickle.loads(pickle.dumps(model))
    assert sent.tensors() == model.tensors()
    assert sent.read(BIG).tobytes() == tensors[BIG].tobytes()


def test_scalars_and_empty_tensors_need_no_request_of_their_own(hub: HubServer) -> None:
    files = single({"one": np.array(3.5, np.float32), "none": np.empty((0, 4), np.float16), "two": np.arange(2)})
    hub.add("org/model", files)
    source = wb.open_model("org/model")
    hub.forget()
    assert source.read("none").shape == (0, 4)
    assert list(source.chunks("none", 10)) == []
    assert not hub.requests
    assert (source.read("one").item(), source.read("one").shape, source.read("two").tolist()) == (3.5, (), [0, 1])


def test_reads_stay_with_the_commit_that_was_opened(hub: HubServer) -> None:
    before, after = weights(seed=1), weights(seed=2)
    repo = hub.add("org/model", single(before))
    source = wb.open_model("org/model")
    repo.older, repo.files, repo.commit = {repo.commit: repo.files}, single(after), "b" * 40
    assert source.read(BIG).tobytes() == before[BIG].tobytes()
    assert wb.open_model("org/model").read(BIG).tobytes() == after[BIG].tobytes()
    assert wb.open_model("org/model", revision="a" * 40).read(BIG).tobytes() == before[BIG].tobytes()


def test_a_commit_that_is_not_the_one_that_was_opened_is_refused(hub: HubServer, model: wb.Source) -> None:
    hub.repos["org/model"].older["a" * 40] = hub.repos["org/model"].files
    hub.fail(path="/resolve/", status=200, headers={"X-Repo-Commit": "b" * 40})
    model._remote._located.clear()  # type: ignore[attr-defined]
    with pytest.raises(wb.ModelError, match="another commit"):
        model.read(BIG)


SMALL = single(weights(1, 64))


def test_private_and_gated_models_open_with_a_token_that_may_and_no_other_host_sees_it(hub: HubServer) -> None:
    hub.add("org/private", single(weights()), private=True)
    hub.add("org/gated", single(weights()), gated=True)
    for name in ("org/private", "org/gated"):
        assert wb.open_model(name, token=TOKEN).read(BIG).shape == (2048, 1024)
    assert {r.authorization for r in of_files(hub) if r.server == "hub"} == {f"Bearer {TOKEN}"}
    assert {r.authorization for r in hub.requests if r.server == "cdn"} == {None}


def test_the_users_own_token_is_used_without_being_passed(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/private", SMALL, private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert wb.open_model("org/private").tensors()


@pytest.fixture
def in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensor is asked for with one request."""
    monkeypatch.setattr(crew, "PIECE", 1 << 23)


@pytest.mark.usefixtures("in_one_piece")
def test_a_cut_connection_goes_on_at_the_byte_where_it_broke(hub: HubServer, model: wb.Source, tensors: dict[str, Any]) -> None:
    hub.fail(cut_after=1_000_000)
    hub.fail(cut_after=500_000)
    assert model.read(BIG).tobytes() == tensors[BIG].tobytes()
    starts = [int(str(request.range).removeprefix("bytes=").partition("-")[0]) for request in hub.requests]
    assert [start - starts[0] for start in starts] == [0, 1_000_000, 1_500_000]
    assert hub.sent < tensors[BIG].nbytes + 2_000, "no byte came twice"


@pytest.mark.usefixtures("in_one_piece")
def test_a_signed_address_that_has_expired_is_asked_for_anew(hub: HubServer, model: wb.Source, tensors: dict[str, Any]) -> None:
    hub.fail(server="cdn", status=403)
    assert model.read(BIG).tobytes() == tensors[BIG].tobytes()
    assert [request.server for request in hub.requests] == ["cdn", "hub", "cdn"]


def test_a_server_without_ranges_gives_whole_files_to_who_asks_for_them(hub: HubServer, tensors: dict[str, Any]) -> None:
    files = sharded(tensors, 2)
    hub.add("org/model", files)
    hub.fail(server="cdn", ranges=False, times=1_000)
    seen: list[tuple[int, int]] = []
    source = wb.open_model("org/model", download=True, progress=lambda *at: seen.append(at))
    size = sum(len(data) for name, data in files.items() if name.endswith(".safetensors"))
    assert seen[-1] == (size, size)
    hub.forget()
    assert source.read(BIG).tobytes() == tensors[BIG].tobytes()
    assert not hub.requests


def test_a_server_that_loses_its_ranges_later_is_told_too(hub: HubServer, model: wb.Source) -> None:
    hub.fail(server="cdn", ranges=False)
    with pytest.raises(WholeFileOnly):
        model.read(BIG)


def test_a_file_in_hugging_faces_cache_is_read_from_there(hub: HubServer, tensors: dict[str, Any]) -> None:
    files = sharded(tensors, 2)
    repo = hub.add("org/model", files)
    for name in files:
        hf_hub_download("org/model", name)
    repo.older, repo.commit = {repo.commit: files}, "b" * 40  # the next commit leaves the weights as they are
    hub.forget()
    source = wb.open_model("org/model")
    assert source.read(BIG).tobytes() == tensors[BIG].tobytes()
    assert not of_files(hub), "the content is the same, whatever the commit"
    assert source.path is None
    snapshots = Path(constants.HF_HUB_CACHE) / "models--org--model" / "snapshots"
    assert wb.open_model("org/model", revision="a" * 40).path == snapshots / ("a" * 40)


def test_without_network_a_downloaded_model_opens_from_hugging_faces_cache(
    hub: HubServer, tensors: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sharded(tensors, 2)
    hub.add("org/model", files)
    for name in files:
        hf_hub_download("org/model", name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = wb.open_model("org/model")
    assert (source.name, source.read(BIG).tobytes()) == ("org/model", tensors[BIG].tobytes())
    assert source.path is not None


@pytest.mark.parametrize("how", ["offline mode", "no network"])
def test_without_network_what_was_looked_at_before_still_opens(
    hub: HubServer, model: wb.Source, tensors: dict[str, Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.read(BIG)
    if how == "offline mode":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        hub.close()
    source = wb.open_model("org/model")
    assert source.tensors() == model.tensors()
    assert source.read(BIG).tobytes() == tensors[BIG].tobytes()
    with pytest.raises(Unreachable) as caught:
        source.read(BIG.replace("up", "gate"))
    assert caught.value.where.startswith("org/model/model-")


def test_cancelling_does_not_wait_for_a_network_that_stalls(hub: HubServer, model: wb.Source) -> None:
    hub.fail(server="cdn", stall=True, times=100)
    seen: list[tuple[int, int]] = []
    with pytest.raises(InterruptedError):
        model.read(BIG, progress=lambda *at: seen.append(at), cancelled=lambda: bool(seen))
    hub.fail(path="/api/models/", stall=True)
    asked = iter([False, False, True])
    with pytest.raises(InterruptedError):
        wb.open_model("org/model", cancelled=lambda: next(asked))


def test_the_environment_is_huggingface_hubs(hub: HubServer, tmp_path: Path) -> None:
    """A process of its own, told by HF_ENDPOINT and HF_HUB_OFFLINE as any user would."""
    hub.add("org/model", SMALL)
    script = "import workbench as wb; print(len(wb.open_model('org/model').tensors()))"
    settings = os.environ | environment(hub, tmp_path / "other")
    done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, text=True, check=True)
    assert done.stdout == "4\n"
    settings |= {"HF_HUB_OFFLINE": "1", "WORKBENCH_CACHE": str(tmp_path / "empty")}
    done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, text=True)
    assert "Offline mode is on" in done.stderr
