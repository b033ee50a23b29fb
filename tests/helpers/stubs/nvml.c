/* What libnvidia-ml does, as far as the sampler calls it through nvidia-ml-py, with answers that the test chooses. */
#include <stdio.h>
#include <string.h>

static int on_init, on_handle, on_memory;

void stub_answers(int init, int handle, int memory) { on_init = init, on_handle = handle, on_memory = memory; }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return on_init;
}

int nvmlShutdown(void) { return 0; }

const char *nvmlErrorString(int code) {
    static char text[64];
    snprintf(text, sizeof text, "NVML answer %d", code);
    return text;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    static int the_device;
    *device = &the_device;
    if (strcmp(uuid, "GPU-0123") != 0) return 6; /* NVML_ERROR_NOT_FOUND */
    return on_handle;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = 1;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index != 0) return 2; /* NVML_ERROR_INVALID_ARGUMENT */
    return nvmlDeviceGetHandleByUUID("GPU-0123", device);
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    (void)device;
    snprintf(name, length, "Stub 16");
    return 0;
}

/* version (32 bits), then total, reserved, free and used */
int nvmlDeviceGetMemoryInfo_v2(void *device, unsigned long long *memory) {
    (void)device;
    memory[1] = 16000000000ULL, memory[2] = 400000000ULL, memory[3] = 14600000000ULL, memory[4] = 1000000000ULL;
    return on_memory;
}

int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {
    (void)device;
    memory[0] = 16000000000ULL, memory[1] = 15000000000ULL, memory[2] = 1000000000ULL; /* total, free, used */
    return on_memory;
}
