"""Low-rank adapters on a Llama, in PEFT's format: add one, stack several, save, load, export.

    python lora.py stack runs/demo/round1 runs/demo/round2 --out runs/demo/stacked      one exact PEFT adapter of several
    python lora.py merge --model M --adapter runs/demo/round1 --adapter runs/demo/round2 --out DIR      into the weights

Every layer computes y = W x + Σ_i scale_i B_i A_i x. W is never changed, whatever its precision; adapters are float32. All loaded
adapters are frozen and act as one, their ranks side by side; at most one more, the newest, is being trained.
"""

from records import Parser, apart, mismatch, number, read_json, run_stage, write_whole  # first: from here on Ctrl-C ends in one line

import json
import math
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kernels import add_linear, cast, linear
from model import Config, Linear, local_folder, read_weight, weight_files

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
VLLM_RANK = 512                                                     # the largest max_lora_rank
INDEX = "model.safetensors.index.json"
WEIGHTS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".part")


class LoraLinear(Linear):
    """A linear layer with frozen adapters (`frozen_A` (R, in), `frozen_B` (out, R), scales folded into B) and the newest one
    (`lora_A` (r, in), `lora_B` (out, r)), either of which may be absent."""

    def __init__(self, base):
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias         # the same parameters, also where they are tied
        self.weight.requires_grad_(False)
        for name in ("frozen_A", "frozen_B", "lora_A", "lora_B"):
            self.register_parameter(name, None)
        self.scale, self.dropout, self.use_newest, self.use_frozen = 1.0, 0.0, True, True
        self.noise, self.part = None, slice(None)               # see `seed_dropout`
        self.train(base.training)

    def forward(self, x):
        acting = self.acting()
        if not self.dropping() and self.costs_less_as_one(x, sum(len(A) for A, _, _ in acting)):
            weight = self.weight
            for A, B, scale in acting:
                weight = torch.addmm(weight, B, A, alpha=scale)
            return F.linear(x, weight, self.bias)
        rows = cast(x).flatten(0, -2)
        updates = self.updates(rows)
        if not updates or rows.dtype == torch.float32:
            y = linear(rows, self.weight, self.bias)
            for z, B in updates:
                y.addmm_(z, B.T)
        else:                                                   # W x last: added to it when that is rounded, BA x would be lost as long as it is little
            y = F.linear(*updates[0])
            for z, B in updates[1:]:
                y.addmm_(z, B.T)
            y = add_linear(y.type_as(rows), rows, self.weight)
            y = y if self.bias is None else y.add_(self.bias)
        return y.unflatten(0, x.shape[:-1])

    def acting(self):
        """A, B and scale of each adapter that acts: the newest, which may be the least, and the frozen ones as one."""
        both = (self.use_newest, self.lora_A, self.lora_B, self.scale), (self.use_frozen, self.frozen_A, self.frozen_B, 1.0)
        return [adapter for acts, *adapter in both if acts and adapter[0] is not None]

    def updates(self, rows):
        """For each of them z = scale A x, of rows of x, and B."""
        pairs = []
        for A, B, scale in self.acting():
            z = rows if torch.is_autocast_enabled(rows.device.type) else rows.to(A.dtype)
            if self.dropping() and A is self.lora_A:
                z, scale = z.masked_fill(self.dropped(z), 0), scale / (1 - self.dropout)
            z = F.linear(z, A)
            pairs.append((z if scale == 1 else z * scale, B.type_as(z)))
        return pairs

    def dropping(self):
        return self.dropout > 0 and self.training and torch.is_grad_enabled()

    def costs_less_as_one(self, x, rank):
        """Is a product of x by the sum W + Σ scale B A cheaper, backward too, than one by W and two by each adapter? So it is where the ranks
        are not small beside the layer and the rows of x are many. Only in float32, where the sum loses nothing that the products would not."""
        float32 = self.weight.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        size, sizes = self.in_features * self.out_features, self.in_features + self.out_features
        return float32 and 3 * rank * sizes > size and x.shape[:-1].numel() * sizes > size

    def dropped(self, x):
        """Which inputs x (…, T, in) are dropped: where a random number of the token and one of the feature, each of 16 bits, add up to one
        of the lowest. All with the same probability, and any two independently."""
        if self.noise:
            tokens, features = self.noise[0][self.part], self.noise[1]
        else:
            tokens, features = noise(x.shape[:-1], device=x.device), noise(self.in_features, device=x.device)
        return tokens[..., None] + features < round(self.dropout * 2 ** 16) - 2 ** 15

    def freeze(self, A, B, scale):
        """One more frozen adapter, A (r, in) and B (out, r)."""
        A, B = A.detach().float(), B.detach().float() * scale
        if self.frozen_A is not None:
            A, B = torch.cat((self.frozen_A, A)), torch.cat((self.frozen_B, B), dim=1)
        self.frozen_A = nn.Parameter(A.to(place(self)), requires_grad=False)
        self.frozen_B = nn.Parameter(B.to(place(self)), requires_grad=False)


