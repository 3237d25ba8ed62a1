"""The sandbox: steps per second, and how long a trajectory's process takes to start."""

from common import ROOT

import statistics
import time
from pathlib import Path

from planning.bench.harness import alone
from tools.sandbox import World


def compare(data: Path) -> None:
    """Prints the figures with the starter world's data."""
    rates = alone(sandbox, data)
    print(f"sandbox: {rates['steps']:,.0f} steps/s on two processes, a trajectory's process starts in "
          f"{rates['start'] * 1000:.0f} ms", flush=True)


def sandbox(data):
    with World(ROOT / "tools" / "toolqa.py", data) as world:
        with world.start() as box:
            box.run("1")
        starts, n = [], 400
        for _ in range(20):
            began = time.perf_counter()
            with world.start() as box:
                box.run("1")
                starts.append(time.perf_counter() - began)
        boxes = [world.start() for _ in range(2)]
        began = time.perf_counter()
        for i in range(n // 2):
            for box in boxes:
                box.send("print(1 + 1)")
            for box in boxes:
                assert box.receive().text.strip() == "2"
        seconds = time.perf_counter() - began
        for box in boxes:
            box.close()
    return {"steps": n / seconds, "start": statistics.median(starts)}
