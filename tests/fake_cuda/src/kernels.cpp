// Kernels of torch itself: they are counted by name, and compute nothing.
#include <cxxabi.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "fake.h"

struct Dim3 {
    unsigned x, y, z;
};

static thread_local struct {
    Dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
} configuration;

static thread_local int operators = 0;

static std::mutex mutex;

// By the address that torch launches.
static std::unordered_map<const void*, const char*>& names() {
    static auto* map = new std::unordered_map<const void*, const char*>;
    return *map;
}

// The function's name; the types of its arguments are part of it.
static std::string name_of(const void* kernel) {
    static auto* short_names = new std::unordered_map<const void*, std::string>;
    std::lock_guard<std::mutex> guard(mutex);
    auto [entry, is_new] = short_names->try_emplace(kernel);
    if (is_new) {
        auto found = names().find(kernel);
        const char* mangled = found == names().end() ? "?" : found->second;
        int status;
        char* demangled = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
        entry->second = demangled ? demangled : mangled;
        free(demangled);
    }
    return entry->second.substr(0, 200);
}

// emulate.py computes an operator: what the calling thread launches until it leaves is emulated.
API void fake_cuda_enter() { operators++; }

API void fake_cuda_leave() {
    operators--;
    // What the operator reads may be the result of a collective.
    fake::queue::wait_for_turn();
}

namespace fake {

cudaError_t launch_kernel(const std::string& name, cudaStream_t stream) {
    if (settings::capability() < FAKE_CUDA_OLDEST_CAPABILITY) return fail(cudaErrorNoKernelImageForDevice);
    launch("kernel " + name);
    if (capture::includes(stream)) capture::add_node();
    if (settings::emulates() && !operators) count("not emulated: " + name);
    return cudaSuccess;
}

}  // namespace fake

API void** __cudaRegisterFatBinary(void*) { return static_cast<void**>(fake::new_handle()); }

API void __cudaRegisterFatBinaryEnd(void**) {}

API void __cudaUnregisterFatBinary(void**) {}

API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

API void __cudaRegisterFunction(
    void**, const char* address, char*, const char* name, int, void*, void*, void*, void*, int*) {
    std::lock_guard<std::mutex> guard(mutex);
    names()[address] = name;
}

API unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared_bytes, cudaStream_t stream) {
    configuration = {grid, block, shared_bytes, stream};
    return 0;
}

API cudaError_t __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared_bytes, cudaStream_t* stream) {
    *grid = configuration.grid;
    *block = configuration.block;
    *shared_bytes = configuration.shared_bytes;
    *stream = configuration.stream;
    return cudaSuccess;
}

API cudaError_t __cudaGetKernel(const void** kernel, const void* function) {
    *kernel = function;
    return cudaSuccess;
}

API cudaError_t __cudaLaunchKernel(const void* function, Dim3, Dim3, void**, size_t, cudaStream_t stream) {
    return fake::launch_kernel(name_of(function), stream);
}

API cudaError_t cudaLaunchKernel(const void* function, Dim3, Dim3, void**, size_t, cudaStream_t stream) {
    return fake::launch_kernel(name_of(function), stream);
}

API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* configuration, const void* function, void**) {
    return fake::launch_kernel(name_of(function), configuration->stream);
}

API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    memset(attributes, 0, sizeof *attributes);
    if (fake::settings::capability() < FAKE_CUDA_OLDEST_CAPABILITY) return fake::fail(cudaErrorNoKernelImageForDevice);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->binaryVersion = attributes->ptxVersion = fake::settings::capability();
    attributes->maxDynamicSharedSizeBytes = 232448;
    return cudaSuccess;
}

API cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* blocks, const void*, int, size_t, unsigned) {
    *blocks = 2;
    return cudaSuccess;
}

API cudaError_t cudaGetSymbolAddress(void** address, const void* symbol) {
    *address = const_cast<void*>(symbol);
    return cudaSuccess;
}
