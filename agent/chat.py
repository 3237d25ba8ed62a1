"""A model's tokenizer and chat template: they turn conversations into the token ids that the model reads.

The prompt only grows at its end, token by token. So a KV cache can be reused from step to step, and a whole trajectory
can be trained on in one pass.
"""

from common import files

import functools
import json
import os
import re
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

from jinja2 import Template, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer

from agent.protocol import RESPONSES, TAG, TAG_START, TAGS, THOUGHT_TAG, conversation, disarmed

CONTROL = re.compile(r"\s*[<\[].*[>\]]\s*$", re.S)      # tokens that look like a template's control tokens
MARKER = re.compile(r"<<?/?[\w|｜▁-]+>>?|\[/?[A-Z_]+\]|#{2,} ?\w[\w ]*:")  # such tokens as plain text
SLOT = re.compile("\ue000(\\d+)\ue001")                 # stands for text or ids that the template must not change
TODAY = date(2024, 7, 26)       # for templates that print the date: every stage must see the same prompt


class Chat:
    """A model's tokenizer and chat template.

    Text from outside (questions, observations) is encoded separately from the template's own text, as plain text:
    neither a control token nor one of our tags in it has any effect. Hints are the coach's own words. They keep our
    tags, so that a worked example can show whole steps, but a control token in them also remains plain text."""

    def __init__(self, path: str | Path):
        """path: a directory with tokenizer.json and tokenizer_config.json. Raises ValueError, naming the file."""
        self.path = path = Path(path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (path / name).exists():
                raise ValueError(f"{path / name}: no such file; "
                                 "a model directory needs its tokenizer and chat template")
        self.tokenizer = read_tokenizer(path / "tokenizer.json")
        size = files.read_json(path / "config.json").get("vocab_size") if (path / "config.json").exists() else None
        self.vocab_size = size if isinstance(size, int) and size > 0 else None
        config = files.read_json(path / "tokenizer_config.json")
        source = template_source(path, config)
        self.template = compile_template(path, source)
        names = {k: v.get("content") if isinstance(v, dict) else v for k, v in config.items() if k.endswith("_token")}
        self.names = {k: v for k, v in names.items() if isinstance(v, str)}             # {"eos_token": "<|end|>", …}

        self.middle = without_prefix(self.tokenizer)
        self.added = self.tokenizer.get_added_tokens_decoder()
        self.special = {i: token.content for i, token in self.added.items() if token.special}
        self.tags = {token: i for i, token in self.special.items()                      # our tags that are one token
                     if TAG.fullmatch(token.strip())}
        self.ends = {i for i, token in self.special.items()                             # the tokens that end a turn
                     if token not in self.tags and not THOUGHT_TAG.fullmatch(token)}
        self.markers = alternatives(set(MARKER.findall(source)) - set(self.special.values()))   # e.g. Llama 2's [/INST]
        self.encode_template = functools.lru_cache(4096)(self._encode_template)
        self.encode_text = functools.lru_cache(4096)(self._encode_text)
        self.encode_hint = functools.lru_cache(4096)(self._encode_hint)
        self.render = functools.lru_cache(4096)(self._render)
        self._check_template()

    # ---- conversations

    def prompt(self, question: str, hints: list[str], steps: list[dict],
               ask: str | None = None) -> tuple[list[int], dict[tuple[int, str], tuple[int, int]]]:
        """What the model sees of a trajectory: the hints, the task, then step by step monologue, code and observation.

        Arguments as in `protocol.conversation`. Returns the ids and, without `ask`, where the sampled tokens are in
        them: {(step, "monologue" | "code"): (start, end)}."""
        slots, sampled = [], {}

        def slot(content):
            slots.append(content)
            return f"\ue000{len(slots) - 1}\ue001"

        def hinted(text):
            return slot(self.encode_hint(text))

        def said(n, field):
            sampled[n, field] = len(slots)
            return slot(steps[n]["token_ids"][field])

        contents = [m["content"] for m in conversation(question, hints, steps, ask, slot, hinted, said)]
        if ask:
            tag, _ = RESPONSES[ask]
            contents.append(f"<{tag}>\n{slot([])}")
        ids, spans = self.encode(self.grow(tuple(contents), unfinished=bool(ask)), slots)
        return ids, {} if ask else {key: spans[index] for key, index in sampled.items()}

    def spells(self, step: dict) -> bool:
        """Do a step's token ids spell its monologue and code with this tokenizer, apart from white space?"""
        ids = [i for part in step["token_ids"].values() for i in part]          # the monologue's may contain the code
        if not all(0 <= i < (self.vocab_size or self.tokenizer.get_vocab_size()) for i in ids):
            return False
        text = "".join(self.decode(ids).split())
        parts = (step[name] for name in ("monologue", "code") if name in step["token_ids"])
        return all("".join(part.split()) in text for part in parts)

    def ask(self, text: str) -> list[int]:
        """A single question, whose tags count, → ids."""
        return self.encode(self.render(("\ue0000\ue001",), generate=True), [self.encode_hint(text)])[0]

    def heard(self, prompt: list[int], ids: list[int]) -> tuple[str, list[int] | None, tuple[int, int]]:
        """A response → its text without the control token that ended it, its token ids, and how many tokens were read
        and written for it."""
        ended = bool(ids) and ids[-1] in self.ends
        return self.decode(ids[:-1] if ended else ids), list(ids), (len(prompt), len(ids))

    def closes(self, tag: str) -> Callable[[list[int]], bool]:
        """Returns a function that tells from the ids sampled so far whether the response is over. A response ends at a
        control token, at the closing tag, or where an observation begins, since only we write observations."""
        last = self.ends.union(self.tags.values())
        if f"</{tag}>" in self.tags:
            return lambda ids: ids[-1] in last
        over = re.compile(f"</{tag}>|<observation>" if tag in TAGS else f"</{tag}>")
        return lambda ids: ids[-1] in last or over.search(self.decode(ids[-40:])) is not None

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    # ---- messages → text with slots

    def _render(self, contents, generate=False):
        """What the user and the assistant said in turn, with slots → the template's text. Cached as `render`."""
        messages = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
        return self.fill_template(messages, generate)

    def fill_template(self, messages: list[dict], generate: bool) -> str:
        """Messages with slots → the template's text. Also raises ValueError unless it writes each slot exactly once."""
        text = self.write(messages, generate=generate)
        if SLOT.findall(text) != SLOT.findall("".join(message["content"] for message in messages)):
            raise ValueError(f"{self.path}: the chat template leaves out a part of the messages, "
                             "repeats it or changes it")
        return text

    def write(self, messages: list[dict], tools: list[dict] = (), generate: bool = False,
              thinking: bool = False) -> str:
        """Messages → the template's text. generate: it ends where the assistant's next message begins. Raises
        ValueError with the template's reason if it refuses them."""
        try:
            return self.template.render(messages=messages, tools=tools or None, documents=None,
                                        add_generation_prompt=generate, enable_thinking=thinking, **self.names)
        except Exception as e:                          # a template may do anything
            reason = " ".join(str(e).split()) or type(e).__name__
            raise ValueError(f"{self.path}: the chat template: {reason}") from None

    def grow(self, contents: tuple[str, ...], unfinished: bool = False) -> str:
        """The conversation as a text that only grows at its end: what precedes a response stays as it was when the
        response was sampled, even where the template would later write it differently.

        contents: as in `render`, with one slot at the end of each response. unfinished: the last response is yet to be
        sampled."""
        text = mark = ""
        for n in range(1, len(contents), 2):
            rendered, last = self.render(contents[:n + 1]), mark
            mark = SLOT.search(contents[n])[0]
            end = rendered.index(mark) + len(mark)
            text += rendered[rendered.index(last) + len(last):end]
        return text if unfinished else text + rendered[end:]

    def _check_template(self):
        """Raises ValueError if the template rewrites earlier messages when a conversation continues.

        Renders a made-up conversation of three turns. The text before a response may later lose only its end, as with
        Qwen3, where only the latest response begins with an empty think block; `grow` keeps that block."""
        contents = tuple(f"{'<python>' if n % 2 else 'Step'}\n\ue000{n}\ue001" for n in range(6))
        for n in (2, 4):
            now, later = (SLOT.split(self.render(contents[:m]))[:2 * n:2] for m in (n, n + 2))
            for i, (before, after) in enumerate(zip(now, later)):
                if before != after and not (i % 2 and before.startswith(after.removesuffix("<python>\n"))):
                    at = len(os.path.commonprefix([before, after]))
                    raise rewrites(self.path, before[at:], after[at:])
        self.encode(self.grow(contents), ["a"] * len(contents))

    # ---- text with slots → ids

    def encode(self, text: str, slots: list[str | list[int]]) -> tuple[list[int], dict[int, tuple[int, int]]]:
        """The template's text, and what its slots stand for (text from outside, or ids) → ids, {slot: (start, end)}."""
        ids, spans = [], {}
        for i, part in enumerate(SLOT.split(text)):
            start = len(ids)
            if i % 2:
                content = slots[int(part)]
                ids += self.encode_text(content) if isinstance(content, str) else content
                spans[int(part)] = (start, len(ids))
            elif ids and ids[-1] in self.ends and self.encode_template(part.lstrip())[:1] == ids[-1:]:
                ids += self.encode_template(part.lstrip())[1:]      # the model wrote the template's end of turn itself
            elif part:
                ids += self.encode_template(part, begins=not ids)
        return ids, spans

    def _encode_template(self, text, begins=False):
        """The template's own text, with its control tokens. begins: it stands at the prompt's beginning."""
        self.tokenizer.encode_special_tokens = self.middle.encode_special_tokens = False
        return self._encode(text, begins)

    def _encode_text(self, text):
        """Text from outside. Neither our tags nor control tokens in it have any effect."""
        text = disarmed(text)
        if self.tokenizer.normalizer and TAG_START.search(normal := self.tokenizer.normalizer.normalize_str(text)):
            text = disarmed(normal)                     # full-width or capital letters that become a tag
        return self._encode_plain(text)

    def _encode_hint(self, text):
        """The coach's words. Our tags get the tokens that they have in the agent's own steps."""
        parts = re.split(f"({alternatives(self.tags).pattern})", text)
        return [i for part in parts for i in ([self.tags[part]] if part in self.tags else self._encode_plain(part))]

    def _encode_plain(self, text):
        """Control tokens in the text have no effect, whether each is one token or several."""
        self.tokenizer.encode_special_tokens = self.middle.encode_special_tokens = True
        text = self.markers.sub(lambda marker: as_text(marker[0]), text)
        ids = self._encode(text)
        unknown = self.tokenizer.token_to_id(self.names.get("unk_token", ""))
        forged = {i for i in self.special.keys() & set(ids) if i != unknown}    # the tokenizer's own merges made them
        if forged:
            for i in forged:
                text = text.replace(self.special[i], as_text(self.special[i]))
            ids = [i for i in self._encode(text) if i not in forged]
        return ids

    def _encode(self, text, begins=False):
        """If the tokenizer puts a space before every text, the space stays only at the prompt's beginning and after an
        added token."""
        try:
            encoding = self.tokenizer.encode(text, add_special_tokens=False)
            ids = encoding.ids
            if not begins and self.middle is not self.tokenizer:
                added = next((n for n, i in enumerate(ids) if i in self.added), len(ids))
                end = encoding.offsets[added][0] if added < len(ids) else len(text)
                ids = self.middle.encode(text[:end], add_special_tokens=False).ids + ids[added:]
        except Exception as e:                          # the tokenizer has no token for a character
            raise ValueError(f"{self.path / 'tokenizer.json'}: cannot encode {text[:40]!r} ({e})") from None
        if self.vocab_size and max(ids, default=0) >= self.vocab_size:
            token = self.tokenizer.id_to_token(max(ids))
            raise ValueError(f"{self.path / 'tokenizer.json'}: the token {token!r} has id {max(ids)}, "
                             f"but the model's vocabulary has only {self.vocab_size:,} tokens; "
                             "is this another model's tokenizer?")
        return ids


def rewrites(path: Path, before: str, after: str) -> ValueError:
    """The error of a template that changes what precedes a response when the conversation continues."""
    return ValueError(f"{path}: the chat template rewrites earlier messages when the conversation continues "
                      f"({before[:40]!r} becomes {after[:40]!r}), but a prompt may only grow at its end; "
                      "write a chat_template.jinja that renders each message by itself")


def alternatives(texts: Iterable[str]) -> re.Pattern:
    """A pattern that matches each of these texts, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def as_text(token: str) -> str:
    """A control token whose first character is an HTML entity: still readable, but no longer that token."""
    return f"&#{ord(token[0])};{token[1:]}"


# ---- a model directory's files

def read_tokenizer(file: Path) -> Tokenizer:
    """A tokenizer.json. Every added token that looks like a control token becomes one: some files do not mark them."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except KeyboardInterrupt:
        raise
    except BaseException as e:                          # the library raises nothing more specific
        raise ValueError(f"{file}: not a tokenizer ({e})") from None
    tokenizer.no_truncation()                           # its training may have left these switched on
    tokenizer.no_padding()
    tokenizer.add_special_tokens([
        AddedToken(token.content, special=True, normalized=token.normalized, lstrip=token.lstrip, rstrip=token.rstrip)
        for token in tokenizer.get_added_tokens_decoder().values() if CONTROL.match(token.content)])
    return tokenizer


def without_prefix(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer for the middle of a text. One like Llama 2's puts a space before everything that it encodes; the
    one returned does not."""
    def changed(part):                                  # a normalizer or pre-tokenizer, or a sequence of them
        if part is None or part["type"] == "Prepend":
            return part and {"type": "Sequence", "normalizers": []}
        parts = {name: [changed(p) for p in part[name]] for name in ("normalizers", "pretokenizers") if name in part}
        off = {"Metaspace": {"prepend_scheme": "never"}, "ByteLevel": {"add_prefix_space": False}}
        return part | parts | off.get(part["type"], {})

    settings = json.loads(tokenizer.to_str())
    middle = settings | {name: changed(settings[name]) for name in ("normalizer", "pre_tokenizer")}
    return tokenizer if middle == settings else Tokenizer.from_str(json.dumps(middle))


def template_source(path: Path, config: dict) -> str:
    """The chat template of a model directory with this tokenizer_config.json; chat_template.jinja takes precedence."""
    source = config.get("chat_template")
    if (path / "chat_template.jinja").exists():
        source = files.read_text(path / "chat_template.jinja")
    if isinstance(source, list):                        # several templates, each with a name
        named = (t.get("template") for t in source if isinstance(t, dict) and t.get("name") == "default")
        source = next(named, None)
    if not isinstance(source, str) or not source:
        raise ValueError(f"{path / 'tokenizer_config.json'}: no chat_template; "
                         "use an instruction-tuned model's tokenizer")
    return source


def compile_template(path: Path, source: str) -> Template:
    """The template in Jinja's sandbox, with the functions and tags that models' templates rely on."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=["jinja2.ext.loopcontrols", Generation])
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": TODAY.strftime}
    environment.filters["tojson"] = _tojson
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as e:
        raise ValueError(f"{path}: the chat template, line {e.lineno}: {e.message}") from None
    except Exception as e:                              # nested too deep, most likely
        raise ValueError(f"{path}: the chat template: {type(e).__name__}") from None


class Generation(Extension):
    """{% generation %} … {% endgeneration %} marks what the assistant says. The content is written unchanged."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message):
    raise ValueError(f"the model's chat template: {message}")


def _tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
