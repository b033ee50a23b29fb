"""What a 4-bit base's other weights are held in while adapters are trained on it: 16 bits, with a residual stream in float32.

peft's ``prepare_model_for_kbit_training`` makes all of them float32 instead. Under autocast that changes no bit of most models'
losses: the head is cast back to the same 16 bits at every step, and an embedding that is looked up in 16 bits and then widened
is the same row. It takes two bytes more for every weight of embeddings and head, and two for the head's copy. Worker only.
"""

from __future__ import annotations

from typing import Any

import torch


def prepare(model: Any, dtype: torch.dtype) -> Any:
    """Freezes the base, widens norms and biases, and makes its residual stream float32; the model itself is returned.

    The residual stream must be float32 where ``dtype`` is float16, in which its gradients overflow. The head takes in its own
    dtype what the last norm answers, so that the model also runs without autocast.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1 and parameter.dtype is dtype:
            parameter.data = parameter.data.float()
    model.get_input_embeddings().register_forward_hook(_widened)
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_in_its_dtype)
    return model


def answer_in(model: Any, dtype: torch.dtype) -> None:
    """Has every norm answer in ``dtype``, in which layers then compute; what is summed between them stays as wide as it is."""

    def narrowed(module: Any, given: Any, answer: Any) -> Any:
        return answer.to(dtype) if isinstance(answer, torch.Tensor) else answer

    for module in model.modules():
        if type(module).__name__.endswith("Norm"):
            module.register_forward_hook(narrowed)


def _widened(module: Any, given: Any, answer: torch.Tensor) -> torch.Tensor:
    return answer.float()


def _in_its_dtype(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (given[0].to(module.weight.dtype), *given[1:])
