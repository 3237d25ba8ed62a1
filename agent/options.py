"""The command-line options of the stages in which a model acts."""

from common import ROOT, command_line

import argparse
import os
from pathlib import Path

from agent.endpoint import PATIENCE
from agent.hints import KINDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of collect.py, evaluate.py and review.py: the model, its tools, how it samples."""
    add, number = parser.add_argument, command_line.number
    add("--model",
        help="directory or hub id in Hugging Face format, or openai:NAME behind an OpenAI-compatible endpoint")
    add("--base-url", metavar="URL", default=os.environ.get("OPENAI_BASE_URL"),
        help="the endpoint's URL; by default OPENAI_BASE_URL if it is set, else OpenAI's. The key is read from "
             "OPENAI_API_KEY")
    add("--prefill", action="store_true",
        help="start the endpoint's response with its tag, if the server supports this (agent/server.py and vLLM do)")
    add("--patience", type=number(float, 0), default=PATIENCE, metavar="SECONDS",
        help="how long to keep retrying a request to a busy endpoint, counting the pauses only")
    add("--adapter", action="append", default=[], metavar="DIR",
        help="directory of an adapter; can be repeated, in order")
    add("--tools", type=Path, default=ROOT / "tools" / "toolqa.py", metavar="FILE",
        help="the module whose functions are the tools")
    add("--data", type=folder, default=Path("data/starter/world"), metavar="DIR", help="the tools' data, or none")
    add("--temperature", type=number(float, 0), default=0.7, help="0 is greedy")
    add("--top-p", type=number(float, 0, 1), default=1.0, help="sample from the likeliest tokens with this probability")
    add("--seed", type=int, default=0, help="another seed, other samples")
    add("--max-steps", type=number(int, 1), default=8, help="end a task after this many steps")
    add("--max-new-tokens", type=number(int, 1), default=512,
        help="maximum tokens of a step's monologue, and of its code")
    add("--max-length", type=number(int, 1), default=8192,
        help="maximum tokens of a prompt with its response; never above the model's own limit")
    add("--batch", type=number(int, 1), default=32, help="agents at a time, in each replica")
    add("--dtype", choices=("float32", "bfloat16"),
        help="precision of the weights and the computation; adapters are float32 "
             "[bfloat16 on a GPU, and on a CPU with instructions for it if the checkpoint is stored in it]")
    add("--tp", type=number(int, 1), default=1, metavar="N",
        help="under torchrun: split the model over N processes; the remaining processes hold further replicas")
    add("--require-sandbox", action="store_true",
        help="refuse to run where the system lacks one of the sandbox's protections")
    add("--out", metavar="FILE", help="JSONL to write; the same command resumes it")


def folder(name: str) -> Path | None:
    """The type of --data: a directory, or none."""
    return None if name == "none" else Path(name)


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """The further options of collect.py and evaluate.py: what is played, with which hints."""
    add = parser.add_argument
    add("--tasks", metavar="FILE", help="JSONL of tasks")
    add("--hints", choices=("none", "task", "combined"), default="none",
        help="task: the sections for the task's group and template; combined: those of all tasks")
    add("--kinds", nargs="+", choices=KINDS, help="keep only these kinds of hint sections")
    add("--hints-for", metavar="FILE",
        help="JSONL of tasks: leave out hint sections for groups or templates that none of these has, "
             "as if nobody had written them")
    add("--hint-dir", type=Path, default=ROOT / "hints" / "starter" / "round1", metavar="DIR",
        help="the folder with the hints")
    add("--trials", type=command_line.number(int, 1), default=3, help="how many times each task is played")
