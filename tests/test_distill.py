"""The loss against a plain float64 implementation, one action at a time; what is learned from; the balancing."""
from common import files

import copy
import json
import math
import os
import random
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch._dynamo.testing import CompileCounterWithBackend

import distill
import lora
from agent.chat import Chat
from lora import add_adapter, read_adapter, without_newest
from model import Config, Llama
from training import trainer
from training.examples import Example, balance, teacher_adapters, to_example, usable
from training.loss import BACKENDS, chunked_loss, cross_entropy, kl_divergence
from training.packing import Row, hidden_states, longest_row, pack_by_prefix

ROOT = Path(__file__).resolve().parent.parent
T = 2.0
SHAPE = dict(vocab_size=1536, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def chat():
    return Chat(ROOT / "starter")


def record(chat, number, steps=3, targets=None, corrective=()):
    def ids(text, tag):
        return chat.encode_text(text + "\n") + [chat.tokenizer.token_to_id(f"</{tag}>")]

    def step(n):
        thought, code = f"look at {number} {n}", "x = look(3)\nprint(x)" * (n + 1)
        return {"monologue": thought, "code": code, "observation": f"seen {number + n}",
                "hint": {"name": "c", "text": f"Mind {n}."} if n in corrective else None,
                "token_ids": {"monologue": ids(thought, "inner_monologue"), "code": ids(code, "python")}}

    task = {"id": f"t{number}", "group": "g", "template": "p", "question": f"What is {number}?", "answer": "1"}
    hints = [{"name": "a", "kind": "tools", "text": "## tools: a\nlook(x): looks"},
             {"name": "b", "kind": "practice", "text": f"## practice: b\nprint(look({number}))"}]
    r = {"id": f"t{number}#0", "task": task, "success": True, "hints": hints, "steps": [step(n) for n in range(steps)]}
    return r | ({"targets": targets} if targets else {})


@pytest.fixture
def model():
    torch.manual_seed(0)
    m = Llama(Config(**SHAPE))
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.2)
    for _ in range(2):                                                 # a frozen adapter and the newest, neither zero
        for p in add_adapter(m, 4, 8):
            torch.nn.init.normal_(p, std=0.4)
    return m.train()


