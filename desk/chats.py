"""How much of its manual an agent has internalized, on conversations that were held out: `evaluate.py --chats`.

Three agents are compared: the model with the manual in its prompt (the teacher), the model without it, and the model
without it but with the adapters. Each replies to every prompt of the logged conversations, greedily:
    KL      KL(teacher ‖ agent) at the logged replies' tokens: the mean over a reply's tokens, then over the replies
    calls   how many of the logged tool calls the agent makes as well, with the same name and arguments
    replies how many of its replies make exactly the logged calls, or none where none is logged
"""

from common import files

import json
import unicodedata
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator

import torch
from tqdm import tqdm

from agent import endpoint, logged, tool_calls
from agent.chat import Chat
from desk.tables import markdown
from formats.chats import learned_messages, read_chats
from formats.weights import local_folder
from scaling import parallel
from training.examples import Example, to_example
from training.loss import kl_divergence
from training.packing import hidden_states, pack_by_prefix, row_limits

TEACHER, BARE, COACHED = "with the manual", "without", "without, adapters"             # in --out
LABELS = {TEACHER: TEACHER, BARE: "without the manual", COACHED: "without it, with the adapters"}
PIECE = 128                                                     # tokens whose logits are in memory at a time


def compare(args: Namespace) -> str:
    """Plays what is not in --out yet, if that is given → the table."""
    if endpoint.is_remote(args.model) or parallel.MANY:
        raise ValueError("--chats: the model runs here, in one process; give a directory or hub id, without torchrun")
    chat, records = Chat(local_folder(args.model)), read_chats(args.chats)
    for record in records:
        check_calls(chat, record)
    output = files.Output(args.out, vars(args)) if args.out else None
    results = files.whole_lines(output.path) if output else []
    done = {result["id"] for result in results}
    for result in play(chat, records, args, done):
        results.append(result)
        if output:
            output.write(result)
    if output:
        output.sync()
    return table(results, records)


def play(chat: Chat, records: list[dict], args: Namespace, done: set[str]) -> Iterator[dict]:
    """The results of each agent on each chat that is not done: {"id", "agent", "chat", "kl", "replies", "prompts"}."""
    agents = [(TEACHER, [], 0.0), (BARE, [], 1.0)] + [(COACHED, args.adapter, 1.0)] * bool(args.adapter)
    todo = [r for r in records if any(f"{name}/{r['id']}" not in done for name, *_ in agents)]
    if not todo:
        return
    taught = [to_example(chat, r) for r in todo]
    room = max(len(x.tokens) for x in taught) + args.max_new_tokens
    engine, request = start(args, [], room)
    states, head = teacher_states(engine.model, taught), engine.model.lm_head
    for name, adapters, dropout in agents:
        mine = [n for n, r in enumerate(todo) if f"{name}/{r['id']}" not in done]
        if not mine:
            continue
        if adapters:
            engine = request = None                             # two models may not fit
            engine, request = start(args, adapters, room)
        examples = [to_example(chat, todo[n], dropout) for n in mine]
        for k, replies in greedy(chat, examples, engine, request, name):
            kl, chat_id = [0.0] * len(replies), todo[mine[k]]["id"]     # the teacher does not diverge from itself
            if name != TEACHER:
                kl = divergence(engine.model, examples[k], states[mine[k]], head)
            yield {"id": f"{name}/{chat_id}", "agent": name, "chat": chat_id, "kl": kl,
                   "replies": [chat.decode(ids) for ids in replies],
                   "prompts": [begin for begin, _ in actions(examples[k])]}


def start(args, adapters, room):
    """A greedy sampler of the model with these adapters, and what makes its requests. Raises ValueError if the longest
    chat does not fit."""
    changed = {"adapter": adapters, "temperature": 0.0, "max_length": min(room, args.max_length)}
    engine, request = parallel.sampler(Namespace(**vars(args) | changed))
    if room > engine.max_length:
        raise ValueError(f"--chats: the longest chat needs {room:,} tokens with its reply, but --max-length and the "
                         f"model allow {engine.max_length:,}")
    return engine, request


# ---- replies

def actions(example: Example) -> list[tuple[int, int]]:
    """Where each reply is in the example's tokens: (start, end). Between two replies there is always a prompt."""
    starts = [n for n, at in enumerate(example.at) if not n or at != example.at[n - 1] + 1]
    return [(example.at[a] + 1, example.at[b - 1] + 2) for a, b in zip(starts, [*starts[1:], len(example.at)])]


def greedy(chat: Chat, examples: list[Example], engine, request, name: str) -> Iterator[tuple[int, list[list[int]]]]:
    """Replies greedily to every prompt of the examples. Yields (example's number, its replies) as they are complete."""
    spans = [actions(x) for x in examples]
    stops = logged.stop_ids(chat) | {x.tokens[end - 1] for x, ends in zip(examples, spans) for _, end in ends}
    replies = [[None] * len(ends) for ends in spans]
    for n, (x, ends) in enumerate(zip(examples, spans)):
        for k, (begin, _) in enumerate(ends):
            engine.add(request((n, k), x.tokens[:begin], stop=lambda ids: ids[-1] in stops))
    with tqdm(total=sum(map(len, spans)), unit="reply", desc=name, leave=False) as progress:
        while not engine.idle:
            for ended in engine.step():
                n, k = ended.key
                replies[n][k] = ended.new_ids
                progress.update()
                if None not in replies[n]:
                    yield n, replies[n]


