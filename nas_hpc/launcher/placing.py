"""Where jobs may run in one allocation: the launcher's rules above the pool's arithmetic.

What never fits is refused with its numbers; every running search keeps room for an evaluation; and where
searches hold what their own evaluations need, so that nothing can move any more, it is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from nas_hpc.errors import PlacementError
from nas_hpc.launcher import policy
from nas_hpc.records import Attempt, Job, Node, Resources
from nas_hpc.resources import Placement, Pool, Request, compress
from nas_hpc.resources.slots import EndOf

_SMALLEST = Fraction(1, 64)
"""The least of a node that an evaluation is thought to need in serial mode."""


class Placing:
    """The rules of one launcher's allocation. Times are UTC seconds."""

    def __init__(self, pool: Pool, mode: str, mpi_packing: int = 1) -> None:
        self.pool, self._mode, self._packing = pool, mode, mpi_packing
        self.agents = False
        """Agents will tell what their nodes have."""
        self._smallest = Request(share=Fraction(1, mpi_packing) if mode == "mpi" else _SMALLEST)
        self._searches: dict[int, str] = {}
        """Placement (its id) and job of each search that holds a share of a node."""
        self._wants: dict[str, Request] = {}
        """What each evaluation of a search asks for, once it has said so."""
        self._verdicts: dict[tuple[Resources, bool], tuple[str, Job]] = {}
        """Why a job, and all that ask for the same, can never run here."""
        self.ends_of: Callable[[], EndOf] = lambda: lambda placement: (0.0, True)
        """When placements end (infinity: not for others' sake), and whether that is a guess."""
        self.latest_start: Callable[[Job], float] = lambda job: float("inf")
        """After that time a job is not started any more."""

    # -- what it is ----------------------------------------------------------------------------------
    def request_of(self, job: Job, *, search: bool) -> Request:
        """What the job occupies here; on an allocation of one node a search shares it with its evaluators."""
        shares = search and len(self.pool.nodes) == 1
        return policy.request_of(job, self._mode, shares_node=shares, mpi_packing=self._packing)

    def never(self, job: Job, *, search: bool) -> str:
        """Why this allocation cannot ever run ``job``; empty if it can."""
        key = (job.resources, search)
        try:
            if key not in self._verdicts:
                self._verdicts[key] = self._never(job, search), job
            return self._verdicts[key][0]
        except (PlacementError, ArithmeticError, TypeError) as error:
            return f"its resources make no sense: {error}"

    def _never(self, job: Job, search: bool) -> str:
        request = self.request_of(job, search=search)
        nodes, guessed = self.pool.job_nodes, self.pool.guessed
        if not self.pool.could_ever(request, told=self.agents):
            most = max((len(node.gpus) for node in nodes), default=0)
            gpus = f", the best with {most} GPUs" if request.gpus else ""
            advice = " as far as is known: give --gpus-per-node" if request.gpus and guessed else ""
            return f"it asks for {request}; {_count(len(nodes), 'node')} may be used{gpus}{advice}"
        known = [node for node in nodes if node.name not in guessed]
        too_many = policy.too_many_threads(job.resources, known, unknown=len(nodes) - len(known))
        if too_many:
            return too_many
        left = len(nodes) - request.num_nodes * request.share
        if search and not (left >= self._smallest.share if self._mode == "mpi" else left > 0):
            return (
                f"a search that takes {request.share} of a node leaves no evaluator on "
                f"{_count(len(self.pool.nodes), 'node')} in {self._mode} mode ({len(nodes)} of them for "
                "jobs); give more nodes or a larger --node-packing-count"
            )
        return ""

    def updated(self, node: Node) -> tuple[bool, bool]:
        """A node has these cores and GPUs. Whether something can run now that could not, and the contrary."""
        before, self._verdicts = self._verdicts, {}
        self.pool.update(node)
        now = [(why, self.never(job, search=search)) for (_, search), (why, job) in before.items()]
        return any(old and not new for old, new in now), any(new and not old for old, new in now)

    # -- placing -------------------------------------------------------------------------------------
    @property
    def version(self) -> int:
        """Grows when ``keep`` may give another answer than None."""
        return self.pool.version

    def wants(self, search: str, request: Request) -> None:
        """Each evaluation of this running search asks for so much."""
        self._wants[search] = request

    def place(self, job: Job, request: Request, *, search: bool, on_kept: bool) -> Placement | None:
        """Take a place for ``job``, if that leaves every search room for an evaluation."""
        needed = () if job.creator else self._needed()
        placement = self.pool.place(request, lasting=not job.creator, on_held=on_kept)
        if placement is None or job.creator:
            return placement
        if request.share and not self._room_is_left(search, needed, self.pool.capacity):
            self.pool.free(placement)
            return None
        if search:
            self._searches[id(placement)] = job.id
        return placement

    def retake(self, job: Job, attempt: Attempt, *, search: bool) -> Placement:
        """Take the place of an attempt that runs already. Raises PlacementError if it is not free."""
        request = self.request_of(job, search=search)
        placement = self.pool.retake(
            request, attempt.nodes, attempt.cores, attempt.gpus, lasting=not job.creator
        )
        if search:
            self._searches[id(placement)] = job.id
        return placement

    def free(self, placement: Placement) -> None:
        """Give a place back."""
        self.pool.free(placement)
        search = self._searches.pop(id(placement), None)
        if search is not None:
            self._wants.pop(search, None)

    def _needed(self) -> tuple[Request, ...]:
        """What evaluations of searches ask for that fit now."""
        return tuple(filter(self.pool.capacity, set(self._wants.values())))

    def _room_is_left(
        self, search: bool, needed: Iterable[Request], capacity: Callable[[Request], int]
    ) -> bool:
        """Whether every search, the new one too, has room for an evaluation when ``capacity`` is left."""
        searches = len(self._searches) + search
        return not searches or (capacity(self._smallest) >= searches and all(map(capacity, needed)))

    # -- who is next ---------------------------------------------------------------------------------
    def keep(self, job: Job, request: Request, *, search: bool, now: float) -> tuple[float, bool] | None:
        """Keep the nodes free on which ``job`` can run first, if it can run on them then."""
        found = self.pool.soonest(request, self.ends_of(), now)
        if found is None or (not found.guessed and found.when > self.latest_start(job)):
            return None
        if not job.creator and request.share:

            def then(other: Request) -> int:
                return self.pool.would_hold(other, request, found.nodes)

            if not self._room_is_left(search, self._needed(), then):
                return None
        self.pool.hold(found.nodes)
        return found.when, found.guessed

    def keep_none(self) -> None:
        """No node is kept free."""
        if self.pool.held:
            self.pool.hold(())

    # -- why -----------------------------------------------------------------------------------------
    def why_not(self, job: Job, request: Request, *, is_next: bool) -> str:
        """Why there is no place for a waiting job now; "" if for no particular reason."""
        aside = self.pool.aside
        without = f"; nothing is placed on {compress(aside)} for the time being" if aside else ""
        if is_next and self.pool.held:
            return f"it is the next: {compress(self.pool.held)} is kept free for it{without}"
        if request.share == 0 and not request.gpus:
            return without.removeprefix("; ")
        if job.creator and not self.pool.capacity(request):
            return f"there is no room for it beside the jobs that are no evaluations{without}"
        probe = self.pool.place(request)
        if probe is not None:
            self.pool.free(probe)
            return f"every running search keeps room for an evaluation{without}"
        return without.removeprefix("; ")


def deadlock(searches: Sequence[tuple[Job, Placement]], waiting: Iterable[Request]) -> str:
    """What to say when only these searches run, and nothing that waits fits beside them."""
    names = dict.fromkeys(node for _, placement in searches for node in placement.nodes)
    who = " and ".join(f"{job.name} ({job.id[:8]})" for job, _ in searches)
    wanted = " or ".join(sorted({str(request) for request in waiting}))
    some, hold = ("search", "holds") if len(searches) == 1 else ("searches", "hold")
    return (
        f"nothing can move: {some} {who} {hold} {compress(names)}, and what waits asks for {wanted}, "
        f"which is not left: end one (nas-hpc kill {searches[0][0].id[:8]}), or give more nodes"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
