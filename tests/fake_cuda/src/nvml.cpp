// NVML: counts the GPUs of the machine, whether CUDA can use them or not. A library of its own, which Ray and torch open.
#include <cstdint>
#include <cstdio>

#include "fake.h"

API int nvmlInit() { return 0; }

API int nvmlInit_v2() { return 0; }

API int nvmlInitWithFlags(unsigned) { return 0; }

API int nvmlShutdown() { return 0; }

API int nvmlDeviceGetCount_v2(unsigned* count) {
    *count = fake::settings::gpus();
    return 0;
}

API int nvmlDeviceGetCount(unsigned* count) { return nvmlDeviceGetCount_v2(count); }

// A handle is the GPU's number plus one.
API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) {
    *handle = reinterpret_cast<void*>(static_cast<uintptr_t>(index + 1));
    return 0;
}

API int nvmlDeviceGetHandleByIndex(unsigned index, void** handle) {
    return nvmlDeviceGetHandleByIndex_v2(index, handle);
}

// Bus identifiers are those of device.cpp: "0000:01:00.0" is the first GPU.
API int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, void** handle) {
    unsigned domain, number;
    if (sscanf(bus, "%x:%x", &domain, &number) != 2) return 2;
    *handle = reinterpret_cast<void*>(static_cast<uintptr_t>(number));
    return 0;
}

API int nvmlDeviceGetComputeRunningProcesses(void*, unsigned* count, void*) {
    *count = 0;
    return 0;
}

API int nvmlDeviceGetName(void* handle, char* text, unsigned length) {
    int gpu = static_cast<int>(reinterpret_cast<uintptr_t>(handle)) - 1;
    snprintf(text, length, "%s", fake::settings::name(gpu).c_str());
    return 0;
}

API int nvmlDeviceGetUUID(void* handle, char* text, unsigned length) {
    snprintf(text, length, "GPU-%08x-0000-0000-0000-000000000000",
             static_cast<unsigned>(reinterpret_cast<uintptr_t>(handle)));
    return 0;
}

// Not supported (3): links between GPUs.
API int nvmlDeviceGetNvLinkRemoteDeviceType(void*, unsigned, int*) { return 3; }

API int nvmlDeviceGetNvLinkRemotePciInfo_v2(void*, unsigned, void*) { return 3; }

API int nvmlDeviceGetGpuFabricInfoV(void*, void*) { return 3; }

API const char* nvmlErrorString(int) { return "an error of the fake NVML"; }

API int nvmlSystemGetDriverVersion(char* text, unsigned length) {
    snprintf(text, length, "%s", fake::settings::driver_is_too_old() ? "470.82.01" : "580.95.05");
    return 0;
}

API int nvmlSystemGetCudaDriverVersion_v2(int* version) {
    *version = fake::settings::driver_is_too_old() ? 11040 : FAKE_CUDA_VERSION;
    return 0;
}