def calls_in(text: str) -> list[str]:
    """The tool calls in a reply, in one spelling each."""
    return [spelled(*call) for _, _, call in tool_calls.find(text)]


def spelled(name: str, arguments: dict) -> str:
    """A call in one spelling: equal calls, as JSON, are equal texts. 3.0 is the same number as 3, and a letter with its
    accent the same as both by themselves, since a tokenizer may join them."""
    whole = json.loads(json.dumps(arguments), parse_float=lambda x: int(float(x)) if float(x) % 1 == 0 else float(x))
    return unicodedata.normalize("NFC", f"{name} {json.dumps(whole, sort_keys=True, ensure_ascii=False)}")


def logged_calls(record: dict) -> list[list[str]]:
    """The calls of each learned reply."""
    replies = (record["messages"][n] for n in learned_messages(record["messages"]))
    return [[spelled(call["function"]["name"], call["function"]["arguments"]) for call in reply.get("tool_calls", ())]
            for reply in replies]


def check_calls(chat: Chat, record: dict) -> None:
    """Raises ValueError if the calls cannot be found in what the model's chat template makes of the record."""
    example, called = to_example(chat, record), lambda calls: Counter(call.partition(" {")[0] for call in calls)
    for (begin, end), calls in zip(actions(example), logged_calls(record)):
        if called(calls) - called(calls_in(chat.decode(example.tokens[begin:end]))):
            raise ValueError(f"{record['id']}: {chat.path}: the chat template does not write tool calls as JSON "
                             "objects with name and arguments, so replies cannot be compared")


# ---- the divergence

@torch.inference_mode()
def teacher_states(model, examples: list[Example]) -> list[torch.Tensor]:
    """What lm_head reads in the teacher's pass at the tokens of each example's replies, [(N, C)]. The manual, with
    which they begin, is computed once for several."""
    numbered = {id(x): n for n, x in enumerate(examples)}
    rows, states = pack_by_prefix(examples, row_limits(model.config, model.device.type, 1)[0]), [None] * len(examples)
    for row in tqdm(rows, unit="row", desc="teacher", leave=False):
        parts = hidden_states(model, row).split([len(x.at) for x in row.examples])
        for x, part in zip(row.examples, parts, strict=True):
            states[numbered[id(x)]] = part.clone()
    return states


@torch.inference_mode()
def divergence(model, example: Example, teacher: torch.Tensor, head) -> list[float]:
    """KL(teacher ‖ student) at temperature 1 of each reply, the mean over its tokens: `training.loss.kl_divergence`.

    teacher (N, C): `teacher_states` of the same replies. head: the teacher's lm_head."""
    student = hidden_states(model, pack_by_prefix([example], 1)[0])                                     # (N, C)
    sizes, found = [end - begin for begin, end in actions(example)], []
    for x, y in zip(student.split(sizes), teacher.split(sizes), strict=True):
        pieces = zip(x.split(PIECE), y.split(PIECE))
        sums = [len(a) * kl_divergence([model.lm_head(a).float()], [head(b).float()], 1.0).item() for a, b in pieces]
        found.append(sum(sums) / len(x))
    return found


# ---- the table

def table(results: list[dict], records: list[dict]) -> str:
    """A row for each agent, then what is saved."""
    logged_by = {r["id"]: logged_calls(r) for r in records}
    rows = [["agent", "KL per token", "calls as logged", "replies as logged", "input tokens of a conversation"]]
    tokens = {}
    for agent in dict.fromkeys(r["agent"] for r in results):
        mine = [r for r in results if r["agent"] == agent]
        pairs = [(Counter(calls), Counter(calls_in(reply))) for r in mine
                 for calls, reply in zip(logged_by[r["chat"]], r["replies"], strict=True)]
        calls, made = sum(c.total() for c, _ in pairs), sum((c & d).total() for c, d in pairs)
        same = sum(c == d for c, d in pairs)
        losses = [kl for r in mine for kl in r["kl"]]
        tokens[agent] = sum(sum(r["prompts"]) for r in mine) / len(mine)
        rows.append([LABELS[agent], f"{sum(losses) / len(losses):.4f}", share(made, calls),
                     share(same, len(pairs)), f"{tokens[agent]:,.0f}"])
    saved = tokens[TEACHER] - tokens[BARE]
    return (f"{markdown(rows)}\n\n{len(records)} conversations, {len(pairs)} replies, {calls} tool calls; without the "
            f"manual, a conversation saves {saved:,.0f} input tokens ({saved / tokens[TEACHER]:.0%})")


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
