// The GPUs of the machine: how many, of which kind, and which of them this process may use.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <vector>

#include "fake.h"

static thread_local int current = 0;
static thread_local cudaError_t last_error = cudaSuccess;

// The GPUs of CUDA_VISIBLE_DEVICES, by their numbers on the machine.
static const std::vector<int>& visible() {
    static const std::vector<int> gpus = [] {
        std::vector<int> found;
        const char* wanted = getenv("CUDA_VISIBLE_DEVICES");
        std::stringstream stream(wanted ? wanted : "");
        if (!wanted)
            for (int i = 0; i < fake::settings::gpus(); i++) found.push_back(i);
        // CUDA ignores everything after the first number that is not that of a GPU.
        for (std::string part; std::getline(stream, part, ',');) {
            char* end;
            long number = strtol(part.c_str(), &end, 10);
            if (end == part.c_str() || number < 0 || number >= fake::settings::gpus()) break;
            found.push_back(number);
        }
        return found;
    }();
    return gpus;
}

namespace fake {

int current_gpu() { return current < static_cast<int>(visible().size()) ? visible()[current] : 0; }

cudaError_t fail(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

}  // namespace fake

API cudaError_t cudaGetLastError() {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

API cudaError_t cudaPeekAtLastError() { return last_error; }

API const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
        case cudaErrorNoDevice: return "cudaErrorNoDevice";
        case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
        case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
        case cudaErrorNotReady: return "cudaErrorNotReady";
        case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
        case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
        default: return "an error of the fake CUDA";
    }
}

API const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
        case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
        default: return cudaGetErrorName(error);
    }
}

API cudaError_t cudaGetDeviceCount(int* count) {
    *count = 0;
    if (fake::settings::driver_is_too_old()) return fake::fail(cudaErrorInsufficientDriver);
    *count = visible().size();
    return *count ? cudaSuccess : fake::fail(cudaErrorNoDevice);
}

API cudaError_t cudaGetDevice(int* device) {
    if (fake::settings::driver_is_too_old()) return fake::fail(cudaErrorInsufficientDriver);
    *device = current;
    return cudaSuccess;
}

API cudaError_t cudaSetDevice(int device) {
    if (fake::settings::driver_is_too_old()) return fake::fail(cudaErrorInsufficientDriver);
    if (device < 0 || device >= static_cast<int>(visible().size())) return fake::fail(cudaErrorInvalidDevice);
    current = device;
    return cudaSuccess;
}

API cudaError_t cudaDriverGetVersion(int* version) {
    *version = fake::settings::driver_is_too_old() ? 11040 : FAKE_CUDA_VERSION;
    return cudaSuccess;
}

API cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = FAKE_CUDA_VERSION;
    return cudaSuccess;
}

API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    memset(properties, 0, sizeof *properties);
    if (device < 0 || device >= static_cast<int>(visible().size())) return fake::fail(cudaErrorInvalidDevice);
    snprintf(properties->name, sizeof properties->name, "%s", fake::settings::name(visible()[device]).c_str());
    properties->major = fake::settings::capability() / 10;
    properties->minor = fake::settings::capability() % 10;
    properties->totalGlobalMem = fake::settings::memory_bytes();
    properties->pciBusID = visible()[device] + 1;
    // As an H100.
    properties->multiProcessorCount = 132;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->maxBlocksPerMultiProcessor = 32;
    properties->sharedMemPerBlock = 49152;
    properties->sharedMemPerBlockOptin = 232448;
    properties->sharedMemPerMultiprocessor = 233472;
    properties->regsPerBlock = 65536;
    properties->regsPerMultiprocessor = 65536;
    properties->l2CacheSize = 50 << 20;
    const int threads[] = {1024, 1024, 64}, grid[] = {2147483647, 65535, 65535};
    memcpy(properties->maxThreadsDim, threads, sizeof threads);
    memcpy(properties->maxGridSize, grid, sizeof grid);
    properties->concurrentKernels = 1;
    properties->textureAlignment = 512;
    properties->unifiedAddressing = 1;
    properties->canMapHostMemory = 1;
    properties->asyncEngineCount = 3;
    properties->memoryBusWidth = 5120;
    return cudaSuccess;
}

API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp properties;
    if (cudaError_t error = cudaGetDeviceProperties(&properties, device)) return error;
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock: *value = properties.maxThreadsPerBlock; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = properties.sharedMemPerBlock; break;
        case cudaDevAttrMaxGridDimX: *value = properties.maxGridSize[0]; break;
        case cudaDevAttrMaxGridDimY: *value = properties.maxGridSize[1]; break;
        case cudaDevAttrMaxGridDimZ: *value = properties.maxGridSize[2]; break;
        case cudaDevAttrWarpSize: *value = properties.warpSize; break;
        case cudaDevAttrMultiProcessorCount: *value = properties.multiProcessorCount; break;
        case cudaDevAttrL2CacheSize: *value = properties.l2CacheSize; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = properties.maxThreadsPerMultiProcessor; break;
        case cudaDevAttrComputeCapabilityMajor: *value = properties.major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = properties.minor; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = properties.sharedMemPerMultiprocessor; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = properties.sharedMemPerBlockOptin; break;
        default: *value = 0;
    }
    return cudaSuccess;
}

API cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
    snprintf(text, length, "0000:%02x:00.0", visible().at(device) + 1);
    return cudaSuccess;
}

API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
    *can = 1;
    return cudaSuccess;
}

API cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

API cudaError_t cudaProfilerStart() { return cudaSuccess; }

API cudaError_t cudaProfilerStop() { return cudaSuccess; }

// Functions of the driver that torch asks for by name.
static int driver_call(...) { return 0; }

static int is_primary_context_active(int, unsigned* flags, int* active) {
    if (flags) *flags = 0;
    if (active) *active = 1;
    return 0;
}

static int device_attribute(int* value, int, int) {
    *value = 0;
    return 0;
}

API cudaError_t cudaGetDriverEntryPointByVersion(
    const char* name, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
    if (!strcmp(name, "cuDevicePrimaryCtxGetState"))
        *function = reinterpret_cast<void*>(is_primary_context_active);
    else if (!strcmp(name, "cuDeviceGetAttribute"))
        *function = reinterpret_cast<void*>(device_attribute);
    else
        *function = reinterpret_cast<void*>(driver_call);
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
