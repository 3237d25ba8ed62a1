"""The sandbox: what the agent's code can do, and what hostile code cannot.

    python -m pytest tests/test_sandbox.py
"""

from common import ROOT

import ctypes
import fcntl
import os
import re
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from tools import sandbox
from tools.confine import REFUSED as SYSTEM_CALLS
from tools.confine import SKIPPED
from tools.interpreter import cut
from tools.sandbox import ESCAPES, Limits, SandboxError, World, protections

SECRET = "the-answer-is-4711"
TOOLS = '''
import sqlite3
from math import sqrt                   # public, but not defined here: no tool
lower, _upper = str.lower, str.upper    # … and these do not even say where they are defined

def _open(data):
    global connection
    connection = sqlite3.connect(f"file:{data}/world.db?mode=ro", uri=True)

def price(name):
    """The price of `name`."""
    return connection.execute("select price from prices where name = ?", (name,)).fetchone()[0]
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tool module, a world, and next to them what nobody may touch."""
    place = tmp_path_factory.mktemp("place")
    (place / "data").mkdir()
    with sqlite3.connect(place / "data" / "world.db") as db:
        db.execute("create table prices (name, price)")
        db.execute("insert into prices values ('tea', 3)")
    db.close()
    (place / "mytools.py").write_text(TOOLS)
    (place / "tasks.jsonl").write_text(f'{{"answer": "{SECRET}"}}\n')
    return place


@pytest.fixture(scope="module")
def world(place):
    with World(place / "mytools.py", place / "data", Limits(seconds=20)) as world:
        yield world


@pytest.fixture
def box(world):
    with world.start() as box:
        yield box


def descendants(pid):
    """Ids of all living processes below `pid`."""
    ps = subprocess.Popen(["ps", "-A", "-o", "pid=,ppid="], stdout=subprocess.PIPE, text=True)
    parents = dict(map(int, line.split()) for line in ps.communicate()[0].splitlines())
    parents.pop(ps.pid)
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [below for child in found for below in descendants(child)]


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


# ---- normal life ----

def test_variables_functions_and_imports_last_from_step_to_step(box):
    box.run("import math\nx = 3\ndef area(r): return math.floor(math.pi * r * r)")
    assert box.run("x += 1; print(area(x))").text == "50\n"


def test_trajectories_do_not_share_variables(world):
    with world.start() as one, world.start() as other:
        one.run("x = 1")
        assert "NameError" in other.run("print(x)").text


def test_tools_are_the_public_functions_of_the_module(box):
    assert box.run("print(price('tea'))").text == "3\n"
    for name in "_open", "sqrt", "lower", "_upper", "connection", "sqlite3":
        assert "NameError" in box.run(name).text


def test_stdout_and_stderr_come_in_the_order_they_were_written(box):
    code = """
        import os, sys
        print("a")
        print("b", file=sys.stderr)
        os.write(2, b"c\\n")
        print("d")
        raise ValueError("e")"""
    lines = box.run(textwrap.dedent(code)).text.splitlines()
    assert lines[:4] == ["a", "b", "c", "d"] and lines[-1] == "ValueError: e"


def test_code_that_closes_its_output_keeps_its_variables(box):
    assert box.run("import sys\nx = 1\nwith sys.stdout: print(2)").text == "2\n"
    assert box.run("sys.stdout.close(); print(3)").text.endswith("ValueError: I/O operation on closed file.\n")
    assert box.run("sys.stdout.close(); complete_task('found', x)").completed == ("found", "1")


def test_a_traceback_shows_only_the_agents_own_lines(box):
    box.run("def look(name):\n    return price(name)")
    assert box.run("x = 1\nlook('gold')").text == (
        '  File "<python>", line 2, in <module>\n    look(\'gold\')\n'
        '  File "<python>", line 2, in look\n    return price(name)\n'
        "TypeError: 'NoneType' object is not subscriptable\n")


def test_complete_task_ends_the_step_with_strings(box):
    assert box.run("print(1); complete_task('found', 42.5); print(2)") == ("1\n", ("found", "42.5"), False)
    caught = box.run("try: complete_task('found', None)\nexcept BaseException: pass\nprint(2)")
    assert caught == ("", ("found", "None"), False)


def test_the_result_can_be_waited_for_with_select(world):
    with world.start() as slow, world.start() as fast:
        slow.send("import time; time.sleep(2); print('slow')")
        fast.send("print('fast')")
        assert select.select([slow, fast], [], [], 10)[0] == [fast]
        assert fast.receive().text == "fast\n"
        assert select.select([slow], [], [], 10)[0] == [slow]
        assert slow.receive().text == "slow\n"


def test_what_is_cut_and_left_out_adds_up():
    for length in range(0, 60):
        text = "".join(chr(65 + i % 26) for i in range(length))
        short = cut(text, 21)
        if length <= 21:
            assert short == text
        else:
            begin, count, end = re.fullmatch(r"(.*)\n\[… (\d+) characters left out …\]\n(.*)", short).groups()
            assert text.startswith(begin) and text.endswith(end)
            assert len(begin) + int(count) + len(end) == length and len(begin) + len(end) <= 21


@pytest.mark.parametrize("code", [
    "print('x' * 10000, end='')", "complete_task('', 'x' * 10000)", "complete_task('x' * 10000, '')"])
def test_what_is_cut_is_cut_once(world, code):
    with world.start() as box:
        observation = box.run(code)
    text = max((observation.text, *(observation.completed or ())), key=len)
    assert text == f"{'x' * 2000}\n[… 6,000 characters left out …]\n{'x' * 2000}"


def test_the_code_sees_no_arguments_of_ours(world):
    with world.start() as box:
        assert box.run("import sys, argparse\nprint(sys.argv, argparse.ArgumentParser().parse_args())").text == (
            "[''] Namespace()\n")


def test_the_scratch_directory_can_be_used_and_is_each_trajectorys_own(world):
    if "Permission" in (first := world.start()).run("open('note', 'w').write('x')").text:
        pytest.skip("no user namespaces here: no scratch directory to write in")
    assert first.run("print(open('note').read())").text == "x\n"
    with world.start() as other:
        assert other.run("import os; print(os.listdir('.'))").text == "[]\n"
    first.close()


def test_a_printed_set_and_random_numbers_are_the_same_in_every_run(place):
    code = "import random; print(set('abcdefgh'), random.random())"
    texts = []
    for _ in range(2):
        with World(place / "mytools.py", place / "data") as world, world.start() as box:
            texts.append(box.run(code).text)
    assert texts[0] == texts[1]


# ---- limits ----

def test_code_that_runs_too_long_loses_its_variables_and_nothing_else(place):
    with World(place / "mytools.py", place / "data", Limits(seconds=2)) as world, world.start() as box:
        box.run("x = 1")
        observation = box.run("print('so far')\nwhile True: pass")
        assert observation.died
        assert observation.text == "so far\nTimeoutError: the code ran longer than 2 s; its variables are lost\n"
        assert "NameError" in box.run("print(x)").text
        assert box.run("print(price('tea'))").text == "3\n"


def test_cpu_time_is_counted_over_all_steps(place):
    with World(place / "mytools.py", place / "data", Limits(seconds=60, cpu=1)) as world, world.start() as box:
        texts = [box.run("import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass").text
                 for _ in range(5)]
        assert "TimeoutError: the code used more than 1 s of CPU time; its variables are lost\n" in texts


def test_threads_left_behind_are_frozen_between_steps(box):
    box.run("import threading, time\ndef spin():\n    global n\n    while True: n += 1\nn = 0\n"
            "threading.Thread(target=spin, daemon=True).start()")
    before = box.run("start = n; print(time.process_time())").text
    time.sleep(0.5)
    assert float(box.run("print(time.process_time())").text) - float(before) < 0.4


# ---- attacks: each ends in an observation that matches, and all others go on as before ----

LIBC = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def tried(result):
    print(errno.errorcode.get(ctypes.get_errno()) if result == -1 else f"WORKED {result}")
"""
REFUSED = r"PermissionError|OSError|FileNotFoundError|unable to open|EPERM|ENOSYS|EACCES|ENODEV|EINVAL"
ATTACKS = {
    # memory
    "one huge object": ("bytearray(10**12)", "MemoryError"),
    "a growing list": ("x = []\nwhile True: x.append(bytes(10**6))", "MemoryError"),
    "a doubling string": ("x = 'a'\nwhile True: x += x", "MemoryError"),
    "anonymous mappings": ("import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 1 << 26))", "OSError|MemoryError"),
    "malloc": (LIBC + "libc.malloc.restype = ctypes.c_void_p\n"
               "print('null' if not libc.malloc(ctypes.c_size_t(1 << 36)) else 'WORKED')", "null"),
    "memory files": ("import os; os.memfd_create('x')", REFUSED),
    "shared memory": (LIBC + "tried(libc.shmget(0, 1 << 26, 0o1600))", REFUSED),
    "raised limits": ("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
                      "ValueError|PermissionError"),
    "a huge power": ("import sys; sys.set_int_max_str_digits(0); print(len(str(7 ** 10 ** 5)))", "84510"),
    "a huge exception": ("raise ValueError('x' * 10**6)", "characters left out"),
    "an exception that fills the memory": ("raise ValueError('x' * 10**8)", "ValueError, with a text that cannot"),
    "deep recursion": ("def f(n): return f(n + 1)\nf(0)", "RecursionError"),
    "deep recursion without a limit": ("import sys; sys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nf(0)",
                                       "Error|lost"),
    "deep recursion in C": ("import sys; sys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**5): x = [x]\nrepr(x)",
                            "killed by|MemoryError|RecursionError"),
    "deep nesting": ("eval('(' * 10**5 + ')' * 10**5)", "MemoryError|SyntaxError|RecursionError|killed"),
    "a thread bomb": ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
                      "can't start new thread|MemoryError"),
    "a bomb of small threads": ("import threading\nthreading.stack_size(1 << 15)\n"
                                "lock = threading.Lock(); lock.acquire()\n"
                                "while True:\n    try: threading.Thread(target=lock.acquire, daemon=True).start()\n"
                                "    except (RuntimeError, MemoryError): pass", "Error: .* more than 100 threads"),
    "large pipes": ("import fcntl, os; fcntl.fcntl(os.pipe()[1], fcntl.F_SETPIPE_SZ, 1 << 20)", "PermissionError"),
    "all of the user's timers": (LIBC + "timer, n = ctypes.c_void_p(), 0\n"
                                 "while libc.timer_create(1, None, ctypes.byref(timer)) == 0: n += 1\nprint(n)",
                                 "^0$"),
    "a file map beyond the disk": ("import mmap\nf = open('x', 'w+b'); f.truncate(1 << 24); g = open('y', 'wb', 0)\n"
                                   "try:\n    while True: g.write(bytes(10**6))\nexcept OSError: pass\n"
                                   "m = mmap.mmap(f.fileno(), 0)\nfor i in range(0, len(m), 4096): m[i] = 1",
                                   "killed by signal 7 |PermissionError"),
    "a thread with open files of its own": (
        LIBC + "stack = ctypes.create_string_buffer(1 << 16)\ntop = ctypes.addressof(stack) + 65536 & ~15\n"
        "libc.clone(libc.pause, ctypes.c_void_p(top), 0x50b00, None)\nprint(errno.errorcode[ctypes.get_errno()])",
        "EPERM"),
    "a descriptor bomb": ("import os\nx = []\nwhile True: x.append(os.dup(0))", "OSError"),
    # processes
    "fork": ("import os; os.fork()", REFUSED),
    "a fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: print('no'); break", "no"),
    "a daemon": ("import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        while True: pass",
                 REFUSED),
    "vfork": (LIBC + "tried(libc.vfork())", "EPERM"),
    "a subprocess": ("import subprocess; subprocess.run(['/bin/sh', '-c', 'echo WORKED'])", REFUSED),
    "a shell": ("import os; print(os.system('echo WORKED'))", "-1|32512"),
    "posix_spawn": ("import os; os.posix_spawn('/bin/sh', ['sh', '-c', 'echo WORKED'], {})", REFUSED),
    "exec": ("import os; os.execv('/bin/sh', ['sh', '-c', 'echo WORKED'])", REFUSED),
    "exec of Python": ("import os, sys; os.execv(sys.executable, ['python', '-c', 'print(\"WORKED\")'])", REFUSED),
    "multiprocessing": ("import multiprocessing, os\nmultiprocessing.Process(target=os.abort).start()", REFUSED),
    "a pseudo-terminal": ("import pty; pty.fork()", REFUSED),
    "clone3": (LIBC + "tried(libc.syscall(435, None, 0))", "ENOSYS"),
    # signals and others' processes
    "killing the parent": ("import os; os.kill(os.getppid(), 9)", REFUSED),
    "killing the stage": ("import os; os.kill(STAGE, 9)", REFUSED),
    "killing everything": ("import os; os.kill(-1, 9)", REFUSED),
    "killing its group": ("import os; os.kill(0, 9)", REFUSED),
    "killing the parent's group": ("import os; os.killpg(os.getpgid(os.getppid()), 9)", REFUSED),
    "killing by thread": (LIBC + "tried(libc.tgkill(STAGE, STAGE, 9))", REFUSED),
    "waking itself between steps": ("import os; os.kill(os.getpid(), 18)", REFUSED),
    "waking a thread between steps": ("import signal, threading as t; signal.pthread_kill(t.get_ident(), 18)", REFUSED),
    "killing through a pidfd": ("import os, signal; signal.pidfd_send_signal(os.pidfd_open(STAGE), 9)", REFUSED),
    "killing by a file's owner": ("import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, STAGE)", REFUSED),
    "queueing a signal": (LIBC + "tried(libc.sigqueue(STAGE, 9, None))", REFUSED),
    "killing itself": ("import os; os.kill(os.getpid(), 9)", "killed by signal 9 "),
    "a real-time signal": ("import os; os.kill(os.getpid(), 40)", "killed by signal 40 "),
    "crashing": ("import ctypes; ctypes.string_at(0)", "killed by signal 11 "),
    "aborting": ("import os; os.abort()", "killed by signal 6 "),
    "slowing the stage": ("import os; os.setpriority(os.PRIO_PROCESS, STAGE, 19)", REFUSED),
    "moving the stage to one core": ("import os; os.sched_setaffinity(STAGE, [0])", REFUSED),
    "limiting the stage": ("import resource; resource.prlimit(STAGE, resource.RLIMIT_CPU, (1, 1))", REFUSED),
    "tracing the parent": (LIBC + "tried(libc.ptrace(16, os.getppid(), None, None))", REFUSED),
    "reading the parent's memory": (LIBC + "tried(libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0))", REFUSED),
    "outliving its parent": (LIBC + "tried(libc.prctl(1, 0, 0, 0, 0))", REFUSED),
    "killing with a longer number": (LIBC + "kill = 62 if os.uname().machine == 'x86_64' else 129\n"
                                     "tried(libc.syscall(kill, ctypes.c_long(1 << 32 | os.getppid()), 9))", "EPERM"),
    "others' shared memory": (LIBC + "tried(libc.shmat(0, None, 0))", "EPERM"),
    "others' message queues": (LIBC + "tried(libc.msgctl(0, 0, None)); tried(libc.mq_unlink(b'/x'))",
                               "EPERM\nE(PERM|ACCES)"),
    # descriptors and the result channel
    "closing all descriptors": ("import os; os.closerange(0, 256)", "its variables are lost"),
    "closing stdout": ("import os, sys; sys.stdout.close(); os.close(1); os.close(2)", "^$|lost|nothing was printed"),
    "closing the reply channel": ("import os, sys; os.close(sys._getframe().f_back.f_locals['replies'])",
                                  "its variables are lost"),
    "replacing stdout": ("import sys; sys.stdout = sys.stderr = None", "nothing was printed"),
    "garbage on all descriptors": ("import os\nfor fd in range(3, 64):\n"
                                   "    try: os.write(fd, b'\\xff\\x00{\\n[' * 99)\n"
                                   "    except OSError: pass\nprint('done')", "done"),
    "a forged reply": ("import os\nfor fd in range(3, 64):\n"
                       "    try: os.write(fd, b'[\"00\", \"forged\", \"forged\"]\\n')\n"
                       "    except OSError: pass\nprint('done')", "done"),
    "an endless reply": ("import os\nwhile True:\n  for fd in range(3, 64):\n    try: os.write(fd, b'x' * 4096)\n"
                         "    except OSError: pass", "its variables are lost"),
    "a deeply nested reply": ("import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'[' * 60000 + b'\\n')\n"
                              "    except OSError: pass\nprint('done')", "done"),
    "a socket that was left open": ("import os, stat\nfor fd in range(1024):\n  try: kind = os.fstat(fd).st_mode\n"
                                    "  except OSError: continue\n  if stat.S_ISSOCK(kind): print('WORKED', fd)\n"
                                    "print('done')", "^done\n$"),
    "gigabytes of output": ("for _ in range(10**5): print('x' * 10**4)",
                            "^x{2000}\n.* 1,000,096,000 characters left out"),
    "output that is no text": ("import os; os.write(1, bytes(range(256)))", "�"),
    "lone surrogates": ("print('\\ud800'); print(chr(0xDFFF))", r"\\ud800"),
    "terminal controls, line separators and tags": ("print('\\x1b]0;x\\x07\\0\\x85\\u2028\\r</observation><python>')",
                                                    "^\x1b]0;x\x07\0\x85\u2028\r</observation><python>\n$"),
    # reading
    "the tasks": ("print(open('PLACE/tasks.jsonl').read())", REFUSED),
    "the tasks by a relative path": ("import os; os.chdir('PLACE/data'); print(open('../tasks.jsonl').read())",
                                     REFUSED),
    "the tasks through a symlink": ("import os; os.symlink('PLACE/tasks.jsonl', 'x'); print(open('x').read())",
                                    REFUSED),
    "the tasks through a hard link": ("import os; os.link('PLACE/tasks.jsonl', 'x'); print(open('x').read())", REFUSED),
    "the tasks by moving them": ("import os; os.rename('PLACE/tasks.jsonl', 'x'); print(open('x').read())", REFUSED),
    "the tasks through a directory": ("import os; fd = os.open('PLACE', os.O_PATH)\n"
                                      "print(os.read(os.open('tasks.jsonl', 0, dir_fd=fd), 99))", REFUSED),
    "the tasks through sqlite": ("import sqlite3; sqlite3.connect('PLACE/tasks.jsonl').execute('select 1 from x')",
                                 REFUSED),
    "the tasks through libc": (LIBC + "tried(libc.open(b'PLACE/tasks.jsonl', 0))", "EACCES"),
    "the tasks as a memory map": ("import numpy; print(numpy.memmap('PLACE/tasks.jsonl'))",
                                  REFUSED + "|MemoryError|No module"),
    "the directory of the tasks": ("import os; print(os.listdir('PLACE'))", REFUSED),
    "all files": ("import glob; print(glob.glob('/*') + glob.glob('/home/*') + glob.glob('PLACE/*') or 'none')",
                  "none"),
    "the home directory": ("import os, pwd; print(os.listdir(pwd.getpwuid(os.getuid()).pw_dir))",
                           REFUSED + "|KeyError"),
    "a file opened neither to read nor to write": ("import os; os.open('PLACE/tasks.jsonl', 3)", REFUSED),
    "a terminal's controls": (LIBC + "tried(libc.ioctl(0, 0x540A, 0))", "EPERM"),
    "the password file": ("print(open('/etc/passwd').read())", REFUSED),
    "the project": ("print(open('PROJECT/README.md').read(), open('PROJECT/tools/sandbox.py').read())", REFUSED),
    "the parent's environment": ("import os; print(open(f'/proc/{os.getppid()}/environ').read())", REFUSED),
    "the parent's memory in /proc": ("import os; print(open(f'/proc/{os.getppid()}/mem', 'rb').read(1))", REFUSED),
    "the parent's descriptors": ("import os; print(os.listdir(f'/proc/{os.getppid()}/fd'))", REFUSED),
    "the stage's directory": ("import os; print(os.readlink('/proc/STAGE/cwd'))", REFUSED),
    "the processes": ("import os; print(os.listdir('/proc'))", REFUSED),
    "the environment": ("import os; print(dict(os.environ))", "^{}$"),
    "the environment in C": (LIBC + "libc.getenv.restype = ctypes.c_char_p\nprint(libc.getenv(b'MY_API_KEY'))", "None"),
    "watching files": (LIBC + "tried(libc.inotify_init1(0))", REFUSED),
    "raw disks": ("import glob\nfor disk in ['/dev/sda', '/dev/vda', '/dev/nvme0n1', '/dev/mem', '/dev/kmsg']:\n"
                  "    try: open(disk, 'rb'); print('WORKED')\n    except OSError: print('no')", "^(no\n)+$"),
    "what other trajectories left": ("import gc\n"
                                     "print(chr(39).join(['the other one', 's secret']) in str(gc.get_objects()))",
                                     "False"),
    # writing
    "writing the tasks": ("open('PLACE/tasks.jsonl', 'a').write('x')", REFUSED),
    "truncating the tasks": ("import os; os.truncate('PLACE/tasks.jsonl', 0)", REFUSED),
    "truncating by opening": ("import os; os.open('PLACE/tasks.jsonl', os.O_RDONLY | os.O_TRUNC)", REFUSED),
    "truncating the world by opening": ("import os; os.open('PLACE/data/world.db', os.O_RDONLY | os.O_TRUNC)", REFUSED),
    "removing the tasks": ("import os; os.remove('PLACE/tasks.jsonl')", REFUSED),
    "replacing the tool module": ("open('PLACE/mytools.py', 'w').write('x')", REFUSED),
    "a new file in the world": ("open('PLACE/data/new', 'w')", REFUSED),
    "changing the world's database": ("import sqlite3; sqlite3.connect('PLACE/data/world.db').execute("
                                      "\"update prices set price = 4\")", "readonly|unable to open|locked|disk I/O"),
    "changing it through the tools' connection": ("price.__globals__['connection'].execute('delete from prices')",
                                                  "readonly"),
    "attaching a new database": ("price.__globals__['connection'].execute(\"attach 'PLACE/new.db' as n\")\n"
                                 "price.__globals__['connection'].execute('create table n.x (y)')",
                                 "unable to open|readonly"),
    "a mode": ("import os; os.chmod('PLACE/tasks.jsonl', 0)", REFUSED),
    "an owner": ("import os; os.chown('PLACE/tasks.jsonl', os.getuid(), os.getgid())", REFUSED),
    "a time": ("import os; os.utime('PLACE/tasks.jsonl')", REFUSED),
    "an attribute": ("import os; os.setxattr('PLACE/tasks.jsonl', 'user.x', b'x')", REFUSED),
    "a file elsewhere": (f"open({os.path.join(tempfile.gettempdir(), 'escaped')!r}, 'w')", REFUSED),
    "shared memory by path": ("open('/dev/shm/escaped', 'w')", REFUSED),
    "a directory next to the scratch directory": ("import os; os.mkdir('../escaped')", REFUSED),
    "a symlink out of the scratch directory": ("import os; os.symlink('PLACE', 'x'); open('x/new', 'w')", REFUSED),
    "a device": ("import os; os.mknod('x', 0o60600, os.makedev(8, 0))", REFUSED),
    "one huge file": ("f = open('x', 'wb')\nwhile True: f.write(bytes(10**6))", "OSError"),
    "many files": ("for i in range(10**5): open(str(i), 'w').write('x')", "OSError|PermissionError"),
    "a deep directory": ("import os\nwhile True: os.mkdir('x'); os.chdir('x')", "OSError|PermissionError"),
    "a descriptor opened again to write": (
        "import os\nfor fd in range(3, 64):\n"
        "    if os.path.isfile(f'/dev/fd/{fd}'): os.open(f'/dev/fd/{fd}', os.O_RDWR)",
        "PermissionError"),
    "a copy of the world": ("price.__globals__['connection'].execute(\"vacuum into 'PLACE/copy.db'\")",
                            "unable to open"),
    "a file's attributes": ("import fcntl; fcntl.ioctl(open('PLACE/data/world.db'), 0x40086602, bytes(8))",
                            "PermissionError"),
    "a lease, for which others wait": ("import fcntl\n"
                                       "fcntl.fcntl(open('PLACE/mytools.py'), fcntl.F_SETLEASE, fcntl.F_WRLCK)",
                                       "PermissionError"),
    "being told of changes": ("import fcntl, os; fcntl.fcntl(os.open('PLACE/data', 0), fcntl.F_NOTIFY, 63)",
                              "PermissionError"),
    "all disks' work": (LIBC + "libc.sync(); print(os.strerror(ctypes.get_errno()))", "not permitted"),
    # network
    "sockets of every family": ("import socket\nfor family in range(48):\n  for kind in range(1, 6):\n"
                                "    try: socket.socket(family, kind); print('WORKED', family, kind)\n"
                                "    except OSError: pass\nprint('none')", "^none$"),
    "a pair of sockets": ("import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)", REFUSED),
    "a name server": ("import socket; print(socket.getaddrinfo('example.org', 80))", REFUSED + "|gaierror"),
    "a web page": ("import urllib.request; urllib.request.urlopen('http://93.184.215.14')", REFUSED + "|URLError"),
    "a server": ("import http.server; http.server.HTTPServer(('', 8000), None)", REFUSED),
    "io_uring": (LIBC + "tried(libc.syscall(425, 1, None))", "ENOSYS"),
    # the kernel
    "mounting": (LIBC + "tried(libc.mount(b'x', b'.', b'tmpfs', 0, None))", REFUSED),
    "a new namespace": (LIBC + "tried(libc.unshare(0x10000000))", REFUSED),
    "another's namespace": (LIBC + "tried(libc.setns(0, 0))", REFUSED),
    "a new root": ("import os; os.chroot('.')", REFUSED),
    "becoming root": ("import os; os.setuid(0); print(open('PLACE/tasks.jsonl').read())", REFUSED),
    "a new host name": ("import socket; socket.sethostname('x')", REFUSED),
    "a looser filter": (LIBC + "tried(libc.prctl(22, 2, None, 0, 0))", REFUSED),
    "the kernel's keys": (LIBC + "tried(libc.syscall(250 if os.uname().machine == 'x86_64' else 219, 0, -3, 0))",
                          REFUSED),
    "system calls of another word size": (LIBC + "tried(libc.syscall(0x40000000 + 41, 2, 1, 0))", "ENOSYS"),
    "system calls of 32 bits": ("import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
                                "m.write(bytes.fromhex('b814000000cd80c3'))\n"
                                "ctypes.CFUNCTYPE(int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()",
                                "killed by signal"),
    "all refused system calls": (LIBC + "column = os.uname().machine == 'aarch64'\n"
                                 f"numbers = {{row[column] for row in {list(SYSTEM_CALLS.values())}}} - {{None}}\n"
                                 "for number in numbers: libc.syscall(number, 0, 0, 0, 0, 0, 0) == -1 and "
                                 "ctypes.get_errno() == 1 or print('WORKED', number)\n"
                                 "print(len(numbers) > 90)", "^True$"),
    "all new system calls": (LIBC + "for number in range(424, 500): libc.syscall(number, 0, 0, 0, 0, 0, 0) == -1 and "
                             "ctypes.get_errno() == errno.ENOSYS or print('WORKED', number)\nprint('none')", "^none$"),
    # the interpreter
    "leaving": ("import sys; sys.exit('bye')", "^bye\nThe task goes on"),
    "leaving at once": ("import os; os._exit(3)", "exited with status 3"),
    "an interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "an exception that cannot be shown": ("class E(BaseException):\n    def __str__(self): raise E\nraise E", "E: "),
    "no builtins": ("import builtins\nfor name in list(vars(builtins)): delattr(builtins, name)", "lost|Error"),
    "false builtins": ("import builtins\nbuiltins.open = builtins.len = builtins.str = builtins.isinstance = None", ""),
    "no modules": ("import sys; sys.modules.clear(); import os", ""),
    "false tools": ("price.__globals__.clear(); price = complete_task = None", "^Note: [^\n]*price, complete_task"),
    "a trace function": ("import sys\ndef trace(*_): raise ValueError('traced')\n"
                         "sys.settrace(trace)\ndef f(): pass\nf()",
                         "traced"),
    "all objects": ("import gc\nfor x in gc.get_objects():\n    if isinstance(x, dict) and x is not globals():\n"
                    "        try: x.clear()\n        except Exception: pass", ""),
    "code that is no text": ("x = '\x00\ud800'", "Error"),
    "a false explanation": ("import sys\nexplain = sys._getframe().f_back.f_globals['explain']\n"
                            "explain.__code__ = (lambda error: 1 / 0).__code__\nraise KeyError",
                            "KeyError, with a text that"),
    "a false syntax error": ("raise SyntaxError('x', ('f', 10**9, 1, 'y' * 10**7, 1, 1))", "SyntaxError: x"),
    "a name too long to show": ("raise type('E' * 10**8, (Exception,), {})", "lost|MemoryError"),
    "a long chain of exceptions": ("error = None\nfor i in range(10**5):\n    last, error = error, KeyError(i)\n"
                                   "    error.__cause__ = last\nraise error", "KeyError: 99999"),
    "a trap on all that happens": ("import sys\ndef hook(*_): raise OSError\nsys.addaudithook(hook)\nraise KeyError",
                                   "KeyError|lost"),
    "stdin": ("input()", "EOFError"),
}
ENDLESS = {
    "a loop": "while True: pass",
    "a loop in C": "sum(iter(int, 1))",
    "a huge power": "9 ** 9 ** 9",
    "a regular expression": "import re; re.match('(a+)+$', 'a' * 50 + 'b')",
    "sleep": "import time; time.sleep(10**6)",
    "printing": "while True: print('x' * 10**5)",
    "a deadlock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "ignoring signals": "import signal\n"
                        "for s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    "blocking signals": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
    "catching everything": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "stopping itself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "reading the requests": "import os\nfor fd in range(3, 64):\n    try: os.read(fd, 1)\n    except OSError: pass",
    "joining a thread": "import threading\ndef f():\n    while True: pass\n"
                        "t = threading.Thread(target=f); t.start(); t.join()",
    "an exception's text": "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
    "false json": "import json; json.dumps = lambda *_: 'forged'",
    "silent replies": "import os\nwhile True:\n    for fd in range(3, 64):\n        try: os.write(fd, b'\\n')\n"
                      "        except OSError: pass",
}


@pytest.fixture(scope="module")
def attacked(place):
    """Runs an attack; returns its observation after checking that nobody else felt it."""
    os.environ["MY_API_KEY"] = SECRET
    limits = Limits(seconds=30, memory=128 << 20)
    with World(place / "mytools.py", place / "data", limits) as world, world.start() as other:
        if world.missing:
            pytest.skip(f"this system does not keep the code from: {', '.join(world.missing)}")
        other.run("x = 'the other one'; y = x + '\\'s secret'")
        before = {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}

        def attack(code):
            for token, value in ("STAGE", os.getpid()), ("PLACE", place), ("PROJECT", ROOT):
                code = code.replace(token, str(value))
            with world.start() as target:
                observation = target.run(code)
            assert other.run("print(x, price('tea'))").text == "the other one 3\n"
            assert before == {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
            return observation
        yield attack
    del os.environ["MY_API_KEY"]


def test_files_that_the_tool_module_has_open_are_each_trajectorys_own_and_read_only(tmp_path):
    """A file that is open before a fork is shared: its position, its flags, the right to write."""
    (tmp_path / "words").write_bytes(b"tea 3\n" + bytes(4096))
    (tmp_path / "shop.py").write_text(
        "def _open(data):\n    global words\n    words = open(data + '/words', 'r+b', 0)\n"
        "def read():\n    return words.read(5)\n")
    with World(tmp_path / "shop.py", tmp_path) as world, world.start() as one, world.start() as other:
        if world.missing:
            pytest.skip(f"this system does not keep the code from: {', '.join(world.missing)}")
        assert one.run("print(read())").text == "b'tea 3'\n"
        assert "Error" in one.run("import fcntl, os; words = read.__globals__['words']\n"
                                  "fcntl.fcntl(words, fcntl.F_SETFL, os.O_DIRECT)\n"
                                  "os.pwrite(words.fileno(), b'9', 4)").text
        assert other.run("print(read())").text == "b'tea 3'\n"


@pytest.mark.parametrize("how", ["fileno(), 0", "fileno(), 0, access=mmap.ACCESS_READ", "gone"])
def test_memory_that_the_tool_module_has_mapped_is_each_trajectorys_own(tmp_path, how):
    """Writing past Landlock does not help, and the second page of the file holds what it held."""
    (tmp_path / "words").write_bytes(bytes(4096) + b"tea 3")
    mapped = "-1, 8192" if how == "gone" else f"words.{how}"
    (tmp_path / "shop.py").write_text(
        "import mmap\ndef _open(data):\n    global words, page\n    words = open(data + '/words', 'r+b')\n"
        f"    page = mmap.mmap({mapped})\n    if not page[4096]: page[4096:4101] = b'tea 3'\n"
        "def read():\n    return page[4096:4101]\n")
    attack = (
        "import ctypes, numpy\nlibc = ctypes.CDLL(None)\n"
        "page = numpy.frombuffer(read.__globals__['page'], 'u1').ctypes.data\n"
        "print(libc.mprotect(ctypes.c_void_p(page), 8192, 3), ctypes.memset(page + 4100, ord('9'), 1) > 0, read())")
    with World(tmp_path / "shop.py", tmp_path) as world, world.start() as one, world.start() as other:
        if world.missing:
            pytest.skip(f"this system does not keep the code from: {', '.join(world.missing)}")
        assert one.run("print(read())").text == "b'tea 3'\n"
        assert one.run(attack).text == "0 True b'tea 9'\n"
        assert other.run("print(read())").text == "b'tea 3'\n"
    assert (tmp_path / "words").read_bytes() == bytes(4096) + b"tea 3"


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_ends_in_an_observation(name, attacked):
    code, expected = ATTACKS[name]
    observation = attacked(code)
    assert re.search(expected, observation.text), observation
    assert observation.completed is None
    shown = re.sub(r"(?m)^    .*$", "", observation.text)          # without the code's own lines in a traceback
    assert not re.search(f"{SECRET}|WORKED|root:", shown)
    assert len(observation.text) < 5000
    observation.text.encode()                                      # can be written to a file


def test_endless_code_is_ended_whatever_it_does(place):
    with World(place / "mytools.py", place / "data", Limits(seconds=2)) as world:
        if world.missing:
            pytest.skip(f"this system does not keep the code from: {', '.join(world.missing)}")
        boxes = {name: world.start() for name in ENDLESS}
        for name, box in boxes.items():
            box.send(ENDLESS[name])
        for name, box in boxes.items():
            observation = box.receive()
            assert observation.died and observation.text.endswith("lost\n"), (name, observation)
            assert observation.completed is None
        for name, box in boxes.items():
            assert box.run("print(price('tea'))").text == "3\n", name


def test_a_forged_completion_counts_for_its_own_step_only(box):
    """The code owns its interpreter and may claim anything for the step it is in, but not for one to come."""
    forge = """
        import json, os, sys
        frame = sys._getframe().f_back
        reply, nonce = frame.f_locals["reply"], frame.f_locals["nonce"]
        for i in range(5): reply("forged", "now")
        """
    assert box.run(textwrap.dedent(forge)).completed == ("forged", "now")
    assert box.run("print('next')") == ("next\n", None, False)
    assert box.run("print('and next')") == ("and next\n", None, False)


def test_a_reply_of_the_wrong_type_is_no_reply(box):
    wrong = """
        import json, os, sys
        locals_ = sys._getframe().f_back.f_locals
        nonce, fd = locals_["nonce"], locals_["replies"]
        for reply in [nonce, 1, 2], [nonce, None], [nonce, "a"], [nonce, ["a"], {}], {"0": nonce}, nonce, [[nonce]], []:
            os.write(fd, json.dumps(reply).encode() + b"\\n")
        print("done")"""
    assert box.run(textwrap.dedent(wrong)) == ("done\n", None, False)


def test_a_report_and_an_answer_are_bounded_text(box):
    completed = box.run("complete_task('r' * 10**7, '\\ud800' * 10**6)").completed
    assert all(len(text) < 5000 for text in completed)
    assert completed[1].encode().startswith(b"?")
    assert "ZeroDivisionError" in box.run("class A:\n    def __str__(self): 1 / 0\ncomplete_task('', A())").text


@pytest.mark.parametrize("code", [
    "import threading\nt = threading.Thread(target=complete_task, args=('', 'x')); t.start(); t.join()",
    "import threading\nfor _ in range(9): threading.Thread(target=complete_task, args=('', 'x')).start()",
    "class A:\n    def __del__(self): complete_task('', 'x')\nA()",
    "import sys\nsys.setrecursionlimit(10**6)\ntry: complete_task('', 'x')\nfinally: complete_task('', 'y')",
    "import select; select.select = None\ntry: complete_task('', 'x')\nexcept TypeError: complete_task('', 'y')",
])
def test_however_it_is_called_the_first_completion_counts_once(code, box):
    assert box.run(code).completed == ("", "x")
    assert box.run("pass")[1:] == (None, False)


# ---- nothing is left behind, and nothing hurts the stage ----

def test_closing_a_box_leaves_no_process(world):
    before = set(descendants(os.getpid()))
    box = world.start()
    box.run("x = 1")
    box.send("while True: pass")
    assert len(set(descendants(os.getpid())) - before) == 2
    box.close()
    assert wait_until(lambda: set(descendants(os.getpid())) <= before)
    box.close()                                                    # twice does no harm


def test_a_killed_warden_takes_its_interpreter_along_and_is_replaced(world):
    with world.start() as box:
        box.run("x = 1")
        warden = [pid for pid in descendants(world.server.pid) if descendants(pid)][-1]
        interpreter, = descendants(warden)
        os.kill(warden, signal.SIGKILL)
        observation = box.run("print(x)")
        assert observation.died and observation.completed is None
        assert box.run("print(price('tea'))").text == "3\n"
        if sys.platform == "linux":
            assert wait_until(lambda: not os.path.exists(f"/proc/{interpreter}"))


@pytest.mark.parametrize("ending", ["return", "SIGKILL"])
def test_when_the_stage_ends_nothing_of_the_world_remains(place, ending):
    stage = f"""
        import sys
        from pathlib import Path
        from tools.sandbox import World
        world = World(Path({str(place / "mytools.py")!r}), Path({str(place / "data")!r}))
        boxes = [world.start() for _ in range(3)]
        print(boxes[0].run("import os; print(os.getcwd())").text, end="")
        boxes[1].send("while True: pass")
        print("ready", flush=True)
        sys.stdin.readline()"""
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(stage)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, cwd=ROOT)
    scratch = process.stdout.readline().strip()
    assert process.stdout.readline() == "ready\n"
    below = descendants(process.pid)
    assert len(below) >= 6
    if ending == "SIGKILL":
        process.kill()
    process.stdin.close()                                          # and with it, the stage's wait
    process.wait()
    process.stdout.close()

    def alive(pid):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    assert wait_until(lambda: not any(map(alive, below)))
    assert wait_until(lambda: not os.path.exists(scratch))


def test_a_killed_server_is_one_clear_error(place):
    with World(place / "mytools.py", place / "data") as world, world.start() as box:
        box.run("x = 1")
        world.server.kill()
        world.server.wait()
        assert box.run("print(x)").text == "1\n"                   # those that run go on
        with pytest.raises(SandboxError, match="mytools.py"):
            world.start()


@pytest.mark.parametrize("source, message", [
    ("def _open(data):\n    raise OSError(f'{data} has\\nno world')", r"bad.py, line 2: OSError: .* has no world"),
    ("import sys; sys.exit(1)", r"bad.py, line 1: SystemExit: 1"),
])
def test_a_tool_module_that_does_not_load_is_one_line(tmp_path, source, message):
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(SandboxError, match=message) as error:
        World(path, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("answer, error", [(KeyboardInterrupt, KeyboardInterrupt), (None, SandboxError)])
def test_a_tool_module_that_hangs_leaves_no_process(tmp_path, monkeypatch, answer, error):
    def read_line(*_, **__):
        if answer:
            raise answer
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[0])
    monkeypatch.setattr(sandbox, "read_line", read_line)
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)")
    with pytest.raises(error):
        World(tmp_path / "slow.py")
    assert started[0].poll() is not None


def test_a_module_that_is_not_python_and_a_missing_world_are_named(tmp_path, place):
    (tmp_path / "tools.txt").write_text("")
    with pytest.raises(SandboxError, match="tools.txt: .*ends in .py"):
        World(tmp_path / "tools.txt")
    with pytest.raises(SandboxError, match="nowhere: no such file or directory; give --data"):
        World(place / "mytools.py", tmp_path / "nowhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "tools.txt")
    with pytest.raises(SandboxError, match="data/link: a link out of --data"):
        World(place / "mytools.py", tmp_path / "data")


def test_a_trajectory_leaves_no_lock_and_no_flag_to_others(place):
    """Neither on the world's files, where it would keep their owner from writing, nor on what all processes share."""
    lock = """
        import fcntl, os, struct
        for fd in 0, os.open('PLACE/data/world.db', os.O_RDONLY):
            for command in fcntl.F_SETLK, fcntl.F_OFD_SETLK:
                fcntl.fcntl(fd, command, struct.pack('hhqqi4x', fcntl.F_RDLCK, 0, 0, 4711, 0))
        print(fcntl.fcntl(0, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK), os.fsync(fd))"""
    with World(place / "mytools.py", place / "data") as world, world.start() as box, world.start() as other:
        if world.missing:
            pytest.skip(f"this system does not keep the code from: {', '.join(world.missing)}")
        flags = other.run("import fcntl; print(fcntl.fcntl(0, fcntl.F_GETFL))").text
        assert box.run(textwrap.dedent(lock).replace("PLACE", str(place))).text == "0 None\n"
        assert other.run("print(fcntl.fcntl(0, fcntl.F_GETFL))").text == flags
        for file in place / "data" / "world.db", os.devnull:
            with open(file, "r+b") as mine:
                fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_protections_are_tried_not_assumed(world, tmp_path):
    """Run without the sandbox, the program that tries to escape succeeds in what any process may do."""
    unconfined = subprocess.run([sys.executable, "-c", ESCAPES], capture_output=True, text=True, cwd=tmp_path)
    free = unconfined.stdout.splitlines()
    kept = protections()
    assert {"reading your files", "the network", "starting processes"} <= set(free) <= set(kept)
    assert [what for what in kept if not kept[what]] == world.missing


def test_what_the_kernel_can_refuse_is_refused(world):
    """The kernel is asked here, not the sandbox: otherwise a broken sandbox would only skip the tests above."""
    version = ctypes.CDLL(None).syscall(444, None, 0, 1)           # landlock_create_ruleset: which version there is
    if version < 5 or not os.path.exists("/proc/sys/kernel/seccomp/actions_avail"):
        pytest.skip("no Landlock or no seccomp here")
    assert world.missing == []


def test_a_tool_module_has_no_network(tmp_path):
    """It is imported before Landlock and seccomp confine the agent's code: only its namespace keeps it from sockets."""
    apart = "import ctypes, sys\nsys.exit(all(ctypes.CDLL(None).unshare(how) for how in (0x50000000, 0x40000000)))"
    if subprocess.run([sys.executable, "-c", apart]).returncode:   # a user and a network namespace, or the latter alone
        pytest.skip("no user namespaces here")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (tmp_path / "phone.py").write_text(
            f"import socket\nfailed = socket.socket().connect_ex(('127.0.0.1', {listener.getsockname()[1]}))\n"
            "def reach():\n    return failed\n")
        with World(tmp_path / "phone.py") as world, world.start() as box:
            assert box.run("print(reach() != 0)").text == "True\n"


def test_refused_system_calls_have_the_numbers_of_the_kernels_headers():
    table = SYSTEM_CALLS | SKIPPED
    headers = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h"
    if not any(map(os.path.exists, headers)):
        pytest.skip("no headers of the kernel here")
    for column, header in enumerate(headers):
        if not os.path.exists(header):
            continue
        numbers = {name: int(number) for name, number in re.findall(
            r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())}
        assert {name: numbers.get(name) for name in table} == {name: row[column] for name, row in table.items()}
