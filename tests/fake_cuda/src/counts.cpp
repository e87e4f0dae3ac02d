// Counters by name, in memory that other processes can read: counts.py describes the format.
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "fake.h"

namespace {

constexpr size_t kSlots = 4096;

struct Slot {
    char name[248];
    std::atomic<long> value;
};
static_assert(sizeof(Slot) == 256, "counts.py reads this format");

std::mutex mutex;
Slot* slots = nullptr;

// Never destroyed: other threads count until the process ends.
std::unordered_map<std::string, Slot*>& by_name() {
    static auto* map = new std::unordered_map<std::string, Slot*>;
    return *map;
}

// A forked process starts with counters of its own.
void forget() {
    new (&mutex) std::mutex;
    by_name().clear();
    slots = nullptr;
}

// In a file of the folder FAKE_CUDA_COUNTS, or in private memory.
void open_slots() {
    static bool registered = false;
    if (!registered) pthread_atfork(nullptr, nullptr, forget);
    registered = true;
    int file = -1;
    if (const char* folder = getenv("FAKE_CUDA_COUNTS"); folder && *folder) {
        std::string path = std::string(folder) + "/" + std::to_string(getpid());
        file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (file < 0 || ftruncate(file, kSlots * sizeof(Slot))) abort();
    }
    int flags = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    void* memory = mmap(nullptr, kSlots * sizeof(Slot), PROT_READ | PROT_WRITE, flags, file, 0);
    if (memory == MAP_FAILED) abort();
    if (file >= 0) close(file);
    slots = static_cast<Slot*>(memory);
}

Slot& find(const std::string& name) {
    std::lock_guard<std::mutex> guard(mutex);
    if (!slots) open_slots();
    auto [entry, is_new] = by_name().try_emplace(name, nullptr);
    if (is_new) {
        size_t used = by_name().size() - 1;
        if (used >= kSlots) abort();
        entry->second = &slots[used];
        strncpy(entry->second->name, name.c_str(), sizeof(Slot::name) - 1);
    }
    return *entry->second;
}

}  // namespace

namespace fake {

void count(const std::string& name, long by) { find(name).value += by; }

void count_at_least(const std::string& name, long value) {
    Slot& slot = find(name);
    if (slot.value < value) slot.value = value;
}

}  // namespace fake

// The counters of this process, for counts.py.
API const void* fake_cuda_counts(size_t* bytes) {
    find("launches");
    *bytes = kSlots * sizeof(Slot);
    return slots;
}
