"""What can go wrong between here and the Hub: each has its own message, faults that pass are waited out, lies are noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

import workbench as wb
from tests.helpers.hub_server import HubServer
from tests.helpers.hubs import BIG, of_files, sharded, single, weights
from workbench.errors import Gated, NotListed, Unreachable, WholeFileOnly

OTHER = "hf_a_token_that_has_accepted_nothing"
SMALL = single(weights(1, 64))


REFUSALS: dict[str, tuple[dict[str, bytes] | None, dict[str, Any], dict[str, Any], type[wb.ModelError], str]] = {
    "a wrong id": (None, {}, {}, NotListed, "no such model, or it is private and you are not logged in"),
    "a wrong id, logged in": (None, {}, {"token": OTHER}, NotListed, "no such model that this reader may see.*spelling"),
    "a private one": (SMALL, {"private": True}, {}, NotListed, "or it is private and you are not logged in.*token="),
    "another's private one": (SMALL, {"private": True}, {"token": OTHER}, NotListed, "no such model that this reader may see"),
    "a gated one": (SMALL, {"gated": True}, {}, Gated, "you are not logged in.*Accept the terms at http.*/org/model"),
    "a gated one, not accepted": (SMALL, {"gated": True}, {"token": OTHER}, Gated, "this account has no access yet"),
    "a token that is none": (SMALL, {}, {"token": "hf_invalid"}, wb.ModelError, "not accept the token.*settings/tokens"),
    "a token with a newline": (SMALL, {}, {"token": "hf_a\nb"}, wb.ModelError, "The token is none"),
    "an unknown revision": (SMALL, {}, {"revision": "v9"}, wb.ModelError, "no such revision.*/org/model/tree/main"),
    "only pickles": ({"pytorch_model.bin": b"\x80"}, {}, {}, wb.ModelError, "can run any code.*save_pretrained"),
    "no weights": ({"README.md": b"#"}, {}, {}, wb.ModelError, r"holds no model\.safetensors"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_opened_says_why_and_what_to_do(hub: HubServer, case: str) -> None:
    files, about, how, kind, told = REFUSALS[case]
    if files is not None:
        hub.add("org/model", files, **about)
    with pytest.raises(kind, match=told) as caught:
        wb.open_model("org/model", **how)
    assert caught.value.where.startswith("org/model")
    assert caught.value.remedy
    assert how.get("token", "hf_") not in str(caught.value)


@pytest.mark.parametrize("name", ["org/model..x", "org/-model", "a" * 120 + "/b", "datasets/org/model", "org/mo del"])
def test_a_name_that_no_model_can_have(hub: HubServer, name: str) -> None:
    with pytest.raises(wb.ModelError, match=r"no name that a model on the Hub can have|There is no such folder"):
        wb.open_model(name)
    assert not hub.requests


def test_a_name_on_this_machine_that_is_spelt_much_like_it_is_told_too(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "tiny-llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotListed, match=r"On this machine there is models/tiny-llama\."):
        wb.open_model("models/tiny-lama")


def test_offline_mode_says_so_and_no_request_is_made(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/model", SMALL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unreachable, match=r"Offline mode is on .*Unset HF_HUB_OFFLINE"):
        wb.open_model("org/model")
    assert not hub.requests


def test_no_network_says_so(hub: HubServer) -> None:
    hub.close()
    with pytest.raises(Unreachable, match="cannot be reached: there is no network"):
        wb.open_model("org/model")


@pytest.mark.parametrize("page", [b"<html>log in here</html>", b"[]", b'{"id": 3}', b'{"id": "a/b", "siblings": [{}]}'])
def test_a_page_in_place_of_the_hub_says_so(hub: HubServer, page: bytes) -> None:
    hub.fail(path="/api/models/", status=200, body=page)
    with pytest.raises(wb.ModelError, match=r"not what a Hub answers.*proxy or login page"):
        wb.open_model("org/model")


PASSING = {
    "too many requests": {"status": 429, "headers": {"Retry-After": "0"}, "times": 3},
    "too many requests, till a date": {"status": 429, "headers": {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}},
    "too many requests, the Hub's way": {"status": 429, "headers": {"RateLimit": '"api";r=0;t=0'}},
    "a fault of the server's": {"status": 503, "times": 4},
    "a connection cut off": {"cut_after": 40, "times": 3},
}


@pytest.mark.parametrize("where", ["/api/models", "/resolve/", "safetensors?"])
@pytest.mark.parametrize("fault", PASSING)
def test_faults_that_pass_are_waited_out(hub: HubServer, fault: str, where: str) -> None:
    tensors = weights()
    hub.add("org/model", sharded(tensors, 2))
    hub.fail(path=where, **PASSING[fault])
    assert wb.open_model("org/model").read(BIG).tobytes() == tensors[BIG].tobytes()


LASTING = {
    "too many requests": ({"status": 429}, "limits how often it may be asked.*Wait some minutes"),
    "too many requests, for an hour": (
        {"status": 429, "headers": {"Retry-After": "3600"}},
        "limits how often .*Wait 3,600 seconds",
    ),
    "a fault of the server's": ({"status": 500}, r"has a fault of its own \(500\)"),
    "a connection cut off": ({"cut_after": 0}, "The connection broke off again and again"),
    "forbidden": ({"status": 403}, r"forbids reading it \(403\)"),
    "something else": ({"status": 418}, r"refused the request \(418\)"),
}


@pytest.mark.parametrize("where", ["/api/models", "safetensors?"])
@pytest.mark.parametrize("fault", LASTING)
def test_faults_that_last_are_told(hub: HubServer, fault: str, where: str) -> None:
    how, told = LASTING[fault]
    hub.add("org/model", single(weights()))
    hub.fail(path=where, times=1_000, **how)
    with pytest.raises(wb.ModelError, match=told) as caught:
        wb.open_model("org/model")
    assert caught.value.where == ("org/model" if where == "/api/models" else "org/model/model.safetensors")
    assert len(hub.requests) < 20


def test_a_server_without_ranges_is_noticed_before_the_body_is_taken(hub: HubServer) -> None:
    files = single(weights(8))
    hub.add("org/model", files)
    hub.fail(server="cdn", ranges=False, times=1_000)
    with pytest.raises(WholeFileOnly, match=r"would send the whole file, 67\.\d\d MB.*Nothing was .*download=True") as caught:
        wb.open_model("org/model")
    assert caught.value.nbytes == len(files["model.safetensors"]) > 60e6
    assert hub.sent < 20e6, "what the sockets held when the connection was closed"


LIES = {
    "other bytes": {"server": "cdn", "lie": "bytes 1-32767/33000"},
    "more bytes": {"server": "cdn", "lie": "bytes 0-99999/100000"},
    "a file of another size": {"server": "cdn", "lie": "bytes 0-32767/100000"},
    "no range at all": {"server": "cdn", "lie": "everything"},
    "a redirect to nowhere": {"status": 302, "headers": {"Location": "gopher://x/"}},
    "a redirect in letters that no address has": {"status": 302, "headers": {"Location": "http://x/ä"}},
    "redirects for ever": {"status": 302, "headers": {"Location": "/org/model/resolve/main/a.safetensors"}, "times": 1_000},
    "compressed bytes": {"server": "cdn", "headers": {"Content-Encoding": "gzip"}},
    "nothing": {"server": "cdn", "status": 206, "headers": {"Content-Range": "bytes 0-0/*"}},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_sends_something_else_is_told(hub: HubServer, lie: str) -> None:
    hub.add("org/model", single(weights(1, 64)))
    hub.fail(path="safetensors", **LIES[lie])
    with pytest.raises(wb.ModelError, match="The server sent ") as caught:
        wb.open_model("org/model")
    assert caught.value.where == "org/model/model.safetensors"
    assert caught.value.what.isprintable()


INDEXES = {
    "a name that leads out": ({"a": "../x.safetensors"}, "not a name inside the folder"),
    "an absolute name": ({"a": "/x.safetensors"}, "not a name inside the folder"),
    "a shard that is not there": ({"a": "x.safetensors"}, "The file 'x.safetensors' is missing"),
    "a pickle": ({"a": "x.bin"}, "which is not safetensors"),
    "nothing": ({}, "no weight_map"),
    "another tensor": ({"a": "s.safetensors"}, "says that 'a' is in s.safetensors, and it is not"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_a_hostile_repository_is_refused_as_a_folder_is(hub: HubServer, case: str) -> None:
    weight_map, told = INDEXES[case]
    shard = SMALL["model.safetensors"]
    index = json.dumps({"weight_map": weight_map}).encode()
    hub.add("org/model", {"model.safetensors.index.json": index, "s.safetensors": shard, "x.bin": b"\x80"})
    with pytest.raises(wb.ModelError, match=told) as caught:
        wb.open_model("org/model")
    assert caught.value.where.startswith("org/model")
    asked = {Path(urlsplit(request.path).path).name for request in of_files(hub)}
    assert asked <= {"model.safetensors.index.json", "s.safetensors"}


def test_a_hostile_header_names_the_file_and_the_fault(hub: HubServer) -> None:
    hub.add("org/model", {"model.safetensors": (2**60).to_bytes(8, "little") + bytes(50_000)})
    with pytest.raises(wb.ModelError, match=r"claims a header of 1,152,921,504,606,846,976 bytes") as caught:
        wb.open_model("org/model")
    assert caught.value.where == "org/model/model.safetensors"
    assert hub.sent < 40_000
