"""Sampling in bfloat16: which checkpoints it is for, and how near it stays to float32."""

from common.files import Output

import argparse
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lora
import make as recorded
import model
from agent import options
from engine import kernels
from engine.sampler import zeros
from model import Sampler
from scaling import parallel

ROOT = Path(__file__).parent.parent


def parsed(*given):
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    return parser.parse_args(list(map(str, given)))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """{dtype: a checkpoint of the same weights, stored in it}, and two adapters."""
    folder = recorded.checkpoint("grouped", tmp_path_factory.mktemp("bfloat16"))
    weights = {name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    float32 = recorded.checkpoint("grouped", tmp_path_factory.mktemp("float32"))
    save_file({name: weight.float() for name, weight in weights.items()}, float32 / "model.safetensors")
    torch.manual_seed(0)
    trained = parallel.load(float32)
    for path in (adapters := [tmp_path_factory.mktemp("adapter") / str(n) for n in range(2)]):
        for p in lora.add_adapter(trained, rank=4, alpha=8):
            p.data.normal_(std=0.1)
        lora.save_adapter(trained, path)
    return {torch.bfloat16: folder, torch.float32: float32}, adapters


@pytest.mark.parametrize("native", [True, False])
def test_a_cpu_with_native_bfloat16_samples_in_it_what_is_stored_in_it(native, stored, monkeypatch):
    monkeypatch.setattr(model, "fast_bfloat16", lambda: native)

    def default(path, *given):
        return next(parallel.sampler(parsed("--model", path, *given))[0].model.parameters()).dtype

    folders, _ = stored
    assert default(folders[torch.bfloat16]) == (torch.bfloat16 if native else torch.float32)
    assert default(folders[torch.float32]) == default(ROOT / "starter") == torch.float32
    assert default(folders[torch.float32], "--dtype", "bfloat16") == torch.bfloat16
    assert default(folders[torch.bfloat16], "--dtype", "float32") == torch.float32


def test_an_output_made_before_there_was_a_choice_resumes_and_one_made_in_another_dtype_does_not(tmp_path):
    before = {name: value for name, value in vars(parsed("--model", "m")).items() if name != "dtype"}
    for out, arguments in (("old", before), ("new", vars(parsed("--model", "m", "--dtype", "float32")))):
        output = Output(tmp_path / out, arguments)
        output.write({"id": "task~0"})
        output.file.close()
    assert Output(tmp_path / "old", vars(parsed("--model", "m"))).done == {"task~0"}
    with pytest.raises(ValueError, match=r"other arguments \(dtype\)"):
        Output(tmp_path / "new", vars(parsed("--model", "m", "--dtype", "bfloat16")))


def test_float32_adapters_add_no_error_to_bfloat16_and_greedy_tokens_differ_in_near_ties_only(stored):
    folders, adapters = stored
    errors = {}
    for stacked in ([], adapters):
        exact = parallel.load(folders[torch.float32], stacked)
        sampled = parallel.load(folders[torch.bfloat16], stacked, dtype=torch.bfloat16)
        prompts = [recorded.tokens("hints", 60) + recorded.tokens(f"question {n}", 5 + n) for n in range(6)]
        texts = Sampler(sampled, batch=4, max_length=110).generate(prompts, max_new_tokens=40)
        for prompt, text in zip(prompts, texts):
            ids = torch.tensor([prompt + text])
            with torch.no_grad():
                logits, ours = (m(ids)[0, len(prompt) - 1:-1].float() for m in (exact, sampled))
            chosen = logits.gather(1, ids[0, len(prompt):, None])[:, 0]
            assert (logits.max(-1).values - chosen).max() < 0.05 * logits.abs().max()
            errors.setdefault(len(stacked), []).append(((ours - logits).norm() / logits.norm()).item())
    assert max(errors[0]) < 0.02 and sum(errors[2]) < 1.25 * sum(errors[0])


def test_every_adapter_is_loaded_in_order(stored):
    folders, adapters = stored
    expected, ids = model.Llama.from_pretrained(folders[torch.float32]), torch.tensor([recorded.tokens("prompt", 30)])
    with torch.no_grad():
        for n, adapter in enumerate(adapters, 1):
            before = expected(ids)
            lora.load_adapter(expected, adapter)
            assert not torch.allclose(expected(ids), before, atol=1e-2)
            for whole in (True, False):
                loaded = parallel.load(folders[torch.float32], adapters[:n], whole)
                torch.testing.assert_close(loaded(ids), expected(ids), rtol=1e-4, atol=1e-4)


def test_a_model_to_be_trained_can_still_be_the_teacher_of_an_earlier_round(stored):
    """In float32, too, where the adapters of a model that only samples become part of its weights."""
    folders, adapters = stored
    loaded, ids = parallel.load(folders[torch.float32], adapters, whole=False), torch.tensor([[5, 3, 8]])
    lora.add_adapter(loaded, 4, 8.0, 0.0, lora.TARGETS)
    with torch.no_grad():
        for n in range(len(adapters) + 1):
            earlier = parallel.load(folders[torch.float32], adapters[:n])
            with lora.without_newest(loaded, n):
                torch.testing.assert_close(loaded(ids), earlier(ids), rtol=1e-4, atol=1e-4)


def test_a_samplers_requests_follow_the_command_line():
    _, request = parallel.sampler(parsed("--model", ROOT / "starter", "--temperature", 0.3, "--top-p", 0.6))
    made = request("a", [5])
    assert (made.temperature, made.top_p) == (0.3, 0.6)


@pytest.mark.skipif(not kernels.fast_bfloat16(), reason="this CPU does not multiply bfloat16 natively")
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 70])
def test_packed_weights_give_the_same_logits_bit_for_bit_with_adapters_and_biases_too(tokens, stacked, stored):
    folders, adapters = stored
    plain, packed = (parallel.load(folders[torch.bfloat16], adapters * stacked, dtype=torch.bfloat16) for _ in range(2))
    kernels.pack_weights(packed, 1)
    assert packed.lm_head.weight.is_mkldnn and packed.layers[0].self_attn.q_proj.bias is not None
    ids = torch.tensor([recorded.tokens("prompt", tokens)])
    with torch.inference_mode():
        assert torch.equal(packed(ids), plain(ids))


