// NCCL among the processes of one machine: data moves through shared memory.
//
// As on a GPU, a collective runs while the host continues: in a thread of its own, until all ranks take part or the
// communicator is aborted. A rank that dies is not noticed, only waited for.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>

#include "fake.h"

namespace {

// Values of nccl.h.
enum Status { kSuccess = 0, kSystemError = 2, kInvalidUsage = 5, kRemoteError = 6 };
enum Type { kInt8, kUint8, kInt32, kUint32, kInt64, kUint64, kHalf, kFloat, kDouble, kBfloat16 };
enum Operation { kSum, kProduct, kMax, kMin, kAverage };

constexpr int kMaxRanks = 64;
constexpr size_t kSlotBytes = 32 << 20;
constexpr size_t kHeaderBytes = 4096;

struct UniqueId {
    char text[128];
};

struct Shared {
    std::atomic<int> arrived, round;
    std::atomic<int> processes[kMaxRanks];
};

struct Communicator {
    int ranks, rank;
    Shared* shared;
    char* slots;
    std::atomic<bool> is_aborted{false};

    char* slot(int of) { return slots + kSlotBytes * of; }
};

// Wait until all ranks are here; false if `gives_up` becomes true first.
bool barrier(Communicator& communicator, const std::function<bool()>& gives_up) {
    Shared& shared = *communicator.shared;
    int round = shared.round;
    if (++shared.arrived == communicator.ranks) {
        shared.arrived = 0;
        shared.round++;
        return true;
    }
    while (shared.round == round) {
        if (gives_up()) return false;
        usleep(50);
    }
    return true;
}

bool meet(Communicator& communicator) {
    return barrier(communicator, [&] { return communicator.is_aborted.load(); });
}

// Start a collective; `work` returns false if it was aborted.
int start(Communicator* communicator, const char* name, cudaStream_t stream, std::function<bool()> work) {
    if (fake::capture::includes(stream)) {
        fprintf(stderr, "fake NCCL: %s cannot be captured in a graph\n", name);
        return kInvalidUsage;
    }
    fake::launch(std::string("collective ") + name);
    long number = fake::queue::start();
    std::thread([=] {
        // A hung GPU never starts it.
        if (fake::queue::is_hung())
            while (!communicator->is_aborted) usleep(1000);
        else
            work();
        fake::queue::finish(number);
    }).detach();
    return kSuccess;
}

size_t width(int type) {
    switch (type) {
        case kInt8: case kUint8: return 1;
        case kHalf: case kBfloat16: return 2;
        case kInt32: case kUint32: case kFloat: return 4;
        default: return 8;
    }
}

struct Bfloat16 {
    uint16_t bits;

    Bfloat16(float value) {
        uint32_t all;
        memcpy(&all, &value, 4);
        // Round to nearest, ties to even.
        bits = (all + 0x7fff + ((all >> 16) & 1)) >> 16;
    }

    operator float() const {
        uint32_t all = static_cast<uint32_t>(bits) << 16;
        float value;
        memcpy(&value, &all, 4);
        return value;
    }
};

// Combine the ranks' values in the order of the ranks, so that all ranks get the same result.
template <class T, class Sum>
void reduce(Communicator& communicator, void* target, size_t count, int operation) {
    for (size_t i = 0; i < count; i++) {
        Sum result = reinterpret_cast<T*>(communicator.slot(0))[i];
        for (int rank = 1; rank < communicator.ranks; rank++) {
            Sum value = reinterpret_cast<T*>(communicator.slot(rank))[i];
            switch (operation) {
                case kProduct: result *= value; break;
                case kMax: result = std::max(result, value); break;
                case kMin: result = std::min(result, value); break;
                default: result += value;
            }
        }
        if (operation == kAverage) result /= communicator.ranks;
        static_cast<T*>(target)[i] = T(result);
    }
}

bool reduce(Communicator& communicator, void* target, size_t count, int type, int operation) {
    switch (type) {
        case kInt8: reduce<int8_t, int8_t>(communicator, target, count, operation); return true;
        case kUint8: reduce<uint8_t, uint8_t>(communicator, target, count, operation); return true;
        case kInt32: reduce<int32_t, int32_t>(communicator, target, count, operation); return true;
        case kInt64: reduce<int64_t, int64_t>(communicator, target, count, operation); return true;
        case kFloat: reduce<float, float>(communicator, target, count, operation); return true;
        case kDouble: reduce<double, double>(communicator, target, count, operation); return true;
        case kBfloat16: reduce<Bfloat16, float>(communicator, target, count, operation); return true;
        default: return false;
    }
}

bool all_reduce(Communicator& communicator, const char* source, char* target, size_t count, int type, int operation) {
    size_t bytes = width(type), chunk = kSlotBytes / bytes;
    for (size_t first = 0; first < count; first += chunk) {
        size_t length = std::min(chunk, count - first);
        memcpy(communicator.slot(communicator.rank), source + first * bytes, length * bytes);
        if (!meet(communicator)) return false;
        reduce(communicator, target + first * bytes, length, type, operation);
        if (!meet(communicator)) return false;
    }
    return true;
}

bool broadcast(Communicator& communicator, const char* source, char* target, size_t bytes, int root) {
    for (size_t first = 0; first < bytes; first += kSlotBytes) {
        size_t length = std::min(kSlotBytes, bytes - first);
        if (communicator.rank == root) memcpy(communicator.slot(0), source + first, length);
        if (!meet(communicator)) return false;
        memcpy(target + first, communicator.slot(0), length);
        if (!meet(communicator)) return false;
    }
    return true;
}

bool all_gather(Communicator& communicator, const char* source, char* target, size_t bytes) {
    for (size_t first = 0; first < bytes; first += kSlotBytes) {
        size_t length = std::min(kSlotBytes, bytes - first);
        memcpy(communicator.slot(communicator.rank), source + first, length);
        if (!meet(communicator)) return false;
        for (int rank = 0; rank < communicator.ranks; rank++)
            memcpy(target + rank * bytes + first, communicator.slot(rank), length);
        if (!meet(communicator)) return false;
    }
    return true;
}

// Whether a process that has joined is gone: then the others cannot start. A zombie counts as gone.
bool a_rank_is_gone(Communicator& communicator) {
    for (int rank = 0; rank < communicator.ranks; rank++) {
        int process = communicator.shared->processes[rank];
        if (process && kill(process, 0) && errno == ESRCH) return true;
    }
    return false;
}

int join(Communicator** result, int ranks, const UniqueId& id, int rank) {
    if (ranks > kMaxRanks) return kInvalidUsage;
    int file = shm_open(id.text, O_RDWR | O_CREAT, 0600);
    size_t bytes = kHeaderBytes + kSlotBytes * ranks;
    // Memory is only used where data is written.
    if (file < 0 || ftruncate(file, bytes)) return kSystemError;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return kSystemError;
    auto* communicator = new Communicator{ranks, rank, static_cast<Shared*>(memory),
                                          static_cast<char*>(memory) + kHeaderBytes};
    communicator->shared->processes[rank] = getpid();
    fake::count("communicators");
    bool is_complete = barrier(*communicator, [&] { return a_rank_is_gone(*communicator); });
    shm_unlink(id.text);
    *result = communicator;
    return is_complete ? kSuccess : kRemoteError;
}

}  // namespace

