"""What the libraries that train find on this machine: ``python -m workbench.cli.probe`` prints it, a JSON object a line.

Covers torch, bitsandbytes' kernels on the CPU and on the GPU, and CUPTI. A process of its own, since a library that does not
suit the machine may end the one that imports it. Texts of errors are not passed on: they name folders.
"""

from __future__ import annotations

import json
from collections.abc import Callable

Answer = tuple[bool | None, str]
"""Whether it works, None where it was not asked; and what was found."""
_NO_CUDA: Answer = None, "not asked: torch sees no CUDA device"
_LEAST_WEIGHTS = 1 << 16


def _torch() -> Answer:
    import torch

    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs alone"
    capability = torch.backends.cpu.get_cpu_capability()
    if not torch.cuda.is_available():
        return True, f"built {built}; sees no CUDA device; on the CPU it uses {capability}"
    major, minor = torch.cuda.get_device_capability()
    bf16 = "with" if torch.cuda.is_bf16_supported(including_emulation=False) else "without"
    return True, f"built {built}; sees {torch.cuda.device_count()} CUDA devices, the first sm_{major}{minor} {bf16} bfloat16"


def _on_cpu() -> Answer:
    from workbench.quant.bnb import check_backend

    whole, ragged = check_backend((64, 4096), 64).right, check_backend((64, 96), 64).right
    if whole and ragged:
        return True, "give back what was stored"
    if whole:
        return True, "give back what was stored, but where rows are no whole number of blocks"
    return False, "give back other weights than were stored"


def _on_gpu() -> Answer:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    if not torch.cuda.is_available():
        return _NO_CUDA
    weights = torch.randn(_LEAST_WEIGHTS, generator=torch.Generator().manual_seed(0))
    back = dequantize_4bit(*quantize_4bit(weights.cuda(), blocksize=64, quant_type="nf4")).cpu()
    error = float((back - weights).square().mean().sqrt() / weights.square().mean().sqrt())
    return error < 0.2, f"relative error {error:.1%} of normally distributed weights in NF4"


def _cupti() -> Answer:
    import torch

    from workbench.training.worker.cupti import Cupti, CuptiError, loaded_cupti

    if not torch.cuda.is_available():
        return _NO_CUDA
    torch.zeros(1, device="cuda")  # the context that counters belong to
    if (path := loaded_cupti()) is None:
        return False, "torch has loaded no libcupti"
    try:
        collector = Cupti(path)
        collector.start()
    except CuptiError as error:  # names CUPTI's call and its answer
        return False, str(error)
    except (OSError, AttributeError):  # names the file
        return False, "could not be loaded"
    collector.close()
    return True, f"CUPTI unified-memory counters: {', '.join(collector.counters)}"


QUESTIONS: dict[str, Callable[[], Answer]] = {
    "torch": _torch,
    "bitsandbytes, CPU kernels": _on_cpu,
    "bitsandbytes, GPU kernels": _on_gpu,
    "CUPTI, paging counters": _cupti,
}
"""What is asked, in this order: a later one may end the process."""


def main() -> None:
    """Prints an answer a line, each as it is known."""
    for name, question in QUESTIONS.items():
        try:
            works, found = question()
        except Exception as error:  # what a library that was built for another machine raises is not known
            works, found = False, f"raises {type(error).__name__}"
        print(json.dumps({"name": name, "works": works, "found": found}), flush=True)


if __name__ == "__main__":
    main()
