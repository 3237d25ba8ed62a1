"""The agent's Python: hostile code, in a process of its own for every trajectory.

    python -m tools.sandbox          tests what this system keeps such code from

    with World(Path("tools/toolqa.py"), Path("data/starter/world")) as world:        # once per stage
        with world.start() as box:                                                   # once per trajectory
            observation = box.run("print(load_db('flights'))")                       # (text, completed, died)

Four kinds of processes, each started by the one before it:

    stage        World and Sandbox below. Sends code, receives observations.
    server       one per world, a clean interpreter: imports the tool module once, then only forks.
    warden       one per trajectory: starts the interpreter, clocks it, reads what it prints, kills and replaces it.
    interpreter  runs the agent's code, confined by the kernel (tools/confine.py), frozen between two steps. It explains
                 errors as tools/explain.py does.

Who can forge what: the code may do anything within its own interpreter, so it can claim to have completed its own task
with any answer, or to have printed anything; it could simply have done so. But its interpreter holds nothing except the
ends of three pipes. What comes out of them is read by its warden alone, bounded and checked, and counts only for the
step that is being run: a reply left over from an earlier step is not taken for one to a later step. (A thread that an
earlier step has started can answer for a later one; it is the same trajectory's code.)

What is left open: the code sees whether a path exists, its size, times and extended attributes, and where a symlink
points. Sockets of any kind are refused, so asyncio's event loop does not start. Where the kernel has no user namespaces
there is no scratch directory.
"""
import gc
import importlib.util
import inspect
import json
import linecache
import os
import random
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
import types
import warnings
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NamedTuple

from tools import confine
from tools.explain import NOTHING_PRINTED, REDEFINED, explain, own


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


class SandboxError(ValueError):
    """The world cannot be started; the message is one line for the user."""


# ---- in the stage ----

