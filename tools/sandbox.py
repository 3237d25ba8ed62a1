"""The agent's Python: hostile code, in a process of its own for every trajectory.

    python -m tools.sandbox          tests what this system keeps such code from

    with World(Path("tools/toolqa.py"), Path("data/starter/world")) as world:        # once per stage
        with world.start() as box:                                                   # once per trajectory
            observation = box.run("print(load_db('flights'))")                       # (text, completed, died)

Four kinds of processes, each started by the one before it:

    stage        World and Sandbox below. Sends code, receives observations.
    server       one per world, a clean interpreter: imports the tool module once, then only forks (tools/server.py).
    warden       one per trajectory: starts the interpreter, clocks it, reads what it prints, kills and replaces it
                 (tools/warden.py).
    interpreter  runs the agent's code (tools/interpreter.py), confined by the kernel (tools/confine.py), frozen between
                 two steps. It explains errors as tools/explain.py does.

Who can forge what: the code may do anything within its own interpreter, so it can claim to have completed its own task
with any answer, or to have printed anything; it could simply have done so. But its interpreter holds nothing except the
ends of three pipes. What comes out of them is read by its warden alone, bounded and checked, and counts only for the
step that is being run: a reply left over from an earlier step is not taken for one to a later step. (A thread that an
earlier step has started can answer for a later one; it is the same trajectory's code.)

What is left open: the code sees whether a path exists, its size, times and extended attributes, and where a symlink
points. Sockets of any kind are refused, so asyncio's event loop does not start. Where the kernel has no user namespaces
there is no scratch directory.
"""
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import astuple
from pathlib import Path

from tools.explain import NOTHING_PRINTED
from tools.warden import Limits, Observation


class SandboxError(ValueError):
    """The world cannot be started; the message is one line for the user."""


