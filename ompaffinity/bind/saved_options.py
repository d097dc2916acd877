"""Planning options that were measured to be good: what ``compare --save`` writes and ``--options`` reads.

The file holds the options in the form of the command line, and the evidence: on which machine, within which limits and
under which load they were measured, and what they gained.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ompaffinity.bind.plan_files import saved_document
from ompaffinity.errors import RequestError
from ompaffinity.ids import format_id_list
from ompaffinity.messages import OPTIONS_MEASURED_ELSEWHERE
from ompaffinity.placement.environment import completed, options_from_text, options_text, split_options
from ompaffinity.placement.fields import WHOLE, DocumentReader, Source
from ompaffinity.placement.options import OPTIONS_FLAG, OPTIONS_VARIABLE
from ompaffinity.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ompaffinity.messages import Message
    from ompaffinity.placement.fields import Row
    from ompaffinity.topology.model import Topology

SCHEMA = "ompaffinity.options/1"
MAX_TEXT = 4096
MAX_COUNT = 10**9
CPU_INFORMATION = "/proc/cpuinfo"
MODEL_FIELDS = ("model name", "cpu model", "Processor", "cpu")
"""What /proc/cpuinfo calls the model on x86, MIPS, old ARM and POWER."""
MAX_INFORMATION_BYTES = 65536


class MeasuredMachine(NamedTuple):
    """What must be the same for measured options to apply: the machine and the limits.

    `model` is "" where it is unknown, `quota` in hundredths of a CPU, -1 without one.
    """

    architecture: str
    model: str
    cpus: int
    nodes: int
    allowed: tuple[int, ...]
    quota: int

    def differences_to(self, here: MeasuredMachine) -> list[str]:
        """Return what differs on another machine, in words: ``CPU 0-7 allowed, here 0-3``."""
        pairs = [
            ("", self.architecture, here.architecture),
            ("", self.model or here.model, here.model or self.model),
            (" CPUs online", str(self.cpus), str(here.cpus)),
            (" NUMA nodes", str(self.nodes), str(here.nodes)),
            (" allowed", f"CPU {format_id_list(self.allowed)}", f"CPU {format_id_list(here.allowed)}"),
            (" as quota", _quota_in_words(self.quota), _quota_in_words(here.quota)),
        ]
        return [f"{measured}{what}, here {found}" for what, measured, found in pairs if measured != found]

    def to_document(self) -> dict[str, Any]:
        """Return the machine as plain values, ready for JSON."""
        return self._asdict() | {"allowed": format_id_list(self.allowed)}


class SavedOptions(NamedTuple):
    """The options in a file: its name, {field: value}, and the machine that they were measured on."""

    name: str
    options: dict[str, Any]
    machine: MeasuredMachine

    def messages(self, topology: Topology) -> tuple[Message, ...]:
        """Return the warning that this machine, or its limits, are others than those measured; none if they are not."""
        differences = self.machine.differences_to(measured_machine(topology))
        if not differences:
            return ()
        return (OPTIONS_MEASURED_ELSEWHERE(file=self.name, differences="; ".join(differences)),)


class Resolved(NamedTuple):
    """The options that were given, and the environment, with what their files hold; and these files."""

    given: dict[str, Any]
    environ: Mapping[str, str]
    files: tuple[SavedOptions, ...] = ()

    def messages(self, topology: Topology) -> list[Message]:
        """Return the warnings about options that were measured elsewhere."""
        return [message for file in self.files for message in file.messages(topology)]


def resolved(given: Mapping[str, Any], environ: Mapping[str, str]) -> Resolved:
    """Return planning options with those of the file in `given["options"]`, or in OMPAFFINITY_OPTIONS.

    An option that is given, or that stands beside the file in the variable, has precedence over that in the file.

    Raises:
        RequestError: a file cannot be read, or holds anything but planning options.
    """
    rest = {name: value for name, value in given.items() if name != "options"}
    files: tuple[SavedOptions, ...] = ()
    path, others = split_options(environ.get(OPTIONS_VARIABLE, ""))
    if path is not None:
        saved = read_saved_options(path)
        files = (saved,)
        environ = {**environ, OPTIONS_VARIABLE: options_text(completed(options_from_text(others), saved.options))}
    if given.get("options") is not None:
        saved = read_saved_options(given["options"])
        files += (saved,)
        rest = completed(rest, saved.options)
    return Resolved(rest, environ, files)


def read_saved_options(path: str | os.PathLike[str]) -> SavedOptions:
    """Return the options that ``compare --save`` wrote to a file.

    Raises:
        RequestError: it cannot be read, or holds anything but planning options.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise RequestError(f"{OPTIONS_FLAG} is {path!r}; it must be a file that `ompaffinity compare --save` wrote")
    source = Source(
        f"{OPTIONS_FLAG} {os.fspath(path)}",
        "is not what `ompaffinity compare --save` writes",
        "pass a file that `ompaffinity compare --save` wrote",
    )
    row = DocumentReader(source).row(WHOLE, saved_document(path, source))
    if row.text("schema", MAX_TEXT) != SCHEMA:
        raise row.invalid("schema", repr(SCHEMA))
    options = options_from_text(row.text("options", MAX_TEXT), source.name)
    return SavedOptions(os.path.basename(os.fspath(path)), options, _machine(row.row("machine")))


def _machine(row: Row) -> MeasuredMachine:
    return MeasuredMachine(
        row.text("architecture", MAX_TEXT),
        row.text("model", MAX_TEXT),
        row.integer("cpus", 0, MAX_COUNT),
        row.integer("nodes", 0, MAX_COUNT),
        row.id_list("allowed"),
        row.integer("quota", -1, MAX_COUNT),
    )


def measured_machine(topology: Topology) -> MeasuredMachine:
    """Return what of a machine and its limits decides whether measured options apply."""
    quota = topology.limits.cpu_quota
    return MeasuredMachine(
        topology.architecture,
        _model() if topology.live else "",
        sum(cpu.online for cpu in topology.cpus),
        len(topology.nodes),
        topology.allowed_cpus,
        -1 if quota is None else round(100 * quota),
    )


def _model() -> str:
    """Return the model of the first CPU (/proc/cpuinfo), "" where the kernel does not name it."""
    try:
        with open(CPU_INFORMATION, encoding="utf-8", errors="replace") as file:
            lines = file.read(MAX_INFORMATION_BYTES).splitlines()
    except OSError:
        return ""
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    return next((fields[name][:MAX_TEXT] for name in MODEL_FIELDS if fields.get(name)), "")


def _quota_in_words(quota: int) -> str:
    return "no quota" if quota < 0 else f"{quota / 100:g} CPUs"
