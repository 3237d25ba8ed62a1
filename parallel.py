"""Where a model runs: device and precision, and its adapters on it."""

import torch

from lora import load_adapter
from model import Llama


def device_and_dtype():
    """A GPU in bfloat16 where there is one, else the CPU in float32."""
    return ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)


def load(path, adapters=()):
    """The model in the directory or hub id `path`, with its adapters stacked in order; ready for sampling."""
    device, dtype = device_and_dtype()
    model = Llama.from_pretrained(path, dtype=dtype, device=device)
    for adapter in adapters:
        load_adapter(model, adapter)
    return model.eval()
