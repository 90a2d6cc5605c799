/* A stand-in for libcuda.so.1, for tests on machines with no GPU. It is not CUDA.

   "Device" memory is memory of the host's, apart from what is handed out as pinned memory, so a copy
   that was forgotten is seen. A stream does its work at once; while it is captured, work is written
   down, and done when its graph is launched. `standin_` functions are for the tests alone. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, LIMIT = 1 << 26, MOST = 256 };

typedef struct { void (*run)(void); void *to; const void *from; size_t size; } Work;
typedef struct { int count; Work work[MOST]; } Graph;

static int live, launches, refuse_capture, capabilities[2] = {8, 9}, processors = 58, version = 13000;
static const char *name = "Stand-in GPU";
static Graph *capturing;

static void perform(Work *work) {
    if (work->run) work->run();
    else memcpy(work->to, work->from, work->size);
}

static int submit(Work work) {
    if (!capturing) perform(&work);
    else if (capturing->count == MOST) return INVALID;
    else capturing->work[capturing->count++] = work;
    return OK;
}

int standin_live(void) { return live; }
int standin_launches(void) { return launches; }
int standin_capturing(void) { return capturing != NULL; }
int standin_refuses_capture(void) { return refuse_capture; }
void standin_refuse_capture(int refuse) { refuse_capture = refuse; }
void standin_be(const char *called, int major, int minor, int count, int cuda) {
    name = strdup(called);
    capabilities[0] = major; capabilities[1] = minor; processors = count; version = cuda;
}
int standin_run(void (*run)(void)) { Work work = {run, 0, 0, 0}; return submit(work); }

int cuInit(unsigned flags) { return flags ? INVALID : OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? 101 : OK; }
int cuDeviceGetName(char *text, int length, int device) {
    (void)device; strncpy(text, name, length); return OK;
}
int cuDeviceGetAttribute(int *value, int which, int device) {
    (void)device;
    *value = which == 75 ? capabilities[0] : which == 76 ? capabilities[1] : processors;
    return which == 75 || which == 76 || which == 16 ? OK : INVALID;
}
int cuDriverGetVersion(int *value) { *value = version; return OK; }
int cuGetErrorString(int status, const char **text) {
    *text = status == NO_MEMORY ? "out of memory"
          : status == 101 ? "invalid device ordinal" : "invalid argument";
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device; live++; *context = (void *)0x7; return OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; live--; return OK; }
int cuCtxSetCurrent(void *context) { return context == (void *)0x7 ? OK : 201; }

int cuMemAlloc_v2(uint64_t *address, size_t size) {
    if (size > LIMIT) return NO_MEMORY;
    live++; *address = (uint64_t)(uintptr_t)malloc(size); return OK;
}
int cuMemFree_v2(uint64_t address) { live--; free((void *)(uintptr_t)address); return OK; }
int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    if (flags != 1) return INVALID;
    live++; *address = malloc(size); return OK;
}
int cuMemFreeHost(void *address) { live--; free(address); return OK; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    Work work = {0, (void *)(uintptr_t)to, from, size};
    return stream ? submit(work) : INVALID;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    Work work = {0, to, (const void *)(uintptr_t)from, size};
    return stream ? submit(work) : INVALID;
}

int cuStreamCreate(void **stream, unsigned flags) {
    live++; *stream = (void *)0x5; return flags == 1 ? OK : INVALID;
}
int cuStreamDestroy_v2(void *stream) { (void)stream; live--; return OK; }
int cuStreamSynchronize(void *stream) { return stream && !capturing ? OK : INVALID; }
int cuStreamBeginCapture_v2(void *stream, int mode) {
    if (!stream || mode != 2 || capturing) return INVALID;
    live++; capturing = calloc(1, sizeof *capturing); return OK;
}
int cuStreamEndCapture(void *stream, void **graph) {
    if (!stream || !capturing) return INVALID;
    *graph = capturing; capturing = NULL; return OK;
}
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
    if (flags) return INVALID;
    live++; *made = malloc(sizeof(Graph)); memcpy(*made, graph, sizeof(Graph)); return OK;
}
int cuGraphDestroy(void *graph) { live--; free(graph); return OK; }
int cuGraphExecDestroy(void *graph) { live--; free(graph); return OK; }
int cuGraphLaunch(void *graph, void *stream) {
    Graph *work = graph;
    if (!stream) return INVALID;
    launches++;
    for (int i = 0; i < work->count; i++) perform(&work->work[i]);
    return OK;
}
