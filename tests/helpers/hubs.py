"""What tests of the Hub share: huggingface_hub pointed at a loopback Hub, and repositories to put on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import close_session, constants

from tests.helpers.hub_server import HubServer, Request, hub_server
from workbench.sources import ranges

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 1024}
BIG = "model.layers.1.mlp.up_proj.weight"


def environment(server: HubServer, home: Path) -> dict[str, str]:
    """What to set so that a process of its own uses the loopback Hub, and nothing of the user's."""
    return {
        "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home / "hf"), "WORKBENCH_CACHE": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"), "HF_TOKEN": "", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip


@contextmanager
def at_loopback(home: Path) -> Iterator[HubServer]:
    """A loopback Hub that this process's huggingface_hub uses, with caches of its own under ``home``.

    The library reads its settings once, when it is imported, so they are changed where it keeps them.
    """
    with hub_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(server, home).items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hf" / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "hf" / "token"))
        patch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)
        patch.setattr(ranges, "FIRST_PAUSE", 0.001)
        try:
            yield server
        finally:
            close_session()


def weights(layers: int = 2, width: int = 1024, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """A Llama's tensors, the linear layers of ``width`` × ``2 · width``."""
    draw = np.random.default_rng(seed)

    def random(*shape: int) -> np.ndarray[Any, Any]:
        return draw.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)

    found = {"model.embed_tokens.weight": random(64, width)}
    for i in range(layers):
        for part in ("mlp.up_proj", "mlp.gate_proj"):
            found[f"model.layers.{i}.{part}.weight"] = random(2 * width, width)
        found[f"model.layers.{i}.input_layernorm.weight"] = random(width)
    return found


def single(tensors: dict[str, np.ndarray[Any, Any]], **config: Any) -> dict[str, bytes]:
    """The files of a repository with one safetensors file."""
    return {
        "config.json": json.dumps(CONFIG | config).encode(),
        "model.safetensors": safetensors.numpy.save(tensors, {"format": "pt"}),
    }


def sharded(tensors: dict[str, np.ndarray[Any, Any]], shards: int) -> dict[str, bytes]:
    """The files of a repository whose tensors lie in so many shards, in turn."""
    parts: list[dict[str, np.ndarray[Any, Any]]] = [{} for _ in range(shards)]
    index = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        parts[i % shards][name] = tensor
        index[name] = f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
    files = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": index}).encode(),
    }
    for i, part in enumerate(parts):
        files[f"model-{i + 1:05}-of-{shards:05}.safetensors"] = safetensors.numpy.save(part, {"format": "pt"})
    return files


def of_files(server: HubServer) -> list[Request]:
    """The requests for files, as against those for information."""
    return [request for request in server.requests if "/api/" not in request.path]


def header_length(data: bytes) -> int:
    """Bytes of a safetensors file's header, with the eight of its length."""
    return 8 + int.from_bytes(data[:8], "little")