def tiny_checkpoint(folder):
    """A random model with the starter's tokenizer, in Hugging Face format."""
    (folder / "config.json").write_text(json.dumps(SHAPE | {"model_type": "llama"}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((ROOT / "starter" / name).read_bytes())
    torch.manual_seed(0)
    save_file(Llama(Config(**SHAPE)).hf_state_dict(), folder / "model.safetensors")


def action_logits(m, ids, spans, n):
    """The logits at the tokens of step n, from a pass over the whole prompt."""
    out = m(torch.tensor([ids]))[0]
    return torch.cat([out[a - 1:b - 1] for a, b in (spans[n, "monologue"], spans[n, "code"])])


def plain_loss(model, teacher, chat, records, dropped):
    """The definition, with full logits of one action at a time."""
    logits = [], []                                                     # the student's, the teacher's
    for r in records:
        for n in r.get("targets", range(len(r["steps"]))):
            hints, steps = [h["text"] for h in r["hints"]], r["steps"][:n + 1]
            bare = [s | {"hint": None} for s in steps]
            student = chat.prompt(r["task"]["question"], *(([], bare) if dropped else (hints, steps)))
            logits[0].append(action_logits(model, *student, n))
            logits[1].append(action_logits(teacher, *chat.prompt(r["task"]["question"], hints, steps), n))
    return kl_divergence(*logits, T)


def test_the_definition_is_pytorchs_kl_divergence_of_the_two_softmaxes():
    torch.manual_seed(0)
    logits = [[torch.randn(n, 50, dtype=torch.float64) for n in (3, 7)] for _ in range(2)]
    expected = [torch.nn.functional.kl_div(q.div(T).log_softmax(-1), p.div(T).softmax(-1), reduction="batchmean")
                for q, p in zip(*logits)]
    assert torch.allclose(kl_divergence(*logits, T), torch.stack(expected).mean(), rtol=1e-12)


@pytest.mark.parametrize("dropped, fused, mixed", [
    (0.0, False, False), (1.0, False, False), (1.0, True, False), (1.0, False, True), (1.0, True, True)])
def test_the_loss_and_its_gradients_equal_the_definition_in_float64(chat, model, dropped, fused, mixed, monkeypatch):
    reference, autocast = copy.deepcopy(model).double(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed)
    backend = replace(BACKENDS["cpu"], chunk_bytes=4 * 7 * 1536)
    if fused:                                                          # as on a GPU, up to the kernels
        counter = CompileCounterWithBackend("aot_eager")
        monkeypatch.setattr(trainer, "can_compile", lambda: True)
        monkeypatch.setattr(trainer, "compiled", partial(torch.compile, backend=counter, dynamic=True, fullgraph=True))
        for block in model.layers:
            block.recompute = True
        training = SimpleNamespace(model=model, backend=backend)
        trainer.Trainer.compile(training)
        backend = training.backend
    records = [record(chat, 1), record(chat, 22, targets=[2], corrective=[2]),
               record(chat, 333, steps=4, targets=[1, 3], corrective=[1])]
    row, = pack_by_prefix([replace(to_example(chat, r), teacher_file=n) for n, r in enumerate(records)], 10 ** 6)
    assert row.shared > 0 and len(row.examples) == 3                   # in one row, what all begin with once
    with torch.no_grad(), autocast, without_newest(model):
        parts = hidden_states(model, row).split([len(x.at) for x in row.examples])
    states = dict(zip((x.teacher_file for x in row.examples), parts))
    with autocast:
        student = Row([to_example(chat, r, dropped) for r in records])
        loss = chunked_loss(model, student, torch.cat([states[n] for n in range(3)]), T, backend=backend)
    assert not fused or counter.frame_count >= 3                       # before, after, the divergence
    teacher = copy.deepcopy(reference)

    def frozen_only(tokens):
        with torch.no_grad(), without_newest(teacher):
            return teacher(tokens)

    expected = plain_loss(reference, frozen_only, chat, records, dropped)
    expected.backward()
    tolerance = 3e-2 if mixed else 1e-5                                # bfloat16 has 8 bits
    assert abs(loss.item() - expected.item()) <= tolerance * abs(expected.item())
    assert loss.item() > 1e-3
    pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), reference.parameters()) if p.requires_grad]
    assert len(pairs) == 2 * (7 * 2 + 1)
    for ours, theirs in pairs:
        assert (ours.double() - theirs).norm() <= (1e-1 if mixed else 1e-4) * theirs.norm()


def test_the_teacher_of_a_trajectory_is_the_agent_that_played_it(chat, model, tmp_path, monkeypatch):
    """The model has two frozen adapters. In one batch there are records of three teachers."""
    agents = {"first": [], "second": ["elsewhere/one"], "both": ["one", "two"], "another": ["two"]}
    records = [record(chat, n) | {"id": name, "model": "hub/m", "adapters": adapters}
               for n, (name, adapters) in enumerate(agents.items())]
    records += [records[0] | {"id": "larger", "model": "l"}, record(chat, 9)]
    known = [teacher_adapters(r, "m", ["runs/one", "runs/two"]) for r in records]
    assert known == [0, 1, 2, math.inf, math.inf, math.inf]
    args = Namespace(model="m", adapter=["one", "two"], rank=2, alpha=4.0, lora_dropout=0.0, targets=lora.TARGETS,
                     lr=1e-3, seed=0, row=10 ** 6, loss="kl", kl_temperature=T)
    (tmp_path / "teacher").mkdir()
    monkeypatch.setattr(trainer, "fast_bfloat16", lambda: False)
    t = trainer.Trainer(model, chat, records, args, tmp_path / "checkpoint", tmp_path / "teacher")
    for p in t.parameters:
        torch.nn.init.normal_(p, std=0.2)
    assert t.earlier_teachers() == ["2 of 6 records are taught by an earlier round's agent, which played them"]
    t.run_teacher()
    loss = t.loss(records, "0", 1.0, learn=False)

    def taught(n):
        def logits(tokens):
            with torch.no_grad(), without_newest(model, n):
                return model(tokens)
        return logits

    parts = [plain_loss(model, taught(n), chat, [r], 1.0).item() for n, r in zip(known, records)]
    assert abs(loss - sum(parts) / 6) < 1e-4 * loss
    assert abs(parts[0] - plain_loss(model, taught(2), chat, records[:1], 1.0).item()) > 1e-2


