"""Broken connections, replaced launchers, lost messages: nothing is lost, nothing happens twice."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from nas_hpc.errors import ConfigError, LauncherGone, PlacementError, ProtocolError, Superseded
from nas_hpc.evaluator import LauncherEvaluator, connection
from nas_hpc.evaluator.client import Client, reconnect_seconds
from nas_hpc.wire import PROTOCOL, Shape
from tests.evaluator.conftest import Connect
from tests.evaluator.peer import Peer
from tests.support import wait_until


def _all_ran_once(peer: Peer, count: int) -> bool:
    return dict(peer.ledger) == {seq: 1 for seq in range(1, count + 1)}


def test_results_that_end_while_the_connection_is_broken_come_after_it_is_back(
    peer: Peer, connect: Connect
) -> None:
    evaluator = connect()
    peer.hold.clear()
    evaluator.submit([{"x": i} for i in range(6)])
    wait_until(lambda: len(peer.rows) == 6, what="all to be accepted")
    peer.drop_connections()
    peer.hold.set()
    assert sorted(r.id for r in evaluator.gather("all", 60)) == [1, 2, 3, 4, 5, 6]
    assert _all_ran_once(peer, 6)


def test_a_new_launcher_is_found_by_its_endpoint_file(peer: Peer, connect: Connect) -> None:
    evaluator = connect()
    peer.hold.clear()
    evaluator.submit([{"x": 1}, {"x": 2}])
    wait_until(lambda: len(peer.rows) == 2, what="both to be accepted")
    peer.restart()
    peer.hold.set()
    assert len(evaluator.gather("all", 60)) == 2
    assert len(peer.hellos) == 2


def test_a_launcher_that_is_away_for_a_while_is_waited_for(peer: Peer, connect: Connect) -> None:
    evaluator = connect()
    threading.Thread(target=peer.restart, args=(0.7,)).start()
    wait_until(lambda: not peer.path.exists(), what="the launcher to be gone")
    evaluator.submit([{"x": 1}])
    assert [r.objective for r in evaluator.gather("all", 60)] == [2.0]


def test_a_submission_lost_on_the_way_is_sent_again(peer: Peer, connect: Connect) -> None:
    evaluator = connect()
    peer.swallow = 1
    evaluator.submit([{"x": 1}, {"x": 2}])
    wait_until(lambda: peer.swallow == 0, what="the message to be lost")
    peer.drop_connections()
    assert len(evaluator.gather("all", 60)) == 2
    assert _all_ran_once(peer, 2)


def test_a_submission_whose_answer_was_lost_does_not_run_twice(peer: Peer, connect: Connect) -> None:
    evaluator = connect()
    peer.hold.clear()
    peer.mute = 1
    evaluator.submit([{"x": 1}, {"x": 2}])
    wait_until(lambda: len(peer.rows) == 2, what="the commit")
    peer.drop_connections()
    peer.hold.set()
    assert len(evaluator.gather("all", 60)) == 2
    wait_until(lambda: evaluator.gather(0) or len(peer.submits) == 2, what="the second sending")
    assert _all_ran_once(peer, 2)


def test_no_result_is_given_twice_over_many_reconnects(peer: Peer, connect: Connect) -> None:
    evaluator = connect()
    seen: list[int] = []
    for round_ in range(5):
        evaluator.submit([{"x": i} for i in range(10)])
        (peer.restart if round_ % 2 else peer.drop_connections)()
        seen += [r.id for r in evaluator.gather("all", 60)]
    assert sorted(seen) == list(range(1, 51))
    assert _all_ran_once(peer, 50)
    assert peer.hellos[-1].cursor > 0, "only what is new is asked for"


@pytest.mark.slow
def test_a_frozen_launcher_whose_file_was_replaced_is_left_while_the_connection_still_stands(
    peer: Peer, connect: Connect
) -> None:
    evaluator = connect()
    frozen = peer._router  # keeps its socket open and never answers: a stopped process
    peer._do(lambda: setattr(peer, "_router", None))
    peer._do(peer._bind)
    evaluator.submit([{"x": 1}])
    assert len(evaluator.gather("all", 60)) == 1
    assert frozen is not None
    frozen.close(linger=0)


def test_without_a_launcher_the_wait_ends_with_one_line(peer: Peer, connect: Connect) -> None:
    evaluator = connect(reconnect_s=0.5)
    evaluator.submit([{"x": 1}])
    evaluator.gather("all", 60)
    peer.stop()
    evaluator.submit([{"x": 1}])
    began = time.monotonic()
    with pytest.raises(LauncherGone, match=r"no launcher answered for 0\.5 s") as gone:
        evaluator.gather("all")
    assert time.monotonic() - began > 0.4
    assert "\n" not in gone.value.message


def test_a_launcher_that_never_answers_hello_is_given_up(peer: Peer) -> None:
    peer._do(lambda: setattr(peer, "_hello", lambda *_: None))
    client = Client(peer.path, job=peer.job, attempt=1, shape=Shape(), reconnect_s=0.4)
    with pytest.raises(LauncherGone):
        client.receive()
    client.close()


def test_an_earlier_attempt_is_told_that_it_is_superseded(peer: Peer, connect: Connect) -> None:
    connect(attempt=3)
    with pytest.raises(Superseded):
        connect(attempt=2)


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("superseded by attempt 2", Superseded),
        ("another process is this search now", Superseded),
        ("the launcher stops", LauncherGone),
    ],
)
def test_end_is_raised_after_the_results_that_came_before_it(
    peer: Peer, connect: Connect, reason: str, error: type[Exception]
) -> None:
    evaluator = connect()
    peer.hold.clear()
    evaluator.submit([{"x": 1}])
    wait_until(lambda: peer.ledger[1], what="the evaluation to run")
    peer.hold.set()
    wait_until(lambda: peer.done, what="its result")
    peer.end(reason)
    with pytest.raises(error, match=reason):
        wait_until(lambda: evaluator.gather(0) and False, what="the end")
    assert len(evaluator.history) == 1


def test_of_two_ends_the_first_has_the_reason(peer: Peer, connect: Connect) -> None:
    evaluator = connect()
    for reason in ("none of its evaluations can run here", *["this launcher does not know you"] * 3):
        peer.end(reason)  # as for each message that crosses the first
    with pytest.raises(LauncherGone, match="none of its evaluations"):
        wait_until(lambda: evaluator.gather(0) and False, what="the end")


def test_a_search_that_the_launcher_cannot_serve_is_refused_with_the_reason(
    peer: Peer, connect: Connect
) -> None:
    peer.unfit = "its evaluations need 2 nodes, there is 1"
    with pytest.raises(PlacementError, match="need 2 nodes"):
        connect()


def test_a_launcher_of_another_protocol_is_named(peer: Peer, connect: Connect) -> None:
    peer.path.write_text(peer.path.read_text().replace(f'"protocol": {PROTOCOL}', '"protocol": 99'))
    with pytest.raises(ProtocolError, match="99"):
        connect()


def test_an_unreadable_endpoint_file_is_named(peer: Peer, connect: Connect) -> None:
    peer.path.write_text("{")
    with pytest.raises(ProtocolError, match=str(peer.path)):
        connect()


def test_the_addresses_are_tried_in_turn(peer: Peer, connect: Connect) -> None:
    text = peer.path.read_text()
    address = text.split('"addresses": ["')[1].split('"')[0]
    peer.path.write_text(text.replace(f'["{address}"]', f'["tcp://127.0.0.1:9", "{address}"]'))
    assert connect().capacity() == 2


def test_the_time_to_wait_comes_from_the_environment() -> None:
    assert reconnect_seconds({}) == 300.0
    assert reconnect_seconds({"NAS_HPC_RECONNECT_S": "12.5"}) == 12.5


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf"])
def test_a_time_to_wait_that_is_none_is_refused_with_its_value(value: str) -> None:
    with pytest.raises(ConfigError, match=value):
        reconnect_seconds({"NAS_HPC_RECONNECT_S": value})


class Cable:
    """A TCP connection between evaluators and a peer that can stop carrying anything, without an end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.made = 0
        self.silent = threading.Event()
        """What is connected now carries nothing any more; new connections do."""
        self._ends: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [near, far]
                silent, self.made = self.silent, self.made + 1
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target, silent), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket, silent: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not silent.is_set():
                    target.sendall(data)

    def fall_silent(self) -> None:
        before, self.silent = self.silent, threading.Event()
        before.set()

    def close(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.mark.slow
def test_a_launcher_whose_heartbeat_stops_is_left_though_its_connection_stands(
    peer: Peer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(connection, "SILENCE_S", 2.0)
    text = peer.path.read_text()
    address = text.split('"addresses": ["')[1].split('"')[0]
    cable = Cable(int(address.rpartition(":")[2]))
    peer.path.write_text(text.replace(address, cable.address))
    evaluator = connect()
    cable.fall_silent()
    evaluator.submit([{"x": 1}])
    assert [r.objective for r in evaluator.gather("all", 60)] == [2.0]
    assert cable.made >= 2
    assert _all_ran_once(peer, 1)
    cable.close()


def test_waiting_for_a_long_evaluation_costs_next_to_no_processor_time(peer: Peer, connect: Connect) -> None:
    evaluator: LauncherEvaluator = connect()
    peer.hold.clear()
    evaluator.submit([{"x": 1}])
    evaluator.gather(1, 0.1)
    before = time.thread_time()
    evaluator.gather(1, 1.0)
    assert time.thread_time() - before < 0.05
