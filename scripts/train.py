"""Trains the embedded model: ``python -m scripts.train`` (about two hours on two cores; resumes where it stopped).

Covers: the tokenizer, packing, the training loop and writing ``model/`` and ``data/`` beside this file. Does not cover the
texts (``corpus.py``) nor the model card's measurements (``card.py``).

The learning rate warms up, stays, and falls linearly to zero over the last quarter (warm-up, stable, decay: arXiv 2404.06395),
so a run can be lengthened or shortened at any moment before the decay by calling again with another ``--steps``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import workbench
from scripts import corpus

HERE = Path(workbench.__file__).parent / "builtin"
VOCABULARY = 4096
CONTEXT = 256
BATCH = 8
START, END, PAD = "<s>", "</s>", "<pad>"


def documents() -> tuple[list[str], list[str]]:
    """Training and held-out documents (one in fifty held out)."""
    texts = [*corpus.bible_chapters(), *corpus.wordnet_entries()]
    return [t for t in texts if not corpus.held_out(t, 50)], [t for t in texts if corpus.held_out(t, 50)]


def write_dataset(folder: Path) -> None:
    """The example dataset: one row in six held out."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(corpus.devil_entries())
    for name, wanted in (("train", False), ("heldout", True)):
        part = [r for r in rows if corpus.held_out(r["prompt"], 6) is wanted]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part), "utf-8")


def write_held_out(folder: Path, glosses: int = 192, longest: int = 1_600) -> None:
    """Rows of the documents that are never trained on: chapters up to whole verses within ``longest``, and some glosses.

    A gloss that training has met at another word is left out.
    """
    trained, texts = documents()
    met = {text.partition(". ")[2] for text in trained}
    chapters = [text for text in texts if "\n" in text]
    entries = [text for text in texts if "\n" not in text and text.partition(". ")[2] not in met]
    short = [text if len(text) <= longest else text[:longest].rpartition("\n")[0] for text in chapters]
    for name, rows in (("bible", short), ("wordnet", entries[:: max(1, len(entries) // glosses)])):
        (folder / f"heldout-{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), "utf-8")


def make_tokenizer(texts: list[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE, so that no text is out of vocabulary; every text begins with ``<s>``."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocabulary, min_frequency=2, special_tokens=[START, END, PAD], show_progress=False
    )
    bpe._tokenizer.post_processor = TemplateProcessing(single=f"{START} $A", special_tokens=[(START, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=START, eos_token=END, pad_token=PAD, model_max_length=2 * CONTEXT
    )


def pack(tokenizer: Any, texts: list[str], generator: np.random.Generator | None) -> np.ndarray:
    """All documents, each between ``<s>`` and ``</s>``, end to end (shuffled if a generator is given): uint16 (tokens,)."""
    order = generator.permutation(len(texts)) if generator else np.arange(len(texts))
    encoded = tokenizer.backend_tokenizer.encode_batch([texts[i] for i in order], add_special_tokens=False)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return np.concatenate([np.array([bos, *e.ids, eos], np.uint16) for e in encoded])


def rows_of(stream: np.ndarray, length: int) -> torch.Tensor:
    """(tokens,) → (rows, length) int64; the remainder is dropped."""
    whole = len(stream) // length * length
    return torch.from_numpy(stream[:whole].reshape(-1, length).astype(np.int64))


def model_config() -> LlamaConfig:
    """5.5 M parameters; every linear's input is a multiple of 64, so no block of 64 crosses a row."""
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2 * CONTEXT, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip


def learning_rate(step: int, steps: int, peak: float, warmup: int = 150, decay: float = 0.25) -> float:
    """Warm-up, stable, decay (see the module docstring)."""
    left = (steps - step) / (decay * steps)
    return peak * min(1.0, (step + 1) / warmup, max(left, 0.0))


@torch.no_grad()
def heldout_loss(model: Any, rows: torch.Tensor) -> float:
    """Mean next-token cross-entropy in nats over all held-out rows."""
    model.eval()
    losses = [model(input_ids=part, labels=part).loss.item() * len(part) for part in rows.split(16)]
    model.train()
    return float(sum(losses)) / len(rows)


def train(work: Path, steps: int, peak: float, seed: int = 0) -> None:
    """Trains or resumes in ``work`` and writes ``model/`` when ``steps`` are done."""
    work.mkdir(parents=True, exist_ok=True)
    training, heldout = documents()
    if (work / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(work)
    else:
        tokenizer = make_tokenizer(training)
        tokenizer.save_pretrained(work)
    held = rows_of(pack(tokenizer, heldout, None), CONTEXT)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(model_config())
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=peak, betas=(0.9, 0.95)
    )
    step, checkpoint = 0, work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    tokens = len(pack(tokenizer, training, None))
    per_epoch = tokens // CONTEXT // BATCH
    epoch, order = -1, torch.empty(0)
    began = time.monotonic()
    while step < steps:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = rows_of(pack(tokenizer, training, np.random.default_rng(1000 + epoch)), CONTEXT)
        at = step % per_epoch * BATCH
        batch = order[at : at + BATCH]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 25 == 0:
            print(f"step {step} epoch {epoch} loss {loss.item():.3f} minutes {(time.monotonic() - began) / 60:.1f}", flush=True)
        if step % 100 == 0 or step == steps:
            temporary = checkpoint.with_suffix(".tmp")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary)
            os.replace(temporary, checkpoint)
            if step % 400 == 0 or step == steps:
                print(f"step {step} held-out loss {heldout_loss(model, held):.4f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(HERE / "model")
    tokenizer.save_pretrained(HERE / "model")
    seen = steps * BATCH * CONTEXT
    (work / "done.json").write_text(json.dumps({"steps": steps, "tokens": seen, "corpus_tokens": tokens}))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/builtin"), help="checkpoints and tokenizer while training")
    parser.add_argument("--steps", type=int, default=2300, help=f"each of {BATCH}x{CONTEXT} tokens")
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    write_dataset(HERE / "data")
    write_held_out(HERE / "data")
    train(args.work, args.steps, args.lr)


if __name__ == "__main__":
    main()
