"""Broken input to every script ends in one line that names file, line, field and remedy.

The exit status is 2, and earlier output stays as it was.
"""

from common import ROOT, command_line

import json
import re
import shutil
import sys

import pytest
import torch

import collect
import distill
import evaluate
import lora
import model
import review
from desk import mistakes, suites
from scaling import checkpoints
from test_distill import record, tiny_checkpoint
from tools import import_toolqa

TASK = {"id": "t1", "group": "g", "template": "p", "question": "What?", "answer": "1"}
TOOLS = '"""Tools."""\ndef look(x):\n    """Looks."""\n    return x\n'
MISTAKE = "+++\nregex = 'x'\n+++\nDo not.\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder in which everything is right."""
    folder = tmp_path_factory.mktemp("good")
    for name in ("model", "data", "hints", "round2"):
        (folder / name).mkdir()
    tiny_checkpoint(folder / "model")
    (folder / "tools.py").write_text(TOOLS)
    (folder / "hints" / "g.md").write_text("## tools: looking\nlook(x) looks\n")
    (folder / "round2" / "no-x.md").write_text(MISTAKE)
    (folder / "tasks.jsonl").write_text(json.dumps(TASK) + "\n")
    from agent.chat import Chat
    trajectory = record(Chat(ROOT / "starter"), 1) | {"seed": 1, "answer": "", "stop": "complete",
                                                      "usage": {"input_tokens": 1, "output_tokens": 1, "seconds": 1.0}}
    (folder / "played.jsonl").write_text(json.dumps(trajectory) + "\n")
    (folder / "flagged.jsonl").write_text(json.dumps(trajectory | {"hint": {"name": "a", "text": "b"}}) + "\n")
    return folder


AGENT = "--model {f}/model --tools {f}/tools.py --data {f}/data --max-new-tokens 4 --out {f}/out.jsonl"
COLLECT = AGENT + " --hint-dir {f}/hints --tasks {f}/tasks.jsonl --hints task"
RESAMPLE = AGENT + " --resample {f}/flagged.jsonl"
REVIEW = "{f}/played.jsonl --hint-dir {f}/round2 --out {f}/out.jsonl"
DISTILL = "--model {f}/model --data {f}/played.jsonl --rank 2 --epochs 1 --out {f}/adapter"
TABLE = "--table {f}/played.jsonl"


def line(file, **changes):
    """Writes a second line, the first one with changes; a value of None takes the field away."""
    def damage(folder):
        first = (folder / file).read_text().splitlines()[0]
        changed = json.loads(first) | {"id": "other"} | changes
        (folder / file).write_text(first + "\n" + json.dumps({k: v for k, v in changed.items() if v is not None})
                                   + "\n")
    return damage


def step(**changes):
    """The same for a field of the second line's second step."""
    def damage(folder):
        first = (folder / "played.jsonl").read_text().splitlines()[0]
        changed = json.loads(first) | {"id": "other"}
        changed["steps"][1] = {k: v for k, v in (changed["steps"][1] | changes).items() if v != "away"}
        (folder / "played.jsonl").write_text(first + "\n" + json.dumps(changed) + "\n")
    return damage


def text(file, content):
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def remove(file):
    return lambda folder: shutil.rmtree(folder / file) if (folder / file).is_dir() else (folder / file).unlink()


def config(**changes):
    def damage(folder):
        file = folder / "model" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return damage


def cut(file, n):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:n])


def adapter(shape):
    def damage(folder):
        import torch

        from lora import write_adapter
        write_adapter(folder / "adapter0", {"layers.0.self_attn.q_proj": (torch.zeros(2, shape),
                                                                          torch.zeros(shape, 2))}, 2, 4)
    return damage


def nothing(folder):
    pass


def weights(change):
    """The model's weights, changed."""
    def damage(folder):
        from safetensors.torch import load_file, save_file
        file = folder / "model" / "model.safetensors"
        save_file({name: change(weight) for name, weight in load_file(file).items()}, file)
    return damage


def peft(tensors=None, **changes):
    """An adapter of rank 2 that fits, with changes in its configuration, or other tensors."""
    def damage(folder):
        import torch
        from safetensors.torch import save_file

        from lora import write_adapter
        write_adapter(folder / "adapter0", {"layers.0.self_attn.q_proj": (torch.zeros(2, 32), torch.zeros(32, 2))}, 2,
                      4)
        file = folder / "adapter0" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        if tensors:
            save_file({f"base_model.model.{name}.weight": torch.zeros(shape) for name, shape in tensors.items()},
                      folder / "adapter0" / "adapter_model.safetensors")
    return damage


def other_tokenizer(folder):
    """Every word has the next one's id."""
    file = folder / "model" / "tokenizer.json"
    content = json.loads(file.read_text())
    words, added = content["model"]["vocab"], {token["content"] for token in content["added_tokens"]}
    plain = [word for word in words if word not in added]
    ids = [words[word] for word in plain]
    words.update(zip(plain, ids[1:] + ids[:1]))
    file.write_text(json.dumps(content))


