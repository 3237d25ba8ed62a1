"""One question at a time, watched live: what the agent thinks, writes and sees, as it happens (`collect.py --ask`).

With --beside, two agents answer it, and each step is shown when both have played it.
"""

from common import files

import functools
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import zip_longest

from agent import rollouts
from agent.play import Generate, play
from agent.responses import before_stop
from desk import backend
from desk.terminal import harmless, side_by_side
from tools.sandbox import Sandbox, World

NARROWEST = 40                                              # characters of a column


class Agent:
    """A model with what it needs to play: its options, its chat, its engine and its world."""

    def __init__(self, args: Namespace, open_worlds: ExitStack):
        self.args, self.chat = args, backend.chat_with(args)
        self.player = functools.partial(play, self.chat, max_steps=args.max_steps)
        rollouts.check_answers_hidden(args)
        self.world = open_worlds.enter_context(World(args.tools, args.data))
        rollouts.check_protections(self.world, args.require_sandbox, True)
        self.engine, self.request = backend.start_engine(Namespace(**vars(args) | {"batch": 1}))

    def __str__(self):
        return f"{' + '.join(map(str, [self.args.model, *self.args.adapter]))}, hints: {self.args.hints}"


def ask(args: Namespace, beside: Namespace | None = None) -> None:
    """Plays --ask's question, or without one those that are typed. beside: the options of a second agent, which answers
    them, too. --out keeps the trajectories; their success is false, as nobody knows the right answer."""
    kept = {name: value for name, value in vars(args).items() if name not in ("ask", "group", "template")}
    output = files.Output(args.out, kept) if args.out else None
    options = [args, beside] if beside else [args]
    with ExitStack() as open_worlds:
        agents = [Agent(own, open_worlds) for own in options]
        asked_before = len(output.done) // len(agents) if output else 0
        for n, question in enumerate([args.ask] if args.ask else typed(), asked_before):
            trajectories = [asked(question, n, trial, agent.args) for trial, agent in enumerate(agents)]
            for agent, trajectory in zip(agents, trajectories):
                rollouts.check_room([trajectory], agent.player, getattr(agent.engine, "max_length", None))
            with ExitStack() as boxes:
                played = [(agent, trajectory, boxes.enter_context(agent.world.start()))
                          for agent, trajectory in zip(agents, trajectories)]
                if beside:
                    watch_beside(played)
                else:
                    for _ in watch(*played[0], functools.partial(print, end="", flush=True)):
                        pass
            for agent, trajectory in zip(agents, trajectories):
                if output:
                    output.write(trajectory | rollouts.rejected(agent.engine))


def asked(question: str, n: int, trial: int, args: Namespace) -> dict:
    """The empty trajectory of a question, with the hints that --hints chooses. The trial numbers the agents, and all
    have the same seed."""
    task = {"id": f"ask-{n}", "group": args.group or "", "template": args.template or "", "question": question,
            "answer": []}
    if args.hints == "task" and not task["group"] and not (args.hint_dir / "common.md").exists():
        raise ValueError("--hints task: --group says of which group, and --template of which type of task")
    [trajectory] = rollouts.trials([task], Namespace(**vars(args) | {"trials": 1}))
    return trajectory | {"id": f"ask-{n}#{trial}"}


def typed() -> Iterator[str]:
    """The questions that are typed at the terminal, until the end of input (Ctrl-D). The arrow keys bring earlier ones
    back."""
    try:
        import readline  # noqa: F401                           # gives input() its history
    except ImportError:
        pass
    while True:
        try:
            question = input("question: ").strip()
        except EOFError:
            return print()
        if question:
            yield question


def watch(agent: Agent, trajectory: dict, box: Sandbox, say: Callable[[str], None]) -> Iterator[None]:
    """Plays a trajectory alone and says it as it grows. Yields after each step."""
    player, steps, result = agent.player(trajectory), trajectory["steps"], None
    wish = next(player)
    while True:
        if isinstance(wish, Generate):
            if wish.tag == "inner_monologue":
                if len(steps) > 1:
                    yield
                say(f"--- {len(steps)}\n")
            result = stream(wish, agent, say)
        else:
            box.send(wish.code)
            observation = result = box.receive()
            if observation.text:
                say(f"→ {harmless(observation.text.rstrip(chr(10)))}\n")
        try:
            wish = player.send(result)
        except StopIteration:
            break
    used = trajectory["usage"]
    end = (f"answer: {harmless(trajectory['answer'])!r}" if trajectory["stop"] == "complete" else
           f"no answer, it ended by {trajectory['stop']}")
    say(f"{end} ({used['input_tokens']} tokens read, {used['output_tokens']} written)\n")
    yield


def watch_beside(played: list[tuple[Agent, dict, Sandbox]]) -> None:
    """Plays two agents' trajectories step by step, and prints each step of both: in two columns, or one under the other
    if the terminal is too narrow."""
    width = (min(shutil.get_terminal_size().columns, 160) - 3) // 2
    names, texts = [str(agent) for agent, _, _ in played], ([], [])
    if width >= NARROWEST:
        print(side_by_side(*names, width), "─" * width + "─┼─" + "─" * width, sep="\n")
    for _ in zip_longest(*(watch(*one, said.append) for one, said in zip(played, texts))):
        step = ["".join(said) for said in texts]
        if width >= NARROWEST:
            print(side_by_side(*step, width), flush=True)
        else:
            print(*(f"=== {name}\n{text}" for name, text in zip(names, step) if text), sep="\n", flush=True)
        for said in texts:
            said.clear()


def stream(wish: Generate, agent: Agent, say: Callable[[str], None]) -> tuple:
    """A response, said token by token [all at once from an endpoint]. Returns what `play` receives."""
    over, shown = agent.chat.closes(wish.tag), ""

    def show(text):
        nonlocal shown
        text = harmless(before_stop(text, [f"</{wish.tag}>"])[0])
        say(text[len(shown):])
        shown = text

    def stop(new_ids):
        text = agent.chat.decode(new_ids[:-1] if new_ids[-1] in agent.chat.ends else new_ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):      # a character may take several tokens
            show(text)
        return over(new_ids)

    agent.engine.add(agent.request("ask", wish.prompt, stop=stop if callable(over) else over, seed=wish.seed))
    ended = []
    while not ended:
        ended = agent.engine.step()
    if not callable(over):
        show(agent.chat.heard(wish.prompt, ended[0].new_ids)[0])
    if not shown.endswith("\n"):
        say("\n")
    return ended[0].new_ids, ended[0].ended
