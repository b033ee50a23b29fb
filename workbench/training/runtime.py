"""The hosted notebook that this process runs in, Colab's or Kaggle's, and what it means for a run: GPUs, and which files stay.

Covers recognising them and one paragraph of advice. What fits on a GPU is ``workbench.memory``'s; nothing here is measured.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Container, Mapping, Sequence

from workbench.memory.gpus import names

COLAB, KAGGLE = "Colab", "Kaggle"
_CHOOSE_GPU = {
    COLAB: "Runtime → Change runtime type → T4 GPU",
    KAGGLE: "Settings → Accelerator → GPU T4 ×2",
}
_FILES_STAY = {
    COLAB: "Files here go when the runtime ends: mount Drive, and name a run folder in /content/drive/MyDrive to keep the run.",
    KAGGLE: "Of the files here only those in /kaggle/working stay, once a version is saved.",
}


def hosted_by(modules: Container[str] = sys.modules, environ: Mapping[str, str] = os.environ) -> str:
    """``COLAB``, ``KAGGLE``, or an empty string elsewhere: by what each brings into its kernels."""
    if "KAGGLE_KERNEL_RUN_TYPE" in environ:  # first: Kaggle's image has parts of Colab's
        return KAGGLE
    return COLAB if "google.colab" in modules or "COLAB_RELEASE_TAG" in environ else ""


def runtime_advice(processes: int = 1, *, host: str | None = None, gpus: Sequence[str] | None = None) -> str:
    """What to know before a run of so many processes is launched here; empty where there is nothing to say.

    ``host`` and ``gpus`` (their names) are found out where they are not given.

    >>> runtime_advice(host="Colab", gpus=[]).partition(": ")[0]
    'This Colab runtime has no GPU, and its CPU is slow'
    >>> runtime_advice(host="", gpus=["Tesla T4", "Tesla T4"]).partition(": ")[0]
    'This machine has 2 × Tesla T4, and the run takes one'
    """
    host = hosted_by() if host is None else host
    gpus = names() if gpus is None else gpus
    place = {COLAB: "This Colab runtime", KAGGLE: "This Kaggle session"}.get(host, "This machine")
    said = []
    if gpus:
        listed = ", ".join(f"{count} × {name}" if count > 1 else name for name, count in Counter(gpus).items())
        if len(gpus) > 1 and processes < len(gpus):
            more = f"with {len(gpus)} processes (Several GPUs, nproc_per_node) it takes all, by DDP."
            said.append(f"{place} has {listed}, and the run takes {'one' if processes == 1 else processes}: {more}")
        elif host:
            said.append(f"{place} has {listed}.")
    elif host:
        said.append(f"{place} has no GPU, and its CPU is slow: {_CHOOSE_GPU[host]}.")
    return " ".join([*said, *filter(None, [_FILES_STAY.get(host)])])
