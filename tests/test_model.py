"""model.py against recordings of transformers (tests/recordings/make.py) and against plain recomputation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import make as recorded
from engine import kernels
from engine.decoder import above, below
from engine.sampling import draw
from model import Config, Llama, Request, Sampler

ROOT = Path(__file__).parent.parent
RECORDINGS = ROOT / "tests" / "recordings"
LOGITS = load_file(RECORDINGS / "logits.safetensors") | load_file(RECORDINGS / "families.safetensors")
GREEDY = json.loads((RECORDINGS / "greedy.json").read_text()) | json.loads((RECORDINGS / "families.json").read_text())
MODELS = [*recorded.MODELS, *recorded.FAMILIES]


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
@pytest.mark.parametrize("rows", [1, 2])
def test_a_few_rows_times_slices_of_a_weight_are_their_product(rows, without, bias, monkeypatch):
    monkeypatch.setattr(kernels, "MKL_WITHOUT_AVX512", without)
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
    torch.testing.assert_close(torch.autograd.grad(y, x, g)[0].double(), g.double() @ weight.double(), rtol=1e-5,
                               atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(kernels.linear(x, weight).double(), x.double() @ weight.double().T, rtol=1e-5,
                                   atol=1e-4)


@pytest.mark.parametrize("T, S", [(1, 9), (64, 64), (150, 150), (70, 200)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_causal_attention_and_its_gradients_are_those_of_a_loop_in_float64(T, S, dtype, tolerance):
    torch.manual_seed(0)
    q, k, v, g = (torch.randn(2, heads, n, 16).to(dtype).requires_grad_()
                  for heads, n in ((6, T), (2, S), (2, S), (6, T)))
    y = kernels.causal_attention(q, k, v)
    q_, k_, v_ = ours = [x.detach().double().requires_grad_() for x in (q, k, v)]
    rows = [[(q_[b, h, t] @ k_[b, h // 3, :S - T + t + 1].T / 4).softmax(-1) @ v_[b, h // 3, :S - T + t + 1]
             for t in range(T)] for b in range(2) for h in range(6)]
    expected = torch.stack([torch.stack(row) for row in rows]).view(2, 6, T, 16)
    torch.testing.assert_close(kernels.attention(q_, k_, v_), expected)
    pairs = [(y, expected), *zip(torch.autograd.grad(y, (q, k, v), g), torch.autograd.grad(expected, ours, g.double()))]
    assert all((a.double() - b).norm() <= tolerance * b.norm() for a, b in pairs)


@pytest.mark.parametrize("T, S, window", [(9, 9, 9), (9, 9, 1), (40, 40, 7), (30, 70, 16), (1, 50, 20), (600, 700, 30)])
def test_attention_in_a_sliding_window_and_its_gradients_are_those_of_a_loop_in_float64(T, S, window):
    torch.manual_seed(0)
    q, k, v, g = (torch.randn(2, heads, n, 8, requires_grad=True) for heads, n in ((4, T), (2, S), (2, S), (4, T)))
    y = kernels.causal_attention(q, k, v, window)
    q_, k_, v_ = ours = [x.detach().double().requires_grad_() for x in (q, k, v)]

    def attended(b, h, t):
        seen = slice(max(0, S - T + t + 1 - window), S - T + t + 1)
        return (q_[b, h, t] @ k_[b, h // 2, seen].T / 8 ** 0.5).softmax(-1) @ v_[b, h // 2, seen]

    expected = torch.stack([torch.stack([torch.stack([attended(b, h, t) for t in range(T)]) for h in range(4)])
                            for b in range(2)])
    torch.testing.assert_close(kernels.attention(q_, k_, v_, window), expected)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(torch.autograd.grad(y, (q, k, v), g), torch.autograd.grad(expected, ours, g.double())):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


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
    # the slots' last owners at least are not computed again
    assert sampler.prefilled - before < sum(map(len, longer)) - 2 * 120


def test_bfloat16_decoding_follows_the_bfloat16_forward_pass(tmp_path):
    model = load("grouped", tmp_path, dtype=torch.bfloat16)
    prompt = recorded.PROMPTS[3]
    text = Sampler(model, batch=2, max_length=100).generate([prompt], max_new_tokens=40)[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + text]))[0, len(prompt) - 1:-1].float()
    chosen = logits.gather(1, torch.tensor(text)[:, None])[:, 0]
    assert (logits.max(-1).values - chosen).max() < 0.05 * logits.abs().max()       # near ties may fall the other way


# ---- the sampler ---------------------------------------------------------------------------------------------------

# ahead: as on a GPU, where a beginning is shared from 256 tokens on
@pytest.mark.parametrize("ahead, shared", [(False, 70), (True, 70), (True, 300)])
def test_agents_of_different_speed_share_one_batch_and_each_gets_its_own_text(ahead, shared, tiny):
    hints = recorded.tokens("hints", shared)
    sampler = Sampler(tiny, batch=6, max_length=shared + 330, ahead=ahead)
    conversations = {i: hints + recorded.tokens(f"agent {i}", 3 + 4 * i) for i in range(9)}
    left = dict.fromkeys(conversations, 3)
    for i, prompt in conversations.items():
        sampler.add(Request(i, list(prompt), max_new_tokens=5 + 7 * (i % 4)))
    while not sampler.idle:
        for request in sampler.step():
            assert request.ended == "length"
            assert request.new_ids == recompute(tiny, request.prompt, request.max_new_tokens)
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


def test_a_prompt_that_is_longer_than_a_slot_is_refused(tiny):
    with pytest.raises(ValueError, match="a prompt has 11 tokens; this sampler's max_length is 10"):
        Sampler(tiny, batch=2, max_length=10).generate([[1, 2], [3] * 11])


@pytest.mark.parametrize("ahead", [False, True])
def test_a_waiting_conversation_keeps_its_slot_while_another_one_has_waited_longer(ahead, tiny):
    sampler = Sampler(tiny, batch=2, max_length=100, ahead=ahead)
    old, recent, new = (recorded.tokens(name, 20) for name in ("old", "recent", "new"))
    for prompt in (old, recent, new):                                       # `new` takes the slot of `old`
        sampler.generate([prompt], max_new_tokens=1)
    before = sampler.prefilled
    sampler.generate([recent + [5]], max_new_tokens=1)
    assert sampler.prefilled - before == 1
    sampler.generate([old], max_new_tokens=1)
    assert sampler.prefilled - before == 1 + 20


def test_no_request_waits_for_ever_behind_those_with_a_longer_cached_beginning(tiny):
    hints = recorded.tokens("hints", 20)
    sampler, waiting = Sampler(tiny, batch=4, max_length=100), Request("other", recorded.tokens("other", 20), 1)
    for n in range(16):                                                      # sixteen clients, who ask again and again
        sampler.add(Request(n, hints + [n], max_new_tokens=1 + n))
    sampler.step()
    sampler.add(waiting)
    for steps in range(200):
        ended = sampler.step()
        if waiting.ended:
            break
        for done in ended:
            sampler.add(Request(done.key, hints + [done.key], max_new_tokens=1 + done.key))
    assert 3 < steps < 150                                                   # it was passed over, but not for ever


@pytest.mark.parametrize("ahead", [False, True])
def test_the_stop_id_is_the_last_id_and_a_full_cache_ends_a_request(ahead, tiny):
    text = recompute(tiny, recorded.PROMPTS[2], 30)
    stop = text[12]
    sampler = Sampler(tiny, batch=2, max_length=20, ahead=ahead)
    assert Sampler(tiny, batch=2, max_length=80, ahead=ahead).generate([recorded.PROMPTS[2]], 30,
                                                                       stop_ids=[stop])[0] == text[:text.index(stop)
                                                                                                   + 1]
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
    # the smallest set with at least top_p
    for i, token in enumerate(order := p.argsort(descending=True).tolist()):
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
    requests = [Request(i, recorded.PROMPTS[i % 5], 40, temperature=(0.0, 0.8, 1.2)[i % 3], top_p=(1.0, 0.9)[i % 2],
                        seed=f"a{i}")
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


@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3-new"])
@pytest.mark.parametrize("ahead", [False, True])
def test_conversations_longer_than_the_sliding_window_continue_as_the_forward_pass_says(ahead, name, tmp_path):
    model, hints = load(name, tmp_path), recorded.tokens("hints", 60)
    sampler = Sampler(model, batch=3, max_length=200, ahead=ahead)
    prompts = [hints + recorded.tokens(f"question {i}", 3 + 9 * i) for i in range(4)]
    # in the second one the prompt's beginning is there
    for turn in range(2):
        texts = sampler.generate(prompts, max_new_tokens=25)
        assert texts == [recompute(model, prompt, 25) for prompt in prompts]
        prompts = [prompt + text + [7] for prompt, text in zip(prompts, texts)]


def test_documents_in_a_row_each_have_their_own_sliding_window(tmp_path):
    model, common = load("mistral", tmp_path), recorded.tokens("common", 30)
    documents = [recorded.tokens(f"document {i}", n) for i, n in enumerate((50, 3, 29))]
    positions = torch.tensor([[*range(30), *(p for d in documents for p in range(30, 30 + len(d)))]])
    with torch.no_grad():
        row = model.hidden(torch.tensor([sum(documents, common)]), positions,
                           kernels.packed_attention([50, 3, 29], 30))[0]
        alone = [model.hidden(torch.tensor([common + d]))[0] for d in documents]
    torch.testing.assert_close(row, torch.cat([alone[0][:30], *(x[30:] for x in alone)]), rtol=1e-4, atol=1e-4)


def test_a_conversation_goes_on_from_what_was_decoded_ahead_of_it(tiny):
    """When a request ends, the token after its last is already computed; the next turn must not take it for its own."""
    prompts = [recorded.tokens(f"ahead {i}", 9 + i) for i in range(4)]
    sampler = Sampler(tiny, batch=4, max_length=120, ahead=True)
    for turn in range(3):
        texts = sampler.generate(prompts, max_new_tokens=30, stop_ids=range(turn, 300, 7))
        for prompt, text in zip(prompts, texts):
            assert text == recompute(tiny, prompt, len(text)) and (len(text) == 30 or text[-1] % 7 == turn)
        assert min(map(len, texts)) < 30
        prompts = [prompt + text + [3 + turn] for prompt, text in zip(prompts, texts)]


def test_single_requests_stay_in_the_first_slots_which_a_gpu_computes_up_to_the_highest_one(tiny):
    sampler, waiting = (Sampler(tiny, batch=16, max_length=64, ahead=ahead) for ahead in (True, False))
    for n in range(10):
        for one in sampler, waiting:
            one.generate([recorded.tokens(f"alone {n}", 9)], max_new_tokens=4)
    assert list(sampler.used.nonzero()[0]) == list(range(8)) and len(waiting.used.nonzero()[0]) == 10


def test_a_gpus_sizes_are_few_and_at_most_half_too_large():
    assert all(n <= above(n) <= max(256, 3 * n // 2) and below(n) <= n < 2 * max(below(n), 128)
               for n in range(1, 20000))
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
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {n: f for f, part in parts.items()
                                                                                    for n in part}}))
    return parts


def test_sharded_and_single_checkpoints_load_alike(tmp_path):
    folder = recorded.checkpoint("grouped", tmp_path)
    single = Llama.from_pretrained(folder)(torch.tensor([recorded.ROW]))
    shard(folder)
    assert torch.equal(Llama.from_pretrained(folder)(torch.tensor([recorded.ROW])), single)


def test_weights_are_the_mapped_file_and_not_a_copy(tmp_path):
    folder = recorded.checkpoint("llama3", tmp_path)
    model = Llama.from_pretrained(folder)
    maps = [line.split()
            for line in Path("/proc/self/maps").read_text().splitlines()] if Path("/proc/self/maps").exists() else []
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


# config.json as on the hub: Llama 2, Llama 3.1, SmolLM2, Mistral 0.1 and 0.3, Qwen2.5, Qwen3; sizes aside
LLAMA = {"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02,
         "model_type": "llama",
         "pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16",
         "use_cache": True}
QWEN = {"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
        "max_window_layers": 1,
        "model_type": "qwen2", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072,
        "use_sliding_window": False,
        "transformers_version": "4.43.1", "torch_dtype": "bfloat16", "hidden_act": "silu", "use_mrope": False}
ON_THE_HUB = {
    "llama 2": LLAMA | {"_name_or_path": "meta-llama/Llama-2-7b-hf", "hidden_act": "silu"},
    "llama 3.1": LLAMA | {"attention_bias": False, "attention_dropout": 0.0, "eos_token_id": [3, 4, 5],
                          "mlp_bias": False, "rope_theta": 5e5,
                          "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                           "rope_type": "llama3",
                                           "original_max_position_embeddings": 8192}},
    "smollm2": LLAMA | {"is_llama_config": True, "pad_token_id": 2, "rope_interleaved": False,
                        "tie_word_embeddings": True,
                        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    "tuned": LLAMA | {"unsloth_version": "2025.1", "unsloth_fixed": True, "_attn_implementation_autoset": True,
                      "max_sequence_length": 2048,
                      "id2label": {"0": "LABEL_0"}, "temperature": 0.6, "pruned_heads": {},
                      "add_cross_attention": False, "num_beams": 1},
    "mistral 0.1": LLAMA | {"model_type": "mistral", "sliding_window": 4096, "num_key_value_heads": 2},
    "mistral 0.3": LLAMA | {"model_type": "mistral", "sliding_window": None, "num_key_value_heads": 2, "head_dim": 24},
    "qwen2.5": QWEN | {"num_key_value_heads": 2},
    "qwen3": QWEN | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False,
                     "head_dim": 16, "sliding_window": None,
                     "num_key_value_heads": 2}}


def write_config(folder, fields):
    (folder / "config.json").write_text(json.dumps(recorded.SIZE | fields))
    return folder / "config.json"


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_the_fields_of_well_known_models_are_all_known(name, tmp_path):
    config = Config.from_json(write_config(tmp_path, ON_THE_HUB[name]))
    assert config.windows == [4096 if name == "mistral 0.1" else None] * 2
    assert config.qkv_bias == (name == "qwen2.5") and not config.attention_bias and config.qk_norm == (name == "qwen3")


@pytest.mark.parametrize("fields, named", [
    ({"model_type": "mixtral"}, "'model_type': 'mixtral'"), ({"model_type": "qwen3_moe"}, "qwen3_moe"),
    ({"num_experts": 8}, "num_experts"),
    ({"hidden_act": "gelu"}, "gelu"), ({"rope_interleaved": True}, "rope_interleaved"),
    ({"use_mrope": True}, "use_mrope"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar"),
    ({"logits_scaling": 8}, "logits_scaling"), ({"residual_multiplier": 0.2}, "residual_multiplier"),
    ({"clip_qkv": 8.0}, "clip_qkv"),
    ({"attention_multiplier": 0.1}, "attention_multiplier"), ({"is_causal": False}, "is_causal"),
    ({"layer_norm_eps": 1e-5}, "layer_norm_eps"),
    ({"auto_map": {"AutoModelForCausalLM": "own.Model"}}, "auto_map"),
    ({"dual_chunk_attention_config": {"chunk_size": 9}}, "dual_chunk"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    ({"rope_scaling": {"type": "default", "mrope_section": [1]}}, "mrope"),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters.full_attention"),
    ({"model_type": "qwen2", "layer_types": ["linear_attention", "full_attention"]}, "linear_attention")])
def test_what_would_change_the_mathematics_is_refused_in_one_line_that_lists_what_is_supported(fields, named, tmp_path):
    file = write_config(tmp_path, {"num_key_value_heads": 2} | fields)
    with pytest.raises(ValueError,
                       match="config.json, field .*; supported are dense llama, mistral, qwen2 and qwen3") as error:
        Config.from_json(file)
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("fields, named", [
    ({"sliding_window": 64}, "a llama has none"),
    ({"model_type": "mistral", "use_sliding_window": False}, "use_sliding_window"),
    ({"model_type": "mistral", "sliding_window": 0}, "sliding_window"),
    ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "1 for 2 layers"),
    ({"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]}, "contradicts"),
    ({"model_type": "mistral", "layer_types": ["full_attention", "full_attention"]}, "contradicts")])
def test_a_contradiction_about_the_sliding_window_is_refused(fields, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        Config.from_json(write_config(tmp_path, {"num_key_value_heads": 2} | fields))


def test_what_a_file_leaves_out_is_as_in_transformers(tmp_path):
    sizes = {"num_attention_heads": 32, "hidden_size": 64}
    mistral, qwen3 = (Config.from_json(write_config(tmp_path, sizes | {"model_type": kind}))
                      for kind in ("mistral", "qwen3"))
    assert (mistral.num_key_value_heads, mistral.head_dim, mistral.windows) == (8, 2, [4096, 4096])
    assert (qwen3.num_key_value_heads, qwen3.head_dim, qwen3.windows, qwen3.max_position_embeddings) == (32, 128,
                                                                                                         [None, None],
                                                                                                         32768)
    llama3 = {name: value for name, value in recorded.LLAMA3.items() if not name.startswith("original")}
    scaled = Config.from_json(write_config(tmp_path, {"rope_scaling": llama3, "max_position_embeddings": 99}))
    assert scaled.rope_scaling["original_max_position_embeddings"] == 99


@pytest.mark.parametrize("how", ["fp8", "fp8 without a word in config.json", "bitsandbytes", "gptq", "mlx"])
def test_a_quantized_checkpoint_is_refused_as_such(how, tmp_path):
    folder = recorded.checkpoint("default", tmp_path)
    tensors, name = load_file(folder / "model.safetensors"), "model.layers.0.self_attn.q_proj.weight"
    if how == "gptq":
        tensors[name.replace("weight", "qweight")] = tensors.pop(name).int()
    elif how == "bitsandbytes":
        tensors[name] = tensors[name].reshape(-1, 1)[::2].byte().contiguous()
    else:
        tensors |= {name: tensors[name].to(torch.float8_e4m3fn),
                    name + "_scale": torch.ones(1)} if "config" not in how \
            else {name: tensors[name].to(torch.float8_e4m3fn)}
    save_file(tensors, folder / "model.safetensors")
    if "without" not in how:
        field = "quantization" if how == "mlx" else "quantization_config"
        (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text())
                                                       | {field: {"quant_method": how, "bits": 4}}))
    with pytest.raises(ValueError,
                       match="the checkpoint is quantized; weights have to be float32, float16 or bfloat16") as error:
        Llama.from_pretrained(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.o_proj.bias",
                                  "model.layers.2.mlp.up_proj.weight",
                                  "model.layers.1.self_attn.q_proj.weight_scale", "score.weight"])
def test_a_weight_that_would_not_be_used_is_refused(name, tmp_path):
    folder = recorded.checkpoint("qwen2", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}, folder / "model.safetensors")
    # that one is of older files, and follows from the configuration
    Llama.from_pretrained(folder)
    save_file(tensors | {name: torch.ones(8)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"{name} has no place in the model"):
        Llama.from_pretrained(folder)


@pytest.mark.parametrize("damage, named", [
    ("no config", ["config.json"]),
    ("missing shard", ["model-00002-of-00002.safetensors", "model.layers.0"]),
    ("truncated", ["model-00001-of-00002.safetensors", "embed_tokens"]),
    ("shape", ["model-00001-of-00002.safetensors", "model.embed_tokens.weight", "[96, 48]", "[97, 48]"]),
    ("missing tensor", ["model.norm.weight"]), ("nothing", ["model.safetensors"]),
    ("index", ["model.safetensors.index.json"])])
def test_a_broken_checkpoint_is_one_line_naming_file_and_tensor(damage, named, tmp_path):
    folder = recorded.checkpoint("grouped", tmp_path)
    parts = list(shard(folder))
    config, index = json.loads((folder / "config.json").read_text()), folder / "model.safetensors.index.json"
    if damage == "missing shard":
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
