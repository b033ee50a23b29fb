"""How a run's base model is loaded, as Python: the part of its cell, and a cell of its own, with the adapter on it.

Covers dtype, ``BitsAndBytesConfig``, the block size, which that has not, modules left out of 4 bits, and the revision.
"""

from __future__ import annotations

from workbench.sources import open_model
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import on_hub
from workbench.training.recipe_rows import as_source

_AUTO = {
    False: "torch.float16 if torch.cuda.is_available() else torch.float32",
    True: "torch.float32",  # every weight: float16 cannot take small steps
}


def loading_code(config: TrainConfig, *, model: str | None = None, adapter: str | None = None) -> str:
    """Only how the model of a run is loaded, its ``BitsAndBytesConfig`` above all, as a cell of its own.

    ``model``: what it is called there, where that is not its name or path on this machine; ``adapter``: the folder of a LoRA
    adapter, which is put on it. ``ModelError`` where the model must be looked for and is not there.
    """
    needed, first, after = ["AutoModelForCausalLM"], "", ""
    if config.method == "qlora":
        needed.append("BitsAndBytesConfig")
        first = "import bitsandbytes as bnb\n" if config.block_size != 64 else ""
        if config.llm_int8_skip_modules:
            needed, after = ["AutoConfig", *needed], "from transformers.quantizers.base import get_keys_to_not_convert\n"
    peft = "from peft import PeftModel\n" if adapter is not None else ""
    start = f"{first}import torch\n{peft}from transformers import {', '.join(needed)}\n{after}"
    named = f"MODEL = {as_source(model_name(config) if model is None else model)}\ndtype = {dtype(config)}"
    put_on = [] if adapter is None else [f"model = PeftModel.from_pretrained(model, {as_source(adapter)})"]
    return at_revision("\n".join([start, named, *loaded(config), *put_on]) + "\n", config)


def at_commit(config: TrainConfig) -> bool:
    """Whether the model is from the Hub, at a revision."""
    return config.model_revision is not None and on_hub(config.model)


def at_revision(code: str, config: TrainConfig) -> str:
    """The code with a model from the Hub taken at the run's revision, wherever it is loaded."""
    if not at_commit(config):
        return code
    name = f"MODEL = {as_source(config.model)}\n"
    code = code.replace(name, f"{name}REVISION = {as_source(config.model_revision)}\n", 1)
    return code.replace("from_pretrained(MODEL", "from_pretrained(MODEL, revision=REVISION")


def model_name(config: TrainConfig) -> str:
    """The model on the Hub, or its folder on this machine. ``ModelError`` where there is none."""
    if on_hub(config.model):
        return config.model
    path = open_model(config.model).path
    return str(path.absolute()) if path else config.model


def dtype(config: TrainConfig) -> str:
    """The expression for the dtype that the model is loaded in."""
    if config.compute_dtype != "auto":
        return f"torch.{config.compute_dtype}"
    bf16 = "torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)"
    return f"torch.bfloat16 if {bf16} else (\n    {_AUTO[config.method == 'full']}\n)"


def loaded(config: TrainConfig, name: str = "MODEL") -> list[str]:
    """The model as it is loaded, before anything is trained; ``name`` is the expression for what is loaded."""
    lines: list[str] = []
    quantized = ""
    if config.method == "qlora":
        quantized = ", quantization_config=quantization"
        if config.block_size != 64:
            lines.append(f"""
# BitsAndBytesConfig has no block size; every 4-bit weight has.
new = bnb.nn.Params4bit.__new__
bnb.nn.Params4bit.__new__ = staticmethod(
    lambda cls, *args, blocksize=None, **kwargs: new(cls, *args, blocksize=blocksize or {config.block_size}, **kwargs)
)
""")
        skipped = ""
        if config.llm_int8_skip_modules:
            lines.append("""
with torch.device("meta"):
    skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(MODEL))""")
            names = [f"\n        {as_source(name)}," for name in config.llm_int8_skip_modules]
            first = "*get_keys_to_not_convert(skeleton),  # the head, and these:"
            skipped = f"\n    llm_int8_skip_modules=[\n        {first}{''.join(names)}\n    ],"
        lines.append(f"""
quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type={as_source(config.quant_type)},
    bnb_4bit_use_double_quant={config.double_quant},
    bnb_4bit_compute_dtype=dtype,{skipped}
)""")
    return [*lines, f"model = AutoModelForCausalLM.from_pretrained({name}, dtype=dtype{quantized})"]