def damaged_checkpoint(folder):
    """A training that broke off, and whose checkpoint is not whole."""
    sys.argv = ["distill.py", *DISTILL.format(f=folder).split()]
    distill.main()
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    checkpoints.save({"log": torch.zeros(3)}, folder / "adapter" / "unfinished" / "checkpoint0")


def flagged(**ids):
    def damage(folder):
        trajectory = json.loads((folder / "flagged.jsonl").read_text())
        first = trajectory["steps"][0] | {"token_ids": ids}
        (folder / "flagged.jsonl").write_text(json.dumps(trajectory | {"steps": [first]}))
    return damage


def replaced(old, new, file="played.jsonl"):
    """played.jsonl with `new` instead of `old`, under the name `file`."""
    return lambda folder: text(file, (folder / "played.jsonl").read_text().replace(old, new))(folder)


def corpus(content):
    return lambda folder: ((folder / "corpora" / "flights").mkdir(parents=True),
                           text("corpora/flights/f.csv", content)(folder))


def questions(content):
    return lambda folder: ((folder / "questions" / "train").mkdir(parents=True),
                           [text(f"questions/train/{group}-x.jsonl", content)(folder)
                            for group in import_toolqa.GROUPS])


C, R, D, E, L, M, T, S = collect, review, distill, evaluate, lora, model, import_toolqa, suites
STACK = "stack {f}/adapter0 --out {f}/adapter"
MERGE = "merge --model {f}/model --adapter {f}/adapter0 --out {f}/merged"
MODEL = "--model {f}/model --prompt look --max-new-tokens 2"
FAILED = replaced('"success": true', '"success": false')
STUBBORN = """def detect(t, s):
    while True:
        try:
            while True: pass
        except Exception: pass"""
