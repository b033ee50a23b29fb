"""Names for what a reader types: the Hub's search, folders, models known to fit a free GPU, and those opened before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from huggingface_hub import constants

import workbench as wb
from tests.helpers import tiny
from tests.helpers.hub_server import TOKEN, HubServer
from tests.helpers.hubs import single, weights
from tests.helpers.immediate import Immediate
from widgets.background import recents
from widgets.controls.suggestions import Suggestion, Suggestions
from workbench.errors import Unreachable
from workbench.memory.gpus import GPUS
from workbench.memory.shortlist import GPU, PUBLISHED, PublishedShapes
from workbench.sources.search import HubModel, LocalFolder, search_folders, search_hub

SMALL = single(weights(1, 64))


@pytest.fixture
def llamas(hub: HubServer) -> HubServer:
    hub.add("llamas/tiny", SMALL, downloads=5)
    hub.add("llamas/huge", SMALL, downloads=2_000_000, gated=True)
    hub.add("llamas/secret", SMALL, private=True)
    hub.add("llamas/pickled", {"pytorch_model.bin": b""})
    hub.add("alpacas/tiny", SMALL, downloads=12_345)
    return hub


def test_the_hub_finds_what_has_safetensors_the_most_downloaded_first(llamas: HubServer) -> None:
    assert search_hub("llamas/") == [HubModel("llamas/huge", 2_000_000, True), HubModel("llamas/tiny", 5, False)]
    assert [found.name for found in search_hub("tiny", limit=1)] == ["alpacas/tiny"]
    assert search_hub("no such model") == []
    asked = [request.path for request in llamas.requests if request.path.startswith("/api/models")]
    assert asked[0] == "/api/models?search=llamas%2F&filter=safetensors&sort=downloads&limit=8"


def test_a_search_carries_the_users_token_and_is_asked_once(llamas: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    llamas.fail(path="/api/models", status=503)
    with pytest.raises(wb.ModelError, match=r"has a fault of its own \(503\)"):
        search_hub("llama")
    assert [request.authorization for request in llamas.requests] == [f"Bearer {TOKEN}"]


@pytest.mark.parametrize("text", ["", "x", " y ", "a\nb", "n" * 200])
def test_some_texts_are_not_worth_a_question(llamas: HubServer, text: str) -> None:
    assert search_hub(text) == []
    assert not llamas.requests


@pytest.mark.parametrize("page", [b"<html>", b'{"a": 1}', b'[{"name": 1}]', b"[1]", b'[{"id": "a/b", "downloads": "many"}]'])
def test_an_answer_that_makes_no_sense_is_told(llamas: HubServer, page: bytes) -> None:
    llamas.fail(path="/api/models", status=200, body=page)
    with pytest.raises(wb.ModelError, match="not what a Hub answers"):
        search_hub("llama")


def test_a_name_that_no_model_can_have_is_left_out(llamas: HubServer) -> None:
    names = ["a/b", "<img src=x>", "a/b/c", "../a", 3]
    llamas.fail(path="/api/models", status=200, body=json.dumps([{"id": name} for name in names]).encode())
    assert [found.name for found in search_hub("llama")] == ["a/b"]


def test_offline_the_hub_is_not_asked(llamas: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Unreachable):
        search_hub("llama")
    assert not llamas.requests


def test_folders_are_offered_as_they_were_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("models/one", "models/two", "models/.hidden", "music"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models" / "two" / "model.safetensors").write_bytes(b"")
    (tmp_path / "models.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert search_folders("mo") == [LocalFolder("models/", False)]
    assert search_folders("models/") == [LocalFolder("models/two", True), LocalFolder("models/one/", False)]
    assert search_folders(f"{tmp_path}/MODELS/T") == []
    assert search_folders(f"{tmp_path}/models/T") == [LocalFolder(f"{tmp_path}/models/two", True)]
    assert search_folders("~/mu") == [LocalFolder("~/music/", False)]
    assert search_folders("models/.h") == [LocalFolder("models/.hidden/", False)]
    assert search_folders("m", limit=1) == [LocalFolder("models/", False)]


@pytest.mark.parametrize("text", ["", "/no/such/place/x", "a\0b", ".", "..", "x" * 10_000])
def test_where_there_is_no_folder_none_is_offered(text: str) -> None:
    assert search_folders(text) == []


# Parameters as the models' cards on the Hub give them.
CARDS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008, "Qwen/Qwen3-0.6B": 596_049_920,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384, "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384, "Qwen/Qwen3-1.7B": 1_720_574_976, "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512, "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "Qwen/Qwen3-8B": 8_190_735_360,
}  # fmt: skip


def test_the_short_list_is_computed_from_published_shapes_and_fits(hub: HubServer) -> None:
    listed = wb.shortlist()
    assert {model.name: model.parameters for model in listed} == {name: CARDS[name] for name in CARDS if name in PUBLISHED}
    assert len(listed) >= 5
    for model in listed:
        assert model.checkpoint == 2 * model.parameters
        assert 0 < model.training < GPUS[GPU].usable
    assert not hub.requests


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "Qwen/Qwen2.5-7B-Instruct", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"])
def test_published_shapes_are_those_that_transformers_builds(name: str) -> None:
    import torch
    import transformers

    tiny.quiet()
    config = {key: value for key, value in PUBLISHED[name].items() if key != "model_type"}
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(PUBLISHED[name]["model_type"], **config)
        )
    tied = config["tie_word_embeddings"]
    built = {key: tuple(value.shape) for key, value in model.state_dict().items() if not (tied and key == "lm_head.weight")}
    source = PublishedShapes(name)
    assert {t.name: t.shape for t in source.tensors()} == built
    with pytest.raises(wb.ModelError, match="Only its shapes are known here"):
        source.read("model.norm.weight")


def test_models_opened_before_come_first_and_only_a_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "new" / "place"))
    assert recents.recent() == []
    for name in [*(f"org/model-{i}" for i in range(20)), "org/model-15", "a\nb", "n" * 2_000]:
        recents.remember(name)
    assert recents.recent() == [f"org/model-{i}" for i in (15, 19, 18, 17, 16, 14, 13, 12)]


@pytest.mark.parametrize("text", [b"", b"{}", b"[1, null, {}]", b"\xff", b"[" * 50_000, b'["a\\nb", ""]'])
def test_a_damaged_list_of_models_is_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    (tmp_path / "recent.json").write_bytes(text)
    assert recents.recent() == []
    recents.remember("org/model")
    assert recents.recent() == ["org/model"]


def test_where_nothing_can_be_written_nothing_is_remembered_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", "/dev/null/cache")
    recents.remember("org/model")
    assert recents.recent() == []


class Field:
    """A field that offers, in which the present model is the embedded one."""

    def __init__(self) -> None:
        self.suggestions = Suggestions(self.offer, lambda: "builtin", Immediate())
        self.options: list[Suggestion] = []
        self.status = ""
        self.type("builtin")

    def offer(self, options: Sequence[Suggestion], status: str) -> None:
        self.options, self.status = list(options), status

    def type(self, text: str) -> None:
        self.suggestions.typed(text)

    @property
    def offered(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for option in self.options:
            groups.setdefault(option.group.partition(" (")[0], []).append(option.value)
        return groups


@pytest.fixture
def field(llamas: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Field:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    recents.remember("llamas/tiny")
    return Field()


def test_before_anything_is_typed_the_field_offers_what_there_is(field: Field, llamas: HubServer) -> None:
    fits = [model.name for model in wb.shortlist()]
    assert field.offered == {
        "Opened before": ["llamas/tiny"], "Comes with the workbench": ["builtin"], "Forecast to fit a free GPU": fits,
    }  # fmt: skip
    assert not llamas.requests


def test_typing_narrows_it_and_asks_the_hub(field: Field, tmp_path: Path) -> None:
    field.type("llamas/")
    assert field.offered == {"Opened before": ["llamas/tiny"], "On the Hub": ["llamas/huge"]}
    assert {option.value: option.note for option in field.options}["llamas/huge"] == "2 M downloads a month, gated"
    field.type("qwen3-4")
    assert field.offered == {"Forecast to fit a free GPU": ["Qwen/Qwen3-4B"]}
    assert "no model" in field.status
    (tmp_path / "sub" / "folder").mkdir(parents=True)
    field.type(f"{tmp_path}/sub/")
    assert field.offered == {"Folders": [f"{tmp_path}/sub/folder/"]}
    assert [option.final for option in field.options] == [False]
    assert field.status == ""


def test_without_the_hub_the_field_says_so_and_offers_the_rest(
    field: Field, llamas: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    llamas.fail(path="/api/models", status=500)
    field.type("qwen")
    assert field.status.startswith("No suggestions from the Hub: ")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    field.type("qwen3")
    assert "offline mode" in field.status
    assert len(field.offered["Forecast to fit a free GPU"]) == 4
