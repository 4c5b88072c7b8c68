"""Where a launcher listens, and how a command finds its way to it."""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nas_hpc.cli import client
from nas_hpc.errors import LauncherGone, WrongCall
from nas_hpc.launcher.endpoint import LOOPBACK, EndpointServer, listen_on
from nas_hpc.site import create_site
from nas_hpc.wire import Message, Query, Status, read_endpoint, write_endpoint

OUTWARD = sorted(
    (name, one.address)
    for name, addresses in psutil.net_if_addrs().items()
    for one in addresses
    if one.family == socket.AF_INET and not one.address.startswith("127.")
)
networked = pytest.mark.skipif(not OUTWARD, reason="needs a network interface besides the loopback")


def test_a_launcher_whose_nodes_are_all_its_own_host_listens_there_alone() -> None:
    assert listen_on([]) == [LOOPBACK]
    assert listen_on([], "no such interface") == [LOOPBACK], "the setting is about other hosts"


@networked
def test_for_other_hosts_it_listens_on_the_network_and_not_on_the_loopback() -> None:
    assert sorted(listen_on(["node2"])) == sorted({address for _, address in OUTWARD})
    name, address = OUTWARD[0]
    assert listen_on(["node2"], name)[0] in {one for known, one in OUTWARD if known == name}
    assert listen_on([address])[0] == address, "the way to the nodes comes first"


def test_an_unknown_interface_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(WrongCall, match="interface 'hsn7' has no address on this host; there are .*lo"):
        listen_on(["node2"], "hsn7")


class Answering:
    """A launcher's endpoint that answers every query, in a thread of its own."""

    def __init__(self, path: Path, *listen: str) -> None:
        self._path, self._listen = path, listen
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()

        def answer(peer: bytes, message: Message) -> None:
            assert isinstance(message, Query)
            server.send(peer, Status(message.request, {"it": "works"}))

        server = EndpointServer(self._path, "epoch", answer, print, self._listen)
        self._ready.set()
        await self._over.wait()
        server.close()

    def __enter__(self) -> Answering:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)


def test_a_command_finds_the_address_of_the_launcher_that_answers(tmp_path: Path) -> None:
    site = create_site(tmp_path / "site")
    with Answering(site.endpoint, LOOPBACK, "127.0.0.2"):
        endpoint = read_endpoint(site.endpoint)
        assert [address.rpartition(":")[0] for address in endpoint.addresses] == [
            f"tcp://{LOOPBACK}", "tcp://127.0.0.2",
        ]  # fmt: skip
        assert client.query(site) == [{"it": "works"}]
        with socket.socket() as silent:  # takes connections and says nothing
            silent.bind((LOOPBACK, 0))
            silent.listen()
            dead = f"tcp://{LOOPBACK}:{silent.getsockname()[1]}"
            for first in (dead, "tcp://127.0.0.3:1"):
                write_endpoint(site.endpoint, replace(endpoint, addresses=(first, endpoint.addresses[1])))
                assert client.query(site) == [{"it": "works"}]
            write_endpoint(site.endpoint, replace(endpoint, addresses=(dead,)))
            with pytest.raises(LauncherGone, match="did not answer within"):
                client.query(site, deadline_s=0.5)
        write_endpoint(site.endpoint, endpoint)
