"""What the fields of a run's configuration may be chosen from, and what a form calls each choice."""

from __future__ import annotations

from workbench.quant.formats import FORMATS

QUANT_TYPES = {name: name.upper() for name, form in FORMATS.items() if form.trainable}
COMPUTE_DTYPES = {"auto": "auto (by the device)"} | {name: name for name in ("bfloat16", "float16", "float32")}
OPTIMIZERS = ("paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw_torch")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "inverse_sqrt")
BEGINNINGS = {
    True: "A at random, B zero", "gaussian": "A normal, B zero", "olora": "OLoRA", "pissa": "PiSSA", "loftq": "LoftQ",
    "eva": "EVA",
}  # fmt: skip
NOT_ZERO = ("olora", "pissa", "loftq")
"""Beginnings whose product is not zero, so that the adapter does something before it is trained."""
EVA_ROWS = 128
"""Rows that EVA looks at."""
EVA_TOKENS_A_RANK = 2
"""Tokens that each of EVA's batches has for each of the rank: peft looks for twice as many directions as it keeps."""
REPORTS = ("none", "tensorboard", "trackio")
THOUGHTS = {"keep": "kept", "drop": "left out"}
METHOD_TITLES = {
    "qlora": "QLoRA: adapters on a 4-bit base", "lora": "LoRA: adapters on a 16-bit base", "full": "Full: every weight",
}  # fmt: skip
