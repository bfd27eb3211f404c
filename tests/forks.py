"Commands in processes of their own that start at once: one process imports what takes seconds, and forks for each"
import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path


# -- the process that forks -------------------------------------------------------------------------

def serve(connection):
    "Fork for each command, and say how each ended; returns the script in each fork, and None at the end"
    while True:
        message, outputs, *_ = socket.recv_fds(connection, 2**20, 2)
        if not message: return None
        asked = json.loads(message)
        reply = exit_code(**asked) if "pid" in asked else os.fork()
        if reply == 0 and outputs:
            connection.detach()
            return become(outputs, **asked)
        for fd in outputs: os.close(fd)
        connection.send(json.dumps(reply).encode())


def exit_code(pid):
    "None where it still runs"
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def become(outputs, command, cwd, env):
    "What an interpreter does with `python script arguments` before it reads the script"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    streams = os.open(os.devnull, os.O_RDONLY), *outputs
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    paths = [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:1] = [os.path.dirname(os.path.realpath(command[0])), *paths]
    return command[0]


def run(script):
    "Run it and end; not as an interpreter ends, which takes apart all that was imported: seconds, in a fork"
    code = 0
    try: runpy.run_path(script, run_name="__main__")
    except SystemExit as e: code = e.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr): stream.flush()
    os._exit(code)


# -- for the tests ----------------------------------------------------------------------------------

@lru_cache(None)
def server():
    "The connection to it; the package itself is not imported there, nor where it would be found"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen([sys.executable, __file__], stdin=theirs, env=env | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"})
    theirs.close()
    def stop():
        ours.close()
        process.wait()
    atexit.register(stop)
    return ours


def ask(question, fds=()):
    socket.send_fds(server(), [json.dumps(question).encode()], fds)
    return json.loads(server().recv(2**20))


class Fork:
    "A command that was started: as much of subprocess.Popen as the tests use"
    def __init__(self, command, cwd, env):
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        self.pid = ask(dict(command=command, cwd=str(cwd), env=env), [to_out, to_err])
        os.close(to_out)
        os.close(to_err)
        self.stdout, self.stderr = open(out), open(err)
        self.returncode = None

    def poll(self):
        if self.returncode is None: self.returncode = ask(dict(pid=self.pid))
        return self.returncode

    def wait(self, timeout=float("inf")):
        end = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < end, f"it did not end within {timeout} s"
            time.sleep(.01)
        return self.returncode

    def communicate(self, timeout=float("inf")):
        with ThreadPoolExecutor(2) as pool:
            said = pool.map(lambda stream: stream.read(), (self.stdout, self.stderr))
            try: self.wait(timeout)
            except AssertionError: self.kill()
            return tuple(said)

    def send_signal(self, number):
        if self.poll() is None: os.kill(self.pid, number)

    def kill(self): self.send_signal(signal.SIGKILL)


def surroundings():
    "The environment in which a command finds the package under test"
    return {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}


def fresh(script, *args, cwd=None, env=None):
    "`python script arguments`, in a process that has imported nothing yet"
    return subprocess.Popen([sys.executable, script, *map(str, args)], cwd=cwd, env=env or surroundings(),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start(script, *args, cwd=None, env=None):
    "The same in a fork, some seconds earlier"
    if sys.platform != "linux": return fresh(script, *args, cwd=cwd, env=env)
    return Fork([str(x) for x in (script, *args)], cwd or os.getcwd(), env or surroundings())


def console_script(folder, command):
    "What pip writes for a command of the package"
    script = Path(folder)/command
    script.write_text(f"import sys\nfrom retina_nb.commands import {command}\nif __name__ == '__main__': sys.exit({command}())\n")
    return script


def shell(command, *args, folder, cwd=None):
    "Start a command as its console script does, which is written into a folder"
    return start(console_script(folder, command), *args, cwd=cwd)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the commands, and for pytest
    import lightning.pytorch, matplotlib.pyplot, optuna, pandas, pooch, requests, scipy.stats, seaborn, torch.utils.tensorboard, torchmetrics  # noqa: E401, F401
    if script := serve(socket.socket(fileno=0)): run(script)
