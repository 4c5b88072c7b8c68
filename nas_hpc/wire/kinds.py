"""Who says what."""

from __future__ import annotations

from nas_hpc.wire.messages import (
    Accepted,
    AgentHello,
    AgentNote,
    AgentWelcome,
    Cancel,
    Capacity,
    Dismiss,
    End,
    Hello,
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
    Status,
    Submit,
    Wake,
    Welcome,
)
from nas_hpc.wire.of_jobs import Added, AddJobs, AskChildren, Children, KillJobs
from nas_hpc.wire.of_store import StoreAnswer, StoreCall

OfSearch = Hello | Submit | Cancel | Report
OfCommand = Wake | Query | StoreCall
OfJob = AddJobs | KillJobs | AskChildren
OfAgent = AgentHello | Pulse | RunStarted | RunEnded | AgentNote
ToAgent = AgentWelcome | RunOrder | RunStop | RunsSettled | Dismiss
_Told = Results | Welcome | Capacity | End | Status | Added | Children | StoreAnswer
OfLauncher = Accepted | Refused | _Told | ToAgent
Message = OfSearch | OfCommand | OfJob | OfAgent | OfLauncher
