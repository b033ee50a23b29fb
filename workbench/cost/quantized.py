"""Which of a model's weights a QLoRA load quantizes, asked of transformers without loading torch into the process that asks.

Covers ``Source.tensors(exact=True)`` of a folder, by ``python -m workbench.cost.quantized FOLDER`` where there is no torch yet.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from functools import lru_cache
from typing import Any

from workbench.cost import fork_server
from workbench.errors import ModelError, RunError
from workbench.sources import Source, TensorInfo, open_model
from workbench.sources.tensor_info import Role
from workbench.training.environment import OFFLINE, PATIENT, without_secrets


def tensors_exactly(source: Source, folder: str, fingerprint: str) -> tuple[TensorInfo, ...]:
    """Every tensor of the model in ``folder``, as its class loads it; ModelError where there is none, or it cannot be built.

    ``fingerprint`` identifies the model, which is asked about once.
    """
    if "torch" in sys.modules:
        return _answer(_ask(source))
    return _answer(_asked(folder, fingerprint))


def _ask(source: Source) -> dict[str, Any]:
    try:
        return {"tensors": [dataclasses.asdict(t) for t in source.tensors(exact=True)]}
    except ModelError as error:
        return {"what": error.what, "where": error.where}


@lru_cache(maxsize=16)
def _asked(folder: str, fingerprint: str) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+", encoding="utf-8") as words:
        process = fork_server.start(
            __name__, folder, {**PATIENT, **without_secrets(), **OFFLINE}, words.fileno(), words.fileno()
        )
        try:
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        words.seek(0)
        said = words.read().strip()
    if code:
        what = "the process that asks transformers which weights it quantizes has failed."
        raise RunError(what, where=folder, remedy=f"Its last words: {said[-300:]}")
    answer: dict[str, Any] = json.loads([line for line in said.splitlines() if line.startswith("{")][-1])
    return answer


def _answer(found: dict[str, Any]) -> tuple[TensorInfo, ...]:
    if "what" in found:
        what = f"transformers cannot tell which of its weights a load quantizes: {found['what']}"
        remedy = "Choose a causal language model that transformers knows without code of its own."
        raise ModelError(what, where=found["where"], remedy=remedy)
    return tuple(TensorInfo(**t | {"shape": tuple(t["shape"]), "role": Role(t["role"])}) for t in found["tensors"])


if __name__ == "__main__":
    print(json.dumps(_ask(open_model(sys.argv[1]))))
