"""RankPlacement to environment variables: one emitter per OpenMP runtime. Pure.

A process gets the variables of one runtime; those of the others are removed, because a stale one silently overrides
the binding (OMP_PLACES overrides GOMP_CPU_AFFINITY in libgomp, KMP_AFFINITY overrides OMP_PLACES in libomp). CPUs are
explicit numbers: the runtimes interpret abstract place names differently. Sources: OpenMP 5.2, chapter 21; the libgomp
manual, "OpenMP Environment Variables"; Intel's "Thread Affinity Interface".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ompaffinity.messages import ENVIRONMENT_OVERRIDDEN, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ompaffinity.placement.model import Plan, RankPlacement

BINDING_VARIABLES = ("OMP_PLACES", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


TEAM_BREAKERS = (
    "OMP_THREAD_LIMIT",
    "OMP_MAX_ACTIVE_LEVELS",
    "KMP_HW_SUBSET",
    "KMP_PLACE_THREADS",
    "KMP_LIBRARY",
    "KMP_ALL_THREADS",
    "KMP_DEVICE_THREAD_LIMIT",
    "KMP_CPUINFO_FILE",
    "OMP_DYNAMIC_ALL",
    "OMP_MAX_ACTIVE_LEVELS_ALL",
    "OMP_NUM_THREADS_ALL",
    "OMP_PLACES_ALL",
    "OMP_PROC_BIND_ALL",
    "OMP_THREAD_LIMIT_ALL",
)
"""Variables that can restrict a team to one thread, stack all threads on one core, or terminate the process.

The names with ``_ALL`` are from OpenMP 6.0, chapter 4; libiomp5 supports them."""


THREAD_COUNTS = (
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
)
"""Pools that do not read OMP_NUM_THREADS, or read these first: numba, polars and rayon count CPUs otherwise."""
FOLLOWING_COUNTS = ("BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS")
"""Where these are unset, their libraries read OMP_NUM_THREADS."""
OVERRIDING_COUNTS = ("OPENBLAS_DEFAULT_NUM_THREADS", "GOTO_NUM_THREADS", "MKL_DOMAIN_NUM_THREADS")
"""Other names that override a count of OpenBLAS or MKL."""
OTHER_NAMES = {"OPENBLAS_NUM_THREADS": ("OPENBLAS_DEFAULT_NUM_THREADS", "GOTO_NUM_THREADS")}
"""In the order in which OpenBLAS reads them (README, "Setting the number of threads using environment variables")."""


MANAGED_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_DYNAMIC",
    *BINDING_VARIABLES,
    *TEAM_BREAKERS,
    *THREAD_COUNTS,
    *FOLLOWING_COUNTS,
    *OVERRIDING_COUNTS,
)


MAX_KMP_LENGTH = 4000
"""libiomp5 2026.2 ignores values of more than about 4080 characters, with a warning, and binds no thread."""


MIN_INTERVAL = 4
"""Shorter runs of CPUs are listed one by one, which is easier to read and not longer."""


def overridden_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `environ` that would override a plan's binding; workers start without them."""
    found = {name: environ[name] for name in (*BINDING_VARIABLES, *TEAM_BREAKERS) if name in environ}
    if environ.get("OMP_DYNAMIC", "").strip().lower() in ("true", "1"):
        found["OMP_DYNAMIC"] = environ["OMP_DYNAMIC"]
    return found


def environment_messages(environ: Mapping[str, str], plan: Plan) -> list[Message]:
    """Return the messages about variables of `environ` that workers get with another value, or not at all."""
    present = [name for name in MANAGED_VARIABLES if name in environ]
    changed: dict[str, str] = {}
    for placement in plan.ranks if present else ():
        environment, unset = rank_environment(
            placement, runtime=plan.runtime, granularity=plan.granularity, inherited=environ
        )
        for name in present:
            is_replaced = name in environment and not _are_equal(environment[name], environ[name])
            if is_replaced or name in unset:
                changed[name] = environ[name]
    if not changed:
        return []
    values = ", ".join(f"{name}={value!r}" for name, value in changed.items())
    return [ENVIRONMENT_OVERRIDDEN(variables=values)]


def _are_equal(value: str, other: str) -> bool:
    return value.strip().lower() == other.strip().lower()


