"""A stand-in for AMD's driver library: every function that the installed amdsmi wants, a few of them real.

Its plan, in the file that $OMPAFFINITY_AMDSMI_PLAN names, has a line per GPU: ``gpu bdf=0000:c1:00.0 node=1 uuid=... ``
(``error=2`` instead of a node, ``hip=3`` for the number that HIP gives it), or ``init_error 34``.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

SOURCE = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct gpu { int node, error, hip; uint64_t bdf; char uuid[40]; };
static struct gpu gpus[16];
static int count, ready;
static int load(void) {
    char line[512];
    FILE *file = fopen(getenv("OMPAFFINITY_AMDSMI_PLAN"), "r");
    int status = 0;
    count = 0;
    memset(gpus, 0, sizeof gpus);
    while (file && fgets(line, sizeof line, file)) {
        struct gpu *gpu = &gpus[count];
        unsigned domain, bus, device, function;
        if (sscanf(line, "init_error %d", &status) == 1) continue;
        if (strncmp(line, "gpu ", 4)) continue;
        gpu->hip = count;
        for (char *save = 0, *word = strtok_r(line + 4, " \n", &save); word; word = strtok_r(0, " \n", &save)) {
            sscanf(word, "node=%d", &gpu->node);
            sscanf(word, "hip=%d", &gpu->hip);
            sscanf(word, "error=%d", &gpu->error);
            sscanf(word, "uuid=%39s", gpu->uuid);
            if (sscanf(word, "bdf=%x:%x:%x.%x", &domain, &bus, &device, &function) == 4)
                gpu->bdf = (uint64_t)domain << 16 | bus << 8 | device << 3 | function;
        }
        count++;
    }
    if (file) fclose(file);
    return status;
}
int amdsmi_init(uint64_t flags) { int status = load(); ready = !status; return status; }
int amdsmi_shut_down(void) { ready = 0; return 0; }
int amdsmi_get_socket_handles(uint32_t *n, void **out) {
    if (!ready) return 32;
    if (out) out[0] = (void *)1;
    *n = 1;
    return 0;
}
int amdsmi_get_processor_handles(void *socket, uint32_t *n, void **out) {
    for (int at = 0; out && at < count; at++) out[at] = &gpus[at];
    *n = count;
    return 0;
}
int amdsmi_get_gpu_topo_numa_affinity(struct gpu *gpu, int32_t *out) { *out = gpu->node; return gpu->error; }
int amdsmi_topo_get_numa_node_number(struct gpu *gpu, uint32_t *out) { *out = 1633906540; return 0; }
int amdsmi_get_gpu_device_bdf(struct gpu *gpu, uint64_t *out) { *out = gpu->bdf; return 0; }
int amdsmi_get_gpu_device_uuid(struct gpu *gpu, uint32_t *n, char *out) {
    snprintf(out, *n, "%s", gpu->uuid);
    return 0;
}
struct numbers { uint32_t render, card, hsa, hip; char uuid[256]; };
int amdsmi_get_gpu_enumeration_info(struct gpu *gpu, struct numbers *out) {
    memset(out, 0, sizeof *out);
    out->hip = gpu->hip;
    snprintf(out->uuid, sizeof out->uuid, "GPU-%s", gpu->uuid);
    return 0;
}
int amdsmi_status_code_to_string(int status, const char **out) { *out = "as the plan says"; return 0; }
"""


def build(wrapper: Path, folder: Path) -> None:
    """Write lib/libamd_smi.so into a folder, which ROCM_PATH then names."""
    wanted = set(re.findall(r"_libraries\['libamd_smi\.so'\]\.(\w+)", wrapper.read_text()))
    real = set(re.findall(r"^int (\w+)\(", SOURCE, re.MULTILINE))
    # The rest reports that it is not supported.
    rest = "".join(f"int {name}(void) {{ return 2; }}\n" for name in sorted(wanted - real))
    (folder / "lib").mkdir()
    subprocess.run(
        ["gcc", "-O1", "-w", "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / "lib" / "libamd_smi.so")],
        input=SOURCE + rest,
        text=True,
        check=True,
    )
