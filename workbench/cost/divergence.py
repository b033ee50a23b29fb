"""How far a model's predictions are from another's, row by row: KL divergence, flipped tokens, and the loss. Needs torch.

Covers one pass of a reference model that keeps what its predictions follow from, and passes of any number of others that are
held against it. Whole vocabularies, a few positions at a time. What is kept of the reference is what reaches its head,
(positions, hidden), in the dtype in which the head multiplies; large ones lie in a file without a name, that goes with the
process. No logits are kept. Which models, and what is made of the sums, is decided elsewhere.

*KL divergence* of a position is Σ p(v) · (ln p(v) − ln q(v)) over the vocabulary, in nats: p is the reference's distribution of
the next token, q the other model's (Kullback and Leibler, Annals of Mathematical Statistics 22, 1951). It is 0 where the two
are the same, whatever the text. A position *flips* where the reference's most likely token is no longer the most likely one.

    reference = Reference(batches)               # as Collator makes them
    for sums in reference.take(model): ...       # the reference's own loss, batch by batch
    for sums in reference.compare(other): ...    # another model, or the same one with other weights but the same head
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.errors import ModelError
from workbench.training.worker.head import IGNORED, Head

Batch = dict[str, torch.Tensor]
_AT_A_TIME = 128
"""Positions whose logits are made at a time, of both models."""
_IN_CACHE = 1 << 18
"""Logits that are worked on at a time."""
_IN_MEMORY = 1 << 26
"""Bytes of kept states, above which they lie in a file."""
_NEAR = 1e-4
"""How far a model's own logits may be from what is known of its head, of the largest."""


class RowSums(NamedTuple):
    """Some rows, each summed over its positions that bear a loss: (rows,) each."""

    tokens: NDArray[np.int64]
    """How many positions those are."""
    loss: NDArray[np.float64]
    """Cross-entropy in nats."""
    kl: NDArray[np.float64]
    """KL divergence of the model from the reference, in nats."""
    flips: NDArray[np.int64]
    """Positions whose most likely token is another one than the reference's."""


def gathered(batches: Iterable[RowSums]) -> dict[str, list[Any]]:
    """The rows of all batches, one after another, by the names of ``RowCosts``."""
    names = ("tokens", "losses", "kls", "flipped")
    return {
        name: [value for part in parts for value in part.tolist()]
        for name, parts in zip(names, zip(*batches, strict=True), strict=True)
    }


class Logits:
    """A model's logits of what reaches its head, as the model itself returns them, for any number of positions."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._head, self._known = Head(model), True
        self._one: Batch = {}

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, hidden) → (n, vocabulary) in float32.

        Where the model does more to its logits than ``Head`` knows, it is asked itself: its head gets these states in the place
        of those of a single token.
        """
        if self._known:
            return self._head.logits(hidden)
        hook = self._head.module.register_forward_pre_hook(lambda module, given: (hidden[None], *given[1:]))
        try:
            logits: torch.Tensor = self.model(**self._one).logits[0]
        finally:
            hook.remove()
        return logits.float()

    def reaching(self, batch: Batch) -> torch.Tensor:
        """What reaches the head: (rows, length, hidden). ``batch``: the model's arguments, on its device, without labels.

        ModelError where its logits do not follow from that alone.
        """
        with self._head.caught() as seen:
            own = self.model(**batch).logits
        self._one = {name: values[:1, :1] for name, values in batch.items()}
        if len(seen) == 1 and seen[0].ndim == 3 and own.shape[1] == 1:
            first, own = seen[0][:, 0], own[:, 0].float()
            if not self._near(first, own):
                self._known = False
            if self._known or self._near(first, own):
                return seen[0]
        what = "its logits do not follow from what reaches its head, so that its predictions cannot be compared."
        remedy = "Choose a causal language model with one head over its last hidden states."
        raise ModelError(what, where=type(self.model).__name__, remedy=remedy)

    def _near(self, hidden: torch.Tensor, own: torch.Tensor) -> bool:
        most = own.abs().amax()
        return not bool((self(hidden) - own).abs().amax() > _NEAR * most)  # a NaN is the model's own


