"""How an exported folder is loaded: the lines in its README.md, and the Modelfile for Ollama.

Each line says whether it was run, with tiny models on a CPU, by this project's tests, or is taken from the other program's
documentation and was not run. Covers transformers, peft, vLLM, llama.cpp and Ollama.
"""

from __future__ import annotations

from workbench.training.results.gguf_layouts import CONVERTER

RUN, READ = "run by this project's tests, on a CPU", "from its documentation, not run"

_TRANSFORMERS = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this folder")
tokenizer = AutoTokenizer.from_pretrained("this folder")"""

_XLLAMACPP = """from xllamacpp import {names}CommonParams, Server

params = CommonParams()
params.model.path = "{model}"{adapter}
answer = Server(params).handle_completions({{"prompt": "…", "max_tokens": 64, "temperature": 0}})
print(answer["choices"][0]["text"])"""

_WITH_ADAPTER = """
params.lora_adapters = [CommonAdapterLoraInfo("adapter.gguf", 1.0)]"""


_PYTHON = "llama.cpp from Python (pip install xllamacpp)"
_CHAT = "llama-cli -m {model}{more} --temp 0 -n 64 -p '…'"
_TEXT = "llama-completion -m {model}{more} -no-cnv --temp 0 -n 64 -p '…'"
_SERVER = "llama-server -m {model}{more}"
_OLLAMA = "ollama create NAME -f Modelfile\nollama run NAME '…'"


def of_transformers() -> str:
    """For a merged model as safetensors."""
    converter = f"llama.cpp's own converter ({READ}): `{CONVERTER}`, where MERGED is this folder."
    return _section(
        _part("transformers", RUN, _TRANSFORMERS, "python"),
        _part("vLLM", READ, "vllm serve 'this folder'", "sh"),
        f'**llama.cpp, Ollama** read GGUF: export again with `format="gguf"`, or use {converter}',
    )


def of_model(chats: bool) -> str:
    """For a merged model as GGUF; ``chats``: whether it brings a chat template, without which llama-cli is no use."""
    return _section(
        _part("llama.cpp", READ, _alone(chats) + "\n" + _SERVER.format(model="model.gguf", more=""), "sh"),
        _part(_PYTHON, RUN, _XLLAMACPP.format(model="model.gguf", names="", adapter=""), "python"),
        _part("Ollama", READ, _OLLAMA, "sh"),
        '**transformers, vLLM**: export again with `format="transformers"`.',
    )


def of_adapter() -> str:
    """For an adapter as GGUF."""
    python = _XLLAMACPP.format(model="base.gguf", names="CommonAdapterLoraInfo, ", adapter=_WITH_ADAPTER)
    return _section(
        "`base.gguf` stands for a GGUF of the base model.",
        _part("llama.cpp", READ, "\n".join(_on_base(line) for line in (_CHAT, _TEXT, _SERVER)), "sh"),
        "`llama-cli` chats, by the base's chat template; `llama-completion -no-cnv` continues a text.",
        _part(_PYTHON, RUN, python, "python"),
        f'**Ollama** refuses adapters from 0.34.1 on ({READ}): export the merged model with `format="gguf"`.',
        "**peft, vLLM** load the run's own adapter folder, not this file.",
    )


def _alone(chats: bool) -> str:
    return (_CHAT if chats else _TEXT).format(model="model.gguf", more="")


def _on_base(line: str) -> str:
    return line.format(model="base.gguf", more=" --lora adapter.gguf")


def modelfile(chats: bool) -> str:
    """Ollama's Modelfile beside ``model.gguf``. A model without a chat template is given the prompt as it is."""
    template = "" if chats else 'TEMPLATE """{{ .Prompt }}"""\n'
    return f"FROM ./model.gguf\nPARAMETER temperature 0\n{template}"


def _section(*parts: str) -> str:
    return "\n\n".join(["## Loading", *parts])


def _part(title: str, how: str, code: str, language: str) -> str:
    return f"**{title}** ({how}):\n\n```{language}\n{code}\n```"