class World:
    """A tool module with its data, loaded once, ready to run trajectories. `missing` lists what this system does not
    keep the agent's code from."""

    def __init__(self, tools: Path | None, data: Path | None = None, limits: Limits | None = None):
        for flag, path in ("--tools", tools), ("--data", data):
            if path is not None and not os.path.exists(path):
                none = ", or --data none" if flag == "--data" else ""
                raise SandboxError(f"{path}: no such file or directory; give {flag} one that exists{none}")
        for file in Path(data).rglob("*") if data else ():
            if file.is_symlink() and not file.resolve().is_relative_to(Path(data).resolve()):
                raise SandboxError(f"{file}: a link out of --data, so the tools cannot read it; copy the file there")
        self.tools, self.limits, self.boxes = tools, limits or Limits(), set()
        self.scratch = tempfile.mkdtemp(prefix="sandbox-")
        self.control, control = socket.socketpair()
        paths = [None if path is None else os.path.abspath(path) for path in (tools, data)]
        arguments = json.dumps([control.fileno(), self.scratch, *paths, astuple(self.limits)])
        start = "import sys; sys.path.insert(0, sys.argv[1]); from tools.server import serve; serve(sys.argv[2])"
        # A fixed hash seed: the order of a printed set must not differ from run to run.
        environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        kept = {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"} & os.environ.keys()
        environment |= {name: os.environ[name] for name in kept}
        self.server = subprocess.Popen(
            [sys.executable, "-s", "-P", "-c", start, str(Path(__file__).resolve().parents[1]), arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment, pass_fds=[control.fileno()],
            start_new_session=True)                      # Ctrl-C is for the stage alone
        control.close()
        error = None
        try:
            error = read_line(self.control, seconds=600)
        finally:
            if error is None:
                self.server.kill()                       # it may hang in an import, also when Ctrl-C ends the stage
            if error != "":                              # "": the module is loaded
                self.close()
        if error != "":
            raise SandboxError(error or f"{tools}: Python ended, or took ten minutes, while it loaded this module")
        with self.start() as box:
            text, _, died = box.run(ESCAPES)
        if died:
            self.close()
            raise SandboxError(f"{tools}: the sandbox does not start here: {text.strip()}")
        self.missing = text.replace(NOTHING_PRINTED, "").splitlines()

    def start(self) -> "Sandbox":
        """An interpreter for one trajectory."""
        box = Sandbox(self)
        self.boxes.add(box)
        return box

    def close(self):
        """Ends all interpreters, then the server."""
        for box in list(self.boxes):
            box.close()
        self.control.close()
        self.server.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Sandbox:
    """One trajectory's interpreter. Its variables last from step to step; a step that kills it ends in an observation
    that says so, and the next step finds a fresh one."""

    def __init__(self, world):
        self.world = world
        self.connect()

    def connect(self):
        self.socket, warden = socket.socketpair()
        try:
            socket.send_fds(self.world.control, [b"+"], [warden.fileno()])
        except OSError:
            raise SandboxError(f"{self.world.tools}: the process that had loaded this module is gone") from None
        finally:
            warden.close()

    def fileno(self) -> int:
        """For select and poll: readable when the observation has arrived."""
        return self.socket.fileno()

    def send(self, code: str):
        """Starts to run a step's code; does not wait."""
        try:
            self.socket.sendall(json.dumps(code).encode() + b"\n")
        except OSError:
            pass                                         # the warden is gone: receive() says so

    def receive(self) -> Observation:
        """Waits for the observation of what was sent."""
        reply = read_line(self.socket, seconds=self.world.limits.seconds + 30)
        if reply is None:                                # the system killed the warden, say for lack of memory
            self.socket.close()
            self.connect()
            return Observation("the interpreter was killed by the system; its variables are lost", None, True)
        text, completed, died = reply
        return Observation(text, completed and tuple(completed), died)

    def run(self, code: str) -> Observation:
        """send() and receive()."""
        self.send(code)
        return self.receive()

    def close(self):
        """Ends the interpreter; returns when nothing is left of it."""
        self.world.boxes.discard(self)
        try:
            self.socket.shutdown(socket.SHUT_WR)
            while read_line(self.socket, seconds=10) is not None:
                pass
        except OSError:
            pass                                         # closed before
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_line(sock, seconds):
    """The next line, as JSON; None when the other side is gone or silent for so long."""
    sock.settimeout(seconds)
    line = b""
    try:
        while not line.endswith(b"\n"):
            chunk = sock.recv(1 << 16)
            if not chunk:
                return None
            line += chunk
    except (TimeoutError, ConnectionError):
        return None
    return json.loads(line)


# ---- what a hostile program would try first ----

ESCAPES = """
def _try():                                             # its variables hide no tool
    import mmap, os, socket
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    def start_a_process():
        if not (pid := os.fork()):
            os._exit(0)
        os.waitpid(pid, 0)
    def write_outside():
        os.mkdir(os.getcwd() + "-escaped")
        os.rmdir(os.getcwd() + "-escaped")
    attempts = {
        "reading your files": lambda: os.listdir("/"),
        "writing your files": write_outside,
        "changing the modes of your files": lambda: os.chmod(".", os.stat(".").st_mode & 0o7777),
        "the network": socket.socket,
        "starting processes": start_a_process,
        "signals to your processes": lambda: os.kill(os.getppid(), 0),
        "taking all memory": lambda: mmap.mmap(-1, 1 << 36, flags),
    }
    for what, attempt in attempts.items():
        try:
            attempt()
        except OSError:
            continue
        print(what)
_try()
"""


def protections() -> dict[str, bool]:
    """{what: whether this system keeps the agent's code from it}, tried out."""
    names = [line.split('"')[1] for line in ESCAPES.splitlines() if line.startswith('        "')]
    with World(None) as world:
        return {name: name not in world.missing for name in names}


if __name__ == "__main__":
    for what, kept in protections().items():
        print(f"{what:35}{'refused' if kept else 'NOT REFUSED'}")
