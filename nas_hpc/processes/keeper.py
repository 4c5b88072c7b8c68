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
import resource
import select
import signal
import socket
import time

from nas_hpc.processes import child, family, forking, linux, remains, results
from nas_hpc.processes.attempts import Attempt, Late, finish
from nas_hpc.processes.channel import Channel
from nas_hpc.processes.line import Gone, Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from nas_hpc.processes.programs import Workers
    from nas_hpc.processes.warm import WarmModule

STRAY_PATIENCE_S = 10.0
"""A killed descendant that does not end (it hangs in a file system) delays the report of an end at most so
long.
"""


class Keeper:
    """The loop. ``orders`` is the socket to the agent, ``log_fd`` the launcher's log of sessions."""

    def __init__(self, orders: socket.socket, log_fd: int, parent: int) -> None:
        self.agent = Line(orders)
        self.parent = parent
        self.log_fd = log_fd
        self.pid = os.getpid()
        self.channel = Channel.make()
        self.warm: WarmModule | None = None
        self.workers: Workers | None = None
        self.helpers: set[int] = set()
        """Children of a warm interpreter that are no attempts: writers of ends, or started by the module."""
        self.live: dict[int, Attempt] = {}
        """Attempts whose process was not waited for, by pid."""
        self.open: dict[int, Attempt] = {}
        """Attempts that were not reported, by serial number."""
        self.by_key: dict[tuple[str, int], Attempt] = {}
        self.ended: list[Attempt] = []
        """Attempts whose process is gone but perhaps not all of its session."""
        self.late = Late()
        self.stray_deadline = 0.0
        self.serial = 0
        self.retiring = False
        self._wake, self._wake_writer = socket.socketpair()
        for end in (self._wake, self._wake_writer):
            end.setblocking(False)

    # -- the loop ------------------------------------------------------------------------------------------

    def run(self) -> NoReturn:
        """Serve until the agent's end of the socket closes, or until retired and done."""
        try:
            self._serve()
        except Gone:
            self._farewell()

    def _serve(self) -> NoReturn:
        self._take_signals()
        assert self.channel.receiving is not None
        wake, orders = self._wake.fileno(), self.agent.end.fileno()
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(self.channel.receiving.fileno(), select.POLLIN)
        gc.collect()
        gc.freeze()
        gc.disable()
        while True:
            poll.register(orders, select.POLLIN | (select.POLLOUT if self.agent.unsent else 0))
            woken = False
            for fd, _ in poll.poll(self._patience_ms()):
                if fd == wake:
                    woken = bool(self._wake.recv(4096))
                elif fd == orders:
                    self.agent.flush()
                    for message in self.agent.receive():
                        getattr(self, "on_" + message["op"])(message)
            if self.workers is not None:
                self._start_prepared(self.workers)
                self._look_again(self.workers)
            self._hear()
            if woken or self.ended:
                self._collect()
            if self.retiring and not self.open and not self.agent.unsent:
                raise Gone

    def _patience_ms(self) -> float | None:
        """How long to wait for something to happen."""
        waits = [STRAY_PATIENCE_S] if self.ended else []
        late = self.late.wait_s()
        if late is not None:
            waits.append(late)
        return 1000 * min(waits) + 1 if waits else None  # poll() takes whole milliseconds

    def _take_signals(self) -> None:
        signal.signal(signal.SIGCHLD, _ignore)
        signal.signal(signal.SIGINT, _ignore)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)

    # -- orders --------------------------------------------------------------------------------------------

    def on_warm(self, message: dict[str, Any]) -> None:
        """Become a warm interpreter."""
        from nas_hpc.processes.warm import WarmModule

        linux.die_with_parent(self.parent)  # an import may hang; nobody reads the socket then
        self.warm = WarmModule(message["run"], message["sys_path"], message["threads"])
        linux.outlive_parent()
        self._take_signals()  # the import may have taken them
        self.helpers.update(linux.children())  # what the module started stays as long as the module
        self.agent.say({"op": "ready", "unsafe": self.warm.unsafe, "failed": self.warm.error is not None})

    def on_start(self, order: dict[str, Any]) -> None:
        """Start an attempt."""
        if self.warm is not None:
            changed = self.warm.watch.changed(bool(self.live))
            if changed:
                self.agent.say(
                    {"op": "stale", "job": order["job"], "attempt": order["attempt"], "file": changed}
                )
                return
        self.serial += 1
        attempt = Attempt(order, self.serial)
        order["serial"] = self.serial
        order["offset"] = child.size_of_output(order) if order["attempt"] > 1 else 0
        self.open[attempt.serial] = self.by_key[attempt.key] = attempt
        if self.warm is None:
            self._threads().prepare(attempt)
        else:
            self._fork(attempt)

    def _threads(self) -> Workers:
        if self.workers is None:
            from nas_hpc.processes.programs import Workers

            self.workers = Workers(self.channel, self._wake_writer.fileno())
        return self.workers

    def _start_prepared(self, workers: Workers) -> None:
        """Start the programs whose directories are ready."""
        while workers.prepared:
            from nas_hpc.processes import programs

            attempt = workers.prepared.popleft()
            order = attempt.order
            order["start"] = attempt.end = time.time()
            if not attempt.refused and "stop" not in order:
                try:
                    self._live(attempt, programs.start(attempt, self.channel, self.log_fd))
                    continue
                except child.StartFailed as error:
                    attempt.refused = str(error)
            programs.close_output(attempt)
            self._finish(attempt)

    def _fork(self, attempt: Attempt) -> None:
        """Start an evaluation as a child of this warm interpreter."""
        attempt.order["start"] = attempt.end = time.time()
        assert self.warm is not None
        assert self.channel.receiving is not None
        # What tells the agent of the keeper's end must not stay open in a child.
        ends = (self.agent.end, self._wake, self._wake_writer, self.channel.receiving)
        try:
            pid = forking.fork(attempt.order, self.warm, self.channel, self.pid, self.log_fd, ends)
        except OSError as error:
            forking.record_refusal(attempt, error)
            self._report(attempt)
            return
        self._live(attempt, pid)

    def _live(self, attempt: Attempt, pid: int) -> None:
        attempt.pid = pid
        if attempt.order["record"] == "each":
            attempt.order["job_json"] = ""  # written
        self.live[pid] = attempt
        job, number = attempt.key
        self.agent.say(
            {"op": "started", "job": job, "attempt": number, "pid": pid, "time": attempt.order["start"]}
        )

    def on_stop(self, message: dict[str, Any]) -> None:
        """Ask the process group of an attempt to end (SIGTERM); note the outcome that it then has."""
        attempt = self._running(message)
        if attempt is not None:
            attempt.order["stop"] = [message["outcome"], message["reason"]]
            attempt.signal(signal.SIGTERM)
            return
        attempt = self._waiting_for_result(message)
        if attempt is not None and message["outcome"] != "timeout":  # it ended in time
            attempt.order["stop"] = [message["outcome"], message["reason"]]
            self.late.hurry(attempt)

    def on_kill(self, message: dict[str, Any]) -> None:
        """End an attempt at once. With "drop" it leaves no result: it is to run again elsewhere. With "ask"
        it is only asked to end (SIGTERM): another order follows if it does not.
        """
        attempt = self._running(message)
        if attempt is not None:
            attempt.drop = bool(message.get("drop"))
            if attempt.drop and not attempt.pid:
                attempt.order["stop"] = ["lost", "it is to run elsewhere"]  # it must not start any more
            attempt.signal(signal.SIGTERM if message.get("ask") else signal.SIGKILL)
            return
        attempt = self._waiting_for_result(message)
        if attempt is not None:
            self.late.hurry(attempt)

    def _waiting_for_result(self, message: dict[str, Any]) -> Attempt | None:
        attempt = self.by_key.get((message["job"], message["attempt"]))
        return attempt if attempt is not None and attempt.until > 0 else None

    def _running(self, message: dict[str, Any]) -> Attempt | None:
        """The attempt, unless it ended by itself before the message came."""
        attempt = self.by_key.get((message["job"], message["attempt"]))
        if attempt is None or (attempt.pid and attempt.pid not in self.live):
            return None
        if not attempt.pid:
            return attempt
        gone = os.waitid(os.P_PID, attempt.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return attempt if gone is None else None

    def on_record(self, order: dict[str, Any]) -> None:
        """Write job.json and result.json of an attempt that never got a process."""
        self.serial += 1
        attempt = Attempt(order, self.serial)
        order["serial"] = self.serial
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
            serial, kind, text, trouble, kept, alone, body = told
            attempt = self.open.get(serial)
            if attempt is None:
                continue
            if kind == "refused":
                attempt.refused = text
                continue
            if kind == "file":
                order = attempt.order
                result = results.read(order["dir"], order["job"], order["attempt"])
                if result is None and attempt.pid in self.live:
                    order["told"] = True  # it is not to be seen yet: looked for at the attempt's end
                    continue
                if result is None:
                    result = results.make(order, "invalid_result", "its result.json cannot be read any more")
                body = json.dumps(result).encode("ascii")
                if not kept:
                    remains.remove(order["dir"])
            attempt.result, attempt.tail, attempt.trouble, attempt.kept = body, text, trouble, kept
            attempt.alone = alone
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
            attempt.signal(signal.SIGKILL)  # safe: the pid is its own until it is waited for
            attempt.wait()
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
        """Kill descendants that an ended attempt left behind; whether any was there."""
        if all(attempt.alone for attempt in self.ended):
            return False  # looking costs the more the more attempts there are
        return family.end_strays(self.live, self.helpers, certain=self.warm is not None)

    def _finish(self, attempt: Attempt) -> None:
        """Report an attempt whose session is gone, or first have its result.json written."""
        order = attempt.order
        if attempt.drop and not attempt.result:
            attempt.drop = results.read(order["dir"], order["job"], order["attempt"]) is None
        if attempt.result or attempt.drop:
            self._report(attempt)
        elif self.warm is None:
            if order["expects"] or "told" in order:
                attempt.until = time.monotonic() + order["result_grace_s"]
            self._threads().finish(attempt)
        else:
            pid = os.fork()  # no thread in a warm interpreter; the loop must not wait for a file system
            if pid == 0:
                finish(attempt, self.channel)
                os._exit(0)
            self.helpers.add(pid)

    def _look_again(self, workers: Workers) -> None:
        """Have the attempts looked at again whose results were not to be seen before."""
        while workers.late:
            self.late.add(workers.late.popleft())
        for attempt in self.late.due():
            workers.finish(attempt)

    def _report(self, attempt: Attempt) -> None:
        self.open.pop(attempt.serial, None)
        self.by_key.pop(attempt.key, None)
        job, number = attempt.key
        if attempt.drop and not attempt.result:
            if attempt.order["record"] == "packed":
                remains.remove(attempt.order["dir"])
            self.agent.say({"op": "dropped", "job": job, "attempt": number})
            return
        self.agent.say(attempt.ended(), attempt.result)

    def _farewell(self) -> NoReturn:
        """The agent is gone: end every session, and exit."""
        family.end_all(self._wake, [pid for pid, one in self.live.items() if one.order.get("mpi")])
        os._exit(0)


def _ignore(number: int, frame: object) -> None:
    """A signal that only has to wake the loop."""


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
    if nofile:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, hard))
    Keeper(socket.socket(fileno=orders_fd), log_fd, parent).run()
