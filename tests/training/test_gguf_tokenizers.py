"""A tokenizer that is written into a GGUF gives the same ids in a real llama.cpp; one that would not is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.llama_cpp import LlamaCpp
from tests.helpers.tiny_model import ROWS, write_tiny_model
from workbench.training.results.gguf_tokenizers import tokenizer_keys

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PIECES = (
    *["abz", "ABZ", "019", ".,;:!?'\"()[]{}<>@#$%^&*-_=+/\\|~`", "éßñøж漢字かな한글عربيहिन्दी🙂👩\u200d👩\u200d👧🏽", "½²Ⅷ१٣"],
    *("\t", "\n", "\r", "\0", "\u00a0", "\u2003", "\u200b", "\u0301", "\ufeff", "  ", "   ", "\r\n", "\n\n", "\t\t"),
    *("don't", "DON'T", "I'LL", "we've", " the", "The ", "12345", "3.14", "x=1;", "…", "“q”", "ﬁ", "İ", "naïve", "Straße"),
    *("<|endoftext|>", "<s>", "東京", "🙂🙂", "e\u0301"),
)  # fmt: skip


def texts(count: int) -> list[str]:
    """Single pieces, pieces put together at random, with and without spaces, and rows of the example dataset."""
    seeded = random.Random(1)
    joined = ["".join(seeded.choices(PIECES, k=seeded.randint(2, 12))) for _ in range(count)]
    spaced = [" ".join(seeded.choices(PIECES, k=seeded.randint(2, 8))) for _ in range(count)]
    rows = [json.loads(line)["text"] for line in ROWS.read_text("utf-8").splitlines()[:40]]
    return [text for text in (*PIECES, *joined, *spaced, *rows) if text]


def trained(splitter: Any, ignore_merges: bool = False) -> Any:
    """A tokenizer of 512 tokens that splits text in this way, with a token at the beginning of each text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=511, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator((json.loads(line)["text"] for line in ROWS.read_text("utf-8").splitlines()), trainer)
    tokenizer.add_tokens(["<|endoftext|>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def split_by(regex: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(regex), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def digits_apart() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def words() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False)


KINDS: dict[str, tuple[Callable[[], Any], bool]] = {
    "gpt-2": (words, False),
    "smollm": (digits_apart, False),
    "llama-bpe": (lambda: split_by(f"{WORDS}{{1,3}}{REST}"), True),
    "dbrx": (lambda: split_by(f"{WORDS}{{1,3}}{REST}"), False),
    "qwen2": (lambda: split_by(f"{WORDS}{REST}"), False),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    root = tmp_path_factory.mktemp("run")
    config = in_process.config_of(write_tiny_model(root / "model"), max_steps=1, max_eval_rows=0)
    (root / "run").mkdir()
    return in_process.train(config, root / "run")


def put(tokenizer: Any, folder: Path) -> None:
    """Into a model's folder, in the place of the one that it has."""
    from transformers import PreTrainedTokenizerFast

    for file in folder.glob("*token*"):
        file.unlink()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["embedded", *KINDS])
def test_llama_cpp_makes_the_same_ids(run: wb.Run, kind: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = Path(run.config.model)
    if kind != "embedded":
        splitter, ignore_merges = KINDS[kind]
        put(trained(splitter(), ignore_merges), folder)
    wb.export(run, tmp_path / "out", format="gguf", changed_ok=True)
    keys = tokenizer_keys(folder, 512)
    assert keys["tokenizer.ggml.pre"] == ("gpt-2" if kind == "embedded" else kind)
    assert keys["tokenizer.ggml.add_bos_token"]
    assert len(keys["tokenizer.ggml.tokens"]) == len(keys["tokenizer.ggml.token_type"]) == 512
    tokenizer, llama = Tokenizer.from_file(str(folder / "tokenizer.json")), LlamaCpp(tmp_path / "out" / "model.gguf")
    differ = [text for text in texts(150) if llama.tokenized(text) != tokenizer.encode(text).ids]
    assert differ == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d["model"].update(type="Unigram"), "tokenizer is Unigram"),
        (lambda d: d["model"].update(byte_fallback=True), "bytes for the rest"),
        (lambda d: d["model"].update(end_of_word_suffix="</w>"), "parts of words"),
        (lambda d: d.update(normalizer={"type": "Lowercase"}), "changes text first"),
        (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), "in a way that was not tried"),
        (lambda d: d.update(pre_tokenizer={"type": "Metaspace"}), "in a way that was not tried"),
        (lambda d: d.update(pre_tokenizer=None), "in a way that was not tried"),
        (lambda d: d["model"].update(ignore_merges=True), "in a way that was not tried"),
        (lambda d: d["added_tokens"][0].update(lstrip=True), "takes in what stands beside it"),
        (lambda d: d["model"]["vocab"].update(more=512), "token 512 has no row among the embedding's 512"),
        (lambda d: d.pop("model"), "cannot be read"),
    ],
)
def test_other_tokenizers_are_refused_with_what_does_it(
    change: Callable[[dict[str, Any]], Any], told: str, tmp_path: Path
) -> None:
    put(trained(words()), tmp_path)
    file = tmp_path / "tokenizer.json"
    described = json.loads(file.read_text("utf-8"))
    change(described)
    file.write_text(json.dumps(described), "utf-8")
    with pytest.raises(wb.ModelError, match=told) as caught:
        tokenizer_keys(tmp_path, 512)
    assert "base_gguf" in caught.value.remedy
    assert "convert_hf_to_gguf.py" in caught.value.remedy


def test_rows_without_a_token_are_unused_and_a_chat_template_comes_along(tmp_path: Path) -> None:
    put(trained(words()), tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    keys = tokenizer_keys(tmp_path, 520)
    assert keys["tokenizer.ggml.tokens"][512:] == [f"[PAD{row}]" for row in range(512, 520)]
    assert keys["tokenizer.ggml.token_type"][512:] == [5] * 8
    assert keys["tokenizer.chat_template"] == "{{ messages }}"
    assert [keys[f"tokenizer.ggml.{part}_token_id"] for part in ("bos", "eos", "padding")] == [0, 1, 2]
    assert keys["tokenizer.ggml.token_type"][:3] == [3, 3, 3]
    assert keys["tokenizer.ggml.token_type"][511] == 4  # added, and no special one
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(wb.ModelError, match=r"no tokenizer\.json"):
        tokenizer_keys(tmp_path, 520)