class BothLogits(torch.autograd.Function):
    """To the logits of a student and a teacher that are in `both` (2 n, V), `student` its first half, adds what lm_head's weights make of x and teacher
    (n, C), in one product: a CPU is as long about getting a vocabulary's weights ready as about 50 rows. Of the teacher there is no gradient."""

    @staticmethod
    def forward(ctx, student, x, teacher, weight, both):
        ctx.save_for_backward(weight)
        ctx.mark_dirty(student)
        both.addmm_(torch.cat((x, teacher)), weight.T)
        return student

    @staticmethod
    def backward(ctx, gradient):
        return gradient, gradient @ ctx.saved_tensors[0], None, None, None


def both_logits(model, x, teacher, memory):
    """lm_head of x (n, C), and of a teacher's (n, C), for which the newest adapter does not act → (n, V) each. In lower precision than float32 they
    are in `memory` (at least 2 n, V), which can be used again when the gradients are there."""
    if cast(x).dtype == torch.float32:
        with torch.no_grad(), adapters(model, newest=False):
            other = model.lm_head(teacher)
        return model.lm_head(x), other

    def start(rows, logits):
        updates = model.lm_head.updates(rows) if isinstance(model.lm_head, LoraLinear) else []
        for n, (z, B) in enumerate(updates):
            logits.addmm_(z.type_as(logits), B.type_as(logits).T, beta=min(n, 1))
        return logits if updates else logits.zero_()

    x, teacher, weight, both = cast(x), cast(teacher), cast(model.lm_head.weight), memory[:2 * len(x)]
    student, other = (half.detach() for half in both.chunk(2))          # for autograd they have nothing to do with each other
    with torch.no_grad(), adapters(model, newest=False):
        start(teacher, other)
    return BothLogits.apply(start(x, student), x, teacher, weight, both), other


def fold(model):
    """Adds the frozen adapters to weights of float32, in which the sum loses nothing and is there once and for all; others stay as they are.
    Weights from a mapped file become copies, and the file's pages go."""
    for layer in layers(model).values():
        if layer.frozen_A is not None and layer.weight.dtype == torch.float32 and not layer.weight.is_meta:
            layer.weight = nn.Parameter(torch.addmm(layer.weight, layer.frozen_B, layer.frozen_A), requires_grad=False)
            layer.frozen_A = layer.frozen_B = None


def place(layer):
    """Where a layer's adapters are: with its weight, or, as long as that is nowhere, in memory."""
    return "cpu" if layer.weight.is_meta else layer.weight.device


