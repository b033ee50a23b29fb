"""A ladder of bits: what a model says, and how far its predictions move, with its weights in 16, 8, 6, 5, 4, 3 and 2 bits.

Covers ``Ladder``, which asks a process of its own, and that process: ``python -m workbench.cost.ladder``. It reads prompts, a
line of JSON each, and writes messages, a line of JSON each, with their kind ``k``: ``loaded``, ``text`` (prompt, bits, text),
``cost`` (bits, kl, flips, error), ``done`` (prompt), ``error``. A newer prompt breaks the older one off; the end of its input
ends it. What is measured is ``divergence``'s part, how weights are quantized ``engine``'s. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Any

from workbench.cost.row_costs import RowCosts
from workbench.training.environment import OFFLINE, PATIENT, without_secrets

FORMATS = {8: "int8", 6: "int6-sym", 5: "int5-sym", 4: "int4-sym", 3: "int3-sym", 2: "int2-sym"}
"""Symmetric integers, whose only difference is their number of bits; in blocks of 64."""
BITS = (16, *FORMATS)
ROWS = 24
"""Held-out rows of the example dataset that KL divergence is measured on."""
TOKENS = 40
"""Tokens of a continuation at most."""
IDLE = 600.0
"""Seconds without a prompt after which the process ends; the next prompt starts another."""
_ENDS_WITHIN = 5.0
Message = dict[str, Any]


class Ladder:
    """The embedded model in a process of its own. ``receive(message)`` is called on a thread; ``close`` ends the process."""

    def __init__(self, receive: Callable[[Message], object]) -> None:
        self._receive, self._lock = receive, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def ask(self, prompt: str) -> None:
        """Have a prompt continued at every number of bits. Returns at once."""
        with self._lock:
            if self._closed:
                return
            if self._process is None or self._process.poll() is not None:
                self._begin()
            self._tell(prompt)

    def close(self) -> None:
        """End the process; closing twice is harmless."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(_ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _begin(self) -> None:
        log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by the thread that reads)
        command = [sys.executable, "-P", "-m", "workbench.cost.ladder"]
        env = {**PATIENT, **without_secrets(), **OFFLINE}
        self._process = subprocess.Popen(  # in a session of its own: no signal to the notebook reaches it
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env, start_new_session=True
        )
        threading.Thread(target=self._listen, args=(self._process, log), name="ladder", daemon=True).start()

    def _tell(self, prompt: str) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it has just died: the thread that reads says so
            process.stdin.write(json.dumps(prompt).encode() + b"\n")
            process.stdin.flush()

    def _listen(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        assert process.stdout is not None
        with log, process.stdout as said:
            for line in said:
                self._receive(json.loads(line))
            if process.wait() and not self._closed:
                log.seek(0)
                last = log.read().decode(errors="replace").strip().splitlines()[-1:]
                self._receive({"k": "error", "text": f"The process that runs the model has ended. {' '.join(last)}".strip()})


class Rungs:
    """The model, and what it says and costs at a number of bits. Needs torch."""

    def __init__(self) -> None:
        from workbench.cost.divergence import Reference
        from workbench.cost.engine import Engine
        from workbench.cost.jobs import job_of
        from workbench.training.data import open_tokenizer

        self._sums: dict[str, tuple[float, float]] = {}  # of the present format: a module's squared error, and its own squares
        self._engine = Engine(job_of("builtin", None, None, ROWS), self._emitted)
        self._modules = tuple(self._engine.job.weights)
        self._reference = Reference(self._engine.batches)
        self._tokenizer = open_tokenizer(self._engine.job.config.model)  # type: ignore[arg-type]
        self._costs: dict[int, Message] = {}

    def _emitted(self, k: str, **fields: Any) -> None:
        if k == "weights":
            self._sums[fields["module"]] = fields["error"], fields["signal"]

    def set(self, bits: int) -> None:
        """Quantize every linear layer's weight to so many bits; 16: put them back."""
        from workbench.quant.spec import QuantSpec

        if bits == BITS[0]:
            self._engine.assign({})
        else:
            spec = QuantSpec(FORMATS[bits], 64)
            self._engine.assign(dict.fromkeys(self._modules, spec))

    def says(self, prompt: str, asked: Callable[[], object | None]) -> str:
        """The likeliest continuation, without the prompt."""
        from workbench.training.worker.generation import encode, generate

        model = self._engine.model
        encoded = encode(self._tokenizer, prompt)
        return generate(model, self._tokenizer, encoded, TOKENS, asked).text

    def costs(self, bits: int) -> Message:
        """KL divergence from the 16-bit model in nats a token, the share of flipped tokens, and the weights' relative error."""
        from workbench.cost.divergence import gathered

        if bits not in self._costs:
            rows = (self._reference.take if bits == BITS[0] else self._reference.compare)(self._engine.model)
            found = RowCosts.from_event(gathered(rows))
            error, signal = (sum(part) for part in zip(*self._sums.values(), strict=True)) if bits != BITS[0] else (0.0, 1.0)
            self._costs[bits] = {
                "kl": found.kl, "flips": found.flips, "error": math.sqrt(error / signal), "tokens": sum(found.tokens),
            }  # fmt: skip
        return self._costs[bits]


Prompts = queue.SimpleQueue[str]
Send = Callable[..., object]


def answer(prompts: Prompts, rungs: Rungs, send: Send) -> None:
    """Answers prompts, always the newest, until none has come for a while. ``send(k, **fields)`` takes what is said."""

    def newer() -> str | None:
        return None if prompts.empty() else "newer"

    with contextlib.suppress(queue.Empty):
        while True:
            prompt = prompts.get(timeout=IDLE)
            while newer():
                prompt = prompts.get()
            for bits in BITS:
                rungs.set(bits)
                text = rungs.says(prompt, newer)
                if newer():
                    break
                send("text", prompt=prompt, bits=bits, text=text)
                send("cost", bits=bits, **rungs.costs(bits))
            else:
                send("done", prompt=prompt)


def main() -> None:
    """Answers prompts until its input ends, or no question has come for a while."""
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no message
    prompts: Prompts = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            prompts.put(json.loads(line))
        os._exit(0)

    def send(k: str, **fields: Any) -> None:
        print(json.dumps({"k": k, **fields}), file=out, flush=True)

    threading.Thread(target=listen, daemon=True).start()
    rungs = Rungs()
    send("loaded")
    answer(prompts, rungs, send)
    os._exit(0)  # the thread that listens would hold the interpreter up


if __name__ == "__main__":
    main()
