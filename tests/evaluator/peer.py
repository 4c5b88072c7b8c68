"""A launcher for tests: the real wire on a real CURVE ROUTER, with a store in memory and run functions in
threads.

It can lose its connections, be replaced by another with a new endpoint, lose messages, answer late, and stop
finishing evaluations until told. Its ledger counts what really ran.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zmq

from nas_hpc import wire

Run = Callable[[Mapping[str, Any]], float]


@dataclass
class Row:
    """One evaluation in the peer's store."""

    ask: wire.Ask
    submitted: float
    running: bool = False
    done: wire.Done | None = None


class Peer:
    """A launcher that serves one search. ``run`` is called for every evaluation; what it raises is a
    failure."""

    def __init__(self, path: Path, run: Run, workers: int = 1, job: str = "a" * 32) -> None:
        self.path, self.run, self.job = path, run, job
        self.workers = workers
        self.rows: dict[int, Row] = {}
        self.ledger: Counter[int] = Counter()
        """How often each evaluation ran."""
        self.hellos: list[wire.Hello] = []
        self.submits: list[wire.Submit] = []
        self.reports: list[wire.Report] = []
        self.configs: list[dict[str, Any]] = []
        """As they were accepted."""
        self.swallow = 0
        """So many Submits are to be lost before they are read."""
        self.mute = 0
        """So many answers to Submits are to be lost after the commit."""
        self.refuse = ""
        self.unfit = ""
        self.hold = threading.Event()
        """Evaluations finish only while it is set."""
        self.hold.set()
        self.attempt = 0
        self.started = time.time()
        self._order = 0
        self._epoch = 0
        self._lock = threading.Lock()
        self._calls: deque[Callable[[], None]] = deque()
        self._work: queue.Queue[int | None] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._context = zmq.Context()
        self._wake_in = self._context.socket(zmq.PULL)
        self._wake_in.bind("inproc://wake")
        self._search: bytes | None = None
        self._router: zmq.Socket[bytes] | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, daemon=True)

    # -- what tests do with it ---------------------------------------------------------------------
    def __enter__(self) -> Peer:
        self._bind()
        self._thread.start()
        self._grow()
        return self

    def __exit__(self, *error: object) -> None:
        self.hold.set()
        self._stopping = True
        for _ in self._threads:
            self._work.put(None)
        self._do(lambda: None, wait=False)
        self._thread.join(60)
        for thread in self._threads:
            thread.join(60)
        self._context.destroy(linger=0)

    def restart(self, gone_s: float = 0.0) -> None:
        """Another launcher takes over, at another address with other keys, after ``gone_s`` without any."""
        self._do(self._unbind)
        if gone_s:
            self.path.unlink()
            time.sleep(gone_s)
        self._do(self._bind)

    def drop_connections(self) -> None:
        """All connections break; the endpoint stays as it is."""
        self._do(self._rebind)

    def stop(self) -> None:
        """End without a successor."""
        self._do(self._unbind)
        self.path.unlink(missing_ok=True)

    def end(self, reason: str) -> None:
        """Tell the search to end."""
        self._do(lambda: self._send(wire.End(reason)))

    def set_workers(self, workers: int) -> None:
        """The capacity changes."""
        self.workers = workers
        self._grow()
        self._do(lambda: self._send(wire.Capacity(workers)))

    def finish_again(self, seq: int, objective: float) -> None:
        """A person retried ``seq``, and now it has this objective."""

        def do() -> None:
            done = self.rows[seq].done
            assert done is not None
            self._order += 1
            self.rows[seq].done = replace(
                done, order=self._order, outcome="ok", objective=objective, reason=""
            )
            self._send(wire.Results((self.rows[seq].done,)))  # type: ignore[arg-type]

        self._do(do)

    @property
    def done(self) -> list[wire.Done]:
        """The finished evaluations, in their order."""
        with self._lock:
            return sorted((row.done for row in self.rows.values() if row.done), key=lambda done: done.order)

    # -- the loop's thread -------------------------------------------------------------------------
    def _do(self, call: Callable[[], None], wait: bool = True) -> None:
        happened = threading.Event()

        def wrapped() -> None:
            call()
            happened.set()

        self._calls.append(wrapped)
        self._wake()
        if wait:
            assert happened.wait(60), "the peer's thread does not answer"

    def _wake(self) -> None:
        socket = self._context.socket(zmq.PUSH)
        socket.connect("inproc://wake")
        socket.send(b"")
        socket.close()

    def _loop(self) -> None:
        while not self._stopping:
            poller = zmq.Poller()
            poller.register(self._wake_in, zmq.POLLIN)
            if self._router is not None:
                poller.register(self._router, zmq.POLLIN)
            ready = dict(poller.poll(1000))
            while self._wake_in in ready and self._wake_in.poll(0):
                self._wake_in.recv()
            while self._calls:
                self._calls.popleft()()
            while self._router is not None and self._router.poll(0):
                peer, body = self._router.recv_multipart()
                self._take(peer, wire.unpack(body))
        self._unbind()

    def _bind(self) -> None:
        public, secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        self._keys = (public, secret)
        port = self._listen("tcp://127.0.0.1:*")
        self._epoch += 1
        wire.write_endpoint(
            self.path,
            wire.Endpoint(
                (port,),
                public.decode(),
                client_public.decode(),
                client_secret.decode(),
                f"lease{self._epoch}",
                "here",
                1,
            ),
        )

    def _listen(self, address: str) -> str:
        router = self._context.socket(zmq.ROUTER)
        router.curve_server = True
        router.curve_publickey, router.curve_secretkey = self._keys
        router.linger = 0
        router.bind(address)
        self._router = router
        return _text(router)

    def _unbind(self) -> None:
        if self._router is not None:
            self._router.close(linger=0)
        self._router = self._search = None

    def _rebind(self) -> None:
        assert self._router is not None
        address = _text(self._router)
        self._unbind()
        for _ in range(200):
            try:
                self._listen(address)
                return
            except zmq.ZMQError:
                time.sleep(0.01)  # the old socket is closed by ZeroMQ's own thread
        raise AssertionError(f"{address} does not become free")

    def _send(self, message: wire.Message) -> None:
        if self._search is not None:
            self._answer(self._search, message)

    def _answer(self, peer: bytes, message: wire.Message) -> None:
        if self._router is not None:
            self._router.send_multipart([peer, wire.pack(message)])

    # -- messages ----------------------------------------------------------------------------------
    def _take(self, peer: bytes, message: wire.Message) -> None:
        if isinstance(message, wire.Hello):
            self._hello(peer, message)
        elif peer != self._search:
            return
        elif isinstance(message, wire.Submit):
            self._submit(message)
        elif isinstance(message, wire.Cancel):
            for seq in message.seqs:
                self._end(seq, "killed", None, "cancelled", time.time())
            self._send(wire.Accepted(message.request))
        elif isinstance(message, wire.Report):
            self.reports.append(message)

    def _hello(self, peer: bytes, hello: wire.Hello) -> None:
        self.hellos.append(hello)
        if self.unfit:
            self._answer(peer, wire.End(self.unfit))
            return
        if hello.attempt < self.attempt:
            self._answer(peer, wire.End("superseded by a later attempt"))
            return
        self.attempt, self._search = hello.attempt, peer
        self._send(wire.Results(tuple(done for done in self.done if done.order > hello.cursor)))
        pending = tuple(
            wire.Pending(seq, row.ask.config, row.ask.data)
            for seq, row in sorted(self.rows.items())
            if row.done is None
        )
        self._send(
            wire.Welcome(wire.PROTOCOL, f"lease{self._epoch}", self.workers, pending, 0.0, self.started)
        )

    def _submit(self, message: wire.Submit) -> None:
        if self.swallow:
            self.swallow -= 1
            return
        self.submits.append(message)
        if self.refuse:
            self._send(wire.Refused(message.request, self.refuse))
            return
        for ask in message.asks:
            if ask.seq in self.rows:
                continue  # sent again
            with self._lock:
                self.rows[ask.seq] = Row(ask, time.time())
            self.configs.append(dict(ask.config))
            if ask.cached_of:
                original = self.rows[ask.cached_of].done
                assert original is not None, f"a hit of {ask.cached_of}, which is not finished"
                assert original.objective is not None
                self._end(ask.seq, "ok", original.objective, "", time.time(), cached=True)
            elif ask.failure:
                self._end(ask.seq, "error", None, ask.failure, time.time())
            else:
                self._work.put(ask.seq)
        if self.mute:
            self.mute -= 1
            return
        self._send(wire.Accepted(message.request))

    def _end(
        self, seq: int, outcome: str, objective: float | None, reason: str, start: float, cached: bool = False
    ) -> None:
        row = self.rows.get(seq)
        if row is None or row.done is not None:
            return
        with self._lock:
            self._order += 1
            row.done = wire.Done(
                order=self._order,
                seq=seq,
                config=row.ask.config,
                data=row.ask.data,
                outcome=outcome,
                objective=objective,
                metadata={},
                reason=reason,
                start=start,
                end=time.time(),
                attempt=0 if cached else 1,
                submitted=row.submitted,
                cached=cached,
            )
        self._send(wire.Results((row.done,)))

    # -- the workers' threads ----------------------------------------------------------------------
    def evaluate(self, ask: wire.Ask) -> float:
        """Run one evaluation; another kind of peer does more than call ``run``."""
        return self.run(ask.config)

    def _grow(self) -> None:
        while len(self._threads) < self.workers:
            thread = threading.Thread(target=self._worker, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _worker(self) -> None:
        while (seq := self._work.get()) is not None:
            row = self.rows[seq]
            if row.done is not None:
                continue  # cancelled
            self.ledger[seq] += 1
            start = time.time()
            outcome, reason = "ok", ""
            objective: float | None = None
            try:
                objective = self.evaluate(row.ask)
            except Exception as error:
                outcome, reason = "error", f"{type(error).__name__}: {error}"
            self.hold.wait()
            if self._stopping:
                return
            self._do(functools.partial(self._end, seq, outcome, objective, reason, start), wait=False)


def _text(router: zmq.Socket[bytes]) -> str:
    """The address that ``router`` is bound to."""
    address = router.last_endpoint
    assert isinstance(address, bytes)
    return address.decode()