def layers(model):
    """{name: layer} of the layers that have adapters."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLinear)}


def adapted(model, name):
    """The layer of that name, made a LoraLinear if it is none yet."""
    layer = model.get_submodule(name)
    if not isinstance(layer, LoraLinear):
        layer = LoraLinear(layer)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return layer


def add_adapter(model, rank, alpha, dropout=0.0, targets=TARGETS):
    """A new trainable adapter on top of those that are there, which are frozen from now on. It computes nothing until it is
    trained: A is Kaiming-uniform, B is zero. The adapted layers are put into training mode; dropout acts where gradients are
    computed as well, so a teacher's pass under no_grad has none. Returns the new adapter's parameters."""
    unknown = set(targets) - set(TARGETS)
    if unknown:
        raise ValueError(f"adapter targets {', '.join(sorted(unknown))}: unknown; there are {', '.join(TARGETS)}")
    model.requires_grad_(False)
    for layer in layers(model).values():
        if layer.lora_A is not None:
            layer.freeze(layer.lora_A, layer.lora_B, layer.scale)
            layer.lora_A = layer.lora_B = None
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name.split(".")[-1] in targets]
    for name in names:
        layer = adapted(model, name)
        A = torch.empty(rank, layer.in_features, dtype=torch.float32, device=place(layer))
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        layer.lora_A = nn.Parameter(A)
        layer.lora_B = nn.Parameter(A.new_zeros(layer.out_features, rank))
        layer.scale, layer.dropout = alpha / rank, dropout
        layer.train()
    return trainable(model)


def noise(shape, **where):
    return torch.randint(-2 ** 15, 2 ** 15, shape if isinstance(shape, tuple) else (shape,), dtype=torch.int16, **where)


def seed_dropout(model, seed, tokens, head_tokens):
    """Makes the dropout of the next passes depend on nothing but `seed` and the random numbers (`noise`) of the tokens in the row, `tokens`
    (T,), and of those that lm_head reads, `head_tokens` (N,), and the last block behind its attention: not on which documents share the row, nor
    on the process."""
    generator, last = torch.Generator().manual_seed(seed), len(model.layers) - 1
    for name, layer in layers(model).items():
        at_some = name == "lm_head" or name.startswith((f"layers.{last}.mlp.", f"layers.{last}.self_attn.o_proj"))
        layer.noise = tuple(x.to(place(layer)) for x in (head_tokens if at_some else tokens, noise(layer.in_features, generator=generator)))


def trainable(model):
    """The newest adapter's parameters, in a fixed order."""
    return [p for layer in layers(model).values() if layer.lora_A is not None for p in (layer.lora_A, layer.lora_B)]


@contextmanager
def adapters(model, frozen=True, newest=True):
    """Which adapters act inside: `with adapters(model, newest=False):` is the teacher of the newest one."""
    before = [(layer, layer.use_frozen, layer.use_newest) for layer in layers(model).values()]
    try:
        for layer, _, _ in before:
            layer.use_frozen, layer.use_newest = frozen, newest
        yield
    finally:
        for layer, layer.use_frozen, layer.use_newest in before:
            pass


# ---- PEFT's files --------------------------------------------------------------------------------------------------

