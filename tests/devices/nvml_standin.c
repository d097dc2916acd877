/* A stand-in for NVIDIA's libnvidia-ml.so.1: the driver that the tests lack.
 *
 * At nvmlInit it reads the file that $OMPAFFINITY_NVML_PLAN names, a line per fact:
 *   init_error CODE          nvmlInit fails so
 *   gpu KEY=VALUE ...        a GPU, numbered by the order of the lines; the keys are
 *     bus, uuid, name        what they say
 *     own=N                  its memory is NUMA node N (else: not supported)
 *     memory=HEX[,HEX...]    the memory affinity, words of 64 bits, the lowest first (else: not supported)
 *     cpu=HEX[,HEX...]       the CPU affinity, likewise
 *     mig=UUID[;UUID...]     its MIG instances
 *     lost=1                 every question about it is answered with GPU_IS_LOST
 * Built with -DOLD_DRIVER it lacks the functions that came later.
 * Source: the NVML API reference; the error codes are those of nvml.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, GPU_IS_LOST = 15 };
enum { MOST_GPUS = 32, MOST_WORDS = 64, MOST_PARTS = 8, TEXT = 96 };

typedef struct {
    int count;
    unsigned long words[MOST_WORDS];
} mask_t;

typedef struct gpu {
    char bus[TEXT], uuid[TEXT], name[TEXT];
    int own, lost, number, parts;
    mask_t memory, cpu;
    struct gpu *parent, *part[MOST_PARTS];
} gpu_t;

static gpu_t gpus[MOST_GPUS];
static int count, users, init_error;

static mask_t parse_mask(char *text) {
    mask_t mask = {0};
    char *state = NULL;
    for (char *word = strtok_r(text, ",", &state); word && mask.count < MOST_WORDS; word = strtok_r(NULL, ",", &state))
        mask.words[mask.count++] = strtoul(word, NULL, 16);
    return mask;
}

static void parse_parts(gpu_t *gpu, char *text) {
    char *state = NULL;
    for (char *uuid = strtok_r(text, ";", &state); uuid && gpu->parts < MOST_PARTS; uuid = strtok_r(NULL, ";", &state)) {
        gpu_t *part = calloc(1, sizeof *part);
        snprintf(part->uuid, TEXT, "%s", uuid);
        part->parent = gpu;
        part->number = gpu->parts;
        gpu->part[gpu->parts++] = part;
    }
}

static void parse_gpu(char *state) {
    gpu_t *gpu = &gpus[count];
    gpu->number = count++;
    gpu->own = -1;
    snprintf(gpu->name, TEXT, "Stand-in GPU");
    for (char *word = strtok_r(NULL, " \t\n", &state); word; word = strtok_r(NULL, " \t\n", &state)) {
        char *value = strchr(word, '=');
        if (!value) continue;
        *value++ = 0;
        if (!strcmp(word, "bus")) snprintf(gpu->bus, TEXT, "%s", value);
        if (!strcmp(word, "uuid")) snprintf(gpu->uuid, TEXT, "%s", value);
        if (!strcmp(word, "name")) snprintf(gpu->name, TEXT, "%s", value);
        if (!strcmp(word, "own")) gpu->own = atoi(value);
        if (!strcmp(word, "lost")) gpu->lost = atoi(value);
        if (!strcmp(word, "memory")) gpu->memory = parse_mask(value);
        if (!strcmp(word, "cpu")) gpu->cpu = parse_mask(value);
        if (!strcmp(word, "mig")) parse_parts(gpu, value);
    }
}

static void load(void) {
    const char *path = getenv("OMPAFFINITY_NVML_PLAN");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[8192];
    count = init_error = 0;
    memset(gpus, 0, sizeof gpus);
    while (file && fgets(line, sizeof line, file)) {
        char *state = NULL, *word = strtok_r(line, " \t\n", &state);
        if (word && !strcmp(word, "init_error")) init_error = atoi(strtok_r(NULL, " \t\n", &state));
        if (word && !strcmp(word, "gpu") && count < MOST_GPUS) parse_gpu(state);
    }
    if (file) fclose(file);
}

#define WITH_DRIVER if (!users) return UNINITIALIZED
#define WITH_GPU WITH_DRIVER; if (!gpu) return INVALID_ARGUMENT; gpu_t *board = gpu->parent ? gpu->parent : gpu; \
    if (board->lost) return GPU_IS_LOST

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!users) load();
    if (init_error) return init_error;
    users++;
    return SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlInit(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { WITH_DRIVER; users--; return SUCCESS; }
const char *nvmlErrorString(int code) {
    static char text[48];
    snprintf(text, sizeof text, "stand-in error %d", code);
    return text;
}
int nvmlDeviceGetCount_v2(unsigned *number) { WITH_DRIVER; *number = count; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu_t **gpu) {
    WITH_DRIVER;
    if (index >= (unsigned)count) return INVALID_ARGUMENT;
    *gpu = &gpus[index];
    return gpus[index].lost ? GPU_IS_LOST : SUCCESS;
}
int nvmlDeviceGetUUID(gpu_t *gpu, char *text, unsigned size) { WITH_GPU; snprintf(text, size, "%s", gpu->uuid); return SUCCESS; }
int nvmlDeviceGetName(gpu_t *gpu, char *text, unsigned size) { WITH_GPU; snprintf(text, size, "%s", board->name); return SUCCESS; }

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} pci_t;
int nvmlDeviceGetPciInfo_v3(gpu_t *gpu, pci_t *pci) {
    WITH_GPU;
    memset(pci, 0, sizeof *pci);
    sscanf(board->bus, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
    snprintf(pci->bus_id, sizeof pci->bus_id, "%s", board->bus);
    return SUCCESS;
}

static int give(const mask_t *mask, unsigned size, unsigned long *words) {
    if (!mask->count) return NOT_SUPPORTED;
    for (unsigned place = 0; place < size; place++) words[place] = place < (unsigned)mask->count ? mask->words[place] : 0;
    return SUCCESS;
}
int nvmlDeviceGetCpuAffinity(gpu_t *gpu, unsigned size, unsigned long *words) { WITH_GPU; return give(&board->cpu, size, words); }
#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryAffinity(gpu_t *gpu, unsigned size, unsigned long *words, unsigned scope) {
    (void)scope;
    WITH_GPU;
    return give(&board->memory, size, words);
}
int nvmlDeviceGetNumaNodeId(gpu_t *gpu, unsigned *node) {
    WITH_GPU;
    if (board->own < 0) return NOT_SUPPORTED;
    *node = board->own;
    return SUCCESS;
}
int nvmlDeviceGetMigMode(gpu_t *gpu, unsigned *current, unsigned *pending) {
    WITH_GPU;
    *current = *pending = board->parts > 0;
    return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(gpu_t *gpu, unsigned *number) { WITH_GPU; *number = board->parts ? 7 : 0; return SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(gpu_t *gpu, unsigned index, gpu_t **part) {
    WITH_GPU;
    if (index >= (unsigned)board->parts) return NOT_FOUND;
    *part = board->part[index];
    return SUCCESS;
}
#endif
