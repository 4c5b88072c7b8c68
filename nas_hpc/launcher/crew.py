"""Who runs attempts where: the launcher's own agent, and agents of other nodes that reach it by its endpoint.

An agent of another node may be away for a moment (its process was killed and its supervisor starts another,
or its connection broke): orders for it are kept. What it ran is lost when a new process says Hello in its
place and presents it neither as running nor as ended, or when nothing was heard of it for ``SILENCE_S``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nas_hpc import __version__
from nas_hpc.launcher.remotes import Remote, Task, ended_of, never_began, order_body, stop_of
from nas_hpc.processes.orders import Ended, Key, Order, Runner, Started
from nas_hpc.states import Outcome
from nas_hpc.wire import (
    PROTOCOL,
    AgentHello,
    AgentNote,
    AgentWelcome,
    Dismiss,
    End,
    Message,
    OfAgent,
    Pulse,
    RunEnded,
    RunOrder,
    RunsSettled,
    RunStarted,
)

SILENCE_S = 30.0
"""So long after the last word of an agent it is taken for lost."""
PULSE_S = 10.0


@dataclass(frozen=True, slots=True)
class CrewHooks:
    """Whom the crew tells; all are called in the loop."""

    send: Callable[[bytes, Message], bool]
    started: Callable[[Started], None]
    ended: Callable[[Ended], None]
    lost: Callable[[Collection[Key], str], None]
    """Nobody will report the ends of these, for this reason."""
    arrived: Callable[[Remote, AgentHello], None]
    """An agent has said Hello: ``welcome`` it once it is settled what goes on of what it presents."""
    away: Callable[[Remote], None]
    """Nothing is to be placed on its nodes until it arrives again."""
    note: Callable[[str], None]


class Crew:
    """Routes orders by their node: to ``local``, or to the remote agent whose node it is.

    ``ensemble`` identifies the start that the remote agents belong to (empty: there are none), ``nodes`` are
    those of each number. ``aliases`` gives the number that belongs to a host's name, where each host has one
    agent: an MPI program may number them in another order.
    """

    def __init__(
        self,
        *,
        epoch: str,
        local: Runner,
        hooks: CrewHooks,
        ensemble: str = "",
        nodes: Sequence[tuple[str, ...]] = (),
        aliases: Mapping[str, int] | None = None,
        grace_s: float = 10.0,
        fresh_interpreter: bool = False,
        result_grace_s: float = 10.0,
        task_directories: str = "each",
        stage_environment: str = "",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoch, self._local, self._hooks = epoch, local, hooks
        self._ensemble, self._aliases = ensemble, aliases or {}
        self._grace_s, self._fresh = grace_s, fresh_interpreter
        self._files = result_grace_s, task_directories, stage_environment
        self.remotes = [Remote(number, names) for number, names in enumerate(nodes)]
        self._of_node = {name: remote for remote in self.remotes for name in remote.nodes}
        self._of_peer: dict[bytes, Remote] = {}
        self._of_key: dict[Key, Remote] = {}
        """Where the attempts are whose end was not reported."""
        self._reported: dict[Key, Remote] = {}
        """Whose end was, and is not committed yet."""
        self._refused: set[str] = set()
        self._closing = False

    # -- what the dispatcher asks --------------------------------------------------------------------------
    def start(self, order: Order) -> None:
        """Run an attempt on ``order.node``; its end is reported whatever happens."""
        remote = self._of_node.get(order.node)
        if remote is None:
            self._local.start(order)
            return
        remote.tasks[order.key] = Task(order)
        self._of_key[order.key] = remote
        if remote.welcomed:
            self._order(remote, order.key)

    def stop(self, key: Key, outcome: Outcome, reason: str) -> None:
        """Ask an attempt to end; after the grace its agent forces it. One on an agent that is away is given
        up after the grace."""
        remote = self._of_key.get(key)
        if remote is None:
            self._local.stop(key, outcome, reason)
            return
        task = remote.tasks[key]
        if task.stop is not None:
            return
        task.stop = (outcome, reason, False)
        if not task.sent_to:
            self._forget(key)
            self._hooks.ended(never_began(key, outcome, reason))
        elif not (remote.welcomed and self._tell(remote, stop_of(key, task))):
            self._loop.call_later(self._grace_s, self._give_up, key)

    def kill_all(self) -> None:
        """Force everything to end now."""
        self._local.kill_all()
        for key, remote in list(self._of_key.items()):
            task = remote.tasks[key]
            outcome, reason, _ = task.stop or (Outcome.LOST, "its launcher ended at once", True)
            task.stop = (outcome, reason, True)
            if not (remote.welcomed and self._tell(remote, stop_of(key, task))):
                self._give_up(key)

    def running(self) -> set[Key]:
        """Attempts whose end was not reported."""
        return self._local.running() | set(self._of_key)

    def settled(self, keys: Iterable[Key]) -> None:
        """The ends of these are committed: their agents need not remember them."""
        own = []
        by_remote: dict[Remote, list[Key]] = {}
        for key in keys:
            remote = self._reported.pop(key, None)
            if remote is None:
                own.append(key)
            else:
                by_remote.setdefault(remote, []).append(key)
        self._local.settled(own)
        for remote, done in by_remote.items():
            if remote.welcomed:
                self._tell(remote, RunsSettled(tuple(done)))

    async def close(self) -> None:
        """End everything that runs here; the remote agents end themselves, and what they run."""
        self.dismiss("the launcher has ended")
        await self._local.close()

    def dismiss(self, reason: str) -> None:
        """Send all remote agents away for good."""
        self._closing = True
        for remote in self.remotes:
            if remote.peer:
                self._hooks.send(remote.peer, Dismiss(reason))
            self._leave(remote)

    async def abandon(self) -> None:
        """Another launcher has taken the agents over: end what runs here, and say nothing to them."""
        self._closing = True
        for remote in self.remotes:
            self._leave(remote)
        await self._local.close()

    # -- what agents say -----------------------------------------------------------------------------------
    def receive(self, peer: bytes, message: OfAgent) -> None:
        """Handle a message of a remote agent."""
        if isinstance(message, AgentHello):
            self._hello(peer, message)
            return
        remote = self._of_peer.get(peer)
        if remote is None:
            return  # somebody else is that agent now
        remote.heard = self._now()
        if isinstance(message, AgentNote):
            self._hooks.note(f"{remote.host or remote.name}: {message.text}")
        elif isinstance(message, Pulse):
            return
        elif remote.welcomed:
            self._take(remote, message)
        else:
            remote.early.append(message)

    def _hello(self, peer: bytes, hello: AgentHello) -> None:
        if hello.protocol != PROTOCOL or hello.version != __version__:
            other = f"nas-hpc {hello.version} (protocol {hello.protocol})"
            said = f"an agent of {other} on {hello.host} cannot serve nas-hpc {__version__} ({PROTOCOL})"
            self._refuse(peer, said)
            return
        if self._closing or hello.ensemble != self._ensemble:
            self._hooks.send(peer, Dismiss("it belongs to a launch that is over"))
            return
        remote = self._remote_of(hello)
        if remote is None:
            names = ", ".join(hello.names) or hello.host
            self._refuse(peer, f"agent {hello.number} on {names} serves no node of this allocation")
            return
        if remote.peer and remote.peer != peer and remote.incarnation != hello.incarnation:
            self._hooks.send(remote.peer, Dismiss("another process has taken its place"))
        self._leave(remote)
        remote.peer, remote.heard, remote.state = peer, self._now(), "here"
        self._of_peer[peer] = remote
        remote.host, remote.label, remote.incarnation = hello.host, hello.number, hello.incarnation
        self._hooks.arrived(remote, hello)

    def _refuse(self, peer: bytes, said: str) -> None:
        self._hooks.send(peer, End(said))
        if said not in self._refused:
            self._refused.add(said)
            self._hooks.note(said)

    def _remote_of(self, hello: AgentHello) -> Remote | None:
        for name in (*hello.names, hello.host):
            for known in (name, name.partition(".")[0]):
                if known in self._aliases:
                    return self.remotes[self._aliases[known]]
        if not 0 <= hello.number < len(self.remotes):
            return None
        numbered = self.remotes[hello.number]
        strange = self._aliases and numbered.peer and numbered.incarnation != hello.incarnation
        return None if strange else numbered  # that node has its agent; this one's names are not known

    def _compare(self, remote: Remote, hello: AgentHello) -> None:
        """What was sent to it, and what it knows of: what is in neither never arrived, or is gone."""
        running, ended = set(hello.running), {(end.job, end.attempt) for end in hello.ended}
        gone = []
        for key, task in remote.tasks.items():
            if key in running or key in ended:
                task.order, task.sent_to = None, hello.incarnation
            elif task.sent_to == hello.incarnation and task.order is not None:
                task.sent_to = ""  # it was on its way when the connection broke
            elif task.sent_to:
                gone.append(key)
        if gone:
            self._lose(gone, f"its {remote.name} was started again")

    def adopt(self, remote: Remote, incarnation: str, keys: Iterable[Key]) -> None:
        """That process of the agent presented these attempts of an earlier launcher; they are ours now."""
        for key in keys:
            remote.tasks[key] = Task(None, incarnation)
            self._of_key[key] = remote

    def welcome(self, remote: Remote, hello: AgentHello) -> None:
        """The agent works from now on: ``hello`` is its last, and all that was to be adopted is."""
        if self._closing or not remote.peer or remote.welcomed:
            return
        self._compare(remote, hello)
        stop = tuple(key for key in hello.running if key not in remote.tasks)
        remote.welcomed = True
        self._tell(
            remote,
            AgentWelcome(
                PROTOCOL, self._epoch, remote.nodes, self._grace_s, PULSE_S, self._fresh, stop, *self._files
            ),
        )
        for end in hello.ended:
            self._take(remote, end)
        early, remote.early = remote.early, []
        for message in early:
            self._take(remote, message)
        for key, task in list(remote.tasks.items()):
            if not task.sent_to:
                self._order(remote, key)
            elif task.stop is not None:
                self._tell(remote, stop_of(key, task))

    def _take(self, remote: Remote, message: Message) -> None:
        if isinstance(message, RunStarted):
            key = (message.job, message.attempt)
            if key in remote.tasks:
                remote.tasks[key].order = None
                self._hooks.started(Started(key, message.pid, message.time))
        elif isinstance(message, RunEnded):
            key = (message.job, message.attempt)
            if key in remote.tasks:
                self._forget(key)
                self._reported[key] = remote
                self._hooks.ended(ended_of(message))
            elif key not in self._reported:
                self._tell(remote, RunsSettled((key,)))

    # -- sending -------------------------------------------------------------------------------------------
    def _order(self, remote: Remote, key: Key) -> None:
        task = remote.tasks[key]
        assert task.order is not None
        if self._tell(remote, RunOrder(order_body(task.order))):
            task.sent_to = remote.incarnation

    def _tell(self, remote: Remote, message: Message) -> bool:
        if remote.peer and self._hooks.send(remote.peer, message):
            return True
        self._break(remote)
        return False

    # -- agents that are gone ------------------------------------------------------------------------------
    def _leave(self, remote: Remote) -> None:
        self._of_peer.pop(remote.peer, None)
        remote.peer, remote.welcomed = b"", False
        remote.early.clear()

    def _break(self, remote: Remote) -> None:
        """Its connection is gone; it may come back."""
        if remote.state == "here":
            self._leave(remote)
            remote.state = "away"
            self._hooks.away(remote)

    def gone(self, number: int, incarnation: str) -> list[Key]:
        """This process of an agent is known to have ended. What it ran, of which nobody will hear more."""
        remote = self.remotes[number]
        if remote.incarnation == incarnation:
            self._break(remote)
        sent = [key for key, task in remote.tasks.items() if task.sent_to == incarnation]
        for key in sent:
            self._forget(key)
        return sent

    def look(self) -> None:
        """Give up agents that were silent for too long; to be called every few seconds."""
        for remote in self.remotes:
            if remote.state in ("here", "away") and self._now() - remote.heard > SILENCE_S:
                self._hooks.note(f"{remote.name} was silent for {SILENCE_S:g} s: what it ran is lost")
                self._break(remote)
                remote.state = "lost"
                self._lose(list(remote.tasks), f"its {remote.name} was silent for {SILENCE_S:g} s")

    def _give_up(self, key: Key) -> None:
        remote = self._of_key.get(key)
        if remote is not None and not remote.welcomed:
            self._lose([key], f"its {remote.name} is away")

    def _lose(self, keys: Collection[Key], reason: str) -> None:
        for key in keys:
            self._forget(key)
        self._hooks.lost(keys, reason)

    def _forget(self, key: Key) -> None:
        del self._of_key[key].tasks[key], self._of_key[key]

    def _now(self) -> float:
        return self._loop.time()
