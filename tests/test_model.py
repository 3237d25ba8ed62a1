"""model.py against recordings of transformers (tests/recordings/make.py) and against plain recomputation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import kernels
import model
from decoder import above, below
from model import Config, Llama, Request, Sampler
from sampler import draw

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "recordings"))
import make as recorded     # noqa: E402

LOGITS = load_file(ROOT / "tests" / "recordings" / "logits.safetensors")
GREEDY = json.loads((ROOT / "tests" / "recordings" / "greedy.json").read_text())
MODELS = list(recorded.MODELS)


def load(name, folder, **how):
    return Llama.from_pretrained(recorded.checkpoint(name, folder), **how)


def relative(ours, theirs):
    return ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()


@torch.no_grad()
def recompute(model, prompt, n):
    """Greedy text by the whole forward pass for every token."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt):]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load("grouped", tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("bias", [None, torch.arange(1024.0)])
@pytest.mark.parametrize("without", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 16])
def test_a_few_rows_times_slices_of_a_weight_are_their_product(rows, without, bias, monkeypatch):
    monkeypatch.setattr(kernels, "WITHOUT_AVX512", without)
    x, weight = torch.randn(1, rows, 512), torch.randn(1024, 512)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    monkeypatch.setattr(kernels.F, "linear", None)                      # which is for all other shapes
    with torch.no_grad():
        torch.testing.assert_close(kernels.linear(x, weight, bias).double(), expected, rtol=1e-5, atol=1e-4)


