"""What the agent sees and does: the prompt, the actions, the trajectory record (ReAct, paper §2).

A task runs in steps. In each the model is asked for an inner monologue, then for Python code, and gets to see what the code
printed; `complete_task(report, answer)` in the code ends the task. The prompt only grows at its end, token by token, so a KV
cache carries on, and a whole trajectory is trained on in one pass.

Nothing here knows how a model computes or how it is trained.
"""

import argparse
import ast
import copy
import functools
import json
import os
import re
import select
import sys
import textwrap
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from zlib import crc32

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer
from tqdm import tqdm

from common import command_line
from common import files
from formats import records
from tools.sandbox import Limits, World

ROOT = Path(__file__).resolve().parent

# The fixed wording of the prompt. A model trained on it (the starter) has it in its vocabulary: changing it means training again.
PROTOCOL = """You solve a task step by step. In each step you reason, then write Python code that calls tools; what it prints comes
back as an observation, and its variables last. Call complete_task(report, answer) in your code when you have the answer."""
THINK = ": reason about what to do next, in <inner_monologue> and </inner_monologue>."
CODE = ": write the Python code that does it, in <python> and </python>."
TAGS = ("hints", "task_description", "hint", "inner_monologue", "python", "observation")
RESPONSES = (("monologue", "inner_monologue", THINK), ("code", "python", CODE))     # of each step, in this order

_TAG = re.compile(rf"<(?=/?(?:{'|'.join(TAGS)})>)")
_WHOLE_TAG = re.compile(rf"(</?(?:{'|'.join(TAGS)})>)")
_THOUGHT = re.compile(r"</?think(?:ing)?>")             # around what a reasoning model says to itself first
_CONTROL = re.compile(r"\s*[<\[].*[>\]]\s*$", re.S)     # tokens that look like those of a template
_MARKER = re.compile(r"<<?/?[\w|｜▁-]+>>?|\[/?[A-Z_]+\]|#{2,} ?\w[\w ]*:")          # what a template writes between messages, where it is not a token
_SLOT = re.compile("\ue000(\\d+)\ue001")            # stands for text or ids that the chat template must not touch
TODAY = date(2024, 7, 26)       # for every template that asks: later stages must see the prompt that was sampled from


