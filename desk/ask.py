"""One question at a time, watched live: what the agent thinks, writes and sees, as it happens (`collect.py --ask`)."""

from common import files

import functools
from argparse import Namespace
from collections.abc import Callable, Iterator

from agent import rollouts
from agent.play import Generate, play
from desk import backend
from desk.terminal import harmless
from tools.sandbox import Sandbox, World


def ask(args: Namespace) -> None:
    """Plays --ask's question, or without one those that are typed. --out keeps the trajectories; their success is
    false, as nobody knows the right answer."""
    chat = backend.chat_with(args)
    player = functools.partial(play, chat, max_steps=args.max_steps)
    kept = {name: value for name, value in vars(args).items() if name not in ("ask", "group", "template")}
    output = files.Output(args.out, kept) if args.out else None
    rollouts.check_answers_hidden(args)
    with World(args.tools, args.data) as world:
        rollouts.check_protections(world, args.require_sandbox, True)
        engine, request = backend.start_engine(Namespace(**vars(args) | {"batch": 1}))
        for n, question in enumerate([args.ask] if args.ask else typed(), len(output.done) if output else 0):
            trajectory = asked(question, n, args)
            rollouts.check_room([trajectory], player, getattr(engine, "max_length", None))
            with world.start() as box:
                watch(player(trajectory), trajectory, chat, engine, request, box)
            if output:
                output.write(trajectory)


def asked(question: str, n: int, args: Namespace) -> dict:
    """The empty trajectory of a question, with the hints that --hints chooses."""
    task = {"id": f"ask-{n}", "group": getattr(args, "group", ""), "template": getattr(args, "template", ""),
            "question": question, "answer": ""}
    [trajectory] = rollouts.trials([task], Namespace(**vars(args) | {"trials": 1}))
    return trajectory


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


def watch(player: Iterator, trajectory: dict, chat, engine, request: Callable, box: Sandbox) -> None:
    """Plays a trajectory alone and prints it as it grows."""
    wish, result, steps = next(player), None, trajectory["steps"]
    while True:
        if isinstance(wish, Generate):
            if wish.tag == "inner_monologue":
                print(f"--- {len(steps)}")
            result = stream(wish, chat, engine, request)
        else:
            box.send(wish.code)
            observation = result = box.receive()
            if observation.text:
                print("→", harmless(observation.text.rstrip("\n")))
        try:
            wish = player.send(result)
        except StopIteration:
            break
    used = trajectory["usage"]
    print(f"answer: {harmless(trajectory['answer'])!r}" if trajectory["stop"] == "complete" else
          f"no answer, it ended by {trajectory['stop']}",
          f"({used['input_tokens']} tokens read, {used['output_tokens']} written)")


def stream(wish: Generate, chat, engine, request: Callable) -> tuple:
    """A response, printed token by token [all at once from an endpoint]. Returns what `play` receives."""
    over, shown = chat.closes(wish.tag), ""

    def show(text):
        nonlocal shown
        text = harmless(before_tag(text, wish.tag))
        print(text[len(shown):], end="", flush=True)
        shown = text

    def stop(new_ids):
        text = chat.decode(new_ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):      # a character may take several tokens
            show(text)
        return over(new_ids)

    engine.add(request("ask", wish.prompt, stop=stop if callable(over) else over, seed=wish.seed))
    ended = []
    while not ended:
        ended = engine.step()
    if not callable(over):
        show(chat.heard(wish.prompt, ended[0].new_ids)[0])
    print("" if shown.endswith("\n") else "\n", end="")
    return ended[0].new_ids, ended[0].ended


def before_tag(text: str, tag: str) -> str:
    """The text before the closing tag, or before what may become one."""
    close = f"</{tag}>"
    text, found, _ = text.partition(close)
    partial = 0 if found else next((n for n in range(len(close), 0, -1) if text.endswith(close[:n])), 0)
    return text[:len(text) - partial]
