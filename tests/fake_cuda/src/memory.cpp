// Memory of the GPU, which is memory of the host, and copies.
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "fake.h"

namespace {

struct Block {
    size_t bytes;
    cudaMemoryType type;
    int gpu;
    bool is_ours;  // allocated here, not registered
};

std::mutex mutex;

std::map<const char*, Block>& blocks() {
    static auto* map = new std::map<const char*, Block>;
    return *map;
}

size_t used_bytes(int gpu) {
    size_t sum = 0;
    for (auto& [address, block] : blocks())
        if (block.type == cudaMemoryTypeDevice && block.gpu == gpu) sum += block.bytes;
    return sum;
}

// The block that contains this address; call with the mutex held.
const Block* block_at(const void* address) {
    auto next = blocks().upper_bound(static_cast<const char*>(address));
    if (next == blocks().begin()) return nullptr;
    auto& [start, block] = *std::prev(next);
    return static_cast<const char*>(address) < start + block.bytes ? &block : nullptr;
}

cudaError_t allocate(void** address, size_t bytes, cudaMemoryType type) {
    std::lock_guard<std::mutex> guard(mutex);
    int gpu = fake::current_gpu();
    if (type == cudaMemoryTypeDevice && used_bytes(gpu) + bytes > fake::settings::memory_bytes())
        return fake::fail(cudaErrorMemoryAllocation);
    if (posix_memalign(address, 4096, bytes ? bytes : 1)) return fake::fail(cudaErrorMemoryAllocation);
    blocks()[static_cast<char*>(*address)] = {bytes, type, gpu, true};
    return cudaSuccess;
}

cudaError_t release(void* address) {
    std::lock_guard<std::mutex> guard(mutex);
    auto entry = blocks().find(static_cast<char*>(address));
    if (entry == blocks().end()) return cudaSuccess;
    if (entry->second.is_ours) free(address);
    blocks().erase(entry);
    return cudaSuccess;
}

// "H2D pageable", "D2H pinned", "D2D"...
std::string direction(const void* target, const void* source, cudaMemcpyKind kind, bool* is_pageable) {
    *is_pageable = false;
    if (kind == cudaMemcpyDeviceToDevice) return "D2D";
    if (kind == cudaMemcpyHostToHost) return "H2H";
    bool to_device = kind == cudaMemcpyHostToDevice;
    *is_pageable = !fake::is_pinned(to_device ? source : target);
    return std::string(to_device ? "H2D" : "D2H") + (*is_pageable ? " pageable" : " pinned");
}

cudaMemcpyKind resolve(const void* target, const void* source, cudaMemcpyKind kind) {
    if (kind != cudaMemcpyDefault) return kind;
    std::lock_guard<std::mutex> guard(mutex);
    auto is_device = [](const void* address) {
        const Block* block = block_at(address);
        return block && block->type == cudaMemoryTypeDevice;
    };
    if (is_device(target)) return is_device(source) ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice;
    return is_device(source) ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost;
}

}  // namespace

bool fake::is_pinned(const void* address) {
    std::lock_guard<std::mutex> guard(mutex);
    const Block* block = block_at(address);
    return block && block->type == cudaMemoryTypeHost;
}

API cudaError_t cudaMalloc(void** address, size_t bytes) {
    if (auto error = fake::capture::forbid("cudaMalloc")) return error;
    fake::count("allocate");
    return allocate(address, bytes, cudaMemoryTypeDevice);
}

API cudaError_t cudaFree(void* address) {
    if (auto error = fake::capture::forbid("cudaFree")) return error;
    fake::queue::wait_for_turn();
    return release(address);
}

API cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
    if (auto error = fake::capture::forbid("cudaHostAlloc")) return error;
    fake::count("allocate pinned");
    return allocate(address, bytes, cudaMemoryTypeHost);
}

API cudaError_t cudaFreeHost(void* address) {
    if (auto error = fake::capture::forbid("cudaFreeHost")) return error;
    return release(address);
}

API cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
    std::lock_guard<std::mutex> guard(mutex);
    blocks()[static_cast<char*>(address)] = {bytes, cudaMemoryTypeHost, 0, false};
    return cudaSuccess;
}

API cudaError_t cudaHostUnregister(void* address) { return release(address); }

// Other processes on the same GPU are not counted.
API cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
    std::lock_guard<std::mutex> guard(mutex);
    *total = fake::settings::memory_bytes();
    *available = *total - used_bytes(fake::current_gpu());
    return cudaSuccess;
}

API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
    std::lock_guard<std::mutex> guard(mutex);
    memset(attributes, 0, sizeof *attributes);
    const Block* block = block_at(address);
    attributes->type = block ? block->type : cudaMemoryTypeUnregistered;
    attributes->device = block ? block->gpu : -1;
    if (block) attributes->devicePointer = attributes->hostPointer = const_cast<void*>(address);
    return cudaSuccess;
}

API cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind kind) {
    if (auto error = fake::capture::forbid("cudaMemcpy")) return error;
    bool is_pageable;
    fake::launch("copy " + direction(target, source, resolve(target, source, kind), &is_pageable));
    fake::count("sync cudaMemcpy");
    fake::queue::synchronize(fake::queue::position());
    memmove(target, source, bytes);
    return cudaSuccess;
}

// The stream whose last work, in this thread, was a copy that had to wait; to count one wait only once.
static thread_local const void* waited_on = nullptr;
static thread_local bool has_waited = false;

namespace fake {

void forget_copy() { has_waited = false; }

bool copy_has_waited(cudaStream_t stream) {
    bool has = has_waited && waited_on == stream;
    forget_copy();
    return has;
}

}  // namespace fake

API cudaError_t cudaMemcpyAsync(
    void* target, const void* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    bool is_pageable;
    fake::launch("copy " + direction(target, source, resolve(target, source, kind), &is_pageable));
    if (fake::capture::includes(stream)) {
        fake::capture::add_node();
        return cudaSuccess;
    }
    // Host memory that is not pinned may change or disappear as soon as this returns, so CUDA waits for the copy.
    if (is_pageable) {
        fake::count("sync pageable copy");
        fake::queue::synchronize(fake::queue::position());
        has_waited = true;
        waited_on = stream;
    }
    memmove(target, source, bytes);
    return cudaSuccess;
}

API cudaError_t cudaMemcpyPeerAsync(void* target, int, const void* source, int, size_t bytes, cudaStream_t stream) {
    return cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, stream);
}

API cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }

API cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
    fake::launch("memset");
    if (fake::capture::includes(stream))
        fake::capture::add_node();
    else
        memset(target, value, bytes);
    return cudaSuccess;
}

API cudaError_t cudaMemset(void* target, int value, size_t bytes) {
    return cudaMemsetAsync(target, value, bytes, nullptr);
}