@pytest.mark.skipif(not kernels.X86, reason="float32 weights are packed on x86 only")
def test_float32_weights_are_packed_for_more_than_a_few_agents_and_give_the_same_logits(stored):
    folders, adapters = stored
    given = "--model", folders[torch.float32], "--adapter", adapters[0], "--adapter", adapters[1]
    ids = torch.tensor([recorded.tokens("prompt", 70)])
    with torch.inference_mode():
        expected = parallel.load(folders[torch.float32], adapters)(ids)
        for agents, packed in ((1, False), (2, False), (3, True)):
            model = parallel.sampler(parsed(*given, "--batch", agents))[0].model
            linear = [layer.weight.is_mkldnn for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
            assert linear == [packed] * 15
            torch.testing.assert_close(model(ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("common, window", [(0, None), (0, 5), (9, None), (9, 5), (9, 15)])
def test_attention_while_decoding_is_the_definition_also_on_a_common_prefix(dtype, tolerance, common, window):
    B, G, R, D, S = 3, 2, 4, 16, 20
    positions = torch.tensor([19, 9, 14])                       # from the first own position to the last
    q, cache = torch.randn(B, G, R, D).to(dtype), torch.randn(2, B, G, S, D).to(dtype)
    cache[:, :, :, :common] = cache[:, :1, :, :common]
    arguments = (q, *cache[:, :, :, common:], kernels.unseen(positions, S, window)[:, None, None],
                 cache[:, 0, :, :common] if common else None)
    expected = torch.cat([kernels.attention(q[b].double().reshape(1, G * R, 1, D),
                                            *cache[:, b:b + 1, :, :n + 1].double(), window).view(1, G, R, D)
                          for b, n in enumerate(positions)])
    for computed in kernels.decode_attention(*arguments), kernels.plain_decode_attention(*arguments):
        assert computed.dtype == dtype and (computed - expected).abs().max() <= tolerance * expected.abs().max()


def test_a_cache_takes_no_memory_until_it_is_filled():
    used = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    before, cache = used(), zeros((2 ** 18, 2 ** 12), torch.bfloat16, torch.device("cpu"))
    cache[0] = 1
    assert cache[::64].sum() == 2 ** 12 and used() - before < cache.nbytes / 8
