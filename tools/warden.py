"""The sandbox's warden: the process that starts a trajectory's interpreter, clocks it, reads it and kills it.

Nothing that the interpreter sends is trusted: it is bounded, checked, and counts only for the step that is being run.
"""
import json
import os
import secrets
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tools import confine
from tools.explain import NOTHING_PRINTED
from tools.interpreter import cut, interpret


@dataclass(frozen=True)
class Limits:
    """What one trajectory's code may use."""
    seconds: float = 10             # wall clock, per step
    cpu: int = 60                   # seconds of CPU time, all steps together
    memory: int = 512 << 20         # bytes of address space, on top of the tool module's
    disk: int = 16 << 20            # bytes in the scratch directory, which is in memory
    open_files: int = 64
    threads: int = 100
    printed: int = 8 << 20          # bytes per step that are kept; of more, the middle is dropped
    output: int = 4000              # characters of an observation, a report or an answer; more is cut in the middle


class Observation(NamedTuple):
    """A step's result: its text, (report, answer) if it completed the task, and whether its interpreter is gone."""
    text: str
    completed: tuple[str, str] | None = None
    died: bool = False


def watch(box: socket.socket, functions: dict[str, Callable], readable: list, scratch: str, limits: Limits) -> None:
    """Runs what the stage sends, one step after another, until the stage closes its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Without a file system of limited size the code gets no place to write: many small files fill any disk.
    writable = [scratch] if confine.private_tmpfs(scratch, limits.disk) else []
    os.chdir(scratch)
    interpreter = None
    for line in box.makefile("rb"):
        interpreter = interpreter or Interpreter(box, functions, readable, writable, limits)
        observation = interpreter.run(json.loads(line))
        if observation is None:
            return
        if observation.died:
            interpreter = None
        box.sendall(json.dumps(observation).encode() + b"\n")
    if interpreter:
        interpreter.kill()


class Interpreter:
    """The warden's handle on the process that runs the agent's code. What that process sends is not to be trusted."""

    def __init__(self, box, functions, readable, writable, limits):
        self.box, self.limits, self.unread = box, limits, b""
        requests, self.requests = os.pipe()
        self.replies, replies = os.pipe()
        self.output, output = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                for fd in box.fileno(), self.requests, self.replies, self.output:
                    os.close(fd)
                os.environ.clear()
                confine.reopen_files()
                confine.private_maps()
                confine.confine(readable, writable, limits.memory, limits.cpu, limits.disk, limits.open_files)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            try:
                interpret(requests, replies, output, functions, limits.output)
            finally:
                os._exit(1)                              # the code broke its interpreter
        for fd in requests, replies, output:
            os.close(fd)
        for fd in self.requests, self.replies, self.output:     # the code can reopen its ends and read or fill a pipe
            os.set_blocking(fd, False)

    def run(self, code):
        """The observation of one step; None when the stage has gone away meanwhile."""
        nonce = secrets.token_hex(8)                     # replies to earlier steps, real or forged, do not have it
        request = json.dumps([nonce, code]).encode() + b"\n"
        printed = Printed(self.limits.printed)
        deadline = time.monotonic() + self.limits.seconds
        os.kill(self.pid, signal.SIGCONT)
        while (left := deadline - time.monotonic()) > 0:
            sources, sinks = [self.box, self.output, self.replies], [self.requests] if request else []
            ready, free, _ = select.select(sources, sinks, [], min(left, 0.01))     # code starts 1000 threads in 0.01 s
            if self.box in ready:
                self.kill()
                return None
            if confine.threads(self.pid) > self.limits.threads:
                return self.died(printed, f"RuntimeError: the code started more than {self.limits.threads} threads")
            try:
                if free:
                    request = request[os.write(self.requests, request):]
            except BlockingIOError:
                pass
            except BrokenPipeError:
                return self.died(printed)
            if not self.read(printed):
                return self.died(printed)
            if self.replies in ready:
                try:
                    chunk = os.read(self.replies, 1 << 12)      # a flood does not keep it from counting threads
                except BlockingIOError:
                    continue
                if not chunk:
                    return self.died(printed)
                *lines, self.unread = (self.unread + chunk).split(b"\n")
                for reply in filter(None, (self.check(line, nonce) for line in lines if nonce.encode() in line)):
                    os.kill(self.pid, signal.SIGSTOP)    # threads it has left behind wait for the next step
                    self.read(printed)
                    completed = reply[1:] or None
                    return Observation(printed.text(self.limits.output) or NOTHING_PRINTED * (not completed), completed)
                if len(self.unread) > 1 << 20:
                    return self.died(printed, "the interpreter was sent a reply without an end")
        return self.died(printed, f"TimeoutError: the code ran longer than {self.limits.seconds:g} s")

    def read(self, printed):
        """Adds what was printed; False when nothing more can ever come."""
        for _ in range(64):                              # endless output must not hold up the clock
            try:
                chunk = os.read(self.output, 1 << 16)
            except BlockingIOError:
                break
            if not chunk:
                return False
            printed.add(chunk)
        return True

    def check(self, line, nonce):
        """A reply to this very step, (nonce,) or (nonce, report, answer), all clean strings; None if it is none."""
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(reply, list) or len(reply) not in (1, 3) or reply[0] != nonce:
            return None
        if not all(isinstance(part, str) for part in reply):
            return None
        return tuple(cut(part.encode("utf-8", "replace").decode(), self.limits.output) for part in reply)

    def died(self, printed, reason=None):
        """Kills it; the observation says why, or what it died of by itself."""
        status = os.waitstatus_to_exitcode(self.kill(printed))
        if reason is None and status == -signal.SIGXCPU:
            reason = f"TimeoutError: the code used more than {self.limits.cpu} s of CPU time"
        elif reason is None and status < 0:
            reason = f"the interpreter was killed by signal {-status} ({signal.strsignal(-status)})"
        elif reason is None:
            reason = f"the interpreter exited with status {status}"
        text = printed.text(self.limits.output)
        text += "\n" * (text[-1:] not in ("", "\n"))
        return Observation(f"{text}{reason}; its variables are lost\n", None, True)

    def kill(self, printed=None):
        """Ends the process, whatever it does. Returns its exit status as the system gives it."""
        for kill in os.killpg, os.kill:
            try:
                kill(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        status = os.waitpid(self.pid, 0)[1]
        if printed is not None:
            self.read(printed)
        for fd in self.requests, self.replies, self.output:
            os.close(fd)
        return status


class Printed:
    """What a step has printed, in bytes: all of it, or of more than `limit` about the first and the last quarter."""

    def __init__(self, limit):
        self.limit, self.kept, self.dropped = limit, bytearray(), 0      # dropped: in characters

    def add(self, chunk):
        self.kept += chunk
        if len(self.kept) > self.limit:
            quarter = self.limit // 4
            middle = self.kept[quarter:-quarter]
            self.dropped += len(middle.translate(None, bytes(range(0x80, 0xC0))))    # UTF-8's continuation bytes
            del self.kept[quarter:-quarter]

    def text(self, limit):
        return cut(self.kept.decode("utf-8", "replace"), limit, self.dropped)
