"""A tokenizer as a GGUF's keys: byte-level BPE whose way of splitting text llama.cpp is known to share.

It is recognised by how ``tokenizer.json`` says that text is split, not by its vocabulary, so one of one's own is taken too.
Everything else is refused: SentencePiece, WordPiece, other ways of splitting, tokens that take in spaces beside them. Each kind
was compared with a llama.cpp of 2026 on some hundred texts (tests/training/test_gguf_tokenizers.py). A normalizer that composes
characters (NFC) is left out, as llama.cpp's own converter does: text that is not composed is then split otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.errors import ModelError
from workbench.training.results.gguf_layouts import CONVERTER
from workbench.training.vocabulary import chat_templates, json_object

# The two regular expressions by which cl100k and what follows it split text; they differ in how many digits go together.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_THREE_DIGITS, _ONE_DIGIT = rf"{_WORDS}\p{{N}}{{1,3}}{_REST}", rf"{_WORDS}\p{{N}}{_REST}"
_KINDS: dict[tuple[str, bool], str] = {
    ("words", False): "gpt-2",
    ("digits words", False): "smollm",
    (_THREE_DIGITS, True): "llama-bpe",
    (_THREE_DIGITS, False): "dbrx",
    (_ONE_DIGIT, False): "qwen2",
}
"""(How text is split, whether words that are tokens whole skip the merges) → llama.cpp's name for that."""
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def tokenizer_keys(folder: Path, rows: int) -> dict[str, Any]:
    """The keys for the tokenizer in a model's folder, whose embedding has so many rows. ``ModelError`` where it is refused."""
    file = folder / "tokenizer.json"
    try:
        described = json.loads(file.read_text("utf-8"))
        model, splitter = described["model"], described["pre_tokenizer"]
        kind = model["type"]
    except FileNotFoundError as error:
        raise _refused(folder, "it has no tokenizer.json.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _refused(folder, f"its tokenizer.json cannot be read ({type(error).__name__}).") from error
    if kind != "BPE" or model.get("byte_fallback"):
        raise _refused(
            folder, f"its tokenizer is {kind}{' with bytes for the rest' if kind == 'BPE' else ''}, not byte-level BPE."
        )
    if any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        raise _refused(folder, "its BPE marks the parts of words, or leaves merges out at random.")
    if described.get("normalizer") and described["normalizer"].get("type") != "NFC":
        raise _refused(folder, f"its tokenizer changes text first ({described['normalizer'].get('type')}).")
    split = _KINDS.get((_split(splitter), bool(model.get("ignore_merges"))))
    if split is None:
        raise _refused(folder, "its tokenizer splits text in a way that was not tried here.")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        **_tokens(folder, described, rows),
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
        **_special(folder, file, described),
    }


def _split(splitter: Any) -> str:
    """How text is split before the merges, in a word of ``_KINDS``, or as a regular expression; empty for any other way."""
    steps = splitter.get("pretokenizers") if splitter and splitter.get("type") == "Sequence" else [splitter]
    if not steps or not all(isinstance(step, dict) for step in steps):
        return ""
    *first, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return ""
    words = bool(last.get("use_regex", True))
    if not first:
        return "words" if words else ""
    if len(first) > 1:
        return ""
    step = first[0]
    if step.get("type") == "Digits" and step.get("individual_digits") and words:
        return "digits words"
    if step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert") and not words:
        return str(step.get("pattern", {}).get("Regex", ""))
    return ""


def _tokens(folder: Path, described: dict[str, Any], rows: int) -> dict[str, Any]:
    """Each row of the embedding: its text and whether it is a token like others; rows without one are named and unused."""
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [_UNUSED] * rows
    added = described.get("added_tokens") or []
    if outside := [row for row in [*described["model"]["vocab"].values(), *(token["id"] for token in added)] if row >= rows]:
        raise _refused(folder, f"token {max(outside):,} has no row among the embedding's {rows:,}.")
    for text, row in described["model"]["vocab"].items():
        tokens[row], types[row] = text, _NORMAL
    for token in added:
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            raise _refused(folder, f"the token {token['content']!r} takes in what stands beside it.")
        tokens[token["id"]] = token["content"]
        types[token["id"]] = _CONTROL if token.get("special") else _USER_DEFINED
    return {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}


def _special(folder: Path, file: Path, described: dict[str, Any]) -> dict[str, Any]:
    """Special tokens by their part, whether text begins and ends with them, and the chat template."""
    from tokenizers import Tokenizer

    config = json_object(folder / "tokenizer_config.json")
    tokenizer = Tokenizer.from_file(str(file))
    names = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    ids: dict[str, int] = {}
    for part, name in names.items():
        given = config.get(name)
        text = given.get("content") if isinstance(given, dict) else given
        if isinstance(text, str) and (row := tokenizer.token_to_id(text)) is not None:
            ids[part] = row
    around, bare = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    at = around.index(bare[0]) if bare and bare[0] in around else 0
    before, after = around[:at], around[at + len(bare) :]
    if before not in ([], [ids.get("bos")]) or after not in ([], [ids.get("eos")]):
        raise _refused(folder, "its tokenizer puts other tokens around text than one at its beginning and one at its end.")
    found: dict[str, Any] = {f"tokenizer.ggml.{part}_token_id": row for part, row in ids.items()}
    found |= {"tokenizer.ggml.add_bos_token": bool(before), "tokenizer.ggml.add_eos_token": bool(after)}
    if template := chat_templates(folder, config.get("chat_template")).get("default"):
        found["tokenizer.chat_template"] = template
    return found


def _refused(folder: Path, what: str) -> ModelError:
    remedy = (
        "Name a GGUF of the same base, whose tokenizer is copied (base_gguf=…, workbench export: --base-gguf), or export with "
        f'format="transformers" and use llama.cpp\'s own converter: {CONVERTER}'
    )
    return ModelError(what, where=folder.name, remedy=remedy)