def rank_environment(
    placement: RankPlacement,
    *,
    runtime: str,
    granularity: str,
    wait_policy: str = "keep",
    inherited: Mapping[str, str] | None = None,
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return (variables to set, names to remove) for the process of one rank.

    `runtime` is ``"gomp"``, ``"iomp"`` or ``"omp"``; `granularity` is ``"thread"`` or ``"team"``. A smaller number of
    threads of a library in the `inherited` environment is kept. Both are empty for a rank without binding.
    """
    if not placement.bound:
        return {}, ()
    environment = {"OMP_NUM_THREADS": str(len(placement.cpus)), "OMP_DYNAMIC": "false"}
    places = placement.places
    if granularity == "team" and len(set(places)) == 1:
        places = places[:1]
    environment.update(_EMITTERS[runtime](places))
    environment.update(_waiting(runtime, wait_policy))
    environment.update(_thread_counts(len(placement.cpus), inherited or {}))
    return environment, tuple(name for name in MANAGED_VARIABLES if name not in environment)


def _thread_counts(planned: int, inherited: Mapping[str, str]) -> dict[str, str]:
    counts = {}
    for name in (*THREAD_COUNTS, *FOLLOWING_COUNTS):
        asked = next((inherited[other] for other in (name, *OTHER_NAMES.get(name, ())) if other in inherited), "")
        digits = asked.strip().lstrip("0")
        # Python refuses to convert thousands of digits.
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= len(str(planned))
        if is_number and int(digits) < planned:
            counts[name] = digits
        elif name in THREAD_COUNTS:
            counts[name] = str(planned)
    return counts


def _standard(places: Sequence[tuple[int, ...]]) -> dict[str, str]:
    # `close`, not `true`: true means spread in libomp, but thread i must get place i.
    return {"OMP_PLACES": ",".join(_place_words(places)), "OMP_PROC_BIND": "close"}


def _gomp(places: Sequence[tuple[int, ...]]) -> dict[str, str]:
    if any(len(place) != 1 for place in places):
        return _standard(places)
    return {"GOMP_CPU_AFFINITY": " ".join(_interval_words([cpu for (cpu,) in places]))}


def _iomp(places: Sequence[tuple[int, ...]]) -> dict[str, str]:
    words: list[str] = []
    singles: list[int] = []
    for place in places:
        if len(place) == 1:
            singles += place
        else:
            words += _interval_words(singles)
            singles.clear()
            words.append("{" + ",".join(map(str, place)) + "}")
    words += _interval_words(singles)
    value = f"granularity=fine,explicit,proclist=[{','.join(words)}]"
    if len(value) > MAX_KMP_LENGTH:
        # A set in a proclist cannot contain intervals, a place of OMP_PLACES can.
        return _standard(places)
    # No other variable is set: a libgomp in the same process would bind the first thread before libiomp5 reads the
    # mask, and libiomp5 warns about each variable that KMP_AFFINITY overrides.
    return {"KMP_AFFINITY": value}


_EMITTERS: dict[str, Callable[[Sequence[tuple[int, ...]]], dict[str, str]]] = {
    "gomp": _gomp,
    "iomp": _iomp,
    "omp": _standard,
}


def _waiting(runtime: str, wait_policy: str) -> dict[str, str]:
    """Return how threads wait between parallel regions: spin (active), sleep (passive), or spin briefly, then sleep."""
    if wait_policy == "keep":
        return {}
    if wait_policy == "brief":
        return _BRIEF[runtime]
    environment = {"OMP_WAIT_POLICY": wait_policy.upper()}
    if runtime == "iomp":
        environment["KMP_BLOCKTIME"] = "infinite" if wait_policy == "active" else "0"
    return environment


_BRIEF = {
    "gomp": {"GOMP_SPINCOUNT": "10000"},
    "iomp": {"KMP_BLOCKTIME": "1"},
    "omp": {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"},
}
"""Spin for about a millisecond at most. Defaults: 300000 iterations in libgomp, 200 ms in libomp and libiomp5."""


def _runs(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the maximal ascending runs of equal strides; short runs are yielded number by number."""
    start = 0
    while start < len(numbers):
        end = start + 1
        while end < len(numbers) and numbers[end] - numbers[end - 1] == numbers[start + 1] - numbers[start] > 0:
            end += 1
        if end - start < MIN_INTERVAL:
            end = start + 1
        yield numbers[start:end]
        start = end


def _stride(first: int, second: int) -> str:
    return "" if second == first + 1 else f":{second - first}"


def _interval_words(numbers: Sequence[int]) -> Iterator[str]:
    """Yield ``0``, ``4-9``, ``0-14:2``: the format of GOMP_CPU_AFFINITY and of the proclist of KMP_AFFINITY."""
    for first, *others in _runs(numbers):
        yield f"{first}-{others[-1]}{_stride(first, others[0])}" if others else str(first)


def _place_words(places: Sequence[tuple[int, ...]]) -> Iterator[str]:
    """Yield ``{1,7}``, ``{2}:6:1``: places of OMP_PLACES (OpenMP 5.2, 21.1.6), runs of single CPUs as intervals."""
    singles: list[int] = []
    for place in (*places, None):
        if place is not None and len(place) == 1:
            singles += place
            continue
        for first, *others in _runs(singles):
            yield f"{{{first}}}:{len(others) + 1}:{others[0] - first}" if others else f"{{{first}}}"
        singles.clear()
        if place is not None:
            yield "{" + ",".join(_members(place)) + "}"


def _members(place: Sequence[int]) -> Iterator[str]:
    """Yield ``0``, ``4:6``, ``0:8:2``: the CPUs of one place of OMP_PLACES, with runs as start, count and stride."""
    for first, *others in _runs(place):
        yield f"{first}:{len(others) + 1}{_stride(first, others[0])}" if others else str(first)