CASES = [                                                               # script, command, damage, what the line says
    # tasks
    (C, COLLECT, remove("tasks.jsonl"), "tasks.jsonl: no such file"),
    (C, COLLECT, text("tasks.jsonl", json.dumps([TASK], indent=1)), r"line 1: write one object a line \(JSONL\)"),
    (C, COLLECT, line("tasks.jsonl", answer=42), "line 2, field 'answer': not a text or a list; write \"42\""),
    (C, COLLECT.replace("tasks.jsonl", "data"), nothing, "data: a directory, not a file of records"),
    (C, COLLECT, text("tasks.jsonl", ""), "tasks.jsonl: empty"),
    (C, COLLECT, text("tasks.jsonl", "\n\n"), "tasks.jsonl: empty"),
    (C, COLLECT, text("tasks.jsonl", json.dumps(TASK) + "\n{\"id\": "), "tasks.jsonl, line 2: not JSON"),
    (C, COLLECT, text("tasks.jsonl", "\n[1]\n"), "tasks.jsonl, line 2: not an object but a list"),
    (C, COLLECT, text("tasks.jsonl", b"\xff\xfe\n"), "tasks.jsonl, line 1: not UTF-8"),
    (C, COLLECT, text("tasks.jsonl", "[" * 100_000), "tasks.jsonl, line 1: n"),
    (C, COLLECT, text("tasks.jsonl", 2 * (json.dumps(TASK) + "\n")), "line 2, field 'id': 't1' is on line 1 already"),
    (C, COLLECT, line("tasks.jsonl", answer=[]), "line 2, field 'answer': an empty list; give at least one"),
    (C, COLLECT, line("tasks.jsonl", question="\ud800"), r"tasks.jsonl, line 2: '.ud800' is half a character"),
    (C, COLLECT, line("tasks.jsonl", note=["\udfff"]), r"tasks.jsonl, line 2: '.udfff' is half a character"),
    (C, COLLECT, text("tasks.jsonl", '{"id": ' + "9" * 5000 + "}"), "tasks.jsonl, line 1: not JSON .Exceeds the limit"),
    (C, COLLECT.replace("{f}/tasks", "{f}/data/tasks"),
     lambda f: (f / "tasks.jsonl").rename(f / "data" / "tasks.jsonl"),
     "data/tasks.jsonl: holds answers, and the agent's code can read all of --data"),
    *((C, COLLECT + f" --batch {batch}", nothing, "out of memory .*; a smaller --batch")
      for batch in (10 ** 9, 10 ** 15)),
    (C, COLLECT + f" --batch {10 ** 30}", nothing, "argument --batch: .* is not a whole number"),
    (C, COLLECT + " --tp 2", nothing, "--tp 2: the number of processes has to be a multiple of it, but is 1"),
    *((C, COLLECT, line("tasks.jsonl", **{field: None}), f"tasks.jsonl, line 2, field '{field}': missing")
      for field in ("group", "template", "question", "answer")),
    *((C, COLLECT, line("tasks.jsonl", **{field: 3}), f"tasks.jsonl, line 2, field '{field}': not a text")
      for field in TASK),
    (C, COLLECT, line("tasks.jsonl", answer=["1", 2]), r"tasks.jsonl, line 2, field 'answer\[1\]': not a text"),
    (C, COLLECT, line("tasks.jsonl", group="elsewhere"),
     "hints: no hints for the group 'elsewhere'; write elsewhere.md or common.md"),
    (E, COLLECT, line("tasks.jsonl", group="elsewhere"), "hints: no hints for the group 'elsewhere'"),
    (E, COLLECT, remove("tasks.jsonl"), "tasks.jsonl: no such file"),
    # hints
    (C, COLLECT, remove("hints"), r"hints: no \*.md file with hints there; name the folder with --hint-dir"),
    (C, COLLECT, remove("hints/g.md"), r"hints: no \*.md file"),
    (C, COLLECT, text("hints/g.md", b"## tools: a\n\xff\n"), "g.md: not UTF-8 text"),
    (C, COLLECT, text("hints/g.md", "hello\n## tools: a\nb\n"), "g.md, line 1: text outside a section"),
    (C, COLLECT, text("hints/g.md", "## tools: a\nb\n## tool: c\nd\n"),
     "g.md, line 3: '## tool: c' does not start a section; start one with"),
    (C, COLLECT, text("hints/g.md", "## tools: a\n\n## practice: c\nd\n"), "g.md, line 1: the section 'a' is empty"),
    (C, COLLECT, text("hints/g.md", "## practice: a\nfor: ,\nb\n"), "g.md, line 1: .* names no template after 'for:'"),
    # the command line
    (C, COLLECT + " --resample {f}/flagged.jsonl", nothing, "give --model, --out, and either --tasks or --resample"),
    (C, "--tasks {f}/tasks.jsonl --out {f}/out.jsonl", nothing, "give --model"),
    (D, DISTILL + " --seed 3 3", nothing, "--seed: the same seed twice"),
    (E, "--model {f}/model", nothing, "give --model, --out, and --tasks or --suite with --file; or --model"),
    (E, "--model {f}/model --suite humaneval --file {f}/tasks.jsonl --out {f}/o.jsonl", nothing,
     "tasks.jsonl, line 1, field .task_id.: missing, or not text"),
    (E, "--model {f}/model --suite humaneval --file {f}/none.gz --out {f}/o.jsonl", nothing, "none.gz: cannot be read"),
    (E, "--model {f}/model --plan 8", nothing, "--plan: give GPUS GIB"),
    (D, "--model {f}/none --plan 8 80", nothing, "none: neither a directory, a config.json nor a model on the hub"),
    *((C, COLLECT + f" --{flag} {value}", nothing, f"argument --{flag}: '{value}' is not a") for flag, value in (
        ("trials", 0), ("trials", "x"), ("batch", -1), ("batch", 1.5), ("max-steps", 0), ("max-new-tokens", 0),
        ("max-length", 0), ("temperature", -0.1),
        ("temperature", "nan"), ("top-p", 1.1), ("samples", 0))),
    (C, COLLECT + " --hints some", nothing, "argument --hints: invalid choice"),
    (C, COLLECT + " --frobnicate", nothing, "unrecognized arguments: --frobnicate"),
    *((D, DISTILL + f" --{flag} {value}", nothing,
       f"argument --{flag}: '{value}' is not a (whole )?number (from .* to|of at least)")
      for flag, value in (("rank", 0), ("epochs", 0), ("batch", 0), ("lr", -1), ("hint-dropout", 2),
                          ("lora-dropout", -1), ("kl-temperature", 0), ("warmup", -1))),
    (D, DISTILL + " --targets q_proj elsewhere", nothing, "argument --targets: invalid choice: 'elsewhere'"),
    (R, "", nothing, "the following arguments are required: trajectories"),
    # the model
    (C, COLLECT, remove("model"), "model: neither a directory nor a model on the hub"),
    (C, COLLECT, remove("model/config.json"), "config.json: cannot be read"),
    (C, COLLECT, text("model/config.json", "{"), "config.json, line 1: not JSON"),
    (C, COLLECT, text("model/config.json", "[]"), "config.json: not an object"),
    (C, COLLECT, config(model_type="mixtral"), "config.json, field 'model_type': 'mixtral'; supported are"),
    (C, COLLECT, config(rope_scaling={"rope_type": "yarn"}),
     "config.json, field 'rope_scaling': type 'yarn' is not supported"),
    (C, COLLECT, config(hidden_size="many"), "config.json, field 'hidden_size': not a whole number"),
    (C, COLLECT, config(intermediate_size=47), "model.safetensors: .*mlp.* is .*config.json says"),
    (C, COLLECT, config(num_hidden_layers=3), "no tensor model.layers.2"),
    (C, COLLECT, config(vocab_size=100), "tokenizer.json: the token .* has id .* vocabulary has only 100 tokens"),
    (C, COLLECT, remove("model/model.safetensors"), "model.safetensors: cannot be read"),
    (C, COLLECT, cut("model/model.safetensors", 5000), "model.safetensors: cannot be read"),
    (C, COLLECT, text("model/model.safetensors", b"\0" * 64), "model.safetensors: cannot be read"),
    (D, DISTILL, cut("model/model.safetensors", 5000), "model.safetensors: cannot be read"),
    (C, COLLECT, remove("model/tokenizer.json"), "tokenizer.json: no such file; a model directory needs"),
    (C, COLLECT, text("model/tokenizer.json", "{}"), "tokenizer.json: not a tokenizer"),
    (C, COLLECT, text("model/tokenizer_config.json", "{}"), "tokenizer_config.json: no chat_template"),
    (C, COLLECT, text("model/tokenizer_config.json", "[]"), "tokenizer_config.json: not an object"),
    (C, COLLECT, text("model/tokenizer_config.json", "["), "tokenizer_config.json, line 1: not JSON"),
    (C, COLLECT, text("model/tokenizer_config.json", '{"chat_template": "{% if %}"}'),
     "model: the chat template, line 1"),
    # adapters
    (C, COLLECT + " --adapter {f}/nowhere", nothing,
     "nowhere: cannot be read as an adapter|nowhere/adapter_config.json"),
    (C, COLLECT + " --adapter {f}/adapter0", adapter(7),
     "adapter_model.safetensors: model.layers.0.self_attn.q_proj: .* do not fit"),
    (D, DISTILL + " --adapter {f}/adapter0", adapter(7),
     "adapter_model.safetensors: model.layers.0.self_attn.q_proj: .* do not fit"),
    (C, COLLECT + " --adapter {f}/adapter0", lambda f: (adapter(2)(f), text("adapter0/adapter_config.json", "[]")(f)),
     "adapter_config.json: not an object"),
    (R, "{f}/played.jsonl --try {f}/round2/no-x.md --model {f}/model --tools {f}/tools.py --data {f}/data --html "
     "{f}/data/page.html", nothing, "data/page.html: holds answers, and the agent's code can read all of --data"),
    (R, "{f}/played.jsonl --try {f}/round2/no-x.md --model {f}/model --tools {f}/tools.py --data {f}/data --tp 2",
     nothing, "--tp: only the model that plays the tasks"),
    # tools
    (C, COLLECT, remove("tools.py"), "tools.py: no such file or directory; give --tools one that exists"),
    (C, COLLECT, remove("data"), "data: no such file or directory; give --data one that exists"),
    (C, COLLECT, text("tools.py", "def look(:\n"), "tools.py, line 1: SyntaxError"),
    (C, COLLECT, text("tools.py", "import elsewhere_entirely\n"), "tools.py, line 1: ModuleNotFoundError"),
    (C, COLLECT, text("tools.py", TOOLS + "def _open(directory):\n    open(directory + '/none')\n"),
     "tools.py, line 6: FileNotFoundError"),
    (C, COLLECT, text("tools.py", "import os\nos._exit(1)\n"),
     "tools.py: Python ended, or took ten minutes, while it loaded this module"),
    # trajectories
    (R, REVIEW, remove("played.jsonl"), "played.jsonl: no such file"),
    (R, REVIEW, text("played.jsonl", json.dumps(TASK)), "played.jsonl, line 1, field 'task': missing"),
    *((R, REVIEW, line("played.jsonl", **{field: "?"}), f"played.jsonl, line 2, field '{field}': not ")
      for field in ("task", "seed", "hints", "steps", "success")),
    (R, REVIEW, step(code="away"), r"played.jsonl, line 2, field 'steps\[1\].code': missing"),
    (R, REVIEW, step(observation=None), r"field 'steps\[1\].observation': not a text"),
    (R, REVIEW, step(hint={"name": "a"}), r"field 'steps\[1\].hint.text': missing"),
    (D, DISTILL, step(token_ids={"code": [1, "2"]}), r"field 'steps\[1\].token_ids.code\[1\]': not a whole number"),
    (D, DISTILL, step(token_ids={"code": [99999], "monologue": [1]}), "the tokens of other are not this model's"),
    (D, DISTILL, step(token_ids={"code": [-1], "monologue": [1]}), "the tokens of other are not this model's"),
    (R, REVIEW, line("played.jsonl", usage={"seconds": "1"}),
     r"line 2, field 'usage.seconds': not a whole number or a number"),
    (D, DISTILL, line("played.jsonl", targets=[3]), "field 'targets': there is no step 3, counted from 0, there are 3"),
    (D, DISTILL, line("played.jsonl", targets="all"), "line 2, field 'targets': not a list"),
    (D, DISTILL + " --balance {f}/none.jsonl", nothing, "none.jsonl: no such file"),
    (D, DISTILL + " --val {f}/none.jsonl", nothing, "none.jsonl: no such file"),
    (D, DISTILL + " --loss ce", FAILED, "nothing is left to learn from"),
    (D, DISTILL + " --verified", FAILED, "nothing is left to learn from"),
    (D, DISTILL + " --verified --balance {f}/good.jsonl",
     lambda f: (replaced("true", "true", "good.jsonl")(f), FAILED(f)),
     "played.jsonl: nothing is left to learn from"),
    (D, DISTILL + " --verified --keep {f}/bad.jsonl", replaced('"success": true', '"success": false', "bad.jsonl"),
     "bad.jsonl: nothing is left to learn from"),
    (D, DISTILL + " --verified --balance {f}/bad.jsonl", replaced('"success": true', '"success": false', "bad.jsonl"),
     "bad.jsonl: nothing is left to learn from"),
    (D, DISTILL.replace("played", "flagged"), nothing,
     "flagged.jsonl, line 1, field 'hint': a flagged state has no corrected action yet; collect.py --resample makes"),
    (C, COLLECT.replace("{f}/model", "openai:m") + " --adapter {f}/adapter0", nothing, "endpoint takes no --adapter"),
    (C, COLLECT.replace("{f}/model", "openai:m") + " --dtype float32", nothing,
     "endpoint takes no --adapter, no --dtype"),
    (C, RESAMPLE.replace("flagged", "played"), nothing, "played.jsonl, line 1, field 'hint': missing"),
    (C, RESAMPLE, line("flagged.jsonl", hint="b"), "flagged.jsonl, line 2, field 'hint': not an object"),
    (E, TABLE, text("played.jsonl", "{}"), "played.jsonl, line 1, field 'id': missing"),
    (E, TABLE, remove("played.jsonl"), "played.jsonl: no such file"),
    # mistakes
    (R, REVIEW, text("round2/no-x.md", b"+++\nregex = 'x'\n+++\n\xff\n"), "no-x.md: not UTF-8 text"),
    (R, REVIEW, remove("round2"), r"round2: no \*.md file with a mistake there"),
    *((R, REVIEW, text("round2/no-x.md", content), f"no-x.md{says}") for content, says in (
        ("Do not.\n", ": a mistake begins with a header"),
        ("+++\nregex = \n+++\nDo not.\n", ": the header between the .* lines is not TOML"),
        ("+++\nregex = 'x'\n+++\n", ": no hint below the header"),
        ("+++\nregx = 'x'\n+++\nNo.\n", ", field 'regx': unknown"),
        ("+++\ngroups = ['g']\n+++\nNo.\n", ": give one of"),
        ("+++\nregex = 'x'\npython = 'y'\njudge = 'z'\n+++\nNo.\n", ": give one of"),
        ("+++\nregex = '('\n+++\nNo.\n", ", field 'regex': "),
        ("+++\nregex = 3\n+++\nNo.\n", ", field 'regex': not a text"),
        ("+++\nregex = 'x'\ngroups = 'g'\n+++\nNo.\n", ", field 'groups': not a list"),
        ("+++\npython = 'def'\n+++\nNo.\n", ", field 'python': SyntaxError"),
        ("+++\npython = 'x = 1'\n+++\nNo.\n", r", field 'python': no function detect\(trajectory, step\)"),
        ("+++\npython = 'def detect(t, s): return t[5]'\n+++\nNo.\n", ", field 'python': on step 1 of t1#0: KeyError"),
        ("+++\npython = '''\ndef detect(t, s):\n    while True: pass'''\n+++\nNo.\n",
         ", field 'python': on step 1 of t1#0: no answer after"))),
    *((R, REVIEW, text("round2/no-x.md", f"+++\npython = '''\n{code}'''\n+++\nNo.\n"),
       f"no-x.md, field 'python': {says}") for code, says in (
        ("while True: pass", "no answer after"), ("raise SystemExit", "SystemExit"),
        ("def detect(t, s): raise SystemExit", "on step 1 of t1#0: SystemExit"),
        (STUBBORN, "on step 1 of t1#0: no answer after"),
        ("def detect(t): return True", "on step 1 of t1#0: TypeError"))),
    (R, "{f}/played.jsonl --html {f}/played.jsonl", nothing, "played.jsonl: is also an input, so it cannot be"),
    (E, TABLE + " --html {f}/played.jsonl", nothing, "played.jsonl: is also an input, so it cannot be written to"),
    (R, REVIEW + " --corrected {f}/played.jsonl", text("round2/no-x.md", MISTAKE.replace("'x'", "''")),
     "t1#0 continues from a state that is not flagged here"),
    # more of the model
    *((C, COLLECT, config(**{field: value}), f"config.json, field '{field}.*': {says}") for field, value, says in (
        ("num_attention_heads", 0, "0; it has to be from 1 to 2147483648"),
        ("num_hidden_layers", -1, "-1; it has to be from 1"),
        ("hidden_size", 2 ** 62, "4611686018427387904; it has to be from 1"),
        ("num_hidden_layers", True, "not a whole number"),
        ("vocab_size", "many", "not a whole number"), ("max_position_embeddings", "x", "not a whole number"),
        ("rope_theta", "big", "not a whole number or a number"),
        ("rms_norm_eps", "x", "not a whole number or a number"), ("eos_token_id", "x", "not a whole number or a list"),
        ("tie_word_embeddings", 1, "not true or false"),
        ("rope_scaling", "llama3", "not an object"), ("rope_scaling", {"rope_type": "llama3"}, "missing"))),
    (C, COLLECT, config(num_key_value_heads=3), "config.json: 4 query heads of 8 for 3 key/value heads"),
    (D, "--model {f}/model --plan 8 80", config(num_attention_heads=0),
     "config.json, field 'num_attention_heads': 0; it has to be from 1"),
    (C, COLLECT, text("model/config.json", b"\xff{}"), "config.json: not UTF-8 text"),
    (C, COLLECT, text("model/generation_config.json", "["), "generation_config.json, line 1: not JSON"),
    (C, COLLECT, text("model/model.safetensors.index.json", "{}"), "index.json, field 'weight_map': not an object"),
    (C, COLLECT, text("model/model.safetensors.index.json", '{"weight_map": {"a": 3}}'),
     "index.json, field 'weight_map.a': not a text"),
    (C, COLLECT, text("model/model.safetensors.index.json",
                      '{"weight_map": {"model.embed_tokens.weight": "none.safetensors"}}'),
     "none.safetensors: model.embed_tokens.weight cannot be read"),
    (C, COLLECT, weights(lambda w: w.to(__import__("torch").int8)),
     "model.embed_tokens.weight holds I8: the checkpoint is quantized"),
    (C, COLLECT, weights(lambda w: w * float("nan")), "the model's logits are NaN"),
    (C, COLLECT + " --temperature 0", weights(lambda w: w * float("nan")), "the model's logits are NaN"),
    *((C, COLLECT, text("model/tokenizer_config.json", json.dumps({"chat_template": template})), says)
      for template, says in (
        (5, "no chat_template"), ([1, 2], "no chat_template"),
        ("hello", "the chat template leaves out a part of the messages"),
        ("{{ 1 / 0 }}", "the chat template: division by zero"),
        ("{{ messages[99].content.x }}", "the chat template: list object has no element 99"),
        ("{{ raise_exception('roles!') }}", "the model's chat template: roles!"))),
    (D, DISTILL, other_tokenizer, "the tokens of t1#0 are not this model's"),
    (D, DISTILL, config(max_position_embeddings=16), r"t1#0 is \d+ tokens long; the model sees at most 16"),
    (C, RESAMPLE, flagged(monologue=[1], code=[99999]), "t1#0~0: its tokens are not those of --model"),
    (C, RESAMPLE, flagged(monologue=[1], code=[-5]), "t1#0~0: its tokens are not those of --model"),
    (C, RESAMPLE, flagged(code=[5]), "its steps hold no token ids"),
    (C, COLLECT + " --max-length 20", nothing,
     r"t1#2: its first prompt has \d+ tokens, and no other one is shorter than the 20 that --max-length"),
    (C, COLLECT, config(max_position_embeddings=30),
     r"t1#2: its first prompt has \d+ tokens, and no other one is shorter than the 30 that"),
    (C, COLLECT + " --rollout", nothing, "--control and --rollout need --resample"),
    (C, RESAMPLE + " --hints task", nothing, "it takes no --hints, --kinds or --hints-for"),
    (C, COLLECT.replace("{f}/model", "openai:m") + " --base-url nonsense", nothing,
     "--base-url nonsense: should begin with http"),
    # more adapters
    *((C, COLLECT + " --adapter {f}/adapter0", damage, f"adapter_{says}") for damage, says in (
        (peft(lora_alpha="x"), "config.json, field 'lora_alpha': not a"),
        (peft(lora_alpha=None), "config.json, field 'lora_alpha': not a"),
        (peft(alpha_pattern=[1]), "config.json, field 'alpha_pattern': not null or an object"),
        (peft(alpha_pattern={"(": 3}), "config.json, field 'alpha_pattern': "),
        (peft(alpha_pattern={"q_proj": "x"}), "config.json, field 'alpha_pattern.q_proj': not a"),
        (peft(rank_pattern={"q_proj": 1.5}), "config.json, field 'rank_pattern.q_proj': not a whole number"),
        (peft(alpha_pattern={"(?i)q": 3}), "config.json, field 'alpha_pattern': global flags"),
        (peft(target_modules="("), "config.json, field 'target_modules': missing"),
        (peft(init_lora_weights="pissa"), "config.json: init_lora_weights is 'pissa', which changes the base weights"),
        (peft(lora_alpha=float("inf")), "config.json, field 'lora_alpha': inf is not a finite number"),
        (peft({"model.layers.0.self_attn.q_proj.lora_B": (32, 2)}), "model.safetensors: no tensor .*q_proj.lora_A"),
        (peft({"model.layers.0.self_attn.q_proj.lora_A": (3,), "model.layers.0.self_attn.q_proj.lora_B": (3,)}),
         "model.safetensors: .* they should be"),
        (peft({"model.layers.0.self_attn.q_proj.lora_A": (0, 32), "model.layers.0.self_attn.q_proj.lora_B": (32, 0)}),
         "model.safetensors: .* they should be"),
        (peft({"model.norm.lora_A": (2, 32), "model.norm.lora_B": (32, 2)}, target_modules=["norm"]),
         "model.safetensors: model.norm: this model has no such linear layer"))),
    *((L, command, damage, says) for command, damage, says in (
        (STACK, nothing, "adapter0/adapter_config.json: cannot be read"),
        (STACK, peft(lora_alpha="x"), "field 'lora_alpha'"),
        ("stack", nothing, "the following arguments are required"),
        (MERGE.replace("merged", "model"), peft(), "model: is also an input, so it cannot be written to"),
        (STACK, lambda f: (peft()(f), (f / "adapter").mkdir(), text("adapter/arguments.json", "{}")(f)),
         "adapter: distill.py has written an adapter there"),
        ("export --for vllm --model {f}/model --adapter {f}/adapter0 --out {f}/adapter",
         lambda f: (peft()(f), (f / "adapter").mkdir(), text("adapter/arguments.json", "{}")(f)),
         "adapter: distill.py has written an adapter there"),
        ("stack {f}/adapter0 --out {f}/adapter0", peft(), "adapter0: is also an input, so it cannot be written to"),
        (MERGE, lambda f: (peft()(f), config(quantization_config={"quant_method": "fp8"})(f)),
         "config.json: .*quantized"),
        (MERGE, lambda f: (peft()(f), weights(lambda weight: weight.to(torch.float8_e4m3fn))(f)),
         "model.safetensors: .*quantized"),
        (MERGE, lambda f: (peft()(f), (f / "merged").mkdir(), text("merged/model.safetensors.index.json", "{}")(f)),
         "merged: there are other weights already"),
        (MERGE, lambda f: (peft()(f), remove("model/config.json")(f)), "config.json: cannot be read"),
        (MERGE, lambda f: (peft()(f), text("model/config.json", "[]")(f)), "config.json: not an object"),
        (MERGE, lambda f: (peft()(f), cut("model/model.safetensors", 3000)(f)), "model.safetensors: cannot be read"),
        (MERGE, adapter(7), "it is another model's adapter"))),
    *((M, MODEL + more, damage, says) for more, damage, says in (
        ("", text("model/tokenizer.json", "{}"), "tokenizer.json: not a tokenizer"),
        (" --temperature nan", nothing, "argument --temperature"), (" --device tpu", nothing, "argument --device"),
        ("", config(max_position_embeddings=1), "--prompt: .* tokens; the model sees at most 1"),
        (" --adapter {f}/none", nothing, "none/adapter_config.json: cannot be read"))),
    # more of training
    (D, DISTILL + " --data {f}/played.jsonl {f}/played.jsonl", nothing, "played.jsonl: given twice"),
    (D, DISTILL + " --alpha inf", nothing, "argument --alpha: 'inf' is not a number"),
    *((D, DISTILL,
       lambda f, file=f"adapter/unfinished/checkpoint0/1/{name}": (damaged_checkpoint(f), text(file, "x")(f)),
       "checkpoint0/1: damaged .*; run the same command again; if that fails too, remove .*checkpoint0")
      for name in (".metadata", "__0_0.distcp", "other")),
    (D, DISTILL, line("played.jsonl", targets=[0, 0]), "line 2, field 'targets': a step is named twice"),
    (D, DISTILL + " --val {f}/val.jsonl", replaced('"complete"', '"invalid"', "val.jsonl"),
     r"val.jsonl: nothing is left to learn from \(no finished actions"),
    # tables and suites
    (E, TABLE, line("played.jsonl", adapters=[{}]), r"line 2, field 'adapters\[0\]': not a text"),
    (E, TABLE, line("played.jsonl", usage={"seconds": None}), "line 2, field 'usage.seconds': not a"),
    (S, "humaneval {f}/suite.jsonl",
     text("suite.jsonl", 2 * (json.dumps({name: "a" for name in suites.FIELDS["humaneval"]}) + "\n")),
     "suite.jsonl, line 2, field 'task_id': 'a' occurs twice"),
    (S, "gsm8k {f}/suite.jsonl.gz", text("suite.jsonl.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\0rubbish"),
     "suite.jsonl.gz: cannot be read"),
    (S, "gsm9k {f}/suite.jsonl.gz", nothing, "argument suite: invalid choice"),
    # ToolQA's files
    *((T, "corpora {f}/corpora --out {f}/world", damage, says) for damage, says in (
        (nothing, r"flights: 0 files \*.csv; one is needed"),
        (corpus("a,b\n1\n"), "f.csv, line 2: 1 cells, the header has 2"),
        (corpus("a,a\n1,2\n"), "f.csv, line 1: the column 'a' comes twice"),
        (corpus(" , \n1,2\n"), "f.csv, line 1: no header"),
        (corpus("a,b\n1," + "x" * 200_000 + "\n"), "f.csv, line 2: field larger than"),
        (lambda f: ((f / "world").mkdir(), text("world/world.sqlite.part", "no database at all, no" * 99)(f)),
         "world.sqlite.part: .*; remove it"))),
    *((T, "questions {f}/questions --out {f}/world", damage, says) for damage, says in (
        (nothing, r"train: 0 files flights-\*.jsonl"),
        (questions('{"question": 3, "answer": 1}\n'), "line 1: no question or no answer"),
        (questions(b"\xff\n"), "not UTF-8 text"),
        (questions('{"question": "\\ud800", "answer": 1}\n'), "line 1: .* is half a character"))),
]


