"""How agents speak with each other: what comes over, who is let in, what follows from an end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nas_hpc.apps.exchange import Hub, Spoke, pack, unpack
from nas_hpc.errors import ProtocolError
from nas_hpc.launcher.endpoint import LOOPBACK
from tests.apps.support import ROOT
from tests.support import examples

_KINDS = st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint8])


@settings(max_examples=examples(30), deadline=None)
@given(
    _KINDS.flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0))),
    st.dictionaries(st.text(max_size=5), st.integers(-(2**60), 2**60) | st.text(max_size=5), max_size=3),
)
def test_a_message_comes_over_as_it_was(array: np.ndarray, plain: dict[str, object]) -> None:
    said = unpack(3, pack("learn", plain, {"one": array, "other": array[:0] if array.ndim else array}))
    assert (said.agent, said.kind, said.plain) == (3, "learn", plain)
    assert said.arrays["one"].dtype == array.dtype
    assert said.arrays["one"].shape == array.shape
    assert said.arrays["one"].tobytes() == array.tobytes()


@pytest.mark.parametrize("body", [b"", b"\xc1", b"hello", pack("a", {}, {})[:-1]])
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="agent 2 cannot be read"):
        unpack(2, body)


def test_all_agents_hear_the_first_one_and_it_hears_all_until_it_ends() -> None:
    hub = Hub(3, [LOOPBACK])
    heard: dict[int, list[object]] = {}

    def other(agent: int) -> None:
        spoke = Spoke(agent, hub.card)
        heard[agent] = []
        while (said := spoke.receive()).kind != "end":
            heard[agent].append(said.plain["number"])
            spoke.send("twice", {"number": 2 * said.plain["number"]}, dict(said.arrays))
        spoke.close()

    threads = [threading.Thread(target=other, args=(agent,)) for agent in (1, 2, 3)]
    for thread in threads:
        thread.start()
    hub.assemble()
    for number in range(5):
        for agent in (1, 2, 3):
            hub.send(agent, "say", {"number": number + agent}, {"of": np.array([agent])})
        answers = hub.gather()
        assert {agent: said.plain["number"] for agent, said in answers.items()} == {
            agent: 2 * (number + agent) for agent in (1, 2, 3)
        }
        assert [answers[agent].arrays["of"][0] for agent in (1, 2, 3)] == [1, 2, 3]
    hub.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert heard[2] == [2, 3, 4, 5, 6]


def test_who_has_not_the_keys_is_not_let_in() -> None:
    hub = Hub(1, [LOOPBACK])
    told = json.loads(hub.card)
    context = zmq.Context()
    events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    for keys in (None, zmq.curve_keypair()):
        stranger = context.socket(zmq.DEALER)
        stranger.linger = 0
        if keys is not None:
            stranger.curve_serverkey = told["keys"][0].encode()
            stranger.curve_publickey, stranger.curve_secretkey = keys
        monitor = stranger.get_monitor_socket(events)
        stranger.connect(told["addresses"][0])
        stranger.send(pack("here", {"agent": 1}, {}))
        assert monitor.poll(60_000), "it is told, one way or the other"
        event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
        assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
        stranger.disable_monitor()
        monitor.close(linger=0)
        stranger.close()
    assert not hub._socket.poll(0)
    hub.close()
    context.term()


ORPHAN = """
import sys
from nas_hpc.apps.exchange import Spoke
spoke = Spoke(1, sys.argv[1])
print("connected", flush=True)
spoke.receive()
"""


@pytest.mark.slow
def test_an_agent_that_loses_the_first_one_ends_by_a_signal_at_once() -> None:
    """So that the launcher takes the search for lost, and not for wrong."""
    hub = Hub(1, [LOOPBACK])
    agent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, hub.card],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    hub.assemble()
    hub._peers.clear()  # it ends without a word, as a killed one
    hub.close()
    _, err = agent.communicate(timeout=60)
    assert agent.returncode == -signal.SIGKILL
    assert err.count("\n") == 1
    assert "error: the first agent is gone; the search goes on from its checkpoint" in err
