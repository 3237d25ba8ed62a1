"""Standard benchmarks: HumanEval's pass@1 and GSM8K, zero-shot. They show whether coaching has cost a model other
abilities (paper, Table 6).

    greedy="--model M --trials 1 --temperature 0"
    python evaluate.py $greedy --suite humaneval --file HumanEval.jsonl.gz --out humaneval.jsonl
    python evaluate.py $greedy --suite gsm8k --file test.jsonl --out gsm8k.jsonl
    python desk/suites.py humaneval HumanEval.jsonl.gz      grades the official solutions: 164 of 164 must pass

The files are the official ones. Generated code runs in the agent's sandbox.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import command_line

import gzip
import re
import secrets
import textwrap
import zlib
from collections.abc import Generator

from agent.chat import Chat
from agent.play import Execute, Generate
from agent.responses import code_in
from formats.records import read_lines
from tools.sandbox import World

PROMPTS = {
    "humaneval": "Write this Python function, the whole of it with its imports, between <python> and </python>, "
                 "and nothing else.\n\n{question}",
    "gsm8k": "Solve this problem. Reason step by step, then write the answer, a number alone, between <answer> and "
             "</answer>.\n\n{question}",
}
NUMBER = re.compile(r"(?<![\d.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))(?:\.\d+)?")
TAGS = {"humaneval": "python", "gsm8k": "answer"}
FUTURE = re.compile(r"^from __future__ import .*$", re.M)               # has to come first in a program
FIELDS = {"humaneval": ("task_id", "prompt", "entry_point", "canonical_solution", "test"),
          "gsm8k": ("question", "answer")}


def read_suite(suite: str, file: str | Path) -> list[dict]:
    """The official file, JSONL or JSONL gzipped → tasks as evaluate.py plays them. Raises ValueError, naming file, line
    and field."""
    file = Path(file)
    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if file.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as e:
        raise ValueError(f"{file}: cannot be read ({e}); --file names the official file of {suite}") from None
    tasks, known = [], set()
    for n, given in read_lines(content, file):
        for name in FIELDS[suite]:
            if not isinstance(given.get(name), str):
                raise ValueError(f"{file}, line {n}, field {name!r}: missing, or not text; "
                                 f"is this {suite}'s official file?")
        if suite == "gsm8k":
            task = {"id": f"gsm8k/{n}", "question": given["question"], "answer": number(given["answer"]),
                    "solution": given["answer"]}
        else:
            task = {"id": given["task_id"], "question": given["prompt"], "answer": "passed",
                    "entry_point": given["entry_point"],
                    "solution": given["prompt"] + given["canonical_solution"],
                    "test": f"{given['test']}\n\ncheck({given['entry_point']})"}
        if task["id"] in known:
            raise ValueError(f"{file}, line {n}, field 'task_id': {task['id']!r} occurs twice")
        known.add(task["id"])
        tasks.append(task | {"group": suite, "template": suite})
    if not tasks:
        raise ValueError(f"{file}: empty")
    return tasks


def number(text: str) -> str:
    """The last number in a text, in one form: "1,200.00" becomes "1200". "" if there is none. Commas separate
    thousands, and a minus does not follow a digit."""
    found = NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    value = found[-1].replace(",", "") if found else ""
    value = value.rstrip("0").rstrip(".") if "." in value else value
    return {"-0": "0"}.get(value, value.replace(".", "0.", 1) if value.lstrip("-").startswith(".") else value)


def attempt(chat: Chat, trajectory: dict) -> Generator:
    """The counterpart of agent.play: one response, graded. A generator that yields Generate and Execute requests."""
    task, tag = trajectory["task"], TAGS[trajectory["task"]["group"]]
    prompt = chat.ask(PROMPTS[task["group"]].format_map(task))
    said, end = yield Generate(prompt, tag, seed=str(trajectory["seed"]))
    text, ids, (read, written) = chat.heard(prompt, said)
    trajectory["usage"]["input_tokens"] += read
    trajectory["usage"]["output_tokens"] += written
    before, _, inside = text.rpartition(f"<{tag}>")       # no opening tag: it began the response, or was forgotten
    inside, closed, _ = inside.partition(f"</{tag}>")
    code = solution(text, task["entry_point"]) if tag == "python" else ""
    step = {"monologue": before, "code": code, "observation": "", "hint": None,
            "token_ids": {} if ids is None else {"code": ids}}
    trajectory["steps"].append(step)
    cut = end != "stop" and not closed                          # "length" or, behind an endpoint, "refused" or "empty"
    trajectory["stop"] = end if cut else "complete" if code or tag == "answer" else "invalid"
    if tag == "answer":
        trajectory["answer"] = number(inside)
    elif code and not cut:
        passed = secrets.token_hex(8)       # no solution says this by accident; one that reads its caller's frame could
        observation = yield Execute(program(task, step["code"], passed))
        step["observation"] = observation.text
        trajectory["answer"] = "passed" if observation.completed and observation.completed[1] == passed else "failed"
    trajectory["success"] = trajectory["stop"] == "complete" and trajectory["answer"] == task["answer"]


def solution(text: str, name: str) -> str:
    """The code in a response: the first, or if only all blocks together define the function, all of them."""
    code, blocks = code_in(text), "\n\n".join(re.findall(r"```\w*\n(.*?)```", text, re.S))
    return blocks if not defines(code, name) and defines(blocks, name) else code


def defines(code: str, name: str) -> bool:
    return bool(re.search(rf"^(?:(?:async )?def {re.escape(name)}\b|{re.escape(name)} *=)", code, re.M))


def program(task: dict, code: str, passed: str) -> str:
    """The prompt with its imports and helpers, the code, and the tests, after which it answers `passed`. As in the
    official harness, it is not the main program: what stands below `if __name__ == "__main__"` does not run."""
    if not defines(code, task["entry_point"]):           # the body: it continues the prompt
        code = textwrap.indent(code, "    ")
    first = "".join(f"{line}\n" for line in FUTURE.findall(code))
    return (f"{first}__name__ = 'solution'\n{task['question']}\n\n{FUTURE.sub('', code)}\n\n{task['test']}\n"
            f"complete_task('', {passed!r})")


def main():
    parser = command_line.Parser(__doc__)
    parser.add_argument("suite", choices=PROMPTS)
    parser.add_argument("file", help="its official file")
    args = parser.parse_args()
    tasks, right = read_suite(args.suite, args.file), 0
    with World(None) as world:
        for task in tasks:
            if args.suite == "gsm8k":
                ok = number(task["solution"].rpartition("####")[2]) == task["answer"] != ""
            else:
                with world.start() as box:
                    observation = box.run(program(task, task["solution"], "yes"))
                ok = observation.completed == ("", "yes")
            right += ok
            if not ok:
                print(f"{task['id']}: {task['solution'] if args.suite == 'gsm8k' else observation.text}")
    print(f"{args.suite}: {right} of {len(tasks)} official solutions pass, {100 * right / len(tasks):.1f} %")
    sys.exit(right < len(tasks))


if __name__ == "__main__":
    command_line.run_stage(main)
