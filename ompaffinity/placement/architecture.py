"""How each architecture wants its cores used. One row each, with where it comes from."""

from __future__ import annotations

from ompaffinity.records import NamedTuple

ALL = 2**20
"""More threads than any core has."""


class ArchitectureRule(NamedTuple):
    """What is done on an architecture by default.

    Of each core at most `threads_per_core` CPUs get an OpenMP thread: the last ones of those
    allowed if `last`, else the first ones. `reserve_per_rank`: one core is kept from the OpenMP
    threads for each rank; otherwise one in all.
    """

    names: tuple[str, ...]
    threads_per_core: int
    last: bool
    reserve_per_rank: bool
    source: str


RULES = (
    ArchitectureRule(
        ("x86_64", "amd64", "i686", "i586", "i386"),
        threads_per_core=1,
        last=True,
        reserve_per_rank=True,
        source="siblings share the vector units that a GEMM fills; vLLM reserves a core per rank since its PR 53636",
    ),
    ArchitectureRule(
        ("loongarch64",),
        threads_per_core=1,
        last=True,
        reserve_per_rank=True,
        source="as x86_64: SMT-2 with shared vector units (LoongArch reference manual, volume 1)",
    ),
    ArchitectureRule(
        ("aarch64", "arm64", "armv7l", "armv8l"),
        threads_per_core=1,
        last=True,
        reserve_per_rank=True,
        source="every core; the few chips with SMT (Neoverse E1, ThunderX2) as x86_64; vLLM PR 39781 reserves per rank",
    ),
    ArchitectureRule(
        ("riscv64",),
        threads_per_core=1,
        last=True,
        reserve_per_rank=True,
        source="every core, as aarch64; vLLM PR 40427 reserves per rank",
    ),
    ArchitectureRule(
        ("ppc64le", "ppc64"),
        threads_per_core=4,
        last=False,
        reserve_per_rank=False,
        source="the first four threads in any SMT mode: vLLM PR 21032 measured SMT-8 slower; one core in all",
    ),
    ArchitectureRule(
        ("s390x",),
        threads_per_core=1,
        last=True,
        reserve_per_rank=False,
        source="one thread per core of SMT-2, one core in all: vLLM's s390x path",
    ),
)

UNKNOWN_RULE = ArchitectureRule(
    (),
    threads_per_core=1,
    last=True,
    reserve_per_rank=False,
    source="nothing known: one thread per core, one core reserved in all",
)

ARCHITECTURES = ("x86_64", "aarch64", "ppc64le", "s390x", "riscv64", "loongarch64")
"""The names that ``--arch`` takes."""


def rule_for(architecture: str, threads_per_core: int | None = None) -> ArchitectureRule:
    """Return the rule of an architecture as ``uname -m`` names it; `UNKNOWN_RULE` for one that is not in the table.

    With `threads_per_core` that many CPUs of each core get an OpenMP thread.
    """
    rule = next((rule for rule in RULES if architecture in rule.names), UNKNOWN_RULE)
    return rule if threads_per_core is None else rule._replace(threads_per_core=min(threads_per_core, ALL))
