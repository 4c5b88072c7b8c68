"""A keeper: the small process that starts attempts, watches over their sessions, and reports their ends.

It is exec'd by an agent, never forked from it, and has one thread for its loop. There are two kinds. The
*starter* imports nothing of the user's; it starts external programs and fresh interpreters. A *warm
interpreter* imports a run function's module once and forks a child per evaluation. Standard library only,
Python 3.8 or later.

Messages from and to the agent are JSON objects, one a line, over a socket that the keeper inherits. The end
of that socket is the end of the agent: the keeper ends every session and exits. It does not die with its
parent, for it adopts the orphans of its attempts and so finds even those that left their session and
environment; only while it imports a user's module, when it reads no socket, the kernel kills it with its
parent.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import time

from nas_hpc.processes import boot, child, linux, results
from nas_hpc.processes.channel import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from nas_hpc.processes.warm import WarmModule

STRAY_PATIENCE_S = 10.0
"""A killed descendant that does not end (it hangs in a file system) delays the report of an end at most so
long.
"""
FAREWELL_S = 5.0


class Attempt:
    """One order from its fork to its report."""

    __slots__ = (
        "order", "serial", "pid", "status", "end", "cpu_s", "rss",
        "result", "tail", "trouble", "refused", "drop",
    )  # fmt: skip

    def __init__(self, order: dict[str, Any], serial: int) -> None:
        self.order = order
        self.serial = serial
        self.pid = 0
        self.status = 0
        self.end = 0.0
        self.cpu_s = 0.0
        self.rss = 0
        self.result = b""
        self.tail = ""
        self.trouble = ""
        self.refused = ""
        self.drop = False

    @property
    def key(self) -> tuple[str, int]:
        return self.order["job"], self.order["attempt"]


class Keeper:
    """The loop. ``orders`` is the socket to the agent, ``log_fd`` the launcher's log of sessions."""

    def __init__(self, orders: socket.socket, log_fd: int, parent: int, nofile: int) -> None:
        self.orders = orders
        self.parent = parent
        self.log_fd = log_fd
        self.nofile = nofile
        self.pid = os.getpid()
        self.channel = Channel.make()
        self.warm: WarmModule | None = None
        self.finishers: Finishers | None = None
        self.helpers: set[int] = set()
        """Children of a warm interpreter that write the end of an attempt."""
        self.live: dict[int, Attempt] = {}
        """Attempts whose process was not waited for, by pid."""
        self.open: dict[int, Attempt] = {}
        """Attempts that were not reported, by serial number."""
        self.by_key: dict[tuple[str, int], Attempt] = {}
        self.ended: list[Attempt] = []
        """Attempts whose process is gone but perhaps not all of its session."""
        self.stray_deadline = 0.0
        self.serial = 0
        self.retiring = False
        self._received = bytearray()
        self._unsent = bytearray()
        self._wake, self._wake_writer = socket.socketpair()
        for end in (self.orders, self._wake, self._wake_writer):
            end.setblocking(False)

    # -- the loop ------------------------------------------------------------------------------------------

    def run(self) -> NoReturn:
        """Serve until the agent's end of the socket closes, or until retired and done."""
        self._take_signals()
        assert self.channel.receiving is not None
        wake, orders = self._wake.fileno(), self.orders.fileno()
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(self.channel.receiving.fileno(), select.POLLIN)
        gc.collect()
        gc.freeze()
        gc.disable()
        while True:
            poll.register(orders, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            woken = False
            for fd, _ in poll.poll(1000 * STRAY_PATIENCE_S if self.ended else None):
                if fd == wake:
                    woken = bool(self._wake.recv(4096))
                elif fd == orders:
                    self._send()
                    self._receive()
            self._hear()
            if woken or self.ended:
                self._collect()
            if self.retiring and not self.open:
                self._send()
                os._exit(0)

    def _take_signals(self) -> None:
        signal.signal(signal.SIGCHLD, _ignore)
        signal.signal(signal.SIGINT, _ignore)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)

    def _receive(self) -> None:
        try:
            data = self.orders.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._farewell()
        self._received += data
        if b"\n" not in data:
            return
        lines = self._received.split(b"\n")
        self._received = lines.pop()
        for line in lines:
            message = json.loads(line)
            getattr(self, "on_" + message["op"])(message)

    def say(self, message: dict[str, Any]) -> None:
        """Send one message to the agent."""
        self._unsent += json.dumps(message).encode("ascii") + b"\n"
        self._send()

    def _send(self) -> None:
        if not self._unsent:
            return
        try:
            sent = self.orders.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self._farewell()
        del self._unsent[:sent]

    # -- orders --------------------------------------------------------------------------------------------

    def on_warm(self, message: dict[str, Any]) -> None:
        """Become a warm interpreter."""
        from nas_hpc.processes.warm import WarmModule

        linux.die_with_parent(self.parent)  # an import may hang; nobody reads the socket then
        self.warm = WarmModule(message["run"], message["sys_path"], message["threads"])
        linux.outlive_parent()
        self._take_signals()  # the import may have taken them
        self.say({"op": "ready", "unsafe": self.warm.unsafe, "failed": self.warm.error is not None})

    def on_start(self, order: dict[str, Any]) -> None:
        """Start an attempt."""
        if self.warm is not None:
            changed = self.warm.watch.changed()
            if changed:
                self.say({"op": "stale", "job": order["job"], "attempt": order["attempt"], "file": changed})
                return
        self.serial += 1
        attempt = Attempt(order, self.serial)
        order["serial"] = self.serial
        order["offset"] = _size_of_output(order) if order["attempt"] > 1 else 0
        order["start"] = time.time()
        try:
            pid = os.fork()
        except OSError as error:
            attempt.refused = f"cannot fork: {error.strerror}"
            attempt.end = time.time()
            self.open[attempt.serial] = attempt
            self._finish(attempt)
            return
        if pid == 0:
            self._in_child(order)
        attempt.pid = pid
        order["job_json"] = ""
        self.live[pid] = self.open[self.serial] = self.by_key[attempt.key] = attempt
        job, number = attempt.key
        self.say({"op": "started", "job": job, "attempt": number, "pid": pid, "time": order["start"]})

    def _in_child(self, order: dict[str, Any]) -> NoReturn:
        try:
            child.leave_keeper(order, self.pid, self.log_fd, self.nofile)
            child.settle_in(order)
            if self.warm is not None:
                from nas_hpc.processes import call

                self._close_inherited()
                call.prepare(order)
                call.answer(order, self.channel, self.warm.load)
            if order["call"]:
                self._hand_over(order)
            child.become(order)
        except child.StartFailed as error:
            self.channel.refuse(order["serial"], str(error))
        except BaseException as error:
            self.channel.refuse(order["serial"], f"cannot start the process: {type(error).__name__}: {error}")
        finally:
            os._exit(127)

    def _close_inherited(self) -> None:
        """A child that goes on in Python must not hold open what tells the agent of the keeper's end."""
        assert self.channel.receiving is not None
        for end in (self.orders, self._wake, self._wake_writer, self.channel.receiving):
            end.close()
        os.close(self.log_fd)

    def _hand_over(self, order: dict[str, Any]) -> None:
        """Make ``order`` the start of a fresh interpreter that reads the call from an anonymous file."""
        fd = os.memfd_create("order", 0)
        content = memoryview(json.dumps({**order, "env": {}, "job_json": ""}).encode("ascii"))
        while content:
            content = content[os.write(fd, content) :]
        os.lseek(fd, 0, os.SEEK_SET)
        channel = self.channel.sending.fileno()
        os.set_inheritable(channel, True)
        order["argv"] = boot.command(order["interpreter"], "call", fd, channel)

    def on_stop(self, message: dict[str, Any]) -> None:
        """Ask the process group of an attempt to end (SIGTERM); note the outcome that it then has."""
        attempt = self._running(message)
        if attempt is not None:
            attempt.order["stop"] = [message["outcome"], message["reason"]]
            self._signal(attempt, signal.SIGTERM)

    def on_kill(self, message: dict[str, Any]) -> None:
        """End an attempt at once. With "drop" it leaves no result: it is to run again elsewhere."""
        attempt = self._running(message)
        if attempt is not None:
            attempt.drop = bool(message.get("drop"))
            self._signal(attempt, signal.SIGKILL)

    def _running(self, message: dict[str, Any]) -> Attempt | None:
        """The attempt, unless it ended by itself before the message came."""
        attempt = self.by_key.get((message["job"], message["attempt"]))
        if attempt is None or attempt.pid not in self.live:
            return None
        gone = os.waitid(os.P_PID, attempt.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return attempt if gone is None else None

    @staticmethod
    def _signal(attempt: Attempt, number: int) -> None:
        try:
            os.killpg(attempt.pid, number)
        except ProcessLookupError:  # it has not begun its own session yet
            os.kill(attempt.pid, number)

    def on_record(self, order: dict[str, Any]) -> None:
        """Write job.json and result.json of an attempt that never got a process."""
        self.serial += 1
        attempt = Attempt(order, self.serial)
        order["start"] = attempt.end = time.time()
        self.open[self.serial] = attempt
        self._finish(attempt)

    def on_retire(self, message: dict[str, Any]) -> None:
        """Exit when the last attempt has ended."""
        self.retiring = True

    # -- ends ----------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        """Take what children and finishers tell; all of it, before anybody's end is looked at."""
        while True:
            told = self.channel.receive()
            if told is None:
                return
            serial, kind, text, trouble, body = told
            attempt = self.open.get(serial)
            if attempt is None:
                continue
            if kind == "refused":
                attempt.refused = text
                continue
            if kind == "file":
                order = attempt.order
                body = json.dumps(results.read(order["dir"], order["job"], order["attempt"])).encode("ascii")
            attempt.result, attempt.tail, attempt.trouble = body, text, trouble
            if attempt.pid not in self.live and attempt not in self.ended:
                self._report(attempt)

    def _collect(self) -> None:
        """Wait for the children that ended; end what they left; report attempts of which nothing is left."""
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if info is None:
                break
            attempt = self.live.get(info.si_pid)
            if attempt is None:
                os.waitpid(info.si_pid, 0)  # an orphan of an attempt, or a helper
                self.helpers.discard(info.si_pid)
                continue
            self._hear()  # it may have told its result after the last look
            self._signal(attempt, signal.SIGKILL)  # safe: the pid is its own until it is waited for
            _, attempt.status, usage = os.wait4(attempt.pid, 0)
            attempt.end = time.time()
            attempt.cpu_s = usage.ru_utime + usage.ru_stime
            attempt.rss = usage.ru_maxrss * 1024
            del self.live[attempt.pid]
            self.ended.append(attempt)
        if not self.ended:
            return
        if self._end_strays():
            now = time.monotonic()
            self.stray_deadline = self.stray_deadline or now + STRAY_PATIENCE_S
            if now < self.stray_deadline:
                return  # their end wakes us
        self.stray_deadline = 0.0
        ended, self.ended = self.ended, []
        for attempt in ended:
            os.write(self.log_fd, f"-{attempt.pid}\n".encode())
            self._finish(attempt)

    def _end_strays(self) -> bool:
        """Kill descendants that an ended attempt left behind; whether any was there.

        Orphans come to the keeper as children. Those of warm children belong to ended attempts, as each child
        adopts its own while it lives. An external program does not; so its orphans are told by their session
        or environment, and left alone while in doubt.
        """
        found = False
        for pid in linux.children():
            if pid not in self.live and pid not in self.helpers and not self._may_live(pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    continue
                found = True
        return found

    def _may_live(self, pid: int) -> bool:
        if self.warm is not None or not self.live:
            return False
        try:
            if os.getsid(pid) in self.live:
                return True
        except ProcessLookupError:
            return False
        marks = dict(part.partition(b"=")[::2] for part in linux.environ_of(pid))
        job, attempt = marks.get(b"NAS_HPC_JOB_ID"), marks.get(b"NAS_HPC_ATTEMPT", b"")
        if job is None:
            return True
        keys = (one.key for one in self.live.values())
        return any(key[0].encode() == job and b"%d" % key[1] == attempt for key in keys)

    def _finish(self, attempt: Attempt) -> None:
        """Report an attempt whose session is gone, or first have its result.json written."""
        order = attempt.order
        if attempt.drop and not attempt.result:
            attempt.drop = results.read(order["dir"], order["job"], order["attempt"]) is None
        if attempt.result or attempt.drop:
            self._report(attempt)
        elif self.warm is None:
            if self.finishers is None:
                self.finishers = Finishers(self.channel)
            self.finishers.put(attempt)
        else:
            pid = os.fork()  # no thread in a warm interpreter; the loop must not wait for a file system
            if pid == 0:
                finish(attempt, self.channel)
                os._exit(0)
            self.helpers.add(pid)

    def _report(self, attempt: Attempt) -> None:
        self.open.pop(attempt.serial, None)
        self.by_key.pop(attempt.key, None)
        job, number = attempt.key
        if attempt.drop and not attempt.result:
            self.say({"op": "dropped", "job": job, "attempt": number})
            return
        head = {
            "op": "ended",
            "job": job,
            "attempt": number,
            "tail": attempt.tail,
            "trouble": attempt.trouble,
            "cpu_s": attempt.cpu_s,
            "max_rss_bytes": attempt.rss,
        }
        line = json.dumps(head).encode("ascii")
        self._unsent += line[:-1] + b', "result": ' + attempt.result + b"}\n"
        self._send()

    def _farewell(self) -> NoReturn:
        """The agent is gone: end every session, and exit."""
        deadline = time.monotonic() + FAREWELL_S
        poll = select.poll()
        poll.register(self._wake.fileno(), select.POLLIN)
        while time.monotonic() < deadline:
            left = linux.children()
            if not left:
                break
            for pid in left:
                for kill in (os.killpg, os.kill):
                    try:
                        kill(pid, signal.SIGKILL)
                    except (ProcessLookupError, PermissionError):
                        continue
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                continue
            poll.poll(1000 * max(0.0, min(0.1, deadline - time.monotonic())))
            try:
                self._wake.recv(4096)
            except BlockingIOError:
                continue
        os._exit(0)


class Finishers:
    """A few threads in a starter that write result.json, so that a slow file system does not hold up the
    loop.
    """

    COUNT = 4

    def __init__(self, channel: Channel) -> None:
        import _queue
        import _thread

        self._todo: _queue.SimpleQueue[Attempt] = _queue.SimpleQueue()
        self._channel = channel
        for _ in range(self.COUNT):
            _thread.start_new_thread(self._work, ())

    def put(self, attempt: Attempt) -> None:
        """Have ``attempt`` finished; the channel tells when."""
        self._todo.put(attempt)

    def _work(self) -> None:
        while True:
            finish(self._todo.get(), self._channel)


def finish(attempt: Attempt, channel: Channel) -> None:
    """Judge an attempt that told no result itself, write its result.json, tell the keeper."""
    order = attempt.order
    if attempt.refused:
        order["stop"] = ["start_failed", attempt.refused]
    try:
        if not attempt.pid:  # it never had a process to do this
            os.makedirs(order["dir"], exist_ok=True)
            results.replace_file(order["dir"], "job.json", order["job_json"].encode(), sync=False)
        result, tail, trouble = results.settle(order, attempt.status, attempt.end)
    except Exception as error:
        reason = f"cannot record the end: {type(error).__name__}: {error}"
        result, tail, trouble = results.make(order, "error", reason, end=attempt.end), "", reason
        if "stop" in order:
            result["outcome"], result["reason"] = order["stop"]
    channel.tell(attempt.serial, result, tail, trouble)


def _ignore(number: int, frame: object) -> None:
    """A signal that only has to wake the loop."""


def _size_of_output(order: dict[str, Any]) -> int:
    """Where the output of this attempt begins: that of the attempts before it is kept."""
    try:
        return os.stat(os.path.join(order["dir"], order["name"] + ".out")).st_size
    except OSError:
        return 0


def main(arguments: list[str]) -> NoReturn:
    """Entry: file descriptors of the agent's socket and of the sessions' log, the agent's pid, the files'
    limit.
    """
    orders_fd, log_fd, parent, nofile = map(int, arguments)
    linux.adopt_orphans()
    for fd in (orders_fd, log_fd):
        os.set_inheritable(fd, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    Keeper(socket.socket(fileno=orders_fd), log_fd, parent, nofile).run()
