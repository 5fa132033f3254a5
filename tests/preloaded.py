"""Processes whose interpreter has imported shmpool and shmpoold before they begin: forks of one that waits for that.

A broker's start is imports, 0.25 s of CPU time, for each of the hundreds that tests start. `Popen` is subprocess's, and
does for a command line of this interpreter what that would do, by a fork instead of a fork and exec: the child has
the descriptors, environment, directory, signal mask, limits, warnings and arguments that are named, is our own child,
and ends by its own exit handlers. It is a real process in all but how it came to its modules. Tests of just that carry
the marker ``fresh``, and get new interpreters; so does every command line that this does not know.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

#: Words on the command line of the process that is forked.
MARK = "preloaded.serve"
#: Descriptors from here on are out of the way of those that a command line names.
_HIGH = 256
_MOST_DESCRIPTORS = 32
_MESSAGE = 1 << 20
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
#: How many there are (RLIM_NLIMITS).
_LIMITS = 16
#: Read when modules are imported.
_READ_EARLY = ("SHMPOOL_PREFIX", "PYTHONPYCACHEPREFIX")


class Kind(NamedTuple):
    """What is settled once an interpreter has imported shmpool: each kind has a process of its own that is forked."""

    is_plain: bool
    is_in_development_mode: bool


def _is_plain(environment: Mapping[str, str]) -> bool:
    return environment.get("SHMPOOL_PURE", "") not in ("", "0")


_libc = ctypes.CDLL(None, use_errno=True)


class Nursery:
    """The process that is forked for one kind of interpreters, at the first need."""

    def __init__(self, kind: Kind) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for one in (ours, theirs):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE)
            code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import preloaded;"
            mode = ["-X", "dev"] if kind.is_in_development_mode else []
            subprocess.Popen(
                [sys.executable, *mode, "-P", "-c", f"{code} {MARK}({theirs.fileno()})"],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                env={**os.environ, "SHMPOOL_PURE": str(int(kind.is_plain))},
            ).returncode = 0  # fmt: skip  # nobody waits: it ends with us
        self.socket = ours

    def fork(self, request: dict[str, Any], descriptors: list[int]) -> int:
        """A child of ours that does what is asked for; its pid."""
        # Its parent's parent is who collects it when its parent ends, which is at once.
        before = ctypes.c_int()
        _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            socket.send_fds(self.socket, [json.dumps(request).encode()], descriptors)
            answer = self.socket.recv(64)
        finally:
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, before, 0, 0, 0)
        assert answer, "the process that is forked has ended"
        return int(answer)


class Nurseries:
    """Those of this process alone (a forked child has none)."""

    def __init__(self) -> None:
        self.is_open = True
        self._lock = threading.Lock()
        self._of_kind: dict[Kind, Nursery] = {}
        self._owner = 0

    @property
    def descriptors(self) -> set[int]:
        """Ours, which stay."""
        return {nursery.socket.fileno() for nursery in self._of_kind.values()}

    def takes(self, environment: dict[str, str]) -> bool:
        """Whether a process of this environment can be one of ours."""
        is_alike = all(environment.get(name) == os.environ.get(name) for name in _READ_EARLY)
        return self.is_open and is_alike and self._owner in (0, os.getpid())

    def fork(self, kind: Kind, request: dict[str, Any], descriptors: list[int]) -> int:
        """A child of ours; its pid."""
        with self._lock:
            if kind not in self._of_kind:
                self._of_kind[kind], self._owner = Nursery(kind), os.getpid()
            return self._of_kind[kind].fork(request, descriptors)

    def close(self) -> None:
        """The processes end with this."""
        if self._owner == os.getpid():
            while self._of_kind:
                self._of_kind.popitem()[1].socket.close()


nurseries = Nurseries()


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen`, whose child is a fork of the nursery where it can be."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any,
                       env: Any, startupinfo: Any, creationflags: Any, shell: Any, p2cread: int, p2cwrite: int,
                       c2pread: int, c2pwrite: int, errread: int, errwrite: int, *rest: Any) -> None:  # fmt: skip
        request = None if shell or preexec_fn or executable else _request(args)
        environment = dict(os.environ if env is None else env)
        if request is None or not nurseries.takes(environment):
            return super()._execute_child(  # type: ignore[misc,no-any-return]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
                p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest,
            )  # fmt: skip
        *_, is_new_session, _ = rest
        standard = [number if given < 0 else given for number, given in enumerate((p2cread, c2pwrite, errwrite))]
        request |= {
            "environment": environment,
            "directory": os.path.abspath(cwd or "."),
            "targets": [0, 1, 2, *pass_fds],
            "mask": list(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            "limits": [resource.getrlimit(number) for number in range(_LIMITS)],
            "new_session": bool(is_new_session),
        }
        kind = Kind(_is_plain(environment), request["is_in_development_mode"])
        self.pid = nurseries.fork(kind, request, [*standard, *pass_fds])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def _request(args: Any) -> dict[str, Any] | None:
    """What this interpreter does for a command line: None for what only a new one does."""
    if isinstance(args, str | bytes | os.PathLike) or os.fspath(args[0]) != sys.executable:
        return None
    rest, warnings, is_safe, mode = [os.fspath(word) for word in args[1:]], [], False, []
    while rest and rest[0] in ("-P", "-W", "-X"):
        option = rest.pop(0)
        if option == "-P":
            is_safe = True
        else:
            (warnings if option == "-W" else mode).append(rest.pop(0))
    if mode not in ([], ["dev"]):
        return None
    if not rest:
        return None
    if rest[0] in ("-m", "-c") and len(rest) > 1:
        kind, what, *arguments = rest
    elif rest[0].endswith(".py"):
        kind, what, *arguments = "script", *rest
    else:
        return None
    return {
        "kind": kind, "what": what, "arguments": arguments, "warnings": warnings, "is_safe": is_safe,
        "is_in_development_mode": bool(mode),
    }  # fmt: skip


#: In the place of the module, for those who start brokers themselves.
standin = SimpleNamespace(**{**vars(subprocess), "Popen": Popen})


def run(args: Any, *, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with the output captured as text."""
    with Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(args, process.returncode, output, errors)