class World:
    """A tool module with its data, loaded once, ready to run trajectories. `missing` lists what this system does not
    keep the agent's code from."""

    def __init__(self, tools: Path | None, data: Path | None = None, limits: Limits = Limits()):
        for flag, path in ("--tools", tools), ("--data", data):
            if path is not None and not os.path.exists(path):
                raise SandboxError(f"{path}: no such file or directory; give {flag} one that exists")
        self.tools, self.limits, self.boxes = tools, limits, set()
        self.scratch = tempfile.mkdtemp(prefix="sandbox-")
        self.control, control = socket.socketpair()
        paths = [None if path is None else os.path.abspath(path) for path in (tools, data)]
        arguments = json.dumps([control.fileno(), self.scratch, *paths, astuple(limits)])
        start = "import sys; sys.path.insert(0, sys.argv[1]); from tools.sandbox import work; work(sys.argv[2])"
        # A fixed hash seed: the order of a printed set must not differ from run to run.
        environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        kept = {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"} & os.environ.keys()
        environment |= {name: os.environ[name] for name in kept}
        self.server = subprocess.Popen(
            [sys.executable, "-s", "-P", "-c", start, str(Path(__file__).resolve().parents[1]), arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment, pass_fds=[control.fileno()],
            start_new_session=True)                      # Ctrl-C is for the stage alone
        control.close()
        error = read_line(self.control, seconds=600)
        if error is None or error:
            self.close()
            raise SandboxError(error or f"{tools}: Python ended while it loaded this module")
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

    def fileno(self):
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


# ---- the server ----

def work(arguments):
    """Loads the world, answers "" or what went wrong, then forks a warden for every socket it is sent."""
    control, scratch, tools, data, limits = json.loads(arguments)
    control, limits = socket.socket(fileno=control), Limits(*limits)
    confine.isolate()
    os.chdir(scratch)
    try:
        try:
            functions = load(tools, data)
            problem = ""
        except BaseException as error:
            problem = one_line(error, tools)
        control.sendall(json.dumps(problem).encode() + b"\n")
        readable = [*python_directories(), *(path for path in (tools, data) if path)]
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)    # wardens leave no zombies
        gc.collect()
        gc.freeze()                                      # keeps the pages of what is loaded shared among all forks
        while not problem:
            message, sockets, *_ = socket.recv_fds(control, 1, 1)
            if not message:                              # the stage closed the world, or is gone
                break
            try:
                pid = os.fork()
            except OSError:                              # no memory or no process left: the stage sees a closed socket
                pid = None
            if pid == 0:
                try:
                    control.close()
                    watch(socket.socket(fileno=sockets[0]), functions, readable, scratch, limits)
                except ConnectionError:
                    pass                                 # the stage is gone
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(0)
            os.close(sockets[0])
    except ConnectionError:
        pass                                             # the stage is gone
    finally:
        shutil.rmtree(scratch, ignore_errors=True)       # for a stage that cannot do it any more


def load(tools, data):
    """The public functions of the tool module at path `tools`. Code may also import them, as models like to do: the
    module goes by the names `tools`, its own (`library` if the file is library.py) and `tools.library`."""
    if tools is None:
        sys.modules["tools"] = types.ModuleType("tools")
        return {}
    sys.path[0] = os.path.dirname(tools)                 # helpers next to it can be imported, as by a script
    spec = importlib.util.spec_from_file_location("world", tools)
    if spec is None:
        raise ImportError("not a Python file; --tools names one that ends in .py")
    module = sys.modules["world"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "_open"):
        module._open(data)
    module.__name__, stem = "tools", Path(tools).stem    # the name in an ImportError
    for name in [name for name in sys.modules if name.startswith("tools.")]:
        del sys.modules[name]                            # the agent's `tools` is the world, not this project's package
    for name in {"tools", stem, f"tools.{stem}"} - sys.stdlib_module_names:
        sys.modules[name] = module
    vars(module).setdefault(stem, module)                # import tools.library; tools.library.books_by(…)
    return {name: value for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == "world" and not name.startswith("_")}


def one_line(error, tools):
    """Where in the tool module an import failed, and how."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == tools]
    if isinstance(error, SyntaxError) and error.filename == tools:
        lines.append(error.lineno)
    what = " ".join(traceback.format_exception_only(error)[-1].split())
    return f"{tools}{f', line {lines[-1]}' if lines else ''}: {what}"[:1000]


def python_directories():
    """What an interpreter reads of itself: standard library, installed packages, shared libraries, time zones."""
    libraries = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    libraries |= {f"{prefix}/lib" for prefix in (sys.base_prefix, sys.exec_prefix)}
    return [*libraries, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/etc/localtime",
            "/usr/share/zoneinfo", "/dev/urandom", "/dev/zero"]


# ---- the warden ----

def watch(box, functions, readable, scratch, limits):
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
        os.set_blocking(self.requests, False)
        os.set_blocking(self.output, False)

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
            except BrokenPipeError:
                return self.died(printed)
            if not self.read(printed):
                return self.died(printed)
            if self.replies in ready:
                chunk = os.read(self.replies, 1 << 16)
                if not chunk:
                    return self.died(printed)
                *lines, self.unread = (self.unread + chunk).split(b"\n")
                for reply in filter(None, (self.check(line, nonce) for line in lines)):
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


def cut(text, limit, dropped=0):
    """The text, or its beginning and its end with a note of how much is missing; `dropped` characters already are."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half + dropped:,} characters left out …]\n{text[-half:]}"


# ---- the interpreter ----

class Completed(BaseException):
    """Raised by complete_task to leave the step's code."""


def interpret(requests, replies, output, functions, limit):
    """Runs code for ever. It may break this process in any way: its warden then starts another."""
    def reply(*parts):
        os.write(replies, b"\n" + json.dumps([nonce, *parts]).encode() + b"\n")     # whatever was written before

    def complete_task(report, answer):
        """Ends the task with a report of what was done and the answer."""
        texts = cut(str(report), limit), cut(str(answer), limit)
        console.flush()
        reply(*texts)
        select.select([requests], [], [])                # the step is over, even if the code catches what is raised
        raise Completed

    complete_task.__qualname__ = "complete_task"         # what a TypeError calls it
    random.seed(0)                                       # the same in every run, as a fixed hash seed is
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    given = functions | {"complete_task": complete_task}
    module = sys.modules["tools"]                        # what `from tools import complete_task` reads
    quiet(given)
    for step, line in enumerate(open(requests), 1):
        nonce, code = json.loads(line)
        for names in vars(main), vars(module):           # also what an earlier step has redefined
            names.update(given)
        os.dup2(output, 1)
        os.dup2(output, 2)
        console = sys.stdout = sys.stderr = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)
        name = f"<python {step}>"                        # so that tracebacks find the lines of earlier steps
        linecache.cache[name] = len(code), None, code.splitlines(True), name
        try:
            exec(compile(code, name, "exec"), vars(main))
        except Completed:
            pass
        except BaseException as error:
            try:
                console.write(cut(explain(error, given), limit))
            except BaseException:                        # say its text does not fit into memory
                console.write(f"{type(error).__name__}, with a text that cannot be shown\n")
        if redefined := [name for name in given if vars(main).get(name) is not given[name]]:
            console.write(REDEFINED.format(", ".join(redefined)))
        console.flush()
        reply()


def quiet(given):
    """Makes Python leave our paths out of what it writes on its own account, or not write it."""
    sys.unraisablehook = lambda _: None                  # an exception in a __del__, mostly the library's
    threading.excepthook = lambda thread: (
        issubclass(thread.exc_type, (Completed, SystemExit)) or sys.stderr.write(explain(thread.exc_value, given)))
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")      # after asyncio.run has failed
    whole = warnings.formatwarning
    warnings.formatwarning = lambda message, category, filename, *rest: (
        whole(message, category, filename, *rest) if own(filename) else f"{category.__name__}: {message}\n")


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