def save_adapter(model, path, base_model="", write=True):
    """Writes the newest adapter to the directory `path`. Whole files appear or none does. If processes share the model, all of them
    have to call this, and one to `write`; the others keep none of it."""
    tensors, alpha, rank = {}, 0, 0
    for name, layer in layers(model).items():
        if layer.lora_A is not None:
            pair = ((p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for p in (layer.lora_A, layer.lora_B))
            tensors[name] = tuple(p.cpu() if write else p.shape for p in pair)
            rank = len(layer.lora_A)
            alpha, dropout = layer.scale * rank, layer.dropout
    if not tensors:
        raise ValueError(f"{path}: this model has no trainable adapter to save")
    if write:
        write_adapter(path, tensors, rank, alpha, dropout, base_model)


def write_adapter(path, tensors, rank, alpha, dropout=0.0, base_model="", repeated=None):
    """tensors: {layer name: (A, B)}; repeated: what `repeated_weights` gives. Raises ValueError if they cannot be written."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base_model), "r": rank,
              "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "lora_dropout": dropout,
              "target_modules": sorted({name.split(".")[-1] for name in tensors}), "bias": "none", "inference_mode": True}
    flat = {f"base_model.model.{hf_name(name)}.lora_{half}.weight": tensor.contiguous().clone()
            for name, pair in tensors.items() for half, tensor in zip("AB", pair)}
    for name, weight in (repeated or {}).items():
        layer = name.removesuffix(".weight")
        flat[f"base_model.model.{layer}.{'base_layer.' if layer.removeprefix('model.') in tensors else ''}weight"] = weight
    write_whole({path / "adapter_config.json": json.dumps(config, indent=2) + "\n",
                 path / "adapter_model.safetensors": lambda part: save_file(flat, part, metadata={"format": "pt"})})


def hf_name(name):
    return name if name == "lm_head" else f"model.{name}"


# Fields of adapter_config.json. Any other field has to be at its neutral value, whether we know it or not.
COMPUTED = {"r?": int, "lora_alpha?": (int, float), "use_rslora?": (None, bool), "rank_pattern?": (None, {}),
            "alpha_pattern?": (None, {}), "target_modules?": (None, str, [str]), "exclude_modules?": (None, str, [str]),
            "layers_to_transform?": (None, int, [int]), "layers_pattern?": (None, str, [str])}
IGNORED = {"peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
           "lora_dropout", "runtime_config", "megatron_core", "qalora_group_size", "merge_weights",  # nothing acts on these alone
           "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"}      # only the first decides
NEUTRAL = (None, False, "", [], {})
PLAIN_INITS = ("gaussian", "orthogonal", "eva", "mica")             # these, true and false leave the base weights alone
CONVERTED = ("pissa", "corda", "olora", "lora_ga")                  # PEFT can make plain adapters of these


def check_config(config, file):
    """Raises ValueError, naming the file and the field, if an adapter_config.json asks for more than low-rank updates."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type is {config.get('peft_type')!r}; only LORA adapters can be loaded")
    numbers = {"rank_pattern": int, "alpha_pattern": (int, float)}
    patterns = {f"{field}?": (None, dict.fromkeys(config[field], kind))
                for field, kind in numbers.items() if isinstance(config.get(field), dict)}
    if wrong := mismatch(config, COMPUTED | patterns):
        raise ValueError(f"{file}, field {wrong[0]!r}: {wrong[1]}")
    for field in ("rank_pattern", "alpha_pattern", "layers_pattern", "target_modules", "exclude_modules"):
        value = config.get(field) or []
        for pattern in [value] if isinstance(value, str) else value if field.endswith("pattern") else []:
            try:
                re.compile(pattern)
            except re.error as e:
                raise ValueError(f"{file}, field {field!r}: {e}") from None
    init = config.get("init_lora_weights", True)
    if not (init in NEUTRAL or init is True or str(init).lower() in PLAIN_INITS):
        way_out = "let PEFT convert it to a plain LoRA: save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        raise ValueError(f"{file}: init_lora_weights is {init!r}, which " + (
            f"changes the base weights; {way_out}" if str(init).lower().startswith(CONVERTED) else
            f"is not supported, since it may change the base weights; true, false, {', '.join(PLAIN_INITS)} are"))
    for field, value in config.items():
        if field not in IGNORED and f"{field}?" not in COMPUTED and value not in NEUTRAL and (field, value) != ("bias", "none"):
            plain = "'none'" if field == "bias" else "null or false"
            raise ValueError(f"{file}: {field} is {value!r}, which is not supported; only {plain} is")


def setting(patterns, default, module):
    """PEFT's rule for rank_pattern and alpha_pattern: the first regular expression that matches the end of the module's name."""
    return next((value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", module)), default)


def targeted(config, module):
    """Does PEFT adapt this module? It ignores tensors of the others."""
    def among(names):
        if isinstance(names, str):
            return bool(re.fullmatch(names, module))
        return any(f".{module}".endswith(f".{name}") for name in names)

    targets, excluded, layers = (config.get(field) for field in ("target_modules", "exclude_modules", "layers_to_transform"))
    if excluded and among(excluded):
        return False
    if targets in (None, "all-linear"):
        return targets is None or module != "lm_head"
    if layers in (None, []) or isinstance(targets, str) or module in targets:
        return among(targets)
    patterns = config.get("layers_pattern") or r"[^.]*"
    patterns = [patterns] if isinstance(patterns, str) else patterns
    match = next(filter(None, (re.match(rf"(?:.*?\.)?{pattern}\.(\d+)\.", module) for pattern in patterns)), None)
    return bool(among(targets) and match and int(match[1]) in (layers if isinstance(layers, list) else [layers]))


def read_tensors(path):
    """The tensors in an adapter's directory."""
    try:
        return load_file(Path(path) / "adapter_model.safetensors")
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path}: cannot be read as an adapter ({e}); "
                         "it needs adapter_config.json and adapter_model.safetensors") from None