def test_the_teacher_computes_once_what_examples_have_in_common_and_never_more_than_without():
    rng = random.Random(0)
    hints = {n: [rng.randrange(9) for _ in range(n)] for n in (0, 40, 200)}
    examples = [hints[rng.choice(list(hints))] + [rng.randrange(9) for _ in range(rng.randint(5, 60))]
                for _ in range(60)]
    examples = [Example(ids, [len(ids) - 2], teacher_file=n)
                for n, ids in enumerate([*examples, examples[0], examples[0][:-3], [1] * 700])]
    whole = sum(len(x.tokens) for x in examples)
    for limit in (1, 300, 600, 10 ** 6):
        rows = pack_by_prefix(examples, limit)
        assert sorted(x.teacher_file for row in rows for x in row.examples) == list(range(63))
        for row in rows:
            beginning = row.examples[0].tokens[:row.shared]
            assert all(x.tokens[:row.shared] == beginning and len(x.tokens) > row.shared for x in row.examples)
            assert row.length <= limit or len(row.examples) == 1 and not row.shared
        _, times = longest_row(examples, limit)
        assert sum(row.length for row in rows) <= whole and (limit < 10 ** 6 or times * 700 < 0.5 * whole)


def test_weights_that_are_in_bfloat16_already_change_nothing_under_autocast():
    both = [Llama.from_pretrained(ROOT / "starter", linear_dtype=dtype) for dtype in (None, torch.bfloat16)]
    assert both[1].lm_head.weight.dtype == torch.bfloat16 and both[1].embed_tokens.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(*(model(torch.arange(300, 400)[None]) for model in both))


def test_cross_entropy_is_that_of_the_sampled_tokens(chat, model):
    r = record(chat, 5)
    loss = chunked_loss(model, Row([to_example(chat, r)]))
    ids, spans = chat.prompt(r["task"]["question"], [h["text"] for h in r["hints"]], r["steps"])
    sampled = [torch.tensor([ids[i] for name in ("monologue", "code") for i in range(*spans[n, name])])
               for n in range(3)]
    logits = [action_logits(model, ids, spans, n) for n in range(3)]
    by_hand = [-x.log_softmax(-1)[range(len(t)), t].mean() for x, t in zip(logits, sampled)]
    assert torch.allclose(loss, torch.stack(by_hand).mean(), rtol=1e-5)
    assert torch.allclose(loss, cross_entropy(logits, sampled), rtol=1e-5)


def test_hint_sections_are_left_out_one_by_one_with_the_given_probability(chat):
    r, rng, lengths = record(chat, 1, corrective=[0]), random.Random(0), Counter()
    for _ in range(1000):
        x, whole = to_example(chat, r, 0.9, rng), to_example(chat, r)
        lengths[len(x.tokens)] += 1
        assert (x.labels, x.weights) == (whole.labels, whole.weights)
    assert len(lengths) == 8                                           # 2 × 2 × 2 combinations
    assert abs(max(lengths.values()) / 1000 - 0.9 ** 3) < 0.05


def test_only_target_steps_are_learned_and_later_steps_are_not_seen(chat):
    r = record(chat, 1, steps=4, targets=[1])
    x = to_example(chat, r)
    assert x.labels == r["steps"][1]["token_ids"]["monologue"] + r["steps"][1]["token_ids"]["code"]
    assert [x.tokens[i + 1] for i in x.at] == x.labels and abs(sum(x.weights) - 1) < 1e-9
    assert x.at[-1] < len(x.tokens) < len(to_example(chat, record(chat, 1, steps=4)).tokens)