def test_some_rows_by_a_vocabulary_are_multiplied_slice_by_slice_gradients_too(monkeypatch):
    torch.manual_seed(0)
    x, weight, g = torch.randn(2, 20, 24, requires_grad=True), torch.randn(2 ** 15, 24), torch.randn(2, 20, 2 ** 15)
    monkeypatch.setattr(kernels.F, "linear", None)
    y = kernels.linear(x, weight)
    torch.testing.assert_close(y.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0].double(), g.double() @ weight.double(), rtol=1e-5, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(kernels.linear(x, weight).double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("T, S", [(1, 9), (64, 64), (150, 150), (70, 200)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_by_plain_products_and_its_gradients_are_those_of_a_loop_in_float64(T, S, dtype, tolerance):
    torch.manual_seed(0)
    q, k, v, g = (torch.randn(2, heads, n, 16).to(dtype).requires_grad_() for heads, n in ((6, T), (2, S), (2, S), (6, T)))
    y = kernels.CausalAttention.apply(q, k, v)
    q_, k_, v_ = ours = [x.detach().double().requires_grad_() for x in (q, k, v)]
    rows = [[(q_[b, h, t] @ k_[b, h // 3, :S - T + t + 1].T / 4).softmax(-1) @ v_[b, h // 3, :S - T + t + 1] for t in range(T)] for b in range(2) for h in range(6)]
    expected = torch.stack([torch.stack(row) for row in rows]).view(2, 6, T, 16)
    pairs = [(y, expected), *zip(torch.autograd.grad(y, (q, k, v), g), torch.autograd.grad(expected, ours, g.double()))]
    assert all((a.double() - b).norm() <= tolerance * b.norm() for a, b in pairs)


# ---- exact ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", MODELS)
def test_logits_are_transformers_also_beyond_the_original_context(name, tmp_path):
    ours = load(name, tmp_path)(torch.tensor([recorded.ROW]))[0, ::8]
    torch.testing.assert_close(ours, LOGITS[name], rtol=1e-4, atol=1e-4 * LOGITS[name].abs().max().item())


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_as_near_to_float32_as_transformers_bfloat16(name, tmp_path):
    ours = load(name, tmp_path, dtype=torch.bfloat16)(torch.tensor([recorded.ROW]))[0, ::8]
    assert relative(ours, LOGITS[name]) < 1.25 * relative(LOGITS[f"{name} bfloat16"], LOGITS[name])


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_transformers_over_200_tokens_in_ragged_batches_and_with_prefix_reuse(name, tmp_path):
    sampler = Sampler(load(name, tmp_path), batch=3, max_length=300)        # five prompts: two have to wait for a slot
    assert sampler.generate(recorded.PROMPTS, max_new_tokens=200) == GREEDY[name]
    longer = [prompt + text[:120] for prompt, text in zip(recorded.PROMPTS, GREEDY[name])]
    before = sampler.prefilled
    assert sampler.generate(longer, max_new_tokens=80) == [text[120:] for text in GREEDY[name]]
    assert sampler.prefilled - before < sum(map(len, longer)) - 2 * 120     # the slots' last owners at least are not computed again


def test_bfloat16_decoding_follows_the_bfloat16_forward_pass(tmp_path):
    model = load("grouped", tmp_path, dtype=torch.bfloat16)
    prompt = recorded.PROMPTS[3]
    text = Sampler(model, batch=2, max_length=100).generate([prompt], max_new_tokens=40)[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + text]))[0, len(prompt) - 1:-1].float()
    chosen = logits.gather(1, torch.tensor(text)[:, None])[:, 0]
    assert (logits.max(-1).values - chosen).max() < 0.05 * logits.abs().max()       # near ties may fall the other way


# ---- the sampler ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ahead, shared", [(False, 70), (True, 70), (True, 300)])       # ahead: as on a GPU, where a beginning is shared from 256 tokens on
def test_agents_of_different_speed_share_one_batch_and_each_gets_its_own_text(ahead, shared, tiny):
    hints = recorded.tokens("hints", shared)
    sampler = Sampler(tiny, batch=6, max_length=shared + 330, ahead=ahead)
    conversations = {i: hints + recorded.tokens(f"agent {i}", 3 + 4 * i) for i in range(9)}
    left = dict.fromkeys(conversations, 3)
    for i, prompt in conversations.items():
        sampler.add(Request(i, list(prompt), max_new_tokens=5 + 7 * (i % 4)))
    while not sampler.idle:
        for request in sampler.step():
            assert request.ended == "length" and request.new_ids == recompute(tiny, request.prompt, request.max_new_tokens)
            left[request.key] -= 1
            if left[request.key]:                                           # what it said and what the world answers
                prompt = request.prompt + request.new_ids + recorded.tokens(f"{request.key} {left[request.key]}", 5)
                sampler.add(Request(request.key, prompt, max_new_tokens=3 + request.key))
    assert not any(left.values())


@pytest.mark.parametrize("ahead", [False, True])
def test_few_scattered_slots_decode_as_alone(ahead, tiny):
    sampler = Sampler(tiny, batch=32, max_length=100, ahead=ahead)
    prompts = [recorded.tokens(f"scattered {i}", 5 + i) for i in range(32)]
    requests = [Request(i, prompt, max_new_tokens=20 if i in (3, 30) else 1) for i, prompt in enumerate(prompts)]
    for request in requests:
        sampler.add(request)
    while not sampler.idle:
        sampler.step()
    assert all(r.new_ids == recompute(tiny, r.prompt, r.max_new_tokens) for r in requests)


def test_a_conversation_pays_for_its_new_tokens_only_and_a_common_beginning_is_computed_once(tiny):
    hints = recorded.tokens("hints", 100)
    prompts = [hints + recorded.tokens(f"question {i}", 10) for i in range(4)]
    sampler = Sampler(tiny, batch=4, max_length=200)
    texts = sampler.generate(prompts, max_new_tokens=8)
    assert sampler.prefilled <= 100 + 4 * 10
    before = sampler.prefilled
    sampler.generate([p + t + [5, 6, 7] for p, t in zip(prompts, texts)], max_new_tokens=8)
    assert sampler.prefilled - before == 4 * (1 + 3)                        # the last sampled token had no keys yet
    before = sampler.prefilled
    sampler.generate([prompts[0]], max_new_tokens=1)
    assert sampler.prefilled - before == 1                                  # a known prompt costs one token


def test_a_waiting_conversation_keeps_its_slot_while_another_one_has_waited_longer(tiny):
    sampler = Sampler(tiny, batch=2, max_length=100)
    old, recent, new = (recorded.tokens(name, 20) for name in ("old", "recent", "new"))
    for prompt in (old, recent, new):                                       # `new` takes the slot of `old`
        sampler.generate([prompt], max_new_tokens=1)
    before = sampler.prefilled
    sampler.generate([recent + [5]], max_new_tokens=1)
    assert sampler.prefilled - before == 1
    sampler.generate([old], max_new_tokens=1)
    assert sampler.prefilled - before == 1 + 20


@pytest.mark.parametrize("ahead", [False, True])
def test_the_stop_id_is_the_last_id_and_a_full_cache_ends_a_request(ahead, tiny):
    text = recompute(tiny, recorded.PROMPTS[2], 30)
    stop = text[12]
    sampler = Sampler(tiny, batch=2, max_length=20, ahead=ahead)
    assert Sampler(tiny, batch=2, max_length=80, ahead=ahead).generate([recorded.PROMPTS[2]], 30, stop_ids=[stop])[0] == text[:text.index(stop) + 1]
    long, full = Request("long", recorded.tokens("long", 21)), Request("full", recorded.PROMPTS[2])
    sampler.add(long), sampler.add(full)
    while not sampler.idle:
        sampler.step()
    assert (long.new_ids, long.ended) == ([], "length")
    assert (full.new_ids, full.ended) == (text[:20 - 9 + 1], "length")      # the last one needs no place in the cache
    with pytest.raises(ValueError, match="prompt is empty"):
        sampler.add(Request("empty", []))


def chi_square(counts, expected):
    """Is at most this with probability 0.9999 if the counts follow the expectation (Wilson and Hilferty)."""
    degrees = len(expected) - 1
    limit = degrees * (1 - 2 / (9 * degrees) + 3.72 * (2 / (9 * degrees)) ** 0.5) ** 3
    return ((counts - expected) ** 2 / expected).sum().item(), limit


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8), (1.0, 0.3), (1.0, 0.0)])
def test_sampling_follows_temperature_and_top_p(temperature, top_p):
    n, logits = 40000, torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, 1.5, -1.0, -2.0])
    p = (logits.double() / temperature).softmax(0)
    for i, token in enumerate(order := p.argsort(descending=True).tolist()):            # the smallest set with at least top_p
        if i and p[order[:i]].sum() >= top_p:
            p[token] = 0
    u = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).tolist()
    ids = draw(logits.expand(n, -1), [temperature] * n, [top_p] * n, u)
    counts = torch.bincount(ids, minlength=8).double()
    assert not counts[p == 0].any()
    if (p > 0).sum() > 1:
        value, limit = chi_square(counts[p > 0], n * p[p > 0] / p.sum())
        assert value < limit


