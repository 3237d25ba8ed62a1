"""The loss against a plain float64 implementation, one action at a time; what is learned from; the balancing."""
from common import files

import copy
import json
import random
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch._dynamo.testing import CompileCounterWithBackend

import distill
from agent.chat import Chat
from lora import adapters, add_adapter, read_adapter
from model import Config, Llama

ROOT = Path(__file__).resolve().parent.parent
T = 2.0


@pytest.fixture(scope="module")
def chat():
    return Chat(ROOT / "starter")


def record(chat, number, steps=3, targets=None, corrective=()):
    def ids(text, tag):
        return chat.encode_text(text + "\n") + [chat.tokenizer.token_to_id(f"</{tag}>")]
    r = {"id": f"t{number}#0", "task": {"id": f"t{number}", "group": "g", "template": "p", "question": f"What is {number}?", "answer": "1"}, "success": True,
         "hints": [{"name": "a", "kind": "tools", "text": "## tools: a\nlook(x): looks"}, {"name": "b", "kind": "practice", "text": f"## practice: b\nprint(look({number}))"}],
         "steps": [{"monologue": f"look at {number} {n}", "code": "x = look(3)\nprint(x)" * (n + 1), "observation": f"seen {number + n}", "hint": {"name": "c", "text": f"Mind {n}."} if n in corrective else None,
                    "token_ids": {"monologue": ids(f"look at {number} {n}", "inner_monologue"), "code": ids("x = look(3)\nprint(x)" * (n + 1), "python")}} for n in range(steps)]}
    return r | ({"targets": targets} if targets else {})


@pytest.fixture
def model():
    torch.manual_seed(0)
    c = Config(vocab_size=1536, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    m = Llama(c)
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.2)
    add_adapter(m, 4, 8)
    for p in add_adapter(m, 4, 8):                                     # one frozen adapter below the newest, both not zero
        torch.nn.init.normal_(p, std=0.4)
    return m.train()


def tiny_checkpoint(folder):
    """A random model with the starter's tokenizer, in Hugging Face format."""
    config = dict(model_type="llama", vocab_size=1536, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((ROOT / "starter" / name).read_bytes())
    torch.manual_seed(0)
    m = Llama(Config(**{k: v for k, v in config.items() if k != "model_type"}))
    save_file({("" if k.startswith("lm_head") else "model.") + k: v.detach().clone() for k, v in m.state_dict().items() if k != "lm_head.weight"}, folder / "model.safetensors")


def plain_loss(model, teacher, chat, records, dropped):
    """KL at temperature 2 (paper §3.1), the mean over an action's tokens, then over actions; full logits of one action at a time."""
    losses = []
    for r in records:
        for n in r.get("targets", range(len(r["steps"]))):
            seen = [r["steps"][:n + 1], [s | {"hint": None} for s in r["steps"][:n + 1]] if dropped else r["steps"][:n + 1]]
            rows = [chat.prompt(r["task"]["question"], [] if dropped and student else [h["text"] for h in r["hints"]], seen[student]) for student in (0, 1)]
            logits = []
            for (ids, spans), m in zip(rows, (teacher, model)):
                out = m(torch.tensor([ids]))[0]
                logits.append(torch.cat([out[a - 1:b - 1] for a, b in (spans[n, "monologue"], spans[n, "code"])]) / T)
            p, q = (x.log_softmax(-1) for x in logits)
            losses.append((p.exp() * (p - q)).sum(-1).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("dropped, fused, mixed", [(0.0, False, False), (1.0, False, False), (1.0, True, False), (1.0, False, True), (1.0, True, True)])
def test_the_loss_and_its_gradients_equal_a_plain_float64_implementation(chat, model, dropped, fused, mixed, monkeypatch):
    reference, autocast = copy.deepcopy(model).double(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed)
    if fused:                                                          # as on a GPU, up to the kernels
        monkeypatch.setattr(distill, "can_compile", lambda: True)
        counter = CompileCounterWithBackend("aot_eager")
        monkeypatch.setattr(distill, "compiled", partial(torch.compile, backend=counter, dynamic=True, fullgraph=True))
        monkeypatch.setattr(distill.Divergence, "kernel", distill.divergence)
        for block in model.layers:
            block.recompute = True
        distill.fuse(model)
    records = [record(chat, 1), record(chat, 22, targets=[2], corrective=[2]), record(chat, 333, steps=4, targets=[1, 3], corrective=[1])]
    monkeypatch.setitem(distill.CHUNK, "cpu", 4 * 7 * 1536)
    monkeypatch.setitem(distill.CACHED, "cpu", 3 * 1536)
    rows = [distill.example(chat, r, dropped) for r in records]
    taught = distill.together([(*distill.example(chat, r)[:2], n) for n, r in enumerate(records)], 10 ** 6)
    assert [(common > 0, len(row)) for common, row in taught] == [(True, 3)]       # in one row, what all begin with once
    with torch.no_grad(), autocast, adapters(model, newest=False):
        common, row = taught[0]
        states = dict(zip((x[2] for x in row), distill.hidden_at(model, row, common).split([len(x[1]) for x in row])))
    hidden = torch.cat([states[n] for n in range(3)])
    with autocast:
        loss = distill.loss_of(model, rows, hidden, T)
    assert not fused or counter.frame_count >= 3                       # before, after, divergence
    teacher = copy.deepcopy(reference)

    def frozen_only(tokens):
        with torch.no_grad(), adapters(teacher, newest=False):
            return teacher(tokens)

    expected = plain_loss(reference, frozen_only, chat, records, dropped)
    expected.backward()
    assert abs(loss.item() - expected.item()) <= (3e-2 if mixed else 1e-5) * abs(expected.item())        # bfloat16 has 8 bits
    assert loss.item() > 1e-3
    pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), reference.parameters()) if p.requires_grad]
    assert len(pairs) == 2 * (7 * 2 + 1)
    for ours, theirs in pairs:
        assert (ours.double() - theirs).norm() <= (1e-1 if mixed else 1e-4) * theirs.norm()