def test_balancing_fills_rare_mistakes_small_groups_and_keeps_what_was_learned():
    def t(n, group, template):
        return {"id": f"{n}", "task": {"id": f"{group}{template}{n}", "group": group, "template": template}}
    corrected = [t(f"c{i}", "a", "a1") for i in range(9)]
    corrected += [t("c9", "a", "a2"), t("c10", "b", "b1"), t("c11", "b", "b1")]
    candidates = [t(i, x[0], x) for x in ("a1", "a2", "a3", "b1", "b2", "c1") for i in range(20)]
    chosen = balance(corrected, candidates, random.Random(0))
    assert len({id(c) for c in chosen}) == len(chosen)
    templates, groups = Counter(c["task"]["template"] for c in chosen), Counter(c["task"]["group"] for c in chosen)
    assert templates["a2"] >= 3 and templates["b1"] >= 2               # 1. up to the mean of 12 / 3
    assert groups["b"] + 2 >= 13 and groups["c"] >= 13                 # 2. up to the largest group
    first = Counter(c["task"]["template"] for c in chosen[:27])
    assert first == {"a2": 3, "b1": 2 + 9, "c1": 13}                   # … those with more mistakes first
    assert len(chosen) == 2 * 27                                       # 3. templates with few of them first
    assert Counter(c["task"]["template"] for c in corrected + chosen) == {
        "b1": 13, "c1": 13, "a1": 10, "a2": 10, "a3": 10, "b2": 10}
    few = balance(corrected[:1], [t(i, "a", f"a{i % 7}") for i in range(70)], random.Random(0))
    assert sorted(c["task"]["template"] for c in few) == ["a0", "a2", "a3", "a4", "a5", "a6"]


def selected(**arguments):
    """The records that distill.py learns with its first seed, in the first epoch."""
    usual = {"balance": None, "keep": None, "verified": False, "loss": "kl", "epochs": 1, "seed": [0]}
    return distill.select_records(SimpleNamespace(**usual | arguments))[0][0]


def test_each_epoch_has_candidates_of_its_own(chat, tmp_path):
    fields = {"seed": 1, "answer": "", "stop": "complete", "usage": {}}
    for name, numbers in (("d", range(8)), ("c", range(8, 40))):
        (tmp_path / name).write_text("".join(json.dumps(record(chat, n) | fields) + "\n" for n in numbers))
    usual = {"keep": None, "verified": False, "loss": "kl", "epochs": 3, "seed": [0, 1]}
    args = SimpleNamespace(data=[tmp_path / "d"], balance=[tmp_path / "c"], **usual)
    drawn = [[[r["id"] for r in epoch] for epoch in epochs] for epochs in distill.select_records(args)]
    assert [len(epochs) for epochs in drawn] == [3, 3]
    assert {tuple(ids[:8]) for epochs in drawn for ids in epochs} == {tuple(f"t{n}#0" for n in range(8))}
    assert len({tuple(sorted(ids[8:])) for epochs in drawn for ids in epochs}) == 6
    assert {len(ids) for epochs in drawn for ids in epochs} == {8 + 2}