def test_sampled_first_tokens_follow_the_models_distribution(tiny):
    prompt, n = recorded.PROMPTS[1], 3000
    with torch.no_grad():
        p = (tiny(torch.tensor([prompt]))[0, -1].double() / 1.5).softmax(0)
    ids = Sampler(tiny, batch=64, max_length=8).generate([prompt] * n, max_new_tokens=1, temperature=1.5)
    counts = torch.bincount(torch.tensor(ids)[:, 0], minlength=len(p)).double()
    common = n * p > 5                                                      # rare ones as one class
    value, limit = chi_square(*(torch.cat((x[common], x[~common].sum()[None])) for x in (counts, n * p)))
    assert value < limit


@pytest.mark.parametrize("ahead", [False, True])
def test_tokens_do_not_depend_on_what_shares_the_batch(ahead, tiny):
    requests = [Request(i, recorded.PROMPTS[i % 5], 40, temperature=(0.0, 0.8, 1.2)[i % 3], top_p=(1.0, 0.9)[i % 2], seed=f"a{i}")
                for i in range(10)]
    alone = [Request(r.key, r.prompt, 40, r.temperature, r.top_p, seed=r.seed) for r in requests]
    together = Sampler(tiny, batch=7, max_length=100, ahead=ahead)
    for request in requests:
        together.add(request)
    while not together.idle:
        together.step()
    for request, single in zip(requests, alone):
        sampler = Sampler(tiny, batch=1, max_length=100)
        sampler.add(single)
        while not sampler.idle:
            sampler.step()
        assert single.new_ids == request.new_ids
    assert len({tuple(r.new_ids) for r in requests[1::3]}) > 2              # and different seeds differ


def test_a_conversation_goes_on_from_what_was_decoded_ahead_of_it(tiny):
    """When a request ends, the token after its last is under way already; the next turn must not take that for its own."""
    prompts = [recorded.tokens(f"ahead {i}", 9 + i) for i in range(4)]
    sampler = Sampler(tiny, batch=4, max_length=120, ahead=True)
    for turn in range(3):
        texts = sampler.generate(prompts, max_new_tokens=30, stop_ids=range(turn, 300, 7))
        for prompt, text in zip(prompts, texts):
            assert text == recompute(tiny, prompt, len(text)) and (len(text) == 30 or text[-1] % 7 == turn)
        assert min(map(len, texts)) < 30
        prompts = [prompt + text + [3 + turn] for prompt, text in zip(prompts, texts)]


