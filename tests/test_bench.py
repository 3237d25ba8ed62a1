"""The bench's special cases: each exists, is used, and changes no result. Its measurements run."""

from common import ROOT

import json
import sys
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pkgutil import resolve_name
from unittest.mock import patch

import pytest
import torch

import lora
from engine import kernels
from model import Llama, Sampler
from planning.bench import __main__ as bench
from planning.bench import collect, decode, distill, harness, play
from planning.bench.harness import checkpoint, shape
from planning.bench.without import CASES, without
from scaling import parallel
from training import loss

TINY = shape(1536, 64, 128, 2, 4, 2)
AGENTS = [[5, 6, 7, 8, 9] * 8 + [10 + n] * (n + 2) for n in range(4)]        # 40 tokens in common
SAMPLING = {                                                    # what samples on a CPU: (dtype, sliding window)
    "windowed-attention": (torch.float32, 16), "shared-prefix": (torch.float32, None), "fold": (torch.float32, None),
    "fused-decoding": (torch.float32, None), "packed-weights": (torch.float32, None)}
PRODUCTS = {                                                    # (rows, out, in) that each case is for
    "sliced-products": (2, 512, 512), "sliced-vocabulary": (20, 2 ** 15, 8), "by-vectors": (1, 512, 512)}
TRAINING = {                                                    # in bfloat16?
    "bfloat16": True, "cast-once": True, "logit-chunks": False, "packing": False,
    "prefix-packing": False}
GPU = {"described-mask", "no-cudnn", "compiled-training", "decode-ahead", "cuda-graphs", "compiled-decoding",
       "second-compilation"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """{sliding window: a random model's folder}, and a folder with an adapter."""
    folder = tmp_path_factory.mktemp("bench")
    models = {None: checkpoint(folder / "full", TINY), 16: checkpoint(folder / "window", TINY | {"sliding_window": 16})}
    torch.manual_seed(0)
    model = Llama.from_pretrained(models[None])
    for p in lora.add_adapter(model, 4, 8):
        torch.nn.init.normal_(p, std=0.05)
    lora.save_adapter(model, folder / "adapter")
    return models, folder / "adapter"


def run_without(name, work):
    """work() with the special case and without it, and how often the functions that replace it were called."""
    calls, plain = [], dict(CASES[name].plain)
    for place, function in plain.items():
        if callable(function):
            def counted(*arguments, function=function, **options):
                calls.append(function)
                return function(*arguments, **options)
            plain[place] = counted
    expected = work()
    with patch.dict(CASES[name].plain, plain), without(name):
        return expected, work(), calls


def test_every_special_case_is_tested_here_or_needs_a_gpu():
    assert CASES.keys() == SAMPLING.keys() | PRODUCTS.keys() | TRAINING.keys() | GPU


@pytest.mark.parametrize("name", CASES)
def test_what_a_name_replaces_exists_and_comes_back(name):
    before = {place: resolve_name(place) for place in CASES[name].plain}
    with without(name):
        assert all(resolve_name(place) is not original for place, original in before.items())
    assert {place: resolve_name(place) for place in CASES[name].plain} == before


@pytest.mark.parametrize("name", SAMPLING)
def test_agents_write_the_same_without_a_special_case_of_sampling(name, tiny):
    (models, adapter), (dtype, window) = tiny, SAMPLING[name]

    def answers():
        model = parallel.load(models[window], [adapter], dtype=dtype)
        parallel.pack_weights(model, 4)
        sampler, texts = Sampler(model, 4, 80), []
        for _ in range(2):                                      # the second time, beginnings are cached
            texts += sampler.generate(AGENTS, max_new_tokens=6)
        return texts

    expected, plain, calls = run_without(name, answers)
    assert plain == expected and calls


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_the_same_without_a_special_case_for_its_size(name, monkeypatch):
    monkeypatch.setattr(kernels, "MKL_WITHOUT_AVX512", name == "by-vectors")
    rows, outputs, inputs = PRODUCTS[name]
    torch.manual_seed(0)
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    with torch.no_grad():
        expected, plain, calls = run_without(name, lambda: kernels.linear(x, weight))
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-4)
    assert calls


@pytest.mark.parametrize("name", TRAINING)
def test_training_is_the_same_without_a_special_case(name, tiny, monkeypatch):
    monkeypatch.setattr(distill, "RANK", 32)
    monkeypatch.setattr(kernels, "CPU", "avx512_bf16" if TRAINING[name] else "")
    monkeypatch.setattr(distill, "records", partial(distill.records, hints=60))
    monkeypatch.setitem(loss.BACKENDS, "cpu", replace(loss.BACKENDS["cpu"], chunk_bytes=4 * 7 * 1536))
    expected, plain, calls = run_without(name, lambda: distill.ours_distill(tiny[0][None], (3, 2))["output"])
    for update, same in zip(plain, expected, strict=True):      # the losses and the gradients' norms
        assert update == pytest.approx(same, rel=2e-2 if TRAINING[name] else 1e-4)
    assert calls or plain != expected                           # a constant is replaced: other roundings