def test_a_plan_knows_the_updates_of_all_epochs_and_seeds_and_the_longest_record(chat, tmp_path):
    tiny_checkpoint(tmp_path)
    fields = {"seed": 1, "answer": "", "stop": "complete", "usage": {}}
    for name, numbers in (("d", range(8)), ("c", range(8, 40)), ("v", range(40, 41))):
        (tmp_path / name).write_text("".join(json.dumps(record(chat, n, steps=1 + n // 10) | fields) + "\n"
                                             for n in numbers))
    args = SimpleNamespace(model=tmp_path, data=[tmp_path / "d"], balance=[tmp_path / "c"], keep=None, verified=False,
                           val=tmp_path / "v", loss="kl", epochs=3, seed=[0, 1], batch=1)
    updates, teacher_row = distill.measure(args)
    drawn = [r for epochs in distill.select_records(args) for records in epochs for r in records]
    assert sorted(n.teacher for [n] in updates) == sorted(len(to_example(chat, r).tokens) for r in drawn)
    assert all(0 < n.learned < n.student < n.teacher for [n] in updates)
    row, _ = teacher_row(0)                                             # records one by one
    assert row.length == len(to_example(chat, record(chat, 40, steps=5)).tokens) > max(n.teacher for [n] in updates)


def test_with_verified_failed_candidates_are_not_learned(chat, tmp_path):
    fields = {"seed": 1, "answer": "", "stop": "complete", "usage": {}}
    for name, numbers in (("d", range(4)), ("c", range(4, 8)), ("failed", range(5, 8))):
        (tmp_path / name).write_text("".join(json.dumps(record(chat, n) | fields | {"success": n < 5}) + "\n"
                                             for n in numbers))
    records = selected(data=[tmp_path / "d"], balance=[tmp_path / "c"], verified=True)
    assert [r["id"] for r in records] == ["t0#0", "t1#0", "t2#0", "t3#0", "t4#0"]
    with pytest.raises(ValueError, match="failed: nothing is left to learn from"):
        selected(data=[tmp_path / "d"], balance=[tmp_path / "failed"], verified=True)


def test_the_student_sees_all_hints_of_what_is_kept(chat, tmp_path):
    for name, number in (("d", 1), ("k", 2)):
        fields = {"seed": 1, "answer": "", "stop": "complete", "usage": {}}
        (tmp_path / name).write_text(json.dumps(record(chat, number, targets=[2], corrective=[2]) | fields) + "\n")
    learned, kept = selected(data=[tmp_path / "d"], keep=[tmp_path / "k"])
    assert to_example(chat, learned) != to_example(chat, learned, 1.0)
    assert to_example(chat, kept) == to_example(chat, kept, 1.0)


@pytest.mark.parametrize("hint_dropout", [0.0, 1.0])
def test_a_trainings_settings_take_effect(hint_dropout, chat, model, tmp_path, monkeypatch):
    """At a learning rate next to nothing the student stays its teacher, so each loss follows from the definition."""
    steps = []

    class AdamW(torch.optim.AdamW):
        def step(self):
            steps.append([self.param_groups[0][name] for name in ("lr", "weight_decay")])
            super().step()
    monkeypatch.setattr(torch.optim, "AdamW", AdamW)
    monkeypatch.setattr(trainer, "fast_bfloat16", lambda: False)
    records, before = [record(chat, n) for n in range(4)], copy.deepcopy(model)
    args = SimpleNamespace(model=None, adapter=[], rank=2, alpha=4, lora_dropout=0.25, targets=lora.TARGETS, lr=1e-9,
                           decay=True, warmup=2, epochs=2, batch=6, row=None, loss="kl", kl_temperature=T, seed=0,
                           hint_dropout=hint_dropout)
    log = trainer.train(model, chat, [records] * 2, args, tmp_path / "checkpoint", tmp_path / "teacher", records[:1])
    assert steps == [pytest.approx([1e-9 * f, 0.02]) for f in (0.5, 0.75, 0.5, 0.25)]
    assert {layer.dropout for layer in lora.layers(model).values()} == {0.25}
    with torch.no_grad():
        bare = lambda some: plain_loss(before, before, chat, some, True).item()
        found = (log[0]["loss"] + log[1]["loss"]) / 2
        assert found == pytest.approx(hint_dropout * bare(records), rel=1e-3, abs=1e-4)
        assert log[-1]["validation_loss"] == pytest.approx(bare(records[:1]), rel=1e-3) and bare(records) > 1e-2


def test_distilling_ends_in_an_adapter_that_has_learned(chat, tmp_path):
    """By cross-entropy on the successes: the loss falls, and every layer has its adapter."""
    tiny_checkpoint(tmp_path)
    data = tmp_path / "d.jsonl"
    fields = {"seed": 1, "answer": "", "stop": "complete", "usage": {}}
    data.write_text("".join(json.dumps(record(chat, n) | fields | {"success": n < 8}) + "\n" for n in range(10)))
    run = subprocess.run([sys.executable, ROOT / "distill.py", "--model", tmp_path, "--data", data, "--loss", "ce",
                          "--verified", "--rank", "4", "--alpha", "8", "--lr", "1e-2", "--warmup", "2",
                          "--epochs", "6", "--batch", "6", "--out", tmp_path / "adapter"], capture_output=True,
                         text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("8 records, 24 actions")             # the failures are left out
    losses = [json.loads(line)["loss"] for line in open(tmp_path / "adapter" / "log.jsonl")]
    assert losses[-1] < 0.7 * losses[0]
    assert len(read_adapter(tmp_path / "adapter")[1]) == 2 * 7 + 1


@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_a_killed_training_goes_on_to_the_same_adapter_bit_for_bit(loss, chat, tmp_path, monkeypatch):
    tiny_checkpoint(tmp_path)
    data = tmp_path / "d.jsonl"
    fields = {"seed": 1, "answer": "", "stop": "complete", "usage": {}}
    data.write_text("".join(json.dumps(record(chat, n) | fields) + "\n" for n in range(5)))
    command = ["distill.py", "--model", str(tmp_path), "--data", str(data), "--loss", loss, "--rank", "4", "--lr",
               "1e-2", "--warmup", "2", "--batch", "6", "--lora-dropout", "0.2", "--hint-dropout", "0.5", "--out"]

    def run(out, last=None):
        clipped = []

        def clip(parameters, norm, real=torch.nn.utils.clip_grad_norm_):
            assert norm == 1.0
            clipped.append(1)
            if last and len(clipped) > last:
                raise KeyboardInterrupt                                # in the middle of an update
            return real(parameters, norm)

        with monkeypatch.context() as m:
            m.setattr(sys, "argv", [*command, str(tmp_path / out)])
            m.setattr(torch.nn.utils, "clip_grad_norm_", clip)
            # a minute passes with every update
            m.setattr(trainer.time, "time", iter(range(0, 10**6, 100)).__next__)
            distill.main()
        return (tmp_path / out / "adapter_model.safetensors").read_bytes()

    mine = tmp_path / "whole" / "teacher" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("kept")
    whole = run("whole")
    assert mine.read_text() == "kept"
    # 9 updates: three epochs show the only template 15 times. Killed after 3, and again after 4 more.
    for last in (3, 4):
        with pytest.raises(KeyboardInterrupt):
            run("killed", last)
    assert run("killed") == whole
    assert not (tmp_path / "killed" / "unfinished").exists()
    logs = [(tmp_path / out / "log.jsonl").read_text() for out in ("whole", "killed")]
    assert logs[0] == logs[1] and logs[0].count("\n") == 9


def test_several_seeds_give_their_mean_and_the_weight_a_part_of_it(chat, tmp_path, monkeypatch):
    """The same as two trainings by themselves, stacked: each draws its own candidates, and both teachers' hidden states
    are computed once. The second seed starts after an interruption."""
    tiny_checkpoint(tmp_path)
    fields = {"seed": 1, "answer": "", "stop": "complete", "usage": {}}
    records = [json.dumps(record(chat, n, steps) | fields) + "\n" for n, steps in enumerate((1, 2, 1, 3, 1, 2, 1, 3))]
    (tmp_path / "d.jsonl").write_text("".join(records[:4]))
    (tmp_path / "candidates.jsonl").write_text("".join(records[4:]))
    command = ["distill.py", "--model", str(tmp_path), "--data", str(tmp_path / "d.jsonl"), "--rank", "2",
               "--lr", "1e-2", "--epochs", "1", "--batch", "2", "--lora-dropout", "0", "--balance",
               str(tmp_path / "candidates.jsonl")]

    def run(out, *more):
        monkeypatch.setattr(sys, "argv", [*command, *more, "--out", str(tmp_path / out)])
        distill.main()

    run("a", "--seed", "5")
    run("b", "--seed", "7")
    lora.stack([tmp_path / "a", tmp_path / "b"], tmp_path / "expected", 0.25)
    with monkeypatch.context() as m:
        m.setattr(distill, "stack", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("mean", "--seed", "5", "7", "--weight", "0.5")
    assert (tmp_path / "mean" / "log.jsonl").exists()          # before the adapter, which marks the end
    run("mean", "--seed", "5", "7", "--weight", "0.5")
    expected, found = ((tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("expected", "mean"))
    assert found == expected
    assert read_adapter(tmp_path / "mean")[0]["lora_alpha"] == read_adapter(tmp_path / "expected")[0]["lora_alpha"]
    logs = [[json.loads(line) for line in open(tmp_path / out / "log.jsonl")] for out in ("a", "b", "mean")]
    shorter, longer = sorted(logs[:2], key=len)
    assert [json.dumps(entry["update"]) for entry in logs[2]] == [str(n + 1) for n in range(len(longer))]
    assert len(shorter) < len(longer) == len(logs[2])          # batches are filled by actions, in another order
    means = [(x["loss"] + y["loss"]) / 2 for x, y in zip(shorter, longer)]
    assert [x["loss"] for x in logs[2]] == means + [x["loss"] for x in longer[len(shorter):]]
    assert sorted(f.name for f in (tmp_path / "mean").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "arguments.json", "log.jsonl"]


def test_the_mean_of_logs_has_the_figures_that_only_some_of_them_have():
    entries = [{"update": 2, "loss": 1.0}, {"update": 2, "loss": 2.0, "validation_loss": 5.0}, None]
    assert distill.mean_of(entries) == {"update": 2, "loss": 1.5, "validation_loss": 5.0}


def test_an_adapter_made_with_other_arguments_is_refused(chat, tmp_path, monkeypatch):
    tiny_checkpoint(tmp_path)
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(sys, "argv", ["distill.py", "--model", str(tmp_path), "--data", "d", "--lr", "1", "--out",
                                      str(tmp_path / "a")])
    files.same_arguments(tmp_path / "a" / "arguments.json", {"lr": 2.0}, made=False)
    (tmp_path / "a" / "adapter_model.safetensors").touch()
    with pytest.raises(ValueError, match=r"/a: made with other arguments \(.*lr.*\); remove it"):
        distill.main()
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    unfinished = tmp_path / "a" / "unfinished"
    (unfinished / "teacher").mkdir(parents=True)                       # all that a run with other arguments has come to
    with pytest.raises(ValueError, match="d: no such file"):
        distill.main()
    assert not unfinished.exists()


def test_a_loss_that_is_no_number_ends_the_training(chat, tmp_path, monkeypatch):
    tiny_checkpoint(tmp_path)
    (tmp_path / "d.jsonl").write_text(json.dumps(record(chat, 1) | {"seed": 1, "answer": "", "stop": "complete",
                                                                    "usage": {}}) + "\n")
    monkeypatch.setattr(sys, "argv", ["distill.py", "--model", str(tmp_path), "--data", str(tmp_path / "d.jsonl"),
                                      "--lr", "1e9", "--warmup", "0", "--epochs", "9", "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError,
                       match=r"update \d: the loss or its gradient is NaN or infinite; a lower --lr may help"):
        distill.main()
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_of_corrective_hints_the_teacher_sees_those_of_learned_steps(chat):
    rolled = record(chat, 1)
    hint = {"name": "h", "text": "look it up"}
    both = rolled | {"steps": [rolled["steps"][0] | {"hint": hint}, rolled["steps"][1] | {"hint": hint}],
                     "targets": [1]}
    as_sampled = both | {"steps": [rolled["steps"][0] | {"hint": None}, both["steps"][1]]}
    one, same, other = (to_example(chat, r) for r in (both, as_sampled, both | {"targets": [0, 1]}))
    assert one == same != other


def test_an_action_that_was_not_sampled_to_its_end_is_not_learned(chat):
    whole = record(chat, 1) | {"stop": "complete"}
    assert usable(whole)
    assert not usable(whole | {"stop": "length"}) and not usable(whole | {"targets": []})
    assert usable(whole | {"stop": "length", "targets": [0]})                # what was cut is not learned
    for ids in ({"monologue": [5]}, {"code": [5]}, {"monologue": [], "code": [5]}):
        cut = whole["steps"][1] | {"token_ids": ids}
        steps = [whole["steps"][0], cut, whole["steps"][2]]
        assert not usable(whole | {"steps": steps})
        before = whole | {"steps": steps, "targets": [2]}                    # both are needed to show it to the model
        assert usable(before) == (ids.keys() == {"monologue", "code"})


def test_a_second_run_on_the_same_adapter_is_refused_and_leftovers_of_a_finished_one_go(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "d.jsonl").write_text("{}\n")
    command = ["distill.py", "--model", ROOT / "starter", "--data", tmp_path / "d.jsonl", "--out", out]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    held = os.open(out, os.O_RDONLY)
    files.lock(held, out)
    with pytest.raises(ValueError, match="out: another run is writing to it; wait for it or give another --out"):
        distill.main()
    assert not list(out.iterdir())
    os.close(held)
    # The lock is gone. This run fails because its data are no trajectories.
    with pytest.raises(ValueError, match="d.jsonl, line 1"):
        distill.main()
    assert (out / "arguments.json").exists()
    (out / "adapter_model.safetensors").write_bytes(b"")
    (out / "unfinished" / "teacher").mkdir(parents=True)
    distill.main()
    assert "already there" in capsys.readouterr().out
    assert sorted(f.name for f in out.iterdir()) == ["adapter_model.safetensors", "arguments.json"]
