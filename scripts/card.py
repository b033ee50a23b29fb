"""Writes the embedded model's card: ``python -m scripts.card`` (some minutes; needs the texts of ``corpus.py``).

Covers: held-out perplexity beside n-gram baselines, the weights' kurtosis beside an initialised network's, samples, and what an
adapter does, each measured here and now on the model as it lies in its folder. Does not cover training it (``train.py``), nor
quality beyond that: a model this small knows two books.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import workbench

HERE = Path(workbench.__file__).parent / "builtin"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPTS = ("Psalms 151\n", "And it came to pass", "love, n.", "wisdom, n.", "run, v.")
ADAPTER_PROMPTS = ("happiness, n.", "lawyer, n.", "patriotism, n.", "year, n.")
ADAPTER: dict[str, Any] = {
    "max_steps": 300,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 8,
    "max_length": 128,
    "save_steps": 0,
}

Tokens = NDArray[np.int64]


def unigram(stream: Tokens, vocabulary: int) -> NDArray[np.float64]:
    """Add-one smoothed token frequencies: (c(w) + 1) / (N + V), shape (V,)."""
    counts = np.bincount(stream, minlength=vocabulary).astype(np.float64)
    smoothed: NDArray[np.float64] = (counts + 1) / (counts.sum() + vocabulary)
    return smoothed


@dataclass(frozen=True)
class Bigram:
    """An interpolated bigram with absolute discounting (Ney, Essen and Kneser, 1994).

    p(w | v) = max(c(v,w) − d, 0) / c(v) + d · n₁₊(v) / c(v) · p(w), where d = n₁ / (n₁ + 2·n₂) from the numbers of pairs seen
    once and twice, n₁₊(v) the number of different followers of v, and p(w) the add-one unigram; p(w) where v was never seen.
    """

    pairs: Tokens  # sorted keys v·V + w
    counts: Tokens
    totals: NDArray[np.float64]  # (V,) how often v had a follower
    followers: NDArray[np.float64]  # (V,) how many different ones
    base: NDArray[np.float64]  # (V,)
    discount: float

    @classmethod
    def fit(cls, stream: Tokens, vocabulary: int) -> Bigram:
        """Counts over one stream of tokens."""
        pairs, counts = np.unique(stream[:-1] * vocabulary + stream[1:], return_counts=True)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        first = pairs // vocabulary
        return cls(
            pairs,
            counts,
            np.bincount(first, counts, vocabulary).astype(np.float64),
            np.bincount(first, minlength=vocabulary).astype(np.float64),
            unigram(stream, vocabulary),
            once / (once + 2 * twice) if once else 0.0,
        )

    def __call__(self, before: Tokens, token: Tokens) -> NDArray[np.float64]:
        """The probability of each ``token`` after each ``before``; both (n,)."""
        key = before * len(self.base) + token
        at = np.minimum(np.searchsorted(self.pairs, key), len(self.pairs) - 1)
        count = np.where(self.pairs[at] == key, self.counts[at], 0)
        total = self.totals[before]
        seen = np.maximum(count - self.discount, 0) + self.discount * self.followers[before] * self.base[token]
        return np.where(total > 0, seen / np.maximum(total, 1), self.base[token])


def perplexity(probabilities: NDArray[np.float64]) -> float:
    """exp of the mean negative log probability."""
    return float(np.exp(-np.log(probabilities).mean()))


def kurtosis(values: NDArray[Any]) -> float:
    """E[(x − μ)⁴] / σ⁴, which is 3 for a normal distribution."""
    x = values.astype(np.float64).ravel()
    x -= x.mean()
    return float((x**4).mean() / (x**2).mean() ** 2)


def kurtoses(weights: Mapping[str, NDArray[Any]]) -> list[tuple[str, list[float]]]:
    """A row a layer, a value a projection."""
    layers = sorted({int(name.split(".layers.")[1].split(".")[0]) for name in weights if ".layers." in name})
    rows = []
    for layer in layers:
        of = {name.split(".")[-2]: w for name, w in weights.items() if f".layers.{layer}." in name and w.ndim == 2}
        rows.append((str(layer), [kurtosis(of[projection]) for projection in PROJECTIONS]))
    return rows


@dataclass(frozen=True)
class Language:
    """How well the next token is predicted on the held-out documents."""

    documents: int
    predictions: int
    model: float
    unigram: float
    bigram: float
    discount: float


def measure_language(folder: Path) -> Language:
    """Perplexities over the same held-out predictions; both baselines are counted on the training documents."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from scripts import train

    training, heldout = train.documents()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stream = train.pack(tokenizer, training, None).astype(np.int64)
    rows = train.rows_of(train.pack(tokenizer, heldout, None), train.CONTEXT)
    before, token = (part.numpy().ravel() for part in (rows[:, :-1], rows[:, 1:]))
    bigram = Bigram.fit(stream, len(tokenizer))
    return Language(
        len(heldout),
        len(token),
        math.exp(train.heldout_loss(model, rows)),
        perplexity(bigram.base[token]),
        perplexity(bigram(before, token)),
        bigram.discount,
    )


