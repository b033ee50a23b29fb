"""Patches of other packages' internals, each with where it is discussed upstream and what would end it.

Covers what no option, subclass or public function of theirs does. One stands in every process that imports the workbench
(``install``); the others are made where they are needed. Imports none of those packages before.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType, SimpleNamespace
from typing import Any

_CPU, _MPS = "bitsandbytes.backends.cpu.ops", "bitsandbytes.backends.mps.ops"


class _NoKernels(ModuleType):
    """In the place of ``kernels``: a Hub that has none of the kernels that are asked for."""

    @staticmethod
    def get_kernel(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(gemm_4bit_forward=None)


class _WithoutHub(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        installed = sys.modules.get("kernels")
        sys.modules["kernels"] = _NoKernels("kernels")
        try:
            super().exec_module(module)
        finally:
            del sys.modules["kernels"]
            if installed is not None:
                sys.modules["kernels"] = installed
        if module.__name__ == _MPS:
            module._kernel_load_failed = True  # type: ignore[attr-defined]  # what it notes where it cannot fetch


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in (_CPU, _MPS):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _WithoutHub(name, spec.origin)
        return spec


def install() -> None:
    """bitsandbytes: from now on its import fetches nothing. Once is enough; twice does no harm.

    It fetches code from the Hub and runs it, through the package ``kernels``: on a CPU with AVX-512 and bfloat16 while it is
    imported, in bitsandbytes/backends/cpu/ops.py, printing a warning where it cannot; on macOS 26 or newer when it first needs
    a kernel, in ``_get_kernel`` of bitsandbytes/backends/mps/ops.py. Its own kernels do the same work. What was imported before
    the workbench is left as it is.

    Upstream: https://github.com/bitsandbytes-foundation/bitsandbytes/issues/2064 is about this fetching; 0.49 and 0.50 do it.
    Ends with an option that leaves the Hub alone.
    """
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


@contextlib.contextmanager
def four_bit_loading(block_size: int, skip_modules: Sequence[str], prepared: Callable[[], None]) -> Iterator[None]:
    """transformers, bitsandbytes: while open, models are loaded in blocks of ``block_size``, and without ``skip_modules``.

    ``BitsAndBytesConfig`` has no block size; ``Params4bit`` has. The only moment to set it is after transformers has put 4-bit
    linears in place and before it reads weights into them, at the end of this method of its quantizer; ``prepared`` is called
    then. Modules that the configuration names are left out instead of the head, not besides it: the head is found here, and
    named too.

    Upstream: https://github.com/huggingface/transformers/issues/45674 (the head), still so in transformers 5.23. Ends with a
    ``BitsAndBytesConfig`` that takes a block size, which was not asked for upstream yet, and adds to what it leaves out.
    """
    from bitsandbytes.nn import Params4bit
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    original = Bnb4BitHfQuantizer._process_model_before_weight_loading

    def patched(self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        if skip_modules:
            self.quantization_config.llm_int8_skip_modules = [*self.get_modules_to_not_convert(model), *skip_modules]
        original(self, model, *args, **kwargs)
        for parameter in model.parameters():
            if isinstance(parameter, Params4bit):
                parameter.blocksize = block_size
        prepared()

    Bnb4BitHfQuantizer._process_model_before_weight_loading = patched
    try:
        yield
    finally:
        Bnb4BitHfQuantizer._process_model_before_weight_loading = original


def never_repack(linear: Any) -> None:
    """bitsandbytes: keeps a ``Linear4bit`` from repacking its weight for inference on a CPU with AVX-512 and bfloat16.

    It does so where it runs without gradients, and products with a repacked weight pass no gradient on: after the samples taken
    before training, adapters below the top layer would not learn.

    Upstream: https://github.com/bitsandbytes-foundation/bitsandbytes/pull/1804 brought it, with 0.49; still so in 0.50. Ends
    when ``matmul_4bit`` passes gradients through repacked weights, or a public option turns repacking off.
    """
    if hasattr(linear, "support_avx512bf16_for_cpu"):
        linear.support_avx512bf16_for_cpu = False


def heads_by_turns() -> None:
    """transformers, on a GPU below compute capability 8: attends in turn with heads of which no two share their keys.

    Without a mask it leaves sharing to torch's attention, whose memory-efficient kernel refuses it, and whose other one needs
    capability 8: what remains computes scores of heads × tokens² in float32, without a word. By turns the efficient kernel
    serves, and keys and values are not repeated, as they are where there is a mask. [not run on such a GPU here]

    Upstream: https://github.com/huggingface/transformers/issues/48633 and 45776; still so in transformers 5.23. Ends when
    ``use_gqa_in_sdpa`` asks the device.
    """
    from types import SimpleNamespace

    import torch
    from torch import Tensor
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def by_turns(
        module: object, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: object
    ) -> object:
        sharing = query.shape[1] // key.shape[1]
        if sharing == 1 or attention_mask is not None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
        device = query.device.type
        if torch.is_autocast_enabled(device):  # once, not at every turn
            query, key, value = (part.to(torch.get_autocast_dtype(device)) for part in (query, key, value))
        alone = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
        turns = query.unflatten(1, (-1, sharing)).unbind(2)
        answers = [sdpa_attention_forward(alone, turn, key, value, None, **named)[0] for turn in turns]
        return torch.stack(answers, dim=3).flatten(2, 3), None

    AttentionInterface.register("sdpa", by_turns)


@contextlib.contextmanager
def saved_tensors_seen(observer: Callable[[], Callable[[Any], None] | None]) -> Iterator[None]:
    """torch: while open, ``observer`` is called for every pair of saved-tensor hooks that is made.

    What it returns sees each tensor that is saved through that pair; None where it is not to be watched. Checkpointing computes
    a layer again under hooks of its own, made anew for each layer in the backward pass; hooks set around it do not see what
    passes through those.

    Upstream: https://github.com/pytorch/pytorch/pull/139109, a hook for what checkpointing saves, was not merged; still so in
    torch 2.13. Ends with such a hook.
    """
    from torch.autograd.graph import saved_tensors_hooks

    original = saved_tensors_hooks.__init__

    def patched(self: Any, pack: Callable[[Any], Any], unpack: Callable[[Any], Any]) -> None:
        if (see := observer()) is None:
            original(self, pack, unpack)
            return

        def seen(tensor: Any) -> Any:
            see(tensor)
            return pack(tensor)

        original(self, seen, unpack)

    saved_tensors_hooks.__init__ = patched
    try:
        yield
    finally:
        saved_tensors_hooks.__init__ = original


def answered_at_once(comm: Any) -> None:
    """ipykernel: has the messages of a widget's comm handled by the shell that the page sent them to.

    It hands them to the shell that last spoke for the widget instead: for one made in a cell that is the one that runs cells,
    which may be busy.

    Upstream: subshells for comms are https://github.com/jupyterlab/jupyterlab/pull/17363; the rule came with ipykernel 7.4, and
    earlier versions take no notice of this. Ends with a public way to say which shell handles a comm's messages.
    """
    comm._reply_subshell_for = lambda _, subshell: subshell