UPDATE = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
REPEATED = re.compile(r"base_model\.model\.(?:(.+)\.base_layer|(model\.embed_tokens|lm_head))\.weight")


def read_adapter(path):
    """PEFT's files in the directory `path` → config, {layer name: (A (r, in), B (out, r), scale)}.

    Raises ValueError, naming the file and the field or tensor, if they hold anything but low-rank updates of linear layers."""
    path = Path(path)
    config_file, file = path / "adapter_config.json", path / "adapter_model.safetensors"
    config, tensors = read_json(config_file), read_tensors(path)
    check_config(config, config_file)
    adapter = {}
    for key in tensors:
        if not UPDATE.fullmatch(key) and not REPEATED.fullmatch(key):
            raise ValueError(f"{file}: {key}: not supported; only low-rank updates of linear layers are")
    for module in dict.fromkeys(match[1] for key in tensors if (match := UPDATE.fullmatch(key))):
        keys = [f"base_model.model.{module}.lora_{half}.weight" for half in "AB"]
        for key in keys:
            if key not in tensors:
                raise ValueError(f"{file}: no tensor {key}")
        A, B = (tensors[key] for key in keys)
        if A.ndim != 2 or B.ndim != 2 or not 0 < len(A) == B.shape[1]:
            raise ValueError(f"{file}: {keys[0]}: A is {list(A.shape)} and B {list(B.shape)}; they should be [rank, in] and [out, rank]")
        rank = setting(config.get("rank_pattern"), config.get("r", 8), module)
        alpha = setting(config.get("alpha_pattern"), config.get("lora_alpha", 8), module)
        if not targeted(config, module):
            raise ValueError(f"{file}: {keys[0]}: not one of the modules that adapter_config.json names, "
                             "so PEFT would leave it out; mend target_modules or remove the tensor")
        if len(A) != rank:
            raise ValueError(f"{file}: {keys[0]} is {list(A.shape)}; adapter_config.json gives this layer rank {rank}")
        if not math.isfinite(alpha):
            raise ValueError(f"{config_file}, field 'lora_alpha': {alpha} is not a finite number")
        adapter[module.removeprefix("model.")] = A, B, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not adapter:
        raise ValueError(f"{file}: no tensor named like base_model.model.….lora_A.weight")
    return config, adapter


def repeated_weights(path):
    """{name in the checkpoint: weight}: the base weights that PEFT may repeat in an adapter's file, such as lm_head's."""
    matches = ((REPEATED.fullmatch(key), weight) for key, weight in read_tensors(path).items())
    return {f"{match[1] or match[2]}.weight": weight for match, weight in matches if match}


def check_repeated(path, weight_of):
    """Raises ValueError if a base weight in the adapter's file is not the model's, weight_of(name)."""
    for name, weight in repeated_weights(path).items():
        if not equal(weight, weight_of(name)):
            raise ValueError(f"{Path(path) / 'adapter_model.safetensors'}: {name} is not the model's, and only low-rank updates "
                             "are supported; it was trained as well, or the adapter is another model's")


