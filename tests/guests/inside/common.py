"""What tests inside of a guest do: run commands, read files, and work in a child that keeps its binding to itself."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import textwrap
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ompaffinity.ids import parse_id_list

if TYPE_CHECKING:
    from collections.abc import Callable

DESCRIPTION = Path("/guest.json")
NODES = Path("/sys/devices/system/node")


def description() -> dict[str, Any]:
    """Return the description of this guest that QEMU was started with."""
    loaded: dict[str, Any] = json.loads(DESCRIPTION.read_text())
    loaded["nodes"] = {int(number): node for number, node in loaded["nodes"].items()}
    return loaded


def run(*command: str, **environment: str) -> str:
    """Return what a command prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def ompaffinity(*arguments: str) -> Any:
    """Return the JSON that ``python -m ompaffinity ... --json`` prints."""
    return json.loads(run(sys.executable, "-m", "ompaffinity", *arguments, "--json"))


def in_child(work: Callable[[], object]) -> Any:
    """Call a function in a forked child, whose binding ends with it; return what it returns, as JSON has it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = json.dumps({"answer": work()})
        except BaseException:  # noqa: BLE001
            answer = json.dumps({"failed": traceback.format_exc()})
        os.write(writer, answer.encode())
        # Nothing of pytest's may run in the child.
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"the child ended with {status}"
    reported = json.loads(text)
    assert "answer" in reported, reported["failed"]
    return reported["answer"]


def in_new_python(code: str) -> Any:
    """Run code in a new Python, which shares no page with this one; return what it assigns to `answer`."""
    program = f"import json\n{textwrap.dedent(code)}\nprint(json.dumps(answer))"
    return json.loads(run(sys.executable, "-c", program).splitlines()[-1])


def ids(path: str | Path) -> list[int]:
    return list(parse_id_list(Path(path).read_text()))


def nodes_with_memory() -> list[int]:
    """Return the nodes that have memory by the kernel's own list; none where it has no nodes."""
    return ids(NODES / "has_memory") if NODES.exists() else []


def touched(mebibytes: int) -> mmap.mmap:
    """Return memory of this process alone, every page of it written to, and none of them huge."""
    memory = mmap.mmap(-1, mebibytes * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for start in range(0, len(memory), mmap.PAGESIZE):
        memory[start] = 1
    return memory


def nodes_of(memory: mmap.mmap) -> dict[int, int]:
    """Return {node: number of pages}, as move_pages(2) reports each page."""
    from ompaffinity.bind.mempolicy import load_libnuma

    count = len(memory) // mmap.PAGESIZE
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    pages = (ctypes.c_void_p * count)(*range(start, start + len(memory), mmap.PAGESIZE))
    status = (ctypes.c_int * count)()
    assert load_libnuma().move_pages(0, ctypes.c_ulong(count), pages, None, status, 0) == 0
    return dict(Counter(status))
