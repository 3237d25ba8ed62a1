"""Where a model runs: one process on a CPU or a GPU, or under torchrun many of which each holds a part (FSDP2).

    torchrun --standalone --nproc-per-node 8 distill.py …

Without torchrun there is one process, and every function here does the plain thing.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from lora import load_adapter
from model import Llama, local_folder, read_weight, weight_files

RANK, WORLD, LOCAL = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))


def device_and_dtype():
    """A GPU in bfloat16 where there is one (under torchrun this process's own), else the CPU in float32."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), torch.float32
    torch.cuda.set_device(LOCAL)
    return torch.device("cuda", LOCAL), torch.bfloat16


def start():
    """Joins the other processes, if there are any."""
    if WORLD > 1 and not dist.is_initialized():
        device, _ = device_and_dtype()
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))      # some have more to do than others


def stop():
    if dist.is_initialized():
        dist.destroy_process_group()


def load(path, adapters=(), whole=True):
    """The model in the directory or hub id `path`, with its adapters stacked in order. Not `whole`: under torchrun the weights stay
    away until `share_out` gives every process its part."""
    device, dtype = device_and_dtype()
    model = Llama.from_pretrained(path, dtype=dtype, device=device if whole or WORLD == 1 else "meta")
    for adapter in adapters:
        load_adapter(model, adapter)
    return model.eval()


def share_out(model, path):
    """Gives every process its part of a model that was loaded without its weights: FSDP2, block by block. From the checkpoint each
    process reads only its own rows of every tensor; the adapters, which every process has, are cut down to its rows."""
    if WORLD == 1:
        return model
    device, _ = device_and_dtype()
    mesh = init_device_mesh(device.type, (WORLD,))
    model.frequencies = model.frequencies.to(device)
    for block in model.layers:
        block.recompute = True
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")
    shards, weights = weight_files(local_folder(path)), {}
    for name, p in model.named_parameters():
        if p.is_meta:
            rows = -(-p.shape[0] // WORLD)                            # as torch.chunk divides
            part = slice(min(RANK * rows, p.shape[0]), min((RANK + 1) * rows, p.shape[0]))
            local = read_weight(shards, name if name.startswith("lm_head") else f"model.{name}", p.shape, part).to(device, p.dtype)
            local = DTensor.from_local(local, mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
            weights[name] = torch.nn.Parameter(local, requires_grad=False)
    if model.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    model.load_state_dict(weights, strict=False, assign=True)
    return model


def wait():
    """Until all processes are here."""
    if WORLD > 1:
        dist.barrier()


def share(items):
    """This process's part of a list."""
    return items[RANK::WORLD]


def total(x):
    """The sum of a tensor over all processes."""
    if WORLD > 1:
        dist.all_reduce(x)
    return x


def agree(x):
    """What the first process says."""
    said = [x]
    if WORLD > 1:
        dist.broadcast_object_list(said)
    return said[0]


def whole(tensor):
    """A tensor of which every process has a part, in one piece."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parted(tensor, like):
    """The opposite of `whole`: this process's part, divided like the tensor `like`."""
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor
