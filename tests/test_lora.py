"""lora.py against recordings of peft (tests/recordings/make.py) and against plain matrix products in float64."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import lora
from engine.lora_layer import LoraLinear, adapted_linear
from formats import vllm
from model import Config, Linear, Llama
from scaling import parallel
from test_model import LOGITS, ROOT, load, recorded

RECORDINGS = ROOT / "tests" / "recordings"
ADAPTER = "adapter_model.safetensors"
ROW = torch.tensor([recorded.ROW])


def ours(base, label, folder, rank=3, alpha=6):
    """Writes an adapter for the model `base`; returns its directory."""
    tensors = recorded.adapter_tensors(recorded.MODELS[base], rank, label)
    lora.write_adapter(folder / label, {key.removeprefix("model."): pair for key, pair in tensors.items()}, rank, alpha)
    return folder / label


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


# ---- PEFT's format -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, base", [("peft-plain", "default"), ("peft-patterns", "llama3")])
def test_what_peft_writes_gives_pefts_logits(name, base, tmp_path):
    model = load(base, tmp_path)
    lora.load_adapter(model, RECORDINGS / name)
    close(model(ROW)[0, ::8], LOGITS[name])
    assert len(lora.layers(model)) == 2 * 7 + 1


@pytest.mark.parametrize("base", ["grouped", "llama3"])
def test_what_we_write_gives_the_logits_that_peft_gets_from_it(base, tmp_path):
    model = load(base, tmp_path)
    lora.load_adapter(model, ours(base, "ours", tmp_path))
    close(model(ROW)[0, ::8], LOGITS[f"ours-{base}"])


def test_an_adapter_without_those_that_it_was_trained_on_is_reported(tmp_path, capsys):
    for name, below in ("round1", []), ("round2", ["runs/round1"]), ("peft", None):
        (tmp_path / name).mkdir()
        (tmp_path / name / "arguments.json").write_text(json.dumps({"adapter": below}))
    one, two, other = (tmp_path / name for name in ("round1", "round2", "peft"))
    for right in ([], [one], [one, two], [other], [one, two, other]):
        parallel.check_order(right)
    assert not capsys.readouterr().err
    for wrong, says in ([two], "top of round1 and is now on top of the model alone"), ([other, one], "on top of peft;"):
        parallel.check_order(wrong)
        assert says in capsys.readouterr().err


def test_a_saved_adapter_loads_as_it_was(tmp_path):
    model = load("grouped", tmp_path)
    parameters = lora.add_adapter(model, rank=2, alpha=6, dropout=0.1)
    for p in parameters:
        torch.nn.init.normal_(p, std=0.2)
    lora.save_adapter(model, tmp_path / "saved", base_model="somebody/llama")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    saved = {"r": 2, "lora_alpha": 6, "lora_dropout": 0.1, "base_model_name_or_path": "somebody/llama"}
    assert config.items() >= saved.items()
    again = load("grouped", tmp_path)
    lora.load_adapter(again, tmp_path / "saved")
    model.eval()
    close(again(ROW), model(ROW), 1e-5)


def low_rank(rank, layer, scale=1.0):
    """A random A (rank, in) and B (out, rank) for a layer."""
    return torch.randn(rank, layer.in_features) * scale, torch.randn(layer.out_features, rank) * scale


def trained(layer, pair, scale=1.0):
    """The layer with the newest adapter (A, B)."""
    layer.lora_A, layer.lora_B, layer.scale = *(torch.nn.Parameter(half) for half in pair), scale
    return layer


def definition(layer, x):
    """LoRA's equation (Hu et al., 2021) in float64 with the adapters of a layer that act."""
    double = lambda p: None if p is None else p.double()
    pairs = [(A.double(), B.double(), scale) for A, B, scale in layer.acting()]
    return adapted_linear(x.double(), double(layer.weight), double(layer.bias), pairs)


def test_a_layer_with_a_frozen_and_a_new_adapter_gives_the_definition_gradients_too():
    torch.manual_seed(0)
    layer = LoraLinear(Linear(48, 64))
    layer.freeze(*low_rank(12, layer), 0.5, 0)
    trained(layer, low_rank(12, layer), 2.0)
    x, g = torch.randn(300, 48, requires_grad=True), torch.randn(300, 64)
    inputs = x, layer.lora_A, layer.lora_B
    y, exact = layer(x), definition(layer, x)
    gradients, exact_gradients = torch.autograd.grad(y, inputs, g), torch.autograd.grad(exact, inputs, g.double())
    for ours, theirs in zip((y, *gradients), (exact, *exact_gradients)):
        assert (ours.double() - theirs).norm() < 1e-6 * theirs.norm()


def test_the_definition_is_the_equation_of_lora():
    """y = W x + b + Σ_i scale_i B_i A_i x, by loops over numbers."""
    torch.manual_seed(0)
    W, b, x = torch.randn(3, 4).tolist(), torch.randn(3).tolist(), torch.randn(4).tolist()
    pairs = [(torch.randn(r, 4).tolist(), torch.randn(3, r).tolist(), scale) for r, scale in ((2, 0.5), (1, 3.0))]
    y = [b[o] + sum(W[o][i] * x[i] for i in range(4)) for o in range(3)]
    for A, B, scale in pairs:
        for o in range(3):
            y[o] += sum(scale * B[o][k] * A[k][i] * x[i] for k in range(len(A)) for i in range(4))
    tensors = [(torch.tensor(A), torch.tensor(B), scale) for A, B, scale in pairs]
    close(adapted_linear(torch.tensor(x), torch.tensor(W), torch.tensor(b), tensors), torch.tensor(y), 1e-6)


FIELDS = json.loads((RECORDINGS / "peft-plain" / "adapter_config.json").read_text())   # all that peft's LoraConfig has
HARMLESS = {"auto_mapping": {"parent_library": "a"}, "base_model_name_or_path": "x", "revision": "x",
            "inference_mode": False, "peft_version": "99", "task_type": "CAUSAL_LM", "lora_dropout": 0.5,
            "megatron_core": "x", "qalora_group_size": 3, "eva_config": {"rho": 2.0}, "loftq_config": {"loftq_bits": 4},
            "corda_config": {"corda_method": "ipm"}, "lora_ga_config": {"scale": "unit"},
            "exclude_modules": ["embed_tokens"], "layers_to_transform": [0, 1], "layers_pattern": "layers",
            "rank_pattern": {"k_proj": 3}, "alpha_pattern": {"k_proj": 6}}
COMPUTED = {"r", "lora_alpha", "use_rslora", "target_modules"}
REFUSED = sorted(FIELDS.keys() - HARMLESS.keys() - COMPUTED - {"peft_type", "init_lora_weights"})


def changed(folder, name="default", **fields):
    """An adapter for the model of that name, with other fields in its configuration."""
    path = ours(name, "changed", folder)
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return path


def test_fields_that_change_nothing_change_nothing(tmp_path):
    _, plain = lora.read_adapter(ours("default", "changed", tmp_path))
    _, other = lora.read_adapter(changed(tmp_path, **HARMLESS))
    assert plain.keys() == other.keys()
    for (A, B, scale), (other_A, other_B, other_scale) in zip(plain.values(), other.values()):
        assert torch.equal(A, other_A) and torch.equal(B, other_B) and scale == other_scale


@pytest.mark.parametrize("field", [*REFUSED, "a_field_of_tomorrow"])
def test_every_other_field_of_pefts_configuration_is_refused_by_name_unless_it_is_at_its_default(field, tmp_path):
    lora.read_adapter(changed(tmp_path, **{field: FIELDS.get(field)}))
    for value in (True, 3, "all", [[0, 2]], {"x": 1}):
        with pytest.raises(ValueError, match=f"adapter_config.json: {field} is .* not supported"):
            lora.read_adapter(changed(tmp_path, **{field: value}))


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "orthogonal", "eva", "mica"])
def test_initialisations_that_leave_the_base_weights_alone_load(init, tmp_path):
    assert len(lora.read_adapter(changed(tmp_path, init_lora_weights=init))[1]) == 15


@pytest.mark.parametrize("init, way_out", [("pissa", True), ("pissa_niter_4", True), ("olora", True), ("OLoRA", True),
                                           ("corda", True), ("lora_ga", True), ("loftq", False), ("new", False)])
def test_initialisations_that_change_the_base_weights_are_refused_with_the_way_out(init, way_out, tmp_path):
    with pytest.raises(ValueError, match=f"adapter_config.json: init_lora_weights is '{init}'") as error:
        lora.read_adapter(changed(tmp_path, init_lora_weights=init))
    assert ("path_initial_model_for_weight_conversion" in str(error.value)) == way_out and "\n" not in str(error.value)


@pytest.mark.parametrize("fields", [{"target_modules": ["q_proj"]}, {"target_modules": r".*\.layers\..*"},
                                    {"layers_to_transform": 1}, {"exclude_modules": ["lm_head"]},
                                    {"exclude_modules": ".*up_proj"}])
def test_tensors_that_peft_would_ignore_are_refused(fields, tmp_path):
    with pytest.raises(ValueError, match="so PEFT would ignore it"):
        lora.read_adapter(changed(tmp_path, **fields))


@pytest.mark.parametrize("fields", [{"r": 4}, {"rank_pattern": {"layers.1.self_attn.k_proj": 2}}])
def test_a_rank_that_the_tensors_contradict_is_refused(fields, tmp_path):
    with pytest.raises(ValueError, match="adapter_config.json gives this layer rank"):
        lora.read_adapter(changed(tmp_path, **fields))


def repeat(path, name, weight):
    """Adds a base weight to an adapter's file, as PEFT does for lm_head."""
    file = path / "adapter_model.safetensors"
    save_file({**load_file(file), f"base_model.model.{name}.weight": weight}, file)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tensor, name", [("lm_head.base_layer", "lm_head"),
                                          ("model.embed_tokens", "model.embed_tokens")])
def test_a_base_weight_in_the_file_has_to_be_the_models(tensor, name, dtype, tmp_path):
    folder, path, out = recorded.checkpoint("default", tmp_path), ours("default", "ours", tmp_path), tmp_path / "out"
    weight = load_file(folder / "model.safetensors")[f"{name}.weight"]
    repeat(path, tensor, weight)                     # also when one of the two has been rounded
    repeated = [path, *([ours("default", "second", tmp_path)] if dtype == torch.float32 else [])]
    lora.load_adapter(load("default", tmp_path, dtype=dtype), path)
    lora.merge(folder, [path], out)
    lora.stack(repeated, tmp_path / "stacked")
    lora.load_adapter(load("default", tmp_path, dtype=dtype), tmp_path / "stacked")
    lora.load_adapter(Llama.from_pretrained(folder, device="meta"), path, folder)
    repeat(path, tensor, weight.index_add(0, torch.tensor([5]), torch.ones(1, weight.shape[1])))
    lora.stack([path], tmp_path / "stacked")
    for refused in (lambda: lora.load_adapter(load("default", tmp_path, dtype=dtype), path),
                    lambda: lora.merge(folder, [path], out),
                    lambda: lora.load_adapter(load("default", tmp_path, dtype=dtype), tmp_path / "stacked"),
                    lambda: lora.load_adapter(Llama.from_pretrained(folder, device="meta"), path, folder)):
        with pytest.raises(ValueError, match=f"adapter_model.safetensors: {name}.weight differs from the model's"):
            refused()


# ---- stacks --------------------------------------------------------------------------------------------------------

def test_a_new_adapter_changes_nothing_and_only_it_learns(tmp_path):
    model = load("grouped", tmp_path)
    before = model(ROW)
    lora.load_adapter(model, ours("grouped", "first", tmp_path))
    with_first = model(ROW)
    parameters = lora.add_adapter(model, rank=2, alpha=4)
    with torch.no_grad():
        assert torch.equal(model(ROW), with_first) and not torch.allclose(before, with_first)
    assert len(parameters) == 2 * 15 and [p for p in model.parameters() if p.requires_grad] == parameters
    assert all(p.dtype == torch.float32 for p in parameters)


def test_dropout_drops_with_its_probability_any_two_inputs_independently():
    layer = LoraLinear(Linear(64, 8))
    layer.dropout, n = 0.3, 20000
    drop = torch.stack([layer.dropped(torch.zeros(3, 64)) for _ in range(n)]).double()         # (n, T, in)
    assert (drop.mean(0) - 0.3).abs().max() < 5 * (0.3 * 0.7 / n) ** 0.5
    flat = drop.flatten(1)
    both = flat.T @ flat / n - torch.eye(flat.shape[1]) * 0.3 * 0.7               # how often both of a pair are dropped
    assert (both - 0.09).abs().max() < 6 * (0.09 * 0.91 / n) ** 0.5
    layer.dropout = 0.0
    assert not layer.dropped(torch.zeros(3, 64)).any()


def test_adapters_follow_their_layer_to_its_device(tmp_path, monkeypatch):
    model = load("grouped", tmp_path)
    monkeypatch.setattr("engine.lora_layer.adapter_device", lambda layer: torch.device("meta"))    # in place of a GPU
    for _ in range(2):
        lora.load_adapter(model, ours("grouped", "first", tmp_path))
    frozen = [p for layer in lora.layers(model).values() for p in (layer.frozen_A, layer.frozen_B)]
    assert frozen and all(p.is_meta for p in frozen)


def test_folded_adapters_compute_the_same_in_float32_and_lower_precisions_are_left_alone(tmp_path):
    model = load("grouped", tmp_path)
    before = model(ROW)
    for _ in range(2):
        lora.load_adapter(model, ours("grouped", "first", tmp_path))
    with_adapters, embedding = model(ROW), model.embed_tokens.weight.clone()
    lora.fold(model)
    assert all(layer.frozen_A is None for layer in lora.layers(model).values())
    assert torch.equal(model.embed_tokens.weight, embedding)
    assert (model(ROW) - with_adapters).norm() < 1e-5 * with_adapters.norm() < 1e-4 * (with_adapters - before).norm()
    lora.load_adapter(model.bfloat16(), ours("grouped", "first", tmp_path))
    lora.fold(model)
    assert all(layer.frozen_A is not None for layer in lora.layers(model).values())


def test_with_a_seed_dropout_does_not_depend_on_the_row():
    torch.manual_seed(0)
    size = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    model = Llama(Config(**size))
    for p in lora.add_adapter(model, rank=2, alpha=4, dropout=0.5):
        torch.nn.init.normal_(p)
    tokens, row = lora.noise(7), torch.arange(7)[None]
    lora.seed_dropout(model, 3, tokens, tokens)
    whole = model(row)
    lora.seed_dropout(model, 3, tokens[:4], tokens[:4])
    assert torch.allclose(model(row[:, :4]), whole[:, :4], atol=1e-5)
    lora.seed_dropout(model, 4, tokens[:4], tokens[:4])
    assert not torch.allclose(model(row[:, :4]), whole[:, :4], atol=1e-1)


def test_the_teacher_has_all_adapters_but_the_newest_and_no_dropout(tmp_path):
    model = load("grouped", tmp_path)
    lora.load_adapter(model, ours("grouped", "first", tmp_path))
    teacher = model(ROW)
    for p in lora.add_adapter(model, rank=2, alpha=4, dropout=0.5):
        torch.nn.init.normal_(p, std=0.2)
    with torch.no_grad():
        student = model(ROW)
        with lora.without_newest(model):
            assert torch.equal(model(ROW), teacher)
        assert torch.equal(model(ROW), student)                                    # no dropout without gradients
    assert not torch.allclose(model(ROW), student)                                 # dropout where there are


def test_a_teacher_may_have_only_the_first_adapters(tmp_path):
    """The second adapter adapts fewer layers than the others."""
    first, second = ours("grouped", "first", tmp_path), tmp_path / "second"
    model, expected = load("grouped", tmp_path), [load("grouped", tmp_path)(ROW)]
    lora.load_adapter(model, first)
    expected.append(model(ROW))
    for p in lora.add_adapter(model, rank=3, alpha=6, targets=["q_proj", "down_proj"]):
        torch.nn.init.normal_(p, std=0.2)
    expected.append(model(ROW))
    lora.save_adapter(model, second)
    model = load("grouped", tmp_path)
    for path in (first, second, ours("grouped", "third", tmp_path)):
        lora.load_adapter(model, path)
    lora.add_adapter(model, rank=2, alpha=4)
    with torch.no_grad():
        for n in range(3):
            with lora.without_newest(model, n):
                close(model(ROW), expected[n], 1e-5)
        assert not torch.allclose(model(ROW), expected[2], atol=1e-2)


def test_adapters_on_bfloat16_weights_are_float32_and_are_not_merged(tmp_path):
    model = load("grouped", tmp_path, dtype=torch.bfloat16)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    lora.load_adapter(model, ours("grouped", "first", tmp_path))
    lora.add_adapter(model, rank=2, alpha=4)
    layer = model.layers[0].mlp.down_proj
    assert {layer.frozen_A.dtype, layer.frozen_B.dtype, layer.lora_A.dtype} == {torch.float32}
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters() if name in weights)
    x = torch.randn(5, layer.in_features, dtype=torch.bfloat16)
    exact = definition(layer, x)
    assert ((layer(x).double() - exact).norm() / exact.norm()) < 0.01              # bfloat16 has 8 bits
    torch.nn.init.normal_(layer.lora_B, std=0.1)
    gradients = []
    for mixed in (False, True):                                                    # as distill.py computes on a GPU
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            y = layer(x)
        gradients.append(torch.autograd.grad(y, (layer.lora_A, layer.lora_B), torch.ones_like(y)))
        exact_y = definition(layer, x)
        assert y.dtype == torch.bfloat16 and ((y.double() - exact_y).norm() / exact_y.norm()) < 0.01
    assert all(b.dtype == torch.float32 and ((a - b).norm() / a.norm()) < 0.02 for a, b in zip(*gradients))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_bfloat16_layer_does_not_lose_an_update_that_is_smaller_than_its_last_digit(mixed, frozen):
    torch.manual_seed(0)
    layer = LoraLinear(Linear(256, 512, bias=True)).bfloat16()
    layer.bias.data = layer.bias.data.to(torch.float32 if mixed else torch.bfloat16)         # as distill.py on a CPU
    if frozen:
        layer.freeze(torch.randn(8, 256) / 16, torch.randn(512, 8), 1.0, 0)
    trained(layer, (torch.randn(4, 256) / 16, torch.randn(512, 4) * 2 ** -12))
    x = torch.randn(3, 100, 256, dtype=torch.bfloat16)
    update = x.double() @ layer.lora_A.double().T @ layer.lora_B.double().T
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        with_update = layer(x)
        layer.use_newest = False
        without = layer(x)
    assert with_update.dtype == without.dtype == torch.bfloat16
    with_update, without = with_update.double(), without.double()
    assert update.norm() < 2 ** -10 * without.norm()
    kept = (with_update - without).flatten() @ update.flatten() / update.norm() ** 2
    assert abs(kept - 1) < 0.2                                                     # on average all of it is there


@pytest.mark.parametrize("weight", [1, 0.25])
def test_a_stacked_adapter_is_the_weighted_sum_of_several(weight, tmp_path):
    paths = [ours("default", name, tmp_path, rank, alpha) for name, rank, alpha in (("first", 3, 6), ("second", 5, 5))]
    paths.append(RECORDINGS / "peft-plain")
    lora.stack(paths, tmp_path / "stacked", weight)
    one, several = load("default", tmp_path), load("default", tmp_path)
    lora.load_adapter(one, tmp_path / "stacked")
    for number, path in enumerate(paths):
        for name, (A, B, scale) in lora.read_adapter(path)[1].items():
            lora.adapted(several, name).freeze(A, B, weight * scale, number)
    close(one(ROW), several(ROW), 1e-5)
    assert json.loads((tmp_path / "stacked" / "adapter_config.json").read_text())["r"] == 3 + 5 + 3


@pytest.mark.parametrize("base", ["grouped", "llama3"])                            # the second has tied embeddings
def test_merged_weights_compute_what_the_adapters_do_and_the_loss_of_rounding_is_told(base, tmp_path, capsys):
    paths = [ours(base, "first", tmp_path), ours(base, "second", tmp_path)]
    lora.merge(recorded.checkpoint(base, tmp_path), paths, tmp_path / "merged")
    several = load(base, tmp_path)
    for path in paths:
        lora.load_adapter(several, path)
    close(Llama.from_pretrained(tmp_path / "merged")(ROW), several(ROW), 1e-4)
    assert "rounding to float32 lost 0.00% of the update" in capsys.readouterr().out

    folder = tmp_path / base
    rounded = {name: t.bfloat16() for name, t in load_file(folder / "model.safetensors").items()}
    save_file(rounded, folder / "model.safetensors")
    for path in paths:                                   # an update as small as distillation's
        file = path / "adapter_model.safetensors"
        save_file({name: t * 1e-3 if "lora_B" in name else t for name, t in load_file(file).items()}, file)
    lora.merge(folder, paths, tmp_path / "rounded")
    lost = float(capsys.readouterr().out.split("lost ")[1].split("%")[0])
    merged, asked, rounding = load_file(tmp_path / "rounded" / "model.safetensors"), 0.0, 0.0
    base_weights = {"lm_head.weight": rounded["model.embed_tokens.weight"]} | rounded
    for name in recorded.shapes(recorded.MODELS[base]):
        delta = 0
        for path in paths:
            t = load_file(path / "adapter_model.safetensors")
            A, B = (t[f"base_model.model.{name}.lora_{half}.weight"].double() for half in "AB")
            delta = delta + 2.0 * B @ A
        asked += delta.pow(2).sum()
        rounding += (merged[f"{name}.weight"].double() - base_weights[f"{name}.weight"].double() - delta).pow(2).sum()
    assert lost == pytest.approx(100 * (rounding / asked).sqrt().item(), rel=0.01) and lost > 1


def test_a_stack_of_more_ranks_than_vllm_serves_says_so(tmp_path, capsys):
    paths = []
    for rank in (256, 257):
        paths.append(tmp_path / str(rank))
        lora.write_adapter(paths[-1], {"lm_head": (torch.zeros(rank, 48), torch.zeros(96, rank))}, rank, rank)
        lora.stack(paths, tmp_path / "stacked")
        said = capsys.readouterr().out.splitlines()[1:]
        assert [("vLLM" in line, "merge" in line) for line in said] == [(True, True)] * (rank > 256)


# ---- export for vLLM

def logits_as_vllm_reads(base, folder, tmp_path):
    """What a server computes that reads three fields of adapter_config.json and nothing but low-rank updates."""
    config, tensors = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / ADAPTER)
    assert not config.get("use_rslora") and not config.get("modules_to_save")
    assert all(re.fullmatch(r"base_model\.model\..+\.lora_[AB]\.weight", key) for key in tensors)
    model, scale = load(base, tmp_path), config["lora_alpha"] / config["r"]
    for key in tensors:
        if "lora_A" in key:
            A, B = tensors[key], tensors[key.replace("lora_A", "lora_B")]
            assert len(A) <= config["r"]
            name = key.removeprefix("base_model.model.").removeprefix("model.").removesuffix(".lora_A.weight")
            lora.adapted(model, name).freeze(A, B, scale, 0)
    return model(ROW)


def several_logits(base, paths, tmp_path):
    model = load(base, tmp_path)
    for path in paths:
        lora.load_adapter(model, path)
    return model(ROW)


def test_an_export_has_pefts_logits_for_a_server_that_ignores_the_ranks_and_alphas_of_single_layers(tmp_path, capsys):
    lora.export(recorded.checkpoint("llama3", tmp_path), [RECORDINGS / "peft-patterns"], tmp_path / "out")
    close(logits_as_vllm_reads("llama3", tmp_path / "out", tmp_path)[0, ::8], LOGITS["peft-patterns"])
    model = load("llama3", tmp_path)
    lora.load_adapter(model, tmp_path / "out")
    close(model(ROW)[0, ::8], LOGITS["peft-patterns"])
    said = capsys.readouterr().out
    assert "vLLM ignores rank_pattern, vLLM ignores alpha_pattern" in said and "embeddings are tied" in said
    assert f"--max-lora-rank 8 --lora-modules out={tmp_path / 'out'}" in said and "--dtype bfloat16" in said


def test_several_adapters_are_exported_as_one(tmp_path, capsys, monkeypatch):
    paths = [ours("grouped", name, tmp_path, rank) for name, rank in (("first", 3), ("second", 6))]
    command = ["lora.py", "export", "--for", "vllm", "--model", recorded.checkpoint("grouped", tmp_path),
               "--adapter", paths[0], "--adapter", paths[1], "--out", tmp_path / "both"]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    lora.main()
    close(logits_as_vllm_reads("grouped", tmp_path / "both", tmp_path), several_logits("grouped", paths, tmp_path))
    assert "--max-lora-rank 16" in capsys.readouterr().out and (tmp_path / "both" / "README.md").exists()


def test_an_adapter_that_vllm_reads_as_it_is_stays_where_it_is(tmp_path, capsys):
    path = ours("grouped", "first", tmp_path)
    lora.export(recorded.checkpoint("grouped", tmp_path), [path])
    close(logits_as_vllm_reads("grouped", path, tmp_path), several_logits("grouped", [path], tmp_path))
    assert f"--lora-modules first={path}" in capsys.readouterr().out


def test_base_weights_that_peft_repeats_are_left_out(tmp_path):
    folder, path = recorded.checkpoint("default", tmp_path), ours("default", "ours", tmp_path)
    repeat(path, "lm_head.base_layer", load_file(folder / "model.safetensors")["lm_head.weight"])
    lora.export(folder, [path], tmp_path / "out")
    close(logits_as_vllm_reads("default", tmp_path / "out", tmp_path), several_logits("default", [path], tmp_path))


def test_on_a_qwen_the_user_chooses_what_becomes_of_lm_head(tmp_path):
    folder = recorded.checkpoint("qwen2-new", tmp_path)
    tensors = recorded.adapter_tensors(recorded.FAMILIES["qwen2-new"], 3, "ours")
    path = tmp_path / "ours"
    lora.write_adapter(path, {key.removeprefix("model."): pair for key, pair in tensors.items()}, 3, 6)
    with pytest.raises(ValueError, match="changes lm_head, which .* Choose: --lm-head keep, .*; --lm-head leave-out, "
                                         ".*; or `lora.py merge`"):
        lora.export(folder, [path])
    lora.export(folder, [path], lm_head="keep")
    with pytest.raises(ValueError, match="give --out, because a folder has to be written: lm_head is left out"):
        lora.export(folder, [path], lm_head="leave-out")
    lora.export(folder, [path], tmp_path / "out", "leave-out")
    assert "The same adapter in another form, but without lm_head." in (tmp_path / "out" / "README.md").read_text()
    whole, without = (lora.read_adapter(p)[1] for p in (path, tmp_path / "out"))
    assert whole.keys() - without.keys() == {"lm_head"} and whole.keys() > without.keys()


@pytest.mark.parametrize("config, rank, message", [
    ({}, 513, "have rank 513 together, and vLLM serves at most 512; use `lora.py merge`"),
    ({"vocab_size": 258_049}, 4, "config.json: the vocabulary has 258,049 tokens, .* at most 258,048")])
