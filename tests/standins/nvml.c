/* A stand-in for libnvidia-ml.so.1 with two GPUs, for tests on machines with no driver. */

#include <string.h>

typedef struct { unsigned long long total, free, used; } Memory;

static int words(char *text, unsigned length, const char *told) {
    strncpy(text, told, length);
    return 0;
}

int nvmlInit_v2(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { return words(text, length, "580.65.06"); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(unsigned long)(index + 1);
    return 0;
}
int nvmlDeviceGetName(void *device, char *text, unsigned length) {
    return words(text, length, device == (void *)1 ? "NVIDIA L4" : "NVIDIA A100-SXM4-40GB");
}
int nvmlDeviceGetUUID(void *device, char *text, unsigned length) {
    return words(text, length, device == (void *)1 ? "GPU-11111111" : "GPU-22222222");
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = 8;
    *minor = device == (void *)1 ? 9 : 0;
    return 0;
}
int nvmlDeviceGetNumGpuCores(void *device, unsigned *cores) {
    *cores = device == (void *)1 ? 7424 : 6912;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
    memory->total = device == (void *)1 ? 24152899584ull : 42949672960ull;
    memory->used = 1048576;
    memory->free = memory->total - memory->used;
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
    *mj = 1000 * (unsigned long)device;
    return 0;
}
