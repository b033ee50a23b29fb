"""``try_out``: prompts answered by a run's base and by its adapter, side by side; and whether a run can be tried out at all.

Covers what can be refused before anything is loaded. The models answer in a process of their own (``process``). Imports no
torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

from workbench.errors import RunError
from workbench.given import described, is_number
from workbench.progress import Cancelled, Progress, reporting
from workbench.sources import open_model
from workbench.training import data, origins
from workbench.training.answers.process import Answering
from workbench.training.answers.values import Answers, Sampling, Voice, as_prompts
from workbench.training.config import TrainConfig
from workbench.training.folder import ENDED
from workbench.training.runs import Run, attach


def try_out(
    run: Run | str | os.PathLike[str],
    prompts: str | Iterable[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    original: bool = True,
    changed_ok: bool = False,
    timeout: float | None = None,
    progress: bool | Progress = False,
    cancelled: Cancelled | None = None,
) -> Answers:
    """What a run's base and its adapter say to the same prompts: how the run changed its model, in words.

    A process of its own loads the base once, as the run held it, and answers with the adapter and without it; it ends with the
    call. What is not said here about sampling is as the model's generation_config.json says.

    Args:
        run: A run or its folder. It must have ended, and left an adapter: the final one, or else the last checkpoint's.
        prompts: A text or several. Where the run learnt from chats, each is the first message of one and goes through the chat
            template; else it is continued as it is, so begin it as the run's rows begin.
        max_new_tokens: An answer's length at most.
        temperature: 0 takes the likeliest token each time; above it tokens are sampled.
        seed: What makes the sampling repeatable.
        original: Ask the base's 16-bit weights too, where memory allows and the run held them in 4 bits; ``Answers.without``
            says why not.
        changed_ok: Go on where base, tokenizer or chat template are no longer what the run was begun with.
        timeout: Seconds that the answers to one prompt may take, loading included; None: as long as they take.
        progress: True for a bar, or a function of the prompts done and their total.
        cancelled: Asked meanwhile; a yes ends the call.

    Returns:
        A row for each prompt, in their order: the text, tokens and seconds of the base and of the adapter.

    Raises:
        RunError: Where there is nothing to try out, the process dies or the time is over; as ``Changed`` for what
            ``changed_ok`` allows.
        DataError: For what is no prompt or no sampling.
        ModelError: Where the base is gone.
        InterruptedError: Once cancelled.

    >>> answers = wb.try_out("runs/20260314-142200-builtin", "happiness, n.")  # doctest: +SKIP
    """
    given = as_prompts(prompts)
    sampling = Sampling(max_new_tokens, temperature, seed)
    if timeout is not None and not (is_number(timeout) and 0 < timeout < math.inf):
        raise RunError(f"timeout is {described(timeout)}.", where="try_out", remedy="Give seconds, above 0, or None.")
    with answering(run, changed_ok=changed_ok, cancelled=cancelled) as process:
        config = attach(process.run).config
        voices = voices_of(config, original)
        rows = []
        with reporting(progress, "Answers", "prompt", total=len(given)) as report:
            for prompt in given:
                rows.append(process.ask(prompt, sampling, voices, cancelled=cancelled or bool, timeout=timeout))
                report(len(rows), len(given))
    return Answers(tuple(rows), base_title(config), sampling)


def answering(run: Run | str | os.PathLike[str], *, changed_ok: bool = False, cancelled: Cancelled | None = None) -> Answering:
    """The process for a run's questions, which the first of them starts; everything is checked that can be known now."""
    found = attach(run.dir if isinstance(run, Run) else run)  # its folder may have been moved since
    where, config = str(found.dir), found.config
    if (state := found.status.state) not in ENDED:
        remedy = "Wait for its end, or end it: run.stop() saves its adapter."
        raise RunError(f"the run is still going ({state}).", where=where, remedy=remedy)
    if config.method == "full":
        remedy = "Load run.model_dir with transformers, or choose a run with adapters."
        raise RunError("the run trained every weight: there is no adapter to try out.", where=where, remedy=remedy)
    if (adapter := found.adapter_dir) is None:
        raise RunError(
            "the run has no adapter to try out: nothing is saved.", where=where, remedy="Choose a run with one, or resume it."
        )
    source = open_model(data.model_folder(config.model, origins.pinned(found.dir, config)))
    if not changed_ok:
        origins.check_base(found.dir, config, source, origins.OF_MODEL, cancelled=cancelled)
    return Answering(found.dir, adapter)


def voices_of(config: TrainConfig, original: bool) -> tuple[Voice, ...]:
    """The models that answer; the 16-bit base is one of its own only where the run held it in 4 bits."""
    return (Voice.BASE, Voice.ADAPTER, *((Voice.ORIGINAL,) if original and config.method == "qlora" else ()))


def base_title(config: TrainConfig) -> str:
    """What the run's base is called, as ``Answers.base`` has it."""
    return "4-bit base" if config.method == "qlora" else "base"
