"""Messages between searches, jobs, commands, agents and the launcher.

A message is one frozen dataclass of ``messages``, ``of_jobs`` or ``of_store``, sent as msgpack: its class's
name and its fields in order.
Both sides state ``PROTOCOL`` in their first message and refuse another number. The transport is a
ZeroMQ DEALER or ROUTER socket with CURVE; keys and address stand in the endpoint file (mode 0600).
"""

from __future__ import annotations

from nas_hpc.wire.codec import PROTOCOL, pack, unpack
from nas_hpc.wire.endpoint import (
    ENDPOINT_VARIABLE,
    Endpoint,
    endpoint_file,
    endpoint_files,
    read_endpoint,
    write_endpoint,
)  # fmt: skip
from nas_hpc.wire.kinds import Message, OfAgent, OfCommand, OfJob, OfLauncher, OfSearch, ToAgent
from nas_hpc.wire.messages import (
    Accepted,
    AgentHello,
    AgentNote,
    AgentWelcome,
    Ask,
    Cancel,
    Capacity,
    Dismiss,
    Done,
    End,
    Hello,
    Pending,
    Pulse,
    Query,
    Refused,
    Report,
    Results,
    RunEnded,
    RunOrder,
    RunsSettled,
    RunStarted,
    RunStop,
    Shape,
    Status,
    Submit,
    Wake,
    Welcome,
)  # fmt: skip
from nas_hpc.wire.of_jobs import Added, AddJobs, AskChildren, Child, Children, KillJobs, NewJob
from nas_hpc.wire.of_store import StoreAnswer, StoreCall

__all__ = [
    "Accepted", "AddJobs", "Added", "AgentHello", "AgentNote", "AgentWelcome", "Ask", "AskChildren", "Cancel",
    "Capacity", "Child", "Children", "Dismiss", "Done", "ENDPOINT_VARIABLE", "End", "Endpoint", "Hello",
    "KillJobs", "Message", "NewJob", "OfAgent", "OfCommand", "OfJob", "OfLauncher", "OfSearch", "PROTOCOL",
    "Pending", "Pulse", "Query", "Refused", "Report", "Results", "RunEnded", "RunOrder", "RunStarted",
    "RunStop", "RunsSettled", "Shape", "Status", "StoreAnswer", "StoreCall", "Submit", "ToAgent", "Wake",
    "Welcome", "endpoint_file", "endpoint_files", "pack", "read_endpoint", "unpack", "write_endpoint",
]  # fmt: skip