@pytest.mark.parametrize("script, command, damage, says", CASES,
                         ids=[f"{case[0].__name__}-{case[-1][:60]}" for case in CASES])
def test_broken_input_is_one_line_and_nothing_is_lost(script, command, damage, says, good, tmp_path, monkeypatch,
                                                      capsys):
    folder = tmp_path / "f"
    shutil.copytree(good, folder)
    monkeypatch.setattr(sys, "argv", sys.argv)                     # which some damage assigns
    damage(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "no answer" in says:
        monkeypatch.setattr(mistakes, "PATIENCE", 0.2)
    name = f"{script.__name__.rpartition('.')[2]}.py"
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [name, *command.format(f=folder).split()])
    with pytest.raises(SystemExit) as ended:
        command_line.run_stage(script.main)
    complaint = capsys.readouterr().err.strip()
    lines = [text for text in complaint.splitlines() if not text.startswith("WARNING: on this system the sandbox")
             and not re.search(r"\[\d\d:\d\d", text)]          # nor a progress bar
    assert ended.value.code == 2 and len(lines) == 1, complaint
    assert re.search(says, lines[0]) and lines[0].startswith(name.replace(".py", "")), lines[0]
    assert not (folder / "out.jsonl").exists() or (folder / "out.jsonl").read_bytes() == b""
    assert not (folder / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("more, alone", [([], True), (["--rollout"], False)])
def test_only_a_rollout_plays_on_after_the_corrected_action(more, alone, good, monkeypatch):
    seen = []
    monkeypatch.setattr(collect.backend, "play_planned", lambda *a: seen.append(a[3].keywords["only_next"]))
    monkeypatch.setattr(sys, "argv", ["collect.py", *RESAMPLE.format(f=good).split(), *more])
    collect.main()
    assert seen == [alone]


@pytest.mark.parametrize("script, command", [(collect, COLLECT), (collect, RESAMPLE), (evaluate, COLLECT)])
def test_what_was_written_with_other_arguments_stays(script, command, good, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "f"
    shutil.copytree(good, folder)
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *command.format(f=folder).split()])
    script.main()
    written = (folder / "out.jsonl").read_bytes()
    assert written.count(b"\n") == {COLLECT: 3, RESAMPLE: 4}[command]
    monkeypatch.setattr(sys, "argv", sys.argv + ["--temperature", "0.1"])
    with pytest.raises(SystemExit):
        command_line.run_stage(script.main)
    assert "made with other arguments (temperature); remove it or give another --out" in capsys.readouterr().err
    assert (folder / "out.jsonl").read_bytes() == written


def test_a_finished_run_loads_no_model(good, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "f"
    shutil.copytree(good, folder)
    monkeypatch.setattr(sys, "argv", ["collect.py", *COLLECT.format(f=folder).split()])
    collect.main()
    said = capsys.readouterr().out
    monkeypatch.setattr(collect.backend, "start_engine", None)
    collect.main()
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("file, content, says",
                         [("out.jsonl", "{}\n", "out.jsonl, line 1: not a record"),
                          ("out.jsonl", "x\n", "out.jsonl, line 1: not a record"),
                                                 ("out.jsonl.args", "x", "out.jsonl.args, line 1: not JSON")])
def test_a_damaged_output_is_named_and_stays(file, content, says, good, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "f"
    shutil.copytree(good, folder)
    monkeypatch.setattr(sys, "argv", ["collect.py", *COLLECT.format(f=folder).split()])
    collect.main()
    (folder / file).write_text(content)
    written = (folder / "out.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        command_line.run_stage(collect.main)
    assert says in capsys.readouterr().err
    assert (folder / "out.jsonl").read_bytes() == written
