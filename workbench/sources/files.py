"""Which files make up a checkpoint, and what they say of each other: the same rules for a folder and for a repository.

Covers choosing the weight files out of a listing, the names that a file may have, reading JSON that may be hostile, and joining
the headers of shards with their index. Fetches nothing: the caller, which lists the files, passes a function that reads one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from workbench.errors import ModelError
from workbench.sources.header import MAX_TENSORS, Entry, Header, check_pointer, shown, unique

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
MODELOPT = "hf_quant_config.json"
"""Where NVIDIA's ModelOpt says how it quantized, in versions whose config.json does not."""
_ADAPTER = "adapter_config.json"
MAX_JSON = 64_000_000
"""Bytes; the index of a model with 1,000 billion parameters has about 20 million."""
_MAX_CONTAINERS = 100_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

Place = Callable[[str], str]
"""What a file of the checkpoint is called in a message; of ``""``, the checkpoint itself."""


def check_name(file: str, where: str) -> None:
    """ModelError where ``file`` is not a plain relative path without ``..``."""
    if (
        not file
        or len(file) > 255
        or not file.isprintable()
        or PurePosixPath(file).is_absolute()
        or ".." in PurePosixPath(file).parts
        or "\\" in file
    ):
        raise ModelError(f"It names the file {shown(file)}, which is not a name inside the folder.", where=where)


def weight_files(names: Collection[str], read: Callable[[str], dict[str, Any]], place: Place) -> dict[str, str]:
    """Tensor name → the file that holds it, as the index says, or ``{"": file}`` where there is one file and no index.

    ``names`` are the files at the top of the checkpoint, ``read`` reads one of them as JSON. ModelError where they are no
    safetensors checkpoint. The shards' names are checked, and not whether they are there.
    """
    if SINGLE in names:
        return {"": SINGLE}
    if INDEX in names:
        return _from_index(read(INDEX), place)
    loose = sorted(name for name in names if name.endswith(".safetensors"))
    if len(loose) == 1:
        check_name(loose[0], place(""))
        return {"": loose[0]}
    if loose:
        what = f"It holds {len(loose)} safetensors files and no {INDEX} that says how they belong together."
        raise ModelError(what, where=place(""), remedy="Fetch the index too, or give each file a folder of its own.")
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if pickles:
        what = (
            f"It holds only pickles ({shown(pickles[0])}), which can run any code when they are loaded: they are never opened."
        )
        remedy = (
            "Fetch the model's safetensors, or convert it where you trust it: load it with transformers and save_pretrained()."
        )
        raise ModelError(what, where=place(""), remedy=remedy)
    raise ModelError(f"It holds no {SINGLE} and no {INDEX}.", where=place(""), remedy="Open a model as transformers saves one.")


def refuse_adapter(names: Collection[str], read: Callable[[str], dict[str, Any]], place: Place) -> None:
    """ModelError where the files are those of peft's adapter, and not of a model."""
    if _ADAPTER not in names or SINGLE in names or INDEX in names:
        return
    config = read(_ADAPTER)
    base, kind = config.get("base_model_name_or_path"), config.get("peft_type")
    named = isinstance(base, str) and bool(base)
    of = f" of {shown(str(base), 200)}" if named else ""
    what = f"It is an adapter ({shown(str(kind or 'LoRA'), 40)}){of}, not a model: it holds what is added to a model's weights."
    remedy = (
        f"Open {'that model' if named else 'the model that it was trained on'}; or put both together (peft's merge_and_unload, "
        "then save_pretrained; for a run of the workbench export) and open what comes of it."
    )
    raise ModelError(what, where=place(""), remedy=remedy)


def configuration(names: Collection[str], read: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """config.json, ``{}`` where there is none, with what ModelOpt says of its quantization in a file of its own."""
    config = read(CONFIG) if CONFIG in names else {}
    if MODELOPT in names and "quantization_config" not in config:
        config["quantization_config"] = {**_object(read(MODELOPT).get("quantization")), "quant_method": "modelopt"}
    return config


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _from_index(index: Mapping[str, Any], place: Place) -> dict[str, str]:
    weights = index.get("weight_map")
    if not isinstance(weights, dict) or not weights or not all(isinstance(file, str) for file in weights.values()):
        raise ModelError("It has no weight_map of tensor names to files.", where=place(INDEX))
    for file in dict.fromkeys(weights.values()):
        if not file.endswith(".safetensors"):
            raise ModelError(f"It names the shard {shown(file)}, which is not safetensors.", where=place(INDEX))
        check_name(file, place(""))
    return weights


def join(files: Mapping[str, str], headers: Iterable[tuple[str, Header]], place: Place) -> dict[str, tuple[str, Entry]]:
    """Tensor name → (its file, where in it), out of every file's header; ModelError where index and headers disagree.

    ``files`` is what ``weight_files`` gave, ``headers`` the header of each of its files, in their order.
    """
    found: dict[str, tuple[str, Entry]] = {}
    for file, header in headers:
        for name, entry in header.entries.items():
            if name in found:
                what = f"The tensor {shown(name)} is also in {found[name][0]}."
                raise ModelError(what, where=place(file), remedy="Keep one of the two.")
            found[name] = (file, entry)
        if len(found) > MAX_TENSORS:
            raise ModelError(f"More than {MAX_TENSORS:,} tensors.", where=place(""))
    for name, file in files.items():
        if name and (name not in found or found[name][0] != file):
            what = f"The index says that {shown(name)} is in {file}, and it is not."
            raise ModelError(what, where=place(INDEX), remedy="Fetch the index and the shards again, from one revision.")
    return found


def parse_json(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object of bounded size; ModelError on anything else."""
    check_pointer(raw, where)
    if len(raw) > MAX_JSON or raw.count(b"[") + raw.count(b"{") > _MAX_CONTAINERS:
        raise ModelError("It is larger than such a file ever is.", where=where)
    try:
        value = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"It is not valid JSON: {str(error)[:120]}.", where=where, remedy="Fetch the file again.") from error
    if not isinstance(value, dict):
        raise ModelError("It is not a JSON object.", where=where, remedy="Fetch the file again.")
    return value