def equal(a, b):
    """Are two weights the same, in the lower of their precisions?"""
    if a.shape != b.shape or not a.is_floating_point():
        return False
    coarse = max(a.dtype, b.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    return torch.equal(a.to(b.device, coarse), b.to(coarse))


def load_adapter(model, path, checkpoint=None):
    """One more frozen adapter on top of those that are there. A model without weights needs its `checkpoint` too, a directory or hub id.

    Raises ValueError, naming the file and the tensor, when it is another model's."""
    _, adapter = read_adapter(path)
    file = Path(path) / "adapter_model.safetensors"
    for name, (A, B, scale) in adapter.items():
        try:
            base = model.get_submodule(name)
            if not isinstance(base, Linear):
                raise AttributeError
        except AttributeError:
            raise ValueError(f"{file}: {hf_name(name)}: this model has no such linear layer; the adapter is another model's") from None
        if (B.shape[0], A.shape[1]) != (base.out_features, base.in_features):
            raise ValueError(f"{file}: {hf_name(name)}: A {list(A.shape)} and B {list(B.shape)} do not fit this model's "
                             f"{[base.out_features, base.in_features]} weight; the adapter is another model's")

    def weight_of(name):
        try:
            weight = model.get_parameter(name.removeprefix("model."))
        except AttributeError:
            raise ValueError(f"{file}: {name}: this model has no such weight; the adapter is another model's") from None
        return checkpoint_weight(weight_files(local_folder(checkpoint)), name) if weight.is_meta else weight

    check_repeated(path, weight_of)
    for name, (A, B, scale) in adapter.items():
        adapted(model, name).freeze(A, B, scale)


def checkpoint_weight(shards, name):
    """A checkpoint's tensor; a tied lm_head is not in its files, but the embedding is."""
    return read_weight(shards, "model.embed_tokens.weight" if name == "lm_head.weight" and name not in shards else name)


# ---- several adapters as one ---------------------------------------------------------------------------------------

def stack(paths, out, weight=1.0):
    """One adapter that computes exactly the sum of several, each times `weight`: ranks side by side, scales folded in where they differ."""
    apart(out, paths)
    adapters = [read_adapter(path) for path in paths]
    names = list(dict.fromkeys(name for _, adapter in adapters for name in adapter))
    scales = {scale for _, adapter in adapters for _, _, scale in adapter.values()}
    shared = scales.pop() if len(scales) == 1 else None
    ranks = [max(len(A) for A, _, _ in adapter.values()) for _, adapter in adapters]
    tensors, repeated = {}, {}
    for path in paths:                                              # base weights go along, so that they are checked on loading
        check_repeated(path, lambda name: repeated.get(name, repeated_weights(path)[name]))
        repeated = repeated_weights(path) | repeated
    for name in names:
        shape = next(adapter[name][1].shape[0] for _, adapter in adapters if name in adapter), \
            next(adapter[name][0].shape[1] for _, adapter in adapters if name in adapter)
        parts = []
        for path, (_, adapter), rank in zip(paths, adapters, ranks):
            A, B, scale = adapter.get(name, (torch.zeros(0, shape[1]), torch.zeros(shape[0], 0), 1.0))
            if (B.shape[0], A.shape[1]) != shape:
                raise ValueError(f"{Path(path) / 'adapter_model.safetensors'}: {hf_name(name)} is {B.shape[0]} × {A.shape[1]}, "
                                 f"in {paths[0]} it is {shape[0]} × {shape[1]}: these adapters are of different models")
            A, B = A.float(), B.float() * (1 if shared else scale)
            parts.append((F.pad(A, (0, 0, 0, rank - len(A))), F.pad(B, (0, rank - B.shape[1]))))    # one rank for all layers
        tensors[name] = torch.cat([A for A, _ in parts]), torch.cat([B for _, B in parts], dim=1)
    rank = sum(ranks)
    base_model = adapters[0][0].get("base_model_name_or_path", "")
    write_adapter(out, tensors, rank, weight * (shared or 1) * rank, base_model=base_model, repeated=repeated)
    print(f"{out}: one adapter of rank {rank} on {len(tensors)} layers")
    if rank > VLLM_RANK:
        print(f"rank {rank} is more than vLLM serves (max_lora_rank is at most {VLLM_RANK}); "
              "use `lora.py merge` and serve the merged model")


def merge(model_path, paths, out):
    """A checkpoint with the adapters added to its weights. The sum is computed in float32 and rounded once, to the checkpoint's own
    precision; what that rounding takes from the update is reported. Everything else in the checkpoint's folder is copied.

    Raises ValueError if the checkpoint is quantized, or if an adapter is another model's."""
    folder, out = local_folder(model_path), Path(out)
    apart(out, [folder, *paths])
    adapters = [read_adapter(path)[1] for path in paths]
    tied, config, shards = Config.from_json(folder / "config.json").tie_word_embeddings, read_json(folder / "config.json"), weight_files(folder)
    if config.get("quantization_config") or config.get("compression_config"):
        raise ValueError(f"{folder / 'config.json'}: this checkpoint is quantized, so nothing can be added to its weights; merge into the original")
    for path in paths:
        check_repeated(path, lambda name: checkpoint_weight(shards, name))
    update = {f"{hf_name(name)}.weight": [] for adapter in adapters for name in adapter}
    for path, adapter in zip(paths, adapters):
        for name, (A, B, scale) in adapter.items():
            update[f"{hf_name(name)}.weight"].append((path, A, B, scale))
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    sources = {name: name for name in shards}                       # {tensor to be written: the one it is read from}
    if tied and (head in update or head in shards and not equal(read_weight(shards, head), read_weight(shards, embedding))):
        config["tie_word_embeddings"] = False                       # the output layer differs from the embedding from now on
        if head not in shards:
            sources[head], shards[head] = embedding, shards[embedding]
    missing = [name for name in update if name not in shards]
    if missing:
        raise ValueError(f"{folder}: no tensor {missing[0]}, which {update[missing[0]][0][0]} adapts; it is another model's adapter")
    others = {file.name for file in out.glob("*.safetensors*")} - {file.name for file in shards.values()} - {INDEX}
    if others or (out / INDEX).exists() > (folder / INDEX).exists():
        raise ValueError(f"{out}: there are other weights already ({min(others, default=INDEX)}); give another --out")
    out.mkdir(parents=True, exist_ok=True)
    asked, lost, precision = 0.0, 0.0, None

    def files():
        """One after the other, a shard in memory at a time."""
        nonlocal asked, lost, precision
        for file in sorted(set(shards.values())):
            tensors = {}
            for name in (name for name, place in shards.items() if place == file):
                weight = tensors[name] = read_weight(shards, sources[name])
                if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
                    raise ValueError(f"{file}: {name} holds {weight.dtype}; nothing can be added to a quantized checkpoint's weights")
                if name in update:
                    delta = torch.zeros(weight.shape)
                    for path, A, B, scale in update[name]:
                        if (B.shape[0], A.shape[1]) != weight.shape:
                            raise ValueError(f"{path}: {name}: the adapter is {B.shape[0]} × {A.shape[1]}, "
                                             f"the weight {list(weight.shape)}; it is another model's adapter")
                        delta += scale * (B.float() @ A.float())
                    exact = weight.float() + delta
                    tensors[name], precision = exact.to(weight.dtype), weight.dtype
                    asked += delta.double().pow(2).sum().item()
                    lost += (tensors[name].float() - exact).double().pow(2).sum().item()
            yield out / file.name, lambda part: save_file(tensors, part, metadata={"format": "pt"})
        if (folder / INDEX).exists():
            yield out / INDEX, json.dumps({"metadata": {}, "weight_map": {n: f.name for n, f in shards.items()}}, indent=2) + "\n"
        yield out / "config.json", json.dumps(config, indent=2) + "\n"
        for file in sorted(folder.iterdir()):
            if file.is_file() and not file.name.startswith((".", "adapter_", "config.json")) and not file.name.endswith(WEIGHTS):
                yield out / file.name, lambda part: shutil.copy(file, part)

    write_whole(files())
    print(f"{out}: {len(update)} weights changed; rounding to {str(precision).removeprefix('torch.')} lost "
          f"{math.sqrt(lost / asked) if asked else 0:.2%} of the update (norm of the error over norm of the update)")


def main():
    parser = Parser("Exports adapters.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("stack", help="several adapters as one exact PEFT adapter")
    command.add_argument("adapters", nargs="+", metavar="ADAPTER")
    command.add_argument("--weight", type=number(float, 0), default=1.0, help="of each: 0.5 makes the mean of two")
    command.add_argument("--out", required=True)
    command = commands.add_parser("merge", help="adapters into a copy of the weights")
    command.add_argument("--model", required=True)
    command.add_argument("--adapter", action="append", required=True, help="repeats, in order")
    command.add_argument("--out", required=True)
    args = parser.parse_args()
    stack(args.adapters, args.out, args.weight) if args.command == "stack" else merge(args.model, args.adapter, args.out)


if __name__ == "__main__":
    run_stage(main)