def samples(folder: Path, temperature: float = 0.7, tokens: int = 60) -> Iterator[tuple[str, str]]:
    """Each prompt and what the model goes on with (seed 0)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt in PROMPTS:
        torch.manual_seed(0)
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids]])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=temperature, top_k=50, max_new_tokens=tokens
        )
        yield prompt, tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def initialised() -> dict[str, NDArray[Any]]:
    """The weights of a network of this shape before any training."""
    import torch
    from transformers import LlamaForCausalLM

    from scripts import train

    torch.manual_seed(0)
    return {name: p.detach().numpy() for name, p in LlamaForCausalLM(train.model_config()).named_parameters()}


def adapt(model: str, run_dir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A QLoRA run on the example dataset: its configuration and its events."""
    import workbench as wb

    config = wb.TrainConfig(model=model, sample_prompts=ADAPTER_PROMPTS, max_eval_rows=1000, seed=0, **ADAPTER)
    run = wb.launch(config, run_dir)
    status = run.wait()
    if status.state != "finished":
        raise wb.RunError(
            f"the adapter's run ended as {status.state}. {status.message}", where=str(run.dir), remedy=status.remedy
        )
    return config.to_dict(), [dict(event) for event in run.events()]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def quoted(prompt: str, text: str) -> str:
    """The prompt in bold and what followed, as a Markdown quotation."""
    return f"> **{prompt.strip()}**{prompt[len(prompt.rstrip()) :]}{text.rstrip()}".replace("\n", "<br>")


def card(model: str, work: Path) -> str:
    """The whole card, as Markdown."""
    import workbench as wb

    source = wb.open_model(model)
    assert source.path is not None  # an embedded or local model has a folder
    folder, config = source.path, source.config
    tensors = source.tensors()
    weights = {t.name: source.read(t.name) for t in tensors if len(t.shape) == 2}
    done = json.loads((work / "done.json").read_text("utf-8"))
    language = measure_language(folder)
    fresh = kurtoses(initialised())
    with tempfile.TemporaryDirectory() as temporary:
        asked, events = adapt(model, Path(temporary) / "run")
    losses = [e["loss"] for e in events if e["k"] == "eval"]
    stages = {stage: [e for e in events if e["k"] == "generated" and e["stage"] == stage] for stage in ("before", "after")}
    file = folder / "model.safetensors"
    fields: dict[str, Any] = {
        "parameters": sum(t.numel for t in tensors),
        "linear": sum(t.numel for t in tensors if t.quantizable),
        "bytes": file.stat().st_size,
        "sha": hashlib.sha256(file.read_bytes()).hexdigest(),
        "seen": done["tokens"],
        "steps": done["steps"],
        "epochs": done["tokens"] / done["corpus_tokens"],
        "corpus": done["corpus_tokens"],
        **{k: config[k] for k in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")},
        "heads": f"{config['num_attention_heads']} heads, {config['num_key_value_heads']} of them for keys and values",
        "language": table(
            ["predictor", "perplexity per token"],
            [
                ["unigram, add-one smoothing", f"{language.unigram:.1f}"],
                ["bigram, absolute discounting", f"{language.bigram:.1f}"],
                ["**this model**", f"**{language.model:.1f}**"],
            ],
        ),
        "documents": language.documents,
        "predictions": language.predictions,
        "discount": language.discount,
        "kurtosis": table(
            ["layer", *PROJECTIONS], [[layer, *(f"{v:.2f}" for v in values)] for layer, values in kurtoses(weights)]
        ),
        "embedding": kurtosis(next(w for name, w in weights.items() if "embed_tokens" in name)),
        "fresh_low": min(v for _, values in fresh for v in values),
        "fresh_high": max(v for _, values in fresh for v in values),
        "samples": "\n\n".join(quoted(*pair) for pair in samples(folder)),
        "asked": ", ".join(f"`{k}={v}`" for k, v in {"lora_r": asked["lora_r"], **ADAPTER}.items()),
        "rows": sum(1 for _ in (HERE / "data" / "heldout.jsonl").open(encoding="utf-8")),
        "before": losses[0],
        "after": losses[-1],
        "completions": table(
            ["prompt", "base model", "with the adapter"],
            [
                [cell.replace("\n", " ").replace("|", "\\|").strip() for cell in (b["prompt"], b["text"], a["text"])]
                for b, a in zip(stages["before"], stages["after"], strict=True)
            ],
        ),
    }
    return TEMPLATE.format(**fields)


TEMPLATE = """\
# The embedded model

A small English language model that comes with QLoRA Workbench, so that everything the workbench does can be done on real,
trained weights without a network. It is for looking at and for trying adapters on; it knows two books and nothing else.
Every number on this page was measured by `python -m scripts.card` on the weights in `model/`.

## Texts and licences

| text | Debian package | licence | used for |
| --- | --- | --- | --- |
| King James Bible | bible-kjv-text | public domain | training |
| WordNet 3.0: glosses of the senses seen in tagged text | wordnet-base | WordNet licence (in `NOTICE`) | training |
| The Devil's Dictionary, Ambrose Bierce, 1911 | dict-devil | public domain | the example dataset in `data/` only |

The weights are under the project's licence, Apache-2.0; the notice of WordNet stays with every copy. The Bible speaks the
language and holds the views of the 17th century, the satire those of 1911; the model and its adapters repeat both.

Rows that were never trained on lie in `data/`, a file a text: `heldout-bible.jsonl` (27 chapters, each up to whole verses
within 1,600 characters), `heldout-wordnet.jsonl` (210 entries whose gloss training met at no other word) and `heldout.jsonl`
(137 entries of The Devil's Dictionary). What a format costs is measured on one of them by name, and never on a mixture.

## Architecture and training

Llama, {num_hidden_layers} layers, hidden size {hidden_size}, {heads}, intermediate size {intermediate_size}, byte-level BPE
vocabulary of {vocab_size:,}, embedding tied to the head: {parameters:,} parameters, of which {linear:,} in the linear layers
that QLoRA holds in 4 bits. Stored in bf16: {bytes:,} bytes, SHA-256 `{sha}`.

Trained by `python -m scripts.train` from random weights: {steps:,} steps, {seen:,} tokens seen, {epochs:.1f} times
the {corpus:,} tokens of the training documents.

## Held-out text

One document in fifty (a chapter, or a dictionary entry) was never trained on: {documents:,} documents, {predictions:,}
predictions, the same tokens for all three. The baselines are counted on the training documents; the bigram is interpolated
with the unigram (discount {discount:.3f}).

{language}

## Weights

Kurtosis, E[(x − μ)⁴] / σ⁴, of every linear layer. A normal distribution has 3, and so has a network that was only
initialised: the same layers before training lie between {fresh_low:.2f} and {fresh_high:.2f}. The trained embedding has
{embedding:.2f}.

{kurtosis}

## Samples

Temperature 0.7, top-k 50, seed 0; the prompt is bold.

{samples}

## What an adapter does

A QLoRA run on `data/train.jsonl` through `workbench.launch`, NF4 with double quantization, loss on the completions only:
{asked}.

On the {rows} rows of `data/heldout.jsonl` the loss falls from **{before:.3f}** to **{after:.3f}** nats a token.

{completions}
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin", help="'builtin' or a folder")
    parser.add_argument("--work", type=Path, default=Path("build/builtin"), help="where train.py left done.json")
    parser.add_argument("--out", type=Path, default=HERE / "README.md")
    args = parser.parse_args()
    args.out.write_text(card(args.model, args.work), "utf-8")


if __name__ == "__main__":
    main()