API int ncclGetUniqueId(UniqueId* id) {
    static std::atomic<int> last{0};
    memset(id, 0, sizeof *id);
    snprintf(id->text, sizeof id->text, "/fake-nccl-%d-%d", getpid(), ++last);
    return kSuccess;
}

API int ncclCommInitRank(Communicator** communicator, int ranks, UniqueId id, int rank) {
    return join(communicator, ranks, id, rank);
}

API int ncclCommInitRankConfig(Communicator** communicator, int ranks, UniqueId id, int rank, void*) {
    return join(communicator, ranks, id, rank);
}

API int ncclCommInitRankScalable(Communicator** communicator, int ranks, int rank, int, UniqueId* id, void*) {
    return join(communicator, ranks, *id, rank);
}

// The real one's, which torch compares with the version that it was built for.
API int ncclGetVersion(int* version) {
    *version = FAKE_NCCL_VERSION;
    return kSuccess;
}

API const char* ncclGetErrorString(int status) { return status == kRemoteError ? "a rank is gone" : "fake NCCL"; }

API const char* ncclGetLastError(void*) { return ""; }

API int ncclCommGetAsyncError(Communicator*, int* error) {
    *error = kSuccess;
    return kSuccess;
}

API int ncclCommCount(Communicator* communicator, int* ranks) {
    *ranks = communicator->ranks;
    return kSuccess;
}

API int ncclCommUserRank(Communicator* communicator, int* rank) {
    *rank = communicator->rank;
    return kSuccess;
}

// Never freed: threads may still use it.
API int ncclCommAbort(Communicator* communicator) {
    fake::count("aborted communicators");
    communicator->is_aborted = true;
    return kSuccess;
}

API int ncclCommFinalize(Communicator*) { return kSuccess; }

API int ncclCommDestroy(Communicator*) { return kSuccess; }

API int ncclCommRegister(Communicator*, void*, size_t, void**) { return kSuccess; }

API int ncclCommDeregister(Communicator*, void*) { return kSuccess; }

// Collectives start at once, in the order of the calls.
API int ncclGroupStart() { return kSuccess; }

API int ncclGroupEnd() { return kSuccess; }

API int ncclAllReduce(
    const void* source, void* target, size_t count, int type, int operation, Communicator* communicator,
    cudaStream_t stream) {
    if (type == kHalf || type == kUint32 || type == kUint64 || operation > kAverage) {
        fprintf(stderr, "fake NCCL: all-reduce of type %d with operation %d is missing\n", type, operation);
        return kInvalidUsage;
    }
    auto *from = static_cast<const char*>(source);
    auto *to = static_cast<char*>(target);
    return start(communicator, "all-reduce", stream, [=] {
        return all_reduce(*communicator, from, to, count, type, operation);
    });
}

API int ncclBroadcast(
    const void* source, void* target, size_t count, int type, int root, Communicator* communicator,
    cudaStream_t stream) {
    auto *from = static_cast<const char*>(source);
    auto *to = static_cast<char*>(target);
    return start(communicator, "broadcast", stream, [=] {
        return broadcast(*communicator, from, to, count * width(type), root);
    });
}

API int ncclBcast(void* data, size_t count, int type, int root, Communicator* communicator, cudaStream_t stream) {
    return ncclBroadcast(data, data, count, type, root, communicator, stream);
}

API int ncclAllGather(
    const void* source, void* target, size_t count, int type, Communicator* communicator, cudaStream_t stream) {
    auto *from = static_cast<const char*>(source);
    auto *to = static_cast<char*>(target);
    return start(communicator, "all-gather", stream, [=] {
        return all_gather(*communicator, from, to, count * width(type));
    });
}

#define MISSING(name)                                        \
    API int name(...) {                                      \
        fprintf(stderr, "fake NCCL: " #name " is missing\n"); \
        return kInvalidUsage;                                \
    }

MISSING(ncclReduce)
MISSING(ncclReduceScatter)
MISSING(ncclGather)
MISSING(ncclAlltoAll)
MISSING(ncclSend)
MISSING(ncclRecv)
MISSING(ncclCommSplit)
MISSING(ncclCommShrink)