class Chat:
    """A model's tokenizer and chat template: messages → token ids.

    Text that comes from outside (questions, observations) is encoded apart from the template's own, as plain text: neither a
    control token nor one of our tags in it has any power. Hints are the coach's own words: they keep our tags, so that a worked
    example can show whole steps, but a control token in them stays plain text too."""

    def __init__(self, path):
        """`path`: a directory with tokenizer.json and tokenizer_config.json. Raises ValueError, naming the file."""
        path = Path(path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (path / name).exists():
                raise ValueError(f"{path / name}: no such file; a model directory needs its tokenizer and chat template")
        try:
            self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        except KeyboardInterrupt:
            raise
        except BaseException as e:                                        # the library raises nothing more special
            raise ValueError(f"{path / 'tokenizer.json'}: not a tokenizer ({e})") from None
        self.tokenizer.no_truncation()                                    # as somebody's training left it
        self.tokenizer.no_padding()
        known = (path / "config.json").exists() and files.read_json(path / "config.json").get("vocab_size")
        self.vocab_size = known if isinstance(known, int) and known > 0 else None
        config = files.read_json(path / "tokenizer_config.json")
        template = config.get("chat_template")
        if (path / "chat_template.jinja").exists():
            template = files.read_text(path / "chat_template.jinja")
        if isinstance(template, list):                                    # several, by name
            template = next((t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None)
        if not isinstance(template, str) or not template:
            raise ValueError(f"{path / 'tokenizer_config.json'}: no chat_template; use an instruction-tuned model's tokenizer")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                    extensions=["jinja2.ext.loopcontrols", Generation])
        environment.globals |= {"raise_exception": _template_error, "strftime_now": TODAY.strftime}
        environment.filters["tojson"] = _tojson
        try:
            self.template = environment.from_string(template)
        except TemplateSyntaxError as e:
            raise ValueError(f"{path}: the chat template, line {e.lineno}: {e.message}") from None
        except Exception as e:                                            # nested too deep, most of all
            raise ValueError(f"{path}: the chat template: {type(e).__name__}") from None
        names = {k: v.get("content") if isinstance(v, dict) else v for k, v in config.items() if k.endswith("_token")}
        self.path, self.names = path, {k: v for k, v in names.items() if isinstance(v, str)}
        self.tokenizer.add_special_tokens([AddedToken(t.content, special=True, normalized=t.normalized, lstrip=t.lstrip, rstrip=t.rstrip)
                                           for t in self.tokenizer.get_added_tokens_decoder().values() if _CONTROL.match(t.content)])    # some are not called so
        self.middle = without_prefix(self.tokenizer)
        self.added = self.tokenizer.get_added_tokens_decoder()
        self.special = {i: t.content for i, t in self.added.items() if t.special}
        plain = sorted(set(_MARKER.findall(template)) - set(self.special.values()))               # Llama 2's [/INST] is many tokens
        self.markers = re.compile("|".join(map(re.escape, plain)) or "(?!)")
        self.encode_template = functools.lru_cache(4096)(self._encode_template)
        self.encode_text = functools.lru_cache(4096)(self._encode_text)
        self.encode_hint = functools.lru_cache(4096)(self._encode_hint)
        self.render = functools.lru_cache(4096)(self._render)
        self.tags = {t: i for i, t in self.special.items() if _WHOLE_TAG.fullmatch(t.strip())}        # those that are one token
        self.ends = {i for i, t in self.special.items() if t not in self.tags and not _THOUGHT.fullmatch(t)}
        self._check_template()

    def _check_template(self):
        """Raises ValueError if the template changes what it wrote before when a conversation goes on.

        Renders a made-up conversation of three turns. What stands before a response may only lose its end later, as
        with Qwen3, whose latest response alone begins with an empty think block; `grow` keeps that."""
        contents = tuple(f"{'<python>' if n % 2 else 'Step'}\n\ue000{n}\ue001" for n in range(6))
        for n in (2, 4):
            now, later = (_SLOT.split(self.render(contents[:m]))[:2 * n:2] for m in (n, n + 2))
            for i, (before, after) in enumerate(zip(now, later)):
                if before != after and not (i % 2 and before.startswith(after.removesuffix("<python>\n"))):
                    at = len(os.path.commonprefix([before, after]))
                    raise ValueError(f"{self.path}: the chat template rewrites earlier messages when the conversation "
                                     f"goes on ({before[at:at + 40]!r} becomes {after[at:at + 40]!r}), but a prompt "
                                     "may only grow at its end; write a chat_template.jinja that renders each message by "
                                     "itself")
        self.encode(self.grow(contents), ["a"] * len(contents))

    def _encode_template(self, text, begins=False):
        """`begins`: this is where the prompt begins."""
        self.tokenizer.encode_special_tokens = self.middle.encode_special_tokens = False
        return self._encode(text, begins)

    def _encode_text(self, text):
        text = disarmed(text)
        if self.tokenizer.normalizer and _TAG.search(normal := self.tokenizer.normalizer.normalize_str(text)):
            text = disarmed(normal)                                       # full-width or capital letters that it takes for plain ones
        return self._encode_plain(text)

    def _encode_hint(self, text):
        """Our tags get the tokens that they have in the agent's own steps."""
        parts = re.split(f"({'|'.join(map(re.escape, sorted(self.tags, key=len, reverse=True))) or '(?!)'})", text)
        return [i for part in parts for i in ([self.tags[part]] if part in self.tags else self._encode_plain(part))]

    def _encode_plain(self, text):
        """No control token in the text has any power, whether it is one token or several."""
        self.tokenizer.encode_special_tokens = self.middle.encode_special_tokens = True
        text = self.markers.sub(lambda marker: f"&#{ord(marker[0][0])};{marker[0][1:]}", text)
        ids = self._encode(text)
        forged = {i for i in self.special.keys() & set(ids) if i != self.tokenizer.token_to_id(self.names.get("unk_token", ""))}
        if forged:                                                        # put together by the tokenizer's own merges
            for i in forged:
                text = text.replace(self.special[i], f"&#{ord(self.special[i][0])};{self.special[i][1:]}")
            ids = [i for i in self._encode(text) if i not in forged]
        return ids

    def _encode(self, text, begins=False):
        """Where a tokenizer puts a space before every text, that space stays only at the prompt's beginning and after
        an added token."""
        try:
            whole = self.tokenizer.encode(text, add_special_tokens=False)
            ids = whole.ids
            if not begins and self.middle is not self.tokenizer:
                added = next((n for n, i in enumerate(ids) if i in self.added), len(ids))
                end = whole.offsets[added][0] if added < len(ids) else len(text)
                ids = self.middle.encode(text[:end], add_special_tokens=False).ids + ids[added:]
        except Exception as e:                                            # words that it does not know, and no token for them
            raise ValueError(f"{self.path / 'tokenizer.json'}: cannot encode {text[:40]!r} ({e})") from None
        if self.vocab_size and max(ids, default=0) >= self.vocab_size:
            token = self.tokenizer.id_to_token(max(ids))
            raise ValueError(f"{self.path / 'tokenizer.json'}: the token {token!r} has id {max(ids)}, but the model's "
                             f"vocabulary has only {self.vocab_size:,} tokens; is this another model's tokenizer?")
        return ids

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def closes(self, tag):
        """A function of the ids sampled so far: is the response over? A control token ends it, the tag's closing, or
        the beginning of an observation, which only we write."""
        last = self.ends.union(self.tags.values())
        if f"</{tag}>" in self.tags:
            return lambda ids: ids[-1] in last
        over = re.compile(f"</{tag}>|<observation>" if tag in TAGS else f"</{tag}>")
        return lambda ids: ids[-1] in last or over.search(self.decode(ids[-40:])) is not None

    def _render(self, contents, generate=False):
        """contents: what the user and the assistant said, in turn, with slot marks → the text that the template makes
        of it."""
        messages = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
        try:
            text = self.template.render(messages=messages, tools=None, documents=None, add_generation_prompt=generate,
                                        enable_thinking=False, **self.names)
        except Exception as e:                                            # a template may do anything
            raise ValueError(f"{self.path}: the chat template: {' '.join(str(e).split()) or type(e).__name__}") from None
        if _SLOT.findall(text) != _SLOT.findall("".join(contents)):
            raise ValueError(f"{self.path}: the chat template leaves out a part of the messages, repeats it or "
                             "changes it")
        return text

    def grow(self, contents, open_=False):
        """The conversation as a text that only ever grows at its end: what stands before a response stays as it was
        when the response was sampled, even where the template would write it in another way later.

        contents: as in `_render`, each response with one slot at its end. open_: the last response is still to be
        sampled."""
        text = heard = ""
        for n in range(1, len(contents), 2):
            rendered, mark = self.render(contents[:n + 1]), _SLOT.search(contents[n])[0]
            until = rendered.index(mark) + len(mark)
            text += rendered[rendered.index(heard) + len(heard):until]
            heard = mark
        return text if open_ else text + rendered[until:]

    def encode(self, text, slots):
        """text: with slot marks; slots: what they stand for, each a text or ids → ids and {slot: (start, end)}."""
        ids, spans = [], {}
        for i, part in enumerate(_SLOT.split(text)):
            start = len(ids)
            if i % 2:
                slot = slots[int(part)]
                ids += self.encode_text(slot) if isinstance(slot, str) else slot
                spans[int(part)] = (start, len(ids))
            elif ids and ids[-1] in self.ends and self.encode_template(part.lstrip())[:1] == ids[-1:]:
                ids += self.encode_template(part.lstrip())[1:]            # the model has ended its turn itself
            elif part:
                ids += self.encode_template(part, begins=not ids)
        return ids, spans

    def prompt(self, question, hints, steps, ask=None):
        """What the model sees of a trajectory (the task, the hints, then step by step monologue, code, observation).

        hints: texts of the sections. steps: as in the record; of the last one the fields up to the one asked for. ask:
        "monologue" or "code" of the last step, or None for the whole of a finished trajectory.
        → ids, and without `ask` {(step, "monologue" | "code"): (start, end)}, where in ids the sampled tokens are."""
        slots, sampled = [], {}

        def slot(content):
            slots.append(content)
            return f"\ue000{len(slots) - 1}\ue001"

        def said(n, name):
            sampled[n, name] = len(slots)
            return slot(steps[n]["token_ids"][name])

        hinted = lambda text: slot(self.encode_hint(text))
        contents = [m["content"] for m in conversation(question, hints, steps, ask, slot, hinted, said)]
        if ask:
            tag = next(tag for name, tag, _ in RESPONSES if name == ask)
            contents.append(f"<{tag}>\n{slot([])}")
        ids, spans = self.encode(self.grow(tuple(contents), bool(ask)), slots)
        return ids, {} if ask else {key: spans[index] for key, index in sampled.items()}

    def ask(self, text):
        """A single question → ids."""
        return self.encode(self.render(("\ue0000\ue001",), generate=True), [text])[0]

    def heard(self, prompt, ids):
        """A response → its text without the control token that ended it, its token ids, how many tokens were read and
        written for it."""
        ended = bool(ids) and ids[-1] in self.ends
        return self.decode(ids[:-1] if ended else ids), list(ids), (len(prompt), len(ids))


def conversation(question, hints, steps, ask, outside, hinted, said):
    """The messages of a trajectory, [{"role", "content"}], up to the response asked for. `outside(text)` stands for a text that came
    from outside, `hinted(text)` for the coach's words, `said(n, name)` for step n's monologue or code with its closing tag; other
    arguments as in `Chat.prompt`."""
    messages, content = [], PROTOCOL + "\n\n"
    if hints:
        content += f"<hints>\n{hinted(chr(10).join(hints))}\n</hints>\n"
    content += f"<task_description>\n{outside(question)}\n</task_description>\n"
    for n, step in enumerate(steps):
        if step.get("hint"):
            content += f"<hint>\n{hinted(step['hint']['text'])}\n</hint>\n"
        for name, tag, request in RESPONSES:
            if name == "code" and step.get("token_ids", {}).get(name) == []:      # the monologue ran straight on into it
                continue
            messages.append({"role": "user", "content": f"{content}Step {n + 1}{request}"})
            if ask == name and n == len(steps) - 1:
                return messages
            messages.append({"role": "assistant", "content": f"<{tag}>\n{said(n, name)}"})
            content = ""
        content = f"<observation>\n{outside(step['observation'])}\n</observation>\n"
    return messages


def disarmed(text):
    """A text from outside, in which none of our tags has any power."""
    return _TAG.sub("&lt;", text)


class Generation(Extension):
    """{% generation %} … {% endgeneration %}, which marks what the assistant says: its content is written as it is."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _template_error(message):
    raise ValueError(f"the model's chat template: {message}")


def _tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def without_prefix(tokenizer):
    """The tokenizer for the middle of a text: one like Llama 2's puts a space before whatever it encodes, and this one
    does not."""
    def changed(part):                                # a normalizer or pre-tokenizer, maybe a sequence of them
        if part is None or part["type"] == "Prepend":
            return part and {"type": "Sequence", "normalizers": []}
        parts = {name: [changed(p) for p in part[name]] for name in ("normalizers", "pretokenizers") if name in part}
        off = {"Metaspace": {"prepend_scheme": "never"}, "ByteLevel": {"add_prefix_space": False}}
        return part | parts | off.get(part["type"], {})

    whole = json.loads(tokenizer.to_str())
    middle = whole | {name: changed(whole[name]) for name in ("normalizer", "pre_tokenizer")}
    return tokenizer if middle == whole else Tokenizer.from_str(json.dumps(middle))


# ---------------------------------------------------------------------------------------------------- the agent

UNPLAYED = {"report": "", "answer": "", "success": False, "stop": ""}
NOTHING_USED = {"input_tokens": 0, "output_tokens": 0, "seconds": 0.0}


@dataclass
class Generate:
    """What an agent yields to get text: `prompt` (ids, or messages for an endpoint) to go on from until `tag` is closed. It receives
    (ids, "stop" | "length")."""
    prompt: list
    tag: str
    seed: str


@dataclass
class Execute:
    """What an agent yields to have `code` run. It receives the sandbox's Observation."""
    code: str


def play(chat, trajectory, max_steps, max_tokens=512, only_next=False):
    """The agent: a generator that carries `trajectory` (a record, changed in place) on to its end, or with `only_next` by one step.

    It yields Generate and Execute requests and receives their results, so that one loop can serve many agents at a time.
    Steps that are there already are executed again first, which rebuilds the interpreter's variables. A corrective hint is seen in its own step alone."""
    usage, steps = trajectory["usage"], trajectory["steps"]
    for step in steps:
        if step["observation"] is None:                               # a state to go on from: its next step is open
            break
        yield Execute(step["code"])
    begin = next((n for n, step in enumerate(steps) if step["observation"] is None), len(steps))
    for n in range(begin, max(max_steps, begin + 1)):                 # an open step is played however late it is
        if n == len(steps):
            steps.append({"monologue": "", "code": "", "observation": None, "hint": None, "token_ids": {}})
        step, before = steps[n], [s | {"hint": None} for s in steps[:n]]
        for i, (name, tag, _) in enumerate(RESPONSES):
            prompt, _ = chat.prompt(trajectory["task"]["question"], [h["text"] for h in trajectory["hints"]], [*before, step], ask=name)
            said, end = yield Generate(prompt, tag, seed=f"{trajectory['seed']}/{n}/{i}")
            text, ids, (read, written) = chat.heard(prompt, said)
            usage["input_tokens"] += read
            usage["output_tokens"] += written
            if ids is not None:                                       # a model behind an endpoint does not tell
                step["token_ids"][name] = ids
            if name == "code":
                step["code"] = code_in(text)
            else:
                step["monologue"], step["code"] = monologue_in(text)
            cut = end == "length" and f"</{tag}>" not in text
            if cut or name == "code" and not step["code"]:
                step["observation"] = ""
                trajectory["stop"] = "length" if cut else "invalid"
                return
            if name == "monologue" and step["code"]:                  # it ran straight on: the code is not asked for
                if ids is not None:
                    step["token_ids"]["code"] = []
                break
        observation = yield Execute(step["code"])
        step["observation"] = observation.text
        if observation.completed is not None:
            trajectory["report"], trajectory["answer"] = observation.completed
            trajectory["success"] = is_right(trajectory["answer"], trajectory["task"]["answer"])
            trajectory["stop"] = "complete"
            return
        if only_next:
            return
    trajectory["stop"] = "max_steps"


def monologue_in(text):
    """A response to the request for a monologue → the monologue, and the code that it ran straight on into: "" if its tag was closed first,
    whatever code it holds."""
    text = (_after_thoughts(text) or _THOUGHT.sub("", text)).partition("<observation>")[0]
    text, closed, _ = text.partition("</inner_monologue>")
    text = re.split(r"(?:<inner_monologue>\s*)+", text, maxsplit=1)[-1]
    before, opened, rest = text.partition("<python>")
    code = code_in(opened + rest) if opened and not closed else ""
    return (before if code else text).strip(), code


def code_in(text):
    """The first code in a response to the request for code, "" if there is none.

    Models forget or repeat the tags, fence the code, indent it, talk around it, think before it, and play on with observations of their own."""
    body = re.sub(r"\A(?:\s*<python>)+", "", text).partition("</python>")[0]
    if "<python>" not in body and _is_code(body):                     # as it should be; what looks like a tag or a fence is in a string
        return _dedented(body)
    parts = ["", *_WHOLE_TAG.split(_after_thoughts(text)), ""]
    pieces = list(zip(parts[::2], parts[1::2], parts[2::2]))          # (the tag before it, text, the tag after it)
    tagged = [piece for before, piece, after in pieces if before == "<python>" or after in ("</python>", "<observation>")]
    bare = [piece for before, piece, after in pieces if not before[1:2].isalpha() and after[1:2] != "/"]
    return next(filter(None, map(_unfenced, [*tagged, *bare, pieces[0][1]])), "")


def _after_thoughts(text):
    """What a reasoning model says when it has thought."""
    *thoughts, rest = re.split("</think(?:ing)?>", text)
    return re.split("<think(?:ing)?>", rest if rest.strip() else "".join(thoughts))[0].strip("\n")


def _unfenced(text):
    """The code in Markdown fences, if there are any."""
    before, *blocks = [text] if _is_code(text) else re.split("`{3,}", text)
    blocks = sorted(map(_block, blocks[::2]), key=lambda block: block[0])
    codes = [before, *(code for _, code in blocks)]
    if blocks and (blocks[0][0] != 1 or _is_code(blocks[0][1]) or not _is_code(before)):
        codes.append(codes.pop(0))                                    # else a fence was closed that had not been opened
    return next(filter(None, map(_dedented, codes)), "")


def _block(text):
    """What stands in a fence → its language (0 is Python, 1 not said, 2 another), its code."""
    line, newline, rest = text.partition("\n")
    word, _, attributes = line.strip().partition(" ")
    if re.fullmatch(r"i?py(thon)?[\d.]*", word, re.I):
        return 0, rest if newline else attributes
    return (2 if word else 1, rest) if newline and re.fullmatch(r"[\w.+#-]*", line.strip()) else (1, text)


def _is_code(text):
    with warnings.catch_warnings(action="ignore"):
        try:
            return bool(ast.parse(_dedented(text)).body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False


def _dedented(text):
    text = re.sub(r"\A(?:[^\S\n]*\n)+", "", text).rstrip()
    return textwrap.dedent(text).strip() if text[:1].isspace() else text


def is_right(answer, expected):
    """Exact string match (paper §5.1); `expected` may list several right answers."""
    return answer in ([expected] if isinstance(expected, str) else expected)


def serve(trajectories, agent, chat, sampler, request, world, batch):
    """Plays many agents at a time: yields each trajectory when it has ended.

    trajectories: records to play; agent(trajectory) → its generator (see `play`); request(key, prompt, stop=…, seed=…) → what the
    sampler takes; batch: agents at a time. Code runs in the sandbox's processes while the model goes on with the others."""
    active, running = {}, {}                                          # id → (trajectory, generator, box); box with code in it → id
    trajectories = iter(trajectories)

    def advance(key, result):
        """Hands an agent its result → [the trajectory] if that ended it."""
        trajectory, generator, box = active[key]
        try:
            wish = generator.send(result)
        except StopIteration:
            box.close()
            del active[key]
            return [trajectory]
        if isinstance(wish, Generate):
            sampler.add(request(key, wish.prompt, stop=chat.closes(wish.tag), seed=wish.seed))
        else:
            box.send(wish.code)
            running[box] = key
        return []

    clock, more = time.perf_counter(), True
    while active or more:
        ended = []
        while more and len(active) < batch:
            trajectory = next(trajectories, None)
            if more := trajectory is not None:
                active[trajectory["id"]] = trajectory, agent(trajectory), world.start()
                ended += advance(trajectory["id"], None)
        for request_ in sampler.step():
            ended += advance(request_.key, (request_.new_ids, request_.ended))
        if running:
            for box in select.select(running, [], [], 1.0 if sampler.idle and not ended else 0.0)[0]:
                ended += advance(running.pop(box), box.receive())
        now = time.perf_counter()
        playing = [t for t, _, _ in active.values()] + ended
        for trajectory in playing:                                    # those who play at the same time share the seconds
            trajectory["usage"]["seconds"] += (now - clock) / len(playing)
        clock = now
        yield from ended


def trials(tasks, args):
    """The empty trajectories of all tasks and trials, in order, with the hints that --hints, --kinds and --hints-for choose."""
    sections = load_hints(args.hint_dir) if args.hints != "none" else []
    if args.hints_for:
        templates = {task["template"] for task in records.read_tasks(args.hints_for)}
        sections = [s for s in sections if s["templates"] is None or templates & set(s["templates"])]
    without = {task["group"] for task in tasks} - {s["group"] for s in sections}
    if args.hints == "task" and without and not any(s["group"] == "common" for s in sections):
        raise ValueError(f"{args.hint_dir}: no hints for the group {min(without)!r}; write {min(without)}.md or common.md")
    for task in tasks:
        hints = hints_for(task, sections, args.hints, args.kinds)
        for trial in range(args.trials):
            key = f"{task['id']}#{trial}"
            yield {"id": key, "task": task, "model": args.model, "adapters": args.adapter, "seed": crc32(f"{args.seed}/{key}".encode()),
                   "hints": hints, "steps": [], **UNPLAYED, "usage": dict(NOTHING_USED)}


def corrections(states, args):
    """From every flagged state `--samples` trajectories that go on from it, with the hint (or as `--control` without) before the next step."""
    for state in states:
        if not args.model.startswith("openai:") and not all(step["token_ids"].keys() >= {"monologue", "code"} for step in state["steps"]):
            raise ValueError(f"{state['id']}: its steps hold no token ids, as of a model behind an endpoint; only --model openai:NAME can go on from there")
        for sample in range(args.samples):
            t = copy.deepcopy(state) | UNPLAYED
            t["id"] = f"{state['id']}~{sample}"
            t |= {"seed": crc32(f"{args.seed}/{t['id']}".encode()), "model": args.model, "adapters": args.adapter,
                  "targets": [len(t["steps"])], "usage": dict(NOTHING_USED)}
            hint = t.pop("hint")
            t["steps"].append({"monologue": "", "code": "", "observation": None, "hint": None if args.control else hint, "token_ids": {}})
            yield t


def play_all(trajectories, args, output, chat, engine, agent=None):
    """Plays those trajectories that `output` does not hold yet and writes them there, with a progress bar; of several processes each its share.
    engine(args) → what samples and what makes its requests (endpoint.py), asked only when the sandbox stands; agent(trajectory) → its generator, `play` unless something else is to be played."""
    agent = agent or functools.partial(play, chat, max_steps=args.max_steps)
    trajectories = list(trajectories)
    todo = [t for n, t in enumerate(trajectories) if n % output.world == output.rank and t["id"] not in output.done]
    successes, first = 0, output.rank == 0
    for file in (getattr(args, name, None) for name in ("tasks", "resample", "trajectories", "hints_for", "out")):
        if file and args.data and Path(file).resolve().is_relative_to(Path(args.data).resolve()):
            raise ValueError(f"{file}: holds answers, and the agent's code can read all of --data {args.data}; keep it elsewhere")
    with World(args.tools, args.data) as world:
        if world.missing and args.require_sandbox:
            raise ValueError(f"--require-sandbox: on this system the agent's code cannot be kept from {', '.join(world.missing)}; README, \"The sandbox\", says what it takes")
        if world.missing and first:
            print("WARNING: on this system the sandbox cannot enforce:", "; ".join(world.missing), file=sys.stderr)
        sampler, request = engine(args)
        check_room(trajectories, agent, getattr(sampler, "max_length", None))
        with tqdm(total=len(todo), unit="trajectory", disable=not first) as progress:
            try:
                for trajectory in serve(todo, agent, chat, sampler, request, world, args.batch):
                    output.write(trajectory)
                    successes += trajectory["success"]
                    progress.update()
                    progress.set_postfix(success=f"{successes / max(progress.n, 1):.0%}")
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"{progress.n} of {len(todo)} trajectories were played and are in {args.out}") from None


def check_room(trajectories, agent, limit):
    """Raises ValueError if not one trajectory's first prompt fits into `limit` tokens (None: nobody knows the limit)."""
    for trajectory in trajectories if limit else ():
        wish = next(agent(copy.deepcopy(trajectory)))
        if isinstance(wish, Execute) or len(wish.prompt) < limit:
            return
    if trajectories and limit:
        raise ValueError(f"{trajectory['id']}: its first prompt has {len(wish.prompt):,} tokens, and no other one is shorter than the {limit:,} that "
                         "--max-length and the model allow; show fewer hints, or give a larger --max-length")


def summary(file):
    """One line on a finished file: how many trajectories, how many of them right, and how they ended."""
    trajectories = records.read_trajectories(file)
    stops = Counter(t["stop"] or "to be continued" for t in trajectories)
    return f"{file}: {len(trajectories)} trajectories, {sum(t['success'] for t in trajectories)} right; ended by " + ", ".join(f"{k} {n}" for k, n in stops.most_common())


def add_arguments(parser):
    """The options of every stage in which a model acts."""
    add = parser.add_argument
    add("--model", help="directory or hub id in Hugging Face format, or openai:NAME behind an OpenAI-compatible endpoint")
    add("--base-url", metavar="URL", help="of the endpoint; its key is in OPENAI_API_KEY [OPENAI_BASE_URL, or https://api.openai.com/v1]")
    add("--prefill", action="store_true", help="start the endpoint's response with its tag, where the server can (vLLM)")
    add("--adapter", action="append", default=[], metavar="DIR", help="repeats, in order")
    add("--tools", type=Path, default=ROOT / "tools" / "toolqa.py", metavar="FILE", help="the module whose functions are the tools")
    add("--data", type=Path, default=Path("data/starter/world"), metavar="DIR", help="the tools' data")
    add("--temperature", type=command_line.number(float, 0), default=0.7, help="0 is greedy")
    add("--top-p", type=command_line.number(float, 0, 1), default=1.0)
    add("--seed", type=int, default=0)
    add("--max-steps", type=command_line.number(int, 1), default=8)
    add("--max-new-tokens", type=command_line.number(int, 1), default=512, help="of one monologue, or of one step's code")
    add("--max-length", type=command_line.number(int, 1), default=8192, help="of a prompt with its response, in tokens; never above the model's own limit")
    add("--batch", type=command_line.number(int, 1), default=32, help="agents at a time")
    add("--dtype", choices=("float32", "bfloat16"), default=argparse.SUPPRESS,  # not None: old outputs resume
        help="of the weights and what is computed with them; adapters are float32 "
             "[bfloat16 on a GPU, and on a CPU with instructions for it if the checkpoint is stored in it]")
    add("--tp", type=command_line.number(int, 1), default=1, metavar="N", help="under torchrun: split the model over N processes; the others hold more of such replicas")
    add("--require-sandbox", action="store_true", help="refuse to run where the system lacks one of the sandbox's protections")
    add("--out", metavar="FILE")


def add_task_arguments(parser):
    """Those of collect.py and evaluate.py beyond that: what is played, with which hints."""
    add = parser.add_argument
    add("--tasks", metavar="FILE", help="JSONL of tasks")
    add("--hints", choices=("none", "task", "combined"), default="none", help="which hints stand in the prompt")
    add("--kinds", nargs="+", choices=("tools", "practice", "example"), help="keep only these kinds of hint sections")
    add("--hints-for", metavar="FILE", help="JSONL of tasks: leave out hint sections for templates that none of these has, as if nobody had written them")
    add("--hint-dir", type=Path, default=ROOT / "hints" / "starter" / "round1", metavar="DIR")
    add("--trials", type=command_line.number(int, 1), default=3, help="times each task is played")


# ---------------------------------------------------------------------------------------------------- hints

SECTION = re.compile(r"^## (tools|practice|example): *(.+)$", re.M)


def load_hints(directory):
    """Round 1's hints, <directory>/<group>.md and common.md → sections [{"name", "kind", "text", "group", "templates"}].

    A section starts at `## <kind>: <title>`; `for: a, b` as its first line names the templates it is for (None: all of the group's)."""
    paths = sorted(Path(directory).glob("*.md"))
    if not paths:
        raise ValueError(f"{directory}: no *.md file with hints there; name the folder with --hint-dir")
    sections = []
    for file in paths:
        text = files.read_text(file)
        heads = list(SECTION.finditer(text))
        for n, line in enumerate(text.splitlines(), 1):
            if line.startswith("## ") and not SECTION.match(line):
                raise ValueError(f"{file}, line {n}: {line!r} is no section; they start with '## tools: …', '## practice: …' or '## example: …'")
        before = text[:heads[0].start() if heads else None]
        if before.strip():
            line = before[:len(before) - len(before.lstrip())].count("\n") + 1
            raise ValueError(f"{file}, line {line}: text outside a section; start one with '## tools: …', '## practice: …' or '## example: …'")
        for head, after in zip(heads, [*heads[1:], None]):
            body = text[head.end():after.start() if after else None].strip()
            templates = None
            if body.startswith("for:"):
                first, _, body = body.partition("\n")
                templates = [t.strip() for t in first[4:].split(",") if t.strip()]
            if not body.strip() or templates == []:
                raise ValueError(f"{file}, line {text[:head.start()].count(chr(10)) + 1}: the section {head[2].strip()!r} is empty"
                                 + (", or names no template after 'for:'" if templates == [] else ""))
            sections.append({"name": f"{file.stem}/{head[2].strip()}", "kind": head[1], "text": f"{head[0].strip()}\n{body}",
                             "group": file.stem, "templates": templates})
    return sections


def hints_for(task, sections, which, kinds=None):
    """The sections in a task's prompt, as the record keeps them. which: "none", "task" (those for its type of task: common.md's and its
    group's, without those for other templates) or "combined" (all of every group); `kinds` keeps only these."""
    if which == "none":
        return []
    chosen = [s for s in sections if which == "combined" or s["group"] in ("common", task["group"])
              and (s["templates"] is None or task["template"] in s["templates"])]
    return [{k: s[k] for k in ("name", "kind", "text")} for s in chosen if not kinds or s["kind"] in kinds]


# What prints a section of tool documentation in the sandbox, where the tool module is loaded.
DOCUMENTATION = """
import inspect
for name, tool in list(globals().items()):
    if inspect.isfunction(tool) and not name.startswith("_"):
        print(f"{name}{inspect.signature(tool)}: {' '.join((inspect.getdoc(tool) or '').split())}")
"""


def documentation(tools, data=None):
    """The tools of a module as a section to begin a hint file with: of each public function its signature and docstring.
    Raises SandboxError, naming the file, if it cannot be loaded."""
    with World(tools, data, Limits(output=1 << 20)) as world, world.start() as box:
        return f"## tools: {Path(tools).stem}\n{box.run(DOCUMENTATION).text.strip()}"


def main():
    parser = command_line.Parser("Prints the documentation of your tools as a hint section, from their signatures and docstrings.\n\n    python agent.py --tools mine/tools.py --data mine/data")
    parser.add_argument("--tools", type=Path, required=True, metavar="FILE")
    parser.add_argument("--data", type=Path, metavar="DIR")
    args = parser.parse_args()
    print(documentation(args.tools, args.data))


if __name__ == "__main__":
    command_line.run_stage(main)