# --- in the process that is forked -----------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Fork for who asks, until he ends."""
    import gc

    import shmpoold.cli  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches all of a terminal's group
    gc.collect()
    gc.freeze()  # so that collections in the children write to none of it
    with socket.socket(fileno=descriptor) as asker:
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(asker, _MESSAGE, _MOST_DESCRIPTORS)
            except ConnectionResetError:
                return
            if not message:
                return
            asker.send(b"%d" % _fork(asker, json.loads(message), descriptors))
            for number in descriptors:
                os.close(number)


def _fork(asker: socket.socket, request: dict[str, Any], descriptors: list[int]) -> int:
    """A child that its parent leaves at once."""
    reading, writing = os.pipe()
    between = os.fork()
    if not between:
        child = os.fork()
        if not child:
            asker.detach()
            _become(request, descriptors)
        os.write(writing, b"%d" % child)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        child = int(pipe.read(64).split()[0])
    os.waitpid(between, 0)
    return child


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Be a new interpreter with that command line. Never returns."""
    status = 70
    try:
        if request["new_session"]:
            os.setsid()
        _take(descriptors, request["targets"])
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["directory"])
        for number, limits in enumerate(request["limits"]):
            if resource.getrlimit(number) != tuple(limits):
                resource.setrlimit(number, tuple(limits))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, request["mask"])
        status = _run(request)
    finally:
        os._exit(status)


def _take(descriptors: list[int], targets: list[int]) -> None:
    import fcntl

    held = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _HIGH) for number in descriptors]
    os.closerange(0, _HIGH)
    for number, target in zip(held, targets, strict=True):
        os.dup2(number, target)
        os.close(number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def _run(request: dict[str, Any]) -> int:
    import atexit
    import traceback
    import warnings

    path = [*filter(None, request["environment"].get("PYTHONPATH", "").split(os.pathsep))]
    if not request["is_safe"]:
        first = {"-m": os.getcwd(), "-c": ""}.get(request["kind"], os.path.dirname(os.path.abspath(request["what"])))
        path.insert(0, first)
    sys.path[:] = [*path, *(entry for entry in sys.path if entry != os.path.dirname(__file__))]
    sys.warnoptions[:] = request["warnings"]
    warnings._processoptions(request["warnings"])  # type: ignore[attr-defined]
    try:
        _main(request["kind"], request["what"], request["arguments"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for its threads, as an interpreter does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = 120
    return status


def _main(kind: str, what: str, arguments: list[str]) -> None:
    import runpy
    from types import ModuleType

    sys.argv = [{"-m": "-m", "-c": "-c"}.get(kind, what), *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))
    else:
        runpy.run_path(what, run_name="__main__")