def test_a_filler_changes_neither_the_teachers_states_nor_the_loss_nor_its_gradients(chat, model):
    records = [record(chat, 1), record(chat, 22, targets=[2], corrective=[2])]
    (common, row), = distill.together([(*distill.example(chat, r)[:2], n) for n, r in enumerate(records)], 10 ** 6)
    seen, states, found = [distill.example(chat, records[n], 1.0) for _, _, n in row], [], []
    for fillers in ([], distill.filler(row, common)):
        with torch.no_grad():
            states.append(distill.hidden_at(model, row + fillers, common)[:sum(len(x[1]) for x in row)])
    assert common and (common + sum(len(x[0]) - common for x in row + fillers)) % 64 == 0 == sum(len(x[1]) for x in row + fillers) % 32
    for fillers in ([], distill.filler(seen)):
        model.zero_grad()
        hidden = torch.nn.functional.pad(states[0], (0, 0, 0, sum(len(x[1]) for x in fillers)))
        loss = distill.loss_of(model, seen + fillers, hidden, T)
        found.append([loss, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert fillers and len(found[0]) == 31 and found[0][0] > 1e-3
    for one, other in (states, *zip(*found)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not distill.filler([([1] * 128, [5] * 64)]) and len(distill.filler([([1] * 128, [5] * 63)])[0][0]) == 64       # tokens for an action's to stand on


def test_the_teacher_computes_once_what_examples_have_in_common_and_never_more_than_without():
    rng = random.Random(0)
    hints = {n: [rng.randrange(9) for _ in range(n)] for n in (0, 40, 200)}
    examples = [(h := hints[rng.choice(list(hints))]) + [rng.randrange(9) for _ in range(rng.randint(5, 60))] for _ in range(60)]
    examples = [(ids, [len(ids) - 2], n) for n, ids in enumerate([*examples, examples[0], examples[0][:-3], [1] * 700])]
    for most in (1, 300, 600, 10 ** 6):
        rows = distill.together(examples, most)
        assert sorted(x[2] for _, row in rows for x in row) == list(range(63))
        for common, row in rows:
            assert all(x[0][:common] == row[0][0][:common] and len(x[0]) > common for x in row)
            assert common + sum(len(x[0]) - common for x in row) <= most or len(row) == 1 and not common
        (_, fullest), times = distill.longest(examples, most)
        whole = sum(len(x[0]) for x in examples)
        assert sum(common + sum(len(x[0]) - common for x in row) for common, row in rows) <= whole and (most < 10 ** 6 or times * 700 < 0.5 * whole)


def test_weights_that_are_in_bfloat16_already_change_nothing_under_autocast():
    both = [Llama.from_pretrained(ROOT / "starter", linear_dtype=dtype) for dtype in (None, torch.bfloat16)]
    assert both[1].lm_head.weight.dtype == torch.bfloat16 and both[1].embed_tokens.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(*(model(torch.arange(300, 400)[None]) for model in both))


def test_cross_entropy_is_that_of_the_sampled_tokens(chat, model):
    r = record(chat, 5)
    loss = distill.loss_of(model, [distill.example(chat, r)])
    ids, spans = chat.prompt(r["task"]["question"], [h["text"] for h in r["hints"]], r["steps"])
    logp = model(torch.tensor([ids]))[0].log_softmax(-1)
    actions = [torch.stack([-logp[i - 1, ids[i]] for name in ("monologue", "code") for i in range(*spans[n, name])]).mean() for n in range(3)]
    assert torch.allclose(loss, torch.stack(actions).mean(), rtol=1e-5)


def test_hint_sections_are_left_out_one_by_one_with_the_given_probability(chat):
    r, rng, lengths = record(chat, 1, corrective=[0]), random.Random(0), Counter()
    for _ in range(1000):
        ids, *rest = distill.example(chat, r, 0.9, rng)
        lengths[len(ids)] += 1
        assert rest[1:] == list(distill.example(chat, r)[2:])
    assert len(lengths) == 8                                           # 2 × 2 × 2 combinations
    assert abs(max(lengths.values()) / 1000 - 0.9 ** 3) < 0.05


def test_only_target_steps_are_learned_and_later_steps_are_not_seen(chat):
    r = record(chat, 1, steps=4, targets=[1])
    ids, at, targets, weights = distill.example(chat, r)
    assert targets == r["steps"][1]["token_ids"]["monologue"] + r["steps"][1]["token_ids"]["code"]
    assert [ids[i + 1] for i in at] == targets and abs(sum(weights) - 1) < 1e-9
    assert at[-1] < len(ids) and len(ids) < len(distill.example(chat, record(chat, 1, steps=4))[0])


def test_balancing_fills_rare_mistakes_small_groups_and_keeps_what_was_learned():
    def t(n, group, template):
        return {"id": f"{n}", "task": {"id": f"{group}{template}{n}", "group": group, "template": template}}
    corrected = [t(f"c{i}", "a", "a1") for i in range(9)] + [t("c9", "a", "a2"), t("c10", "b", "b1"), t("c11", "b", "b1")]
    candidates = [t(i, g, x) for g, x in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("b", "b2"), ("c", "c1")) for i in range(20)]
    chosen = distill.balance(corrected, candidates, random.Random(0))
    assert len({id(c) for c in chosen}) == len(chosen)
    templates, groups = Counter(c["task"]["template"] for c in chosen), Counter(c["task"]["group"] for c in chosen)
    assert templates["a2"] >= 3 and templates["b1"] >= 2               # 1. up to the mean of 12 / 3
    assert 13 <= groups["b"] + 2 and groups["c"] >= 12                 # 2. up to the largest group
    assert templates["a3"] > 0                                         # 3. what no mistake was made in


def test_distilling_ends_in_an_adapter_that_has_learned(chat, tmp_path):
    """A teacher that always says one thing with its hint: the student says it without."""
    tiny_checkpoint(tmp_path)
    data = tmp_path / "d.jsonl"
    fields = {"seed": 1, "answer": "", "stop": "complete", "usage": {}}
    data.write_text("".join(json.dumps(record(chat, n) | fields | {"success": n < 8}) + "\n" for n in range(10)))
    run = subprocess.run([sys.executable, ROOT / "distill.py", "--model", tmp_path, "--data", data, "--loss", "ce", "--verified", "--rank", "4", "--alpha", "8", "--lr", "1e-2", "--warmup", "2",
                          "--epochs", "6", "--batch", "6", "--out", tmp_path / "adapter"], capture_output=True, text=True)
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
    data.write_text("".join(json.dumps(record(chat, n) | fields) + "\n" for n in range(8)))
    command = ["distill.py", "--model", str(tmp_path), "--data", str(data), "--loss", loss, "--rank", "4", "--lr", "1e-2", "--warmup", "2", "--epochs", "3", "--batch", "6",
               "--lora-dropout", "0.2", "--hint-dropout", "0.5", "--out"]

    def run(out, last=None):
        clipped = []

        def clip(parameters, norm, real=torch.nn.utils.clip_grad_norm_):
            clipped.append(1)
            if last and len(clipped) > last:
                raise KeyboardInterrupt                                # in the middle of an update
            return real(parameters, norm)

        with monkeypatch.context() as m:
            m.setattr(sys, "argv", [*command, str(tmp_path / out)])
            m.setattr(torch.nn.utils, "clip_grad_norm_", clip)
            m.setattr(distill.time, "time", iter(range(0, 10**6, 100)).__next__)      # a minute passes with every update
            distill.main()
        return (tmp_path / out / "adapter_model.safetensors").read_bytes()

    whole = run("whole")
    for last in (3, 4):                                                # 12 updates: killed after 3, and again after 4 more
        with pytest.raises(KeyboardInterrupt):
            run("killed", last)
    assert run("killed") == whole
    assert not (tmp_path / "killed" / "checkpoint").exists()
    logs = [(tmp_path / out / "log.jsonl").read_text() for out in ("whole", "killed")]
    assert logs[0] == logs[1] and logs[0].count("\n") == 12


def test_an_adapter_made_with_other_arguments_is_refused(chat, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(sys, "argv", ["distill.py", "--model", "m", "--data", "d", "--lr", "1", "--out", str(tmp_path / "a")])
    files.same_arguments(tmp_path / "a" / "arguments.json", {"lr": 2.0}, made=False)
    (tmp_path / "a" / "adapter_model.safetensors").touch()
    with pytest.raises(ValueError, match=r"/a: made with other arguments \(.*lr.*\); remove it"):
        distill.main()
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    (tmp_path / "a" / "teacher").mkdir()                               # all that a run with other arguments has come to
    with pytest.raises(ValueError, match="m: neither"):
        distill.main()
    assert not (tmp_path / "a" / "teacher").exists()


def test_a_loss_that_is_no_number_ends_the_training(chat, tmp_path, monkeypatch):
    tiny_checkpoint(tmp_path)
    (tmp_path / "d.jsonl").write_text(json.dumps(record(chat, 1) | {"seed": 1, "answer": "", "stop": "complete", "usage": {}}) + "\n")
    monkeypatch.setattr(sys, "argv", ["distill.py", "--model", str(tmp_path), "--data", str(tmp_path / "d.jsonl"), "--lr", "1e9", "--warmup", "0", "--epochs", "9", "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match=r"update \d: the loss or its gradient is no number; a lower --lr may help"):
        distill.main()
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_of_corrective_hints_the_teacher_sees_those_of_learned_steps(chat):
    rolled = record(chat, 1)
    hint = {"name": "h", "text": "look it up"}
    both = rolled | {"steps": [rolled["steps"][0] | {"hint": hint}, rolled["steps"][1] | {"hint": hint}], "targets": [1]}
    as_sampled = both | {"steps": [rolled["steps"][0] | {"hint": None}, both["steps"][1]]}
    assert distill.example(chat, both) == distill.example(chat, as_sampled) != distill.example(chat, both | {"targets": [0, 1]})


def test_an_action_that_was_not_sampled_to_its_end_is_not_learned(chat):
    whole = record(chat, 1) | {"stop": "complete"}
    assert distill.usable(whole)
    assert not distill.usable(whole | {"stop": "length"}) and not distill.usable(whole | {"targets": []})
    assert distill.usable(whole | {"stop": "length", "targets": [0]})                # what was cut is not learned


def test_a_second_run_on_the_same_adapter_is_refused_and_leftovers_of_a_finished_one_go(tmp_path):
    import os
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "d.jsonl").write_text("{}\n")
    command = [sys.executable, ROOT / "distill.py", "--model", "starter", "--data", tmp_path / "d.jsonl", "--out", out]
    run = lambda: subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    held = os.open(out, os.O_RDONLY)
    files.lock(held, out)
    refused = run()
    assert refused.returncode == 2 and refused.stderr.strip().endswith(f"{out}: another run is writing to it; wait for it or give another --out") and not list(out.iterdir())
    os.close(held)
    assert run().returncode == 2 and (out / "arguments.json").exists()         # of its own: the data are no trajectories
    (out / "adapter_model.safetensors").write_bytes(b"")
    for name in ("checkpoint", "teacher"):
        (out / name).mkdir()
    done = run()
    assert done.returncode == 0 and "there already" in done.stdout and sorted(f.name for f in out.iterdir()) == ["adapter_model.safetensors", "arguments.json"]