def test_a_gpus_sizes_are_few_and_at_most_half_too_large():
    assert all(n <= above(n) <= max(256, 3 * n // 2) and below(n) <= n < 2 * max(below(n), 128) for n in range(1, 20000))
    assert len({above(n) for n in range(1, 20000)}) == 14


# ---- loading -------------------------------------------------------------------------------------------------------

def shard(folder):
    """The checkpoint in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {n: f for f, part in parts.items() for n in part}}))
    return parts


def test_sharded_and_single_checkpoints_load_alike(tmp_path):
    folder = recorded.checkpoint("grouped", tmp_path)
    single = Llama.from_pretrained(folder)(torch.tensor([recorded.ROW]))
    shard(folder)
    assert torch.equal(Llama.from_pretrained(folder)(torch.tensor([recorded.ROW])), single)


def test_weights_are_the_mapped_file_and_not_a_copy(tmp_path):
    folder = recorded.checkpoint("llama3", tmp_path)
    model = Llama.from_pretrained(folder)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()] if Path("/proc/self/maps").exists() else []
    ranges = [[int(x, 16) for x in m[0].split("-")] for m in maps if m[-1] == str(folder / "model.safetensors")]
    if not maps:
        pytest.skip("this system does not list its memory maps")
    assert all(any(a <= p.data_ptr() < b for a, b in ranges) for p in model.parameters())
    assert model.lm_head.weight is model.embed_tokens.weight


def test_saved_weights_have_the_formats_names(tmp_path):
    for name in ("grouped", "llama3"):
        folder = recorded.checkpoint(name, tmp_path)
        theirs, ours = load_file(folder / "model.safetensors"), Llama.from_pretrained(folder).hf_state_dict()
        assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)


def test_all_end_of_text_ids_are_read(tmp_path):
    folder = recorded.checkpoint("default", tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert Config.from_json(folder / "config.json").eos_token_id == [7, 9]


@pytest.mark.parametrize("damage, named", [
    ("architecture", ["config.json", "mistral"]), ("rope", ["config.json", "yarn"]), ("no config", ["config.json"]),
    ("missing shard", ["model-00002-of-00002.safetensors", "model.layers.0"]), ("truncated", ["model-00001-of-00002.safetensors", "embed_tokens"]),
    ("shape", ["model-00001-of-00002.safetensors", "model.embed_tokens.weight", "[96, 48]", "[97, 48]"]),
    ("missing tensor", ["model.norm.weight"]), ("nothing", ["model.safetensors"]), ("index", ["model.safetensors.index.json"])])
def test_a_broken_checkpoint_is_one_line_naming_file_and_tensor(damage, named, tmp_path):
    folder = recorded.checkpoint("grouped", tmp_path)
    parts = list(shard(folder))
    config, index = json.loads((folder / "config.json").read_text()), folder / "model.safetensors.index.json"
    if damage == "architecture":
        config["model_type"] = "mistral"
    elif damage == "rope":
        config["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 1e4}
    elif damage == "missing shard":
        (folder / parts[1]).unlink()
    elif damage == "truncated":
        (folder / parts[0]).write_bytes((folder / parts[0]).read_bytes()[:-100])
    elif damage == "shape":
        config["vocab_size"] = 97
    elif damage == "missing tensor":
        weight_map = json.loads(index.read_text())["weight_map"]
        del weight_map["model.norm.weight"]
        index.write_text(json.dumps({"weight_map": weight_map}))
    elif damage == "nothing":
        index.unlink()
    elif damage == "index":
        index.write_text("{")
    (folder / "config.json").write_text(json.dumps(config))
    if damage == "no config":
        (folder / "config.json").unlink()
    with pytest.raises(ValueError) as error:
        Llama.from_pretrained(folder)
    assert all(name in str(error.value) for name in named) and "\n" not in str(error.value)


# ---- the command ---------------------------------------------------------------------------------------------------

def test_the_command_continues_a_text_and_refuses_a_missing_model_in_one_line(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    folder = recorded.checkpoint("default", tmp_path)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    prompt, text = (" ".join(f"w{i}" for i in ids) for ids in (recorded.PROMPTS[2], GREEDY["default"][2][:15]))
    command = [sys.executable, ROOT / "model.py", "--max-new-tokens", "15", "--prompt", prompt, "--model"]
    done = subprocess.run([*command, folder], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == (text + "\n", "", 0)
    done = subprocess.run([*command, tmp_path / "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
