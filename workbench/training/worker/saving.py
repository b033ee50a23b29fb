"""What a run ends with: the adapter, or the model, put in the run's folder whole, with its card. Worker only.

Covers writing it, and saying whose step's weights they are. Checkpoints are Trainer's own, and ``trainer``'s part.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.training.config import TrainConfig
from workbench.training.folder import RunFolder
from workbench.training.results.card import step_notes, write_card


@dataclass(frozen=True)
class Trained:
    """The folder of what was trained."""

    run: RunFolder
    config: TrainConfig

    @property
    def path(self) -> Path:
        """The adapter's folder, or the model's."""
        return self.run.model if self.config.method == "full" else self.run.adapter

    @property
    def best(self) -> Path | None:
        """The checkpoint whose weights the run ends with; None: those of its last step."""
        return self.run.best if self.config.load_best_model_at_end else None

    def save(self, net: Any, tokenizer: Any, state: Any) -> None:
        """Puts the adapter, or the model, in place whole: a reader never sees half of it."""
        fresh = self.run.fresh
        shutil.rmtree(fresh, ignore_errors=True)
        use_cache(net, True)  # what is saved is for use; training needs no cache
        net.save_pretrained(str(fresh))
        use_cache(net, False)
        tokenizer.save_pretrained(str(fresh))
        state = dataclasses.replace(state, log_history=[], best_model_checkpoint=None)  # after how many steps, and no paths
        state.save_to_json(str(fresh / "trainer_state.json"))
        self.describe(fresh)
        self.run.keep(self.path)

    def describe(self, folder: Path | None = None) -> None:
        """Writes the card, which says so where the weights are not the last step's."""
        notes = step_notes(self.run, self.config, self.path)
        write_card(self.run.root, folder or self.path, self.path.name, notes)


def use_cache(net: Any, use: bool) -> None:
    """Whether the model keeps keys and values as it generates."""
    for config in (net.config, net.config.get_text_config()):
        config.use_cache = use
