"""The adapted linear layer, y = W x + Σ_i scale_i B_i A_i x (LoRA, Hu et al., 2021; paper §3.1), and how a model gets
such layers from an adapter's files.

lora.py adds, saves, stacks, merges and exports adapters.
"""

from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from engine.kernels import add_linear, cast, linear
from formats.peft_files import check_repeated, read_adapter
from formats.weights import checkpoint_weight, hf_name, local_folder, weight_files

# ---- the layer -----------------------------------------------------------------------------------------------------

def adapted_linear(x: torch.Tensor, W: torch.Tensor, bias: torch.Tensor | None, pairs: list) -> torch.Tensor:
    """The definition: y = W x + bias + Σ_i scale_i B_i A_i x.

    x (…, in), W (out, in), bias (out,) or None, pairs: [(A_i (r, in), B_i (out, r), scale_i)] → y (…, out).
    `LoraLinear` computes the same in two ways, and the tests compare each of them with this one."""
    y = F.linear(x, W, bias)
    for A, B, scale in pairs:
        y = y + scale * F.linear(F.linear(x, A), B)
    return y


class LoraLinear(nn.Linear):
    """A linear layer with the frozen adapters (`frozen_A` (R, in), `frozen_B` (out, R), scales folded into B) and the
    newest one (`lora_A` (r, in), `lora_B` (out, r)). Either may be absent."""

    def __init__(self, base):
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias         # the same parameters, also where they are tied
        self.weight.requires_grad_(False)
        for name in ("frozen_A", "frozen_B", "lora_A", "lora_B"):
            self.register_parameter(name, None)
        self.scale, self.dropout = 1.0, 0.0
        self.numbers = []                                       # (R,) of the frozen adapter that each rank belongs to
        self.use_newest, self.frozen_rank = True, None          # see `without_newest`; None: all frozen ranks act
        self.noise = None                                       # see `seed_dropout`
        self.part = slice(None)                                 # of lm_head's tokens: training/loss.py computes chunks
        self.train(base.training)

    def forward(self, x):
        """`adapted_linear` of the adapters that act, x (…, in) → (…, out)."""
        rows = cast(x).flatten(0, -2)
        compute = self.large_term_last if self.acting() and rows.dtype != torch.float32 else self.large_term_first
        return compute(rows).unflatten(0, x.shape[:-1])

    def large_term_first(self, rows):
        """W x, and then scale B A x of each adapter added in place."""
        y = linear(rows, self.weight, self.bias)
        for z, B in self.updates(rows):
            y = add_linear(y, z, B)
        return y

    def large_term_last(self, rows):
        """In low precision: first Σ scale B A x, and then W x added to it.

        The order is about correctness, not speed. bfloat16 keeps 8 bits, and early in training B A x is smaller than
        the last bit of W x. Once W x is rounded, adding such an update rounds it away again, and the student equals its
        teacher. `add_linear` accumulates in float32 and rounds once. So the update takes part in the rounding of each
        sum, and averaged over many sums none of it is lost."""
        (z, B), *others = self.updates(rows)
        y = linear(z, B)
        for z, B in others:
            y = add_linear(y, z, B)
        y = add_linear(y.type_as(rows), rows, self.weight)
        return y if self.bias is None else y.add_(self.bias)

    def acting(self):
        """[(A, B, scale)] of the adapters that act: the newest, then the frozen ones as one. The newest comes first, as
        its update may be the smallest, and sums of low precision begin with it."""
        newest = [(self.lora_A, self.lora_B, self.scale)] * (self.use_newest and self.lora_A is not None)
        A, B, rank = self.frozen_A, self.frozen_B, self.frozen_rank
        if A is None or rank == 0:
            return newest
        return [*newest, (A, B, 1.0) if rank is None else (A[:rank], B[:, :rank], 1.0)]

    def updates(self, rows: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """[(z, B)] of the adapters that act, with z = scale A x (n, r) for rows x (n, in). Dropout acts on the newest
        one's x."""
        products = []
        for A, B, scale in self.acting():
            z = rows if torch.is_autocast_enabled(rows.device.type) else rows.to(A.dtype)
            if self.dropping() and A is self.lora_A:
                z, scale = z.masked_fill(self.dropped(z), 0), scale / (1 - self.dropout)
            z = linear(z, A)
            products.append((z if scale == 1 else z * scale, B.to(z.dtype)))
        return products

    def dropping(self):
        return self.dropout > 0 and self.training and torch.is_grad_enabled()

    def dropped(self, x):
        """Which inputs x (…, T, in) are dropped, as a mask (…, T, in). Each token and each feature has a random 16-bit
        number. An input is dropped where the sum of both, with overflow, is among the lowest values. So all are dropped
        with the same probability, and any two independently."""
        if self.noise:
            tokens, features = self.noise[0][self.part], self.noise[1]
        else:
            tokens, features = noise(*x.shape[:-1], device=x.device), noise(self.in_features, device=x.device)
        return tokens[..., None] + features < round(self.dropout * 2 ** 16) - 2 ** 15

    def freeze(self, A: torch.Tensor, B: torch.Tensor, scale: float, number: int) -> None:
        """Adds a frozen adapter, A (r, in) and B (out, r), as the model's `number`th, counted from 0."""
        A, B = (x.detach().to(adapter_device(self), torch.float32) for x in (A, B))
        B = B * scale
        self.numbers += [number] * len(A)
        if self.frozen_A is not None:
            A, B = torch.cat((self.frozen_A, A)), torch.cat((self.frozen_B, B), dim=1)
        self.frozen_A, self.frozen_B = (nn.Parameter(x, requires_grad=False) for x in (A, B))


def noise(*shape: int, **where) -> torch.Tensor:
    """Random 16-bit numbers of that shape, for `dropped`."""
    return torch.randint(-2 ** 15, 2 ** 15, shape, dtype=torch.int16, **where)


# ---- a model's adapters --------------------------------------------------------------------------------------------

def layers(model: nn.Module) -> dict[str, LoraLinear]:
    """{name: layer} of the layers that have adapters."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}


def adapted(model: nn.Module, name: str) -> LoraLinear:
    """The layer of that name, made a LoraLinear if it is not one yet."""
    layer = model.get_submodule(name)
    if not isinstance(layer, LoraLinear):
        layer = LoraLinear(layer)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return layer


def frozen(model: nn.Module) -> int:
    """How many frozen adapters a model has."""
    return 1 + max((layer.numbers[-1] for layer in layers(model).values() if layer.numbers), default=-1)


def adapter_device(layer: nn.Linear) -> torch.device | str:
    """The device of a layer's adapters: its weight's, or the CPU until the weight is loaded."""
    return "cpu" if layer.weight.is_meta else layer.weight.device


def load_adapter(model: nn.Module, path: str | Path, checkpoint: str | Path | None = None) -> None:
    """Adds a frozen adapter on top of the earlier ones. `checkpoint` is the directory or hub id of a model whose
    weights are not loaded yet.

    Raises ValueError, naming the file and the field or tensor, if the adapter is not supported or another model's."""
    _, adapter = read_adapter(path)
    file = Path(path) / "adapter_model.safetensors"
    modules = dict(model.named_modules())
    for name, (A, B, _) in adapter.items():
        base = modules.get(name)
        if not isinstance(base, nn.Linear):
            raise ValueError(f"{file}: {hf_name(name)}: this model has no such linear layer; "
                             "the adapter is another model's")
        if (B.shape[0], A.shape[1]) != (base.out_features, base.in_features):
            weight = [base.out_features, base.in_features]
            raise ValueError(f"{file}: {hf_name(name)}: A {list(A.shape)} and B {list(B.shape)} do not fit "
                             f"this model's {weight} weight; the adapter is another model's")

    def weight_of(name):
        try:
            weight = model.get_parameter(name.removeprefix("model."))
        except AttributeError:
            raise ValueError(f"{file}: {name}: this model has no such weight; the adapter is another model's") from None
        return checkpoint_weight(weight_files(local_folder(checkpoint)), name) if weight.is_meta else weight

    check_repeated(path, weight_of)
    number = frozen(model)
    for name, (A, B, scale) in adapter.items():
        adapted(model, name).freeze(A, B, scale, number)