class Reference:
    """A model's predictions on some batches, kept so that other models can be held against them."""

    def __init__(self, batches: Sequence[Batch], folder: Path | None = None) -> None:
        """``batches`` as ``Collator`` makes them, with labels; ``folder``: where a large file may lie (None: the system's)."""
        self.batches, self._folder = batches, folder
        self._bears = [batch["labels"][:, 1:] != IGNORED for batch in batches]  # position t predicts token t + 1
        self._starts = np.cumsum([0, *(int(bears.sum()) for bears in self._bears)])
        self._kept: torch.Tensor | None = None
        self._logits: Logits | None = None

    @property
    def taken(self) -> bool:
        """Whether there is something to compare with."""
        return self._logits is not None

    def take(self, model: Any) -> Iterator[RowSums]:
        """Passes the batches through the reference model: its loss, batch by batch; KL and flips are 0.

        The model's head stays in use: its weights must not change as long as others are compared.
        """
        self._logits, logits = None, Logits(model)
        for n, batch in enumerate(self.batches):
            with torch.inference_mode():
                hidden, wanted, rows = self._reaching(logits, n)
                if self._kept is None:
                    self._kept = _kept(int(self._starts[-1]), hidden, self._folder)
                self._kept[self._starts[n] : self._starts[n + 1]] = hidden.to(self._kept.device)
                found = torch.zeros(3, len(hidden), dtype=torch.float64)
                for some in _slices(len(hidden), _AT_A_TIME):
                    z = logits(hidden[some])
                    for few in _slices(len(z), _few(z)):
                        found[0, some][few] = _loss(z[few], wanted[some][few])[0].cpu()
            yield _by_row(found, rows, len(batch["labels"]))
        self._logits = logits

    def compare(self, model: Any) -> Iterator[RowSums]:
        """Passes the batches through a model, batch by batch. After ``take`` has come to its end."""
        if self._logits is None or self._kept is None:
            raise RuntimeError("No reference has been taken yet.")
        same = model is self._logits.model
        logits = self._logits if same else Logits(model)
        for n, batch in enumerate(self.batches):
            with torch.inference_mode():
                hidden, wanted, rows = self._reaching(logits, n)
                kept = self._kept[self._starts[n] : self._starts[n + 1]]
                found = torch.zeros(3, len(hidden), dtype=torch.float64)
                for some in _slices(len(hidden), _AT_A_TIME):
                    other = kept[some].to(hidden.device)
                    if same:  # one product: the head's weights are read once
                        z, r = logits(torch.cat([hidden[some], other])).split([len(other), len(other)])
                    else:
                        z, r = logits(hidden[some]), self._logits(other)
                    for few in _slices(len(z), _few(z)):
                        found[:, some][:, few] = _compared(z[few], r[few], wanted[some][few]).cpu()
            yield _by_row(found, rows, len(batch["labels"]))

    def _reaching(self, logits: Logits, n: int) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.int64]]:
        """Of a batch's positions that bear a loss: states (n, hidden), the tokens that follow (n,), and their rows (n,)."""
        batch, device = dict(self.batches[n]), logits.model.device
        labels, bears = batch.pop("labels"), self._bears[n]
        hidden = logits.reaching({name: values.to(device) for name, values in batch.items()})
        return hidden[:, :-1][bears.to(device)], labels[:, 1:][bears].to(device), bears.nonzero()[:, 0].numpy()


def _kept(positions: int, like: torch.Tensor, folder: Path | None) -> torch.Tensor:
    """Room for so many states: in memory, or in a file that is gone with the process."""
    size = positions * like.shape[1]
    if size * like.element_size() <= _IN_MEMORY:
        return torch.empty(positions, like.shape[1], dtype=like.dtype)
    with tempfile.NamedTemporaryFile(prefix=".states-", dir=folder, delete=False) as file:
        file.truncate(size * like.element_size())
    kept = torch.from_file(file.name, shared=True, size=size, dtype=like.dtype)
    with contextlib.suppress(OSError):  # where a mapped file cannot be unlinked, the folder keeps it
        Path(file.name).unlink()
    return kept.view(positions, like.shape[1])


def _compared(z: torch.Tensor, r: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(n, vocabulary) logits of a model and of the reference → (3, n) of float64: loss, KL in nats, and whether it flips.

    Σ p · (r − z) − (ln Σ exp r − ln Σ exp z): sums over the vocabulary in float32, what is left of them in float64.
    """
    loss, ends, most = _loss(z, wanted)
    top, first = r.max(1, keepdim=True)
    mass = (r - top).exp_()  # p, but for its sum
    total = mass.sum(1)
    apart = (r - z).masked_fill_(mass == 0, 0)  # a masked token is impossible to both
    mean = (mass * apart).sum(1).double() / total.double()
    kl = mean + ends - (top[:, 0].double() + total.double().log())
    flips = z.gather(1, first) < most
    return torch.stack([loss, kl, flips[:, 0].double()])


def _loss(z: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(n, vocabulary) → cross-entropy and ln Σ exp z, (n,) each in float64, and the largest logits (n, 1)."""
    most = z.amax(1, keepdim=True)
    ends = most[:, 0].double() + (z - most).exp_().sum(1).double().log()
    return ends - z.gather(1, wanted[:, None])[:, 0].double(), ends, most


def _by_row(found: torch.Tensor, of: NDArray[np.int64], rows: int) -> RowSums:
    """(3, n) of positions, and the row of each → sums of each row."""
    sums = np.zeros((3, rows))
    for total, values in zip(sums, found.numpy(), strict=True):
        np.add.at(total, of, values)
    return RowSums(np.bincount(of, minlength=rows), sums[0], sums[1], sums[2].astype(np.int64))


def _slices(length: int, step: int) -> Iterator[slice]:
    yield from (slice(at, at + step) for at in range(0, length, step))


def _few(z: torch.Tensor) -> int:
    """Positions whose logits stay in a processor's cache."""
    return max(1, _IN_CACHE // int(z.shape[1]))