def test_what_vllm_cannot_serve_is_refused(config, rank, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        vllm.check_limits(Config(**recorded.SIZE | config), rank, tmp_path)
    vllm.check_limits(Config(**recorded.SIZE | {"vocab_size": 258_048}), 512, tmp_path)


def test_merge_keeps_what_else_is_in_the_folder_but_no_other_weights(tmp_path):
    folder = recorded.checkpoint("default", tmp_path)
    kept = {"tokenizer.model", "merges.txt", "vocab.json", "LICENSE", "LICENSE.txt", "README.md", "chat_template.jinja",
            "generation_config.json", "tokenizer_config.json"}
    left = {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.gguf", ".gitattributes",
            "adapter_config.json"}                                 # transformers would add the adapter once more
    for name in kept | left:
        (folder / name).write_text(json.dumps({"name": name}))
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "model-00001-of-00002.safetensors.part").touch()        # of a run that was killed
    lora.merge(folder, [ours("default", "first", tmp_path)], tmp_path / "merged")
    (tmp_path / "merged" / "model-00001-of-00002.safetensors.part").unlink()
    assert {file.name for file in (tmp_path / "merged").iterdir()} == kept | {"config.json", "model.safetensors"}
    assert all(json.loads((tmp_path / "merged" / name).read_text()) == {"name": name} for name in kept)


@pytest.mark.parametrize("head", ["embedding", "its own"])
@pytest.mark.parametrize("adapted", [True, False])
def test_merge_keeps_a_head_in_the_file_of_a_tied_model(head, adapted, tmp_path):
    folder, path = recorded.checkpoint("llama3", tmp_path), ours("llama3", "first", tmp_path)
    weights = load_file(folder / "model.safetensors")
    W = weights["model.embed_tokens.weight"] * (1 if head == "embedding" else 2)
    save_file(weights | {"lm_head.weight": W.clone()}, folder / "model.safetensors")
    _, adapter = lora.read_adapter(path)
    if adapted:
        W = W + adapter["lm_head"][2] * adapter["lm_head"][1] @ adapter["lm_head"][0]
    else:
        lora.write_adapter(path, {name: (A, B) for name, (A, B, _) in adapter.items() if name != "lm_head"}, 3, 6)
    lora.merge(folder, [path], tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    close(merged["lm_head.weight"], W, 1e-6)
    assert torch.equal(merged["model.embed_tokens.weight"], weights["model.embed_tokens.weight"])
    close(Llama.from_pretrained(tmp_path / "merged").lm_head.weight, W, 1e-6)


# ---- bad input -----------------------------------------------------------------------------------------------------

def broken(change):
    def damage(folder):
        file = folder / "adapter_config.json"
        file.write_text(change(file.read_text()))
    return damage


def truncate(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])


def one_more_tensor(folder):
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(2, 3)}, file)


@pytest.mark.parametrize("damage, message", [
    (broken(lambda text: text[:-5]), r"adapter_config.json, line \d+: not JSON"),
    (broken(lambda text: text.replace('"LORA"', '"IA3"')), "peft_type is 'IA3'; only LORA"),
    (broken(lambda text: text.replace('"bias": "none"', '"bias": "all"')), "bias is 'all', which is not supported"),
    (truncate, "cannot be read as an adapter"),
    (one_more_tensor, "lora_embedding_A: not supported"),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), "cannot be read as an adapter"),
])
def test_a_broken_adapter_is_one_line_naming_the_file(damage, message, tmp_path):
    path = ours("grouped", "broken", tmp_path)
    damage(path)
    with pytest.raises(ValueError, match=message) as error:
        lora.load_adapter(load("grouped", tmp_path), path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_the_command_stacks_and_ends_in_one_line_when_it_cannot(tmp_path):
    paths = [ours("default", name, tmp_path) for name in "ab"]
    command = [sys.executable, ROOT / "lora.py", "stack", *paths, "--out", tmp_path / "both"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "one adapter of rank 6 on 15 layers" in done.stdout
    command[3] = tmp_path / "nowhere"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
