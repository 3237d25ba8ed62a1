"""The sandbox's server: a clean interpreter that loads a world's tool module once and forks a warden per trajectory."""
import gc
import importlib.util
import inspect
import json
import os
import shutil
import signal
import socket
import sys
import sysconfig
import traceback
import types
from pathlib import Path

from tools import confine
from tools.warden import Limits, watch


def serve(arguments):
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
            if inspect.isroutine(value) and getattr(value, "__module__", None) == "world" and name[0] != "_"}


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