def test_the_measurements_run_and_a_profile_names_the_parts_of_a_step(tiny):
    folder, adapter = tiny[0][None], str(tiny[1])
    with patch.object(decode, "memory_rate", lambda n: 1e9):
        r = decode.ours(folder, "bfloat16", adapter, AGENTS, steps=4, with_profile=True)
    expected = Sampler(decode.our_model(folder, "bfloat16", adapter, 4), 4, 80).generate(AGENTS, max_new_tokens=6)
    assert r["output"] == expected
    assert min(r["profile"].values()) > 0
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 64 * 1536
    rows = 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)) + 64 + 1536
    assert r["bytes"] == 2 * weights + 4 * 4 * rows             # in bfloat16; rank 4 in float32
    work = [(prompt, [(3, [7, 8]), (2, [9])]) for prompt in AGENTS]
    assert [list(map(len, turns)) for turns in collect.ours_sampling(folder, work, work)["output"]] == [[3, 2]] * 4


def test_agents_play_the_same_with_our_sampler_and_with_the_plain_loop(tmp_path, monkeypatch):
    tools, tasks = tmp_path / "tools.py", tmp_path / "tasks.jsonl"
    tools.write_text("def price():\n    return 7\n")
    tasks.write_text("".join(json.dumps({"id": f"t{n}", "question": f"Price {n}?", "answer": "7", "group": "g",
                                         "template": "g: price"}) + "\n" for n in range(9)))
    work = f"--tasks {tasks} --tools {tools} --data {tmp_path} --trials 1 --max-steps 2 --max-new-tokens 20"
    runs = {}
    monkeypatch.setattr(play, "against", lambda *arguments: runs.update(
        ours=play.ours(*arguments[-2:]), peer=play.peer(*arguments[-2:])))
    model = parallel.load(ROOT / "starter")

    class Peer:                                                 # transformers is not installed where tests run
        @staticmethod
        def generate(input_ids, attention_mask, max_new_tokens, stopping_criteria, **_):
            for _ in range(max_new_tokens):
                logits = model(input_ids)[0, -1]
                input_ids = torch.cat((input_ids, logits.argmax().view(1, 1)), dim=1)
                if stopping_criteria[0](input_ids, None).all():
                    break
            return input_ids

    monkeypatch.setitem(sys.modules, "transformers", Namespace(StoppingCriteria=object))
    monkeypatch.setattr(play, "peer_model", lambda *_: Peer)
    play.compare_real(Namespace(model=str(ROOT / "starter"), play=f"{work} --temperature 0 --dtype float32"))
    ours, peer = runs["ours"], runs["peer"]
    assert (ours["units"], peer["units"]) == (9 * 60, 2 * 60)
    assert peer["output"].items() <= ours["output"].items() and peer["output"].keys() == {"t0#0", "t8#0"}


def test_a_line_gives_the_ratio_of_our_speed_with_and_without_a_special_case(monkeypatch, capsys):
    def measured(function, *arguments, disabled):
        return {"units": 6, "seconds": 1 + len(disabled), "memory": 2 ** (30 + len(disabled)), "output": disabled}

    monkeypatch.setattr(harness, "alone", measured)
    args = Namespace(repeats=2, without="fold", dtype=[])
    harness.against(args, "job", "tokens/s", None, None, lambda a, b: f"{a} and {b}")
    assert capsys.readouterr().out == (
        "job: 6.000 tokens/s, peak memory 1.00 GiB; without fold 3.000 tokens/s, 2.00 GiB: 2.00 times as fast, "
        "50% of the memory; () and ('fold',)\n")


def test_a_decoding_line_gives_the_step_its_share_of_the_limit_and_the_ratio():
    ours = {"seconds": 0.02, "bytes": 3e9, "copied": 3e11, "output": [[1, 2], [3, 4]]}
    assert decode.line("it", "transformers", [ours], [{"seconds": 0.05, "output": [[1, 2], [3, 4]]}]) == (
        "it: 20.0 ms a step, 100 tokens/s, 50% of the memory's limit (3.00 GB, 10.0 ms); "
        "transformers 50.0 ms: 2.50 times as fast; 2 of 2 answers of 2 tokens are equal")


def test_agreement_says_where_answers_differ_first():
    assert decode.agreement([[1, 2]], [[1, 2]]) == "1 of 1 answers of 2 tokens are equal"
    assert decode.agreement([[1, 2, 3], [1, 2, 3], [4, 4, 4]], [[1, 2, 3], [1, 3, 3], [5, 4, 4]]) == (
        "1 of 3 answers of 3 tokens are equal, the others in their first 0 or more (median 0)")


@pytest.mark.parametrize("arguments, message", [
    ("--without it", "no special case 'it'; --without list prints their names"),
    ("--without fold", "measure it with: real MODEL"),
    ("real", "name the model, a directory or hub id"),
    ("--play it", "--play and --distill need: real MODEL"),
    ("drive", "no job 'drive'; there are limits, collect, ")])
def test_a_wrong_command_line_ends_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["planning.bench", *arguments.split()])
    with pytest.raises(SystemExit) as end:
        bench.arguments()
    assert end.value.code == 2 and message in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_without_list_prints_a_line_for_each_case(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["planning.bench", "--without", "list"])
    with pytest.raises(SystemExit):
        bench.arguments()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CASES)
