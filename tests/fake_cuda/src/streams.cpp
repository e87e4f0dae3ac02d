// Streams, events, synchronization, and hung GPUs.
//
// All streams of a process are one queue. Work is done when it is launched, so that only two things are ever unfinished:
// a collective that waits for other processes, and everything after the launch at which the GPU hangs.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <mutex>

#include "fake.h"

namespace fake {

static std::atomic<long> launches{0};
static std::atomic<long> launches_at_last_wait{0};

void launch(const std::string& name) {
    queue::wait_for_turn();
    forget_copy();
    count(name);
    count("launches");
    long launched = ++launches;
    count_at_least("most launches in flight", launched - launches_at_last_wait);
    if (settings::hangs(launched, current_gpu())) queue::hang();
}

void* new_handle() {
    static std::atomic<size_t> last{0x1000};
    return reinterpret_cast<void*>(last += 16);
}

namespace queue {

static std::mutex mutex;
static std::condition_variable changed;
static long started = 0, finished = 0;
static bool hung = false;
constexpr long kNever = LONG_MAX;

long start() {
    std::lock_guard<std::mutex> guard(mutex);
    return ++started;
}

void finish(long number) {
    std::lock_guard<std::mutex> guard(mutex);
    if (number > finished) finished = number;
    changed.notify_all();
}

void wait_for_turn() {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [] { return hung || finished >= started; });
}

long position() {
    std::lock_guard<std::mutex> guard(mutex);
    return hung ? kNever : started;
}

bool is_done(long position) {
    std::lock_guard<std::mutex> guard(mutex);
    return position != kNever && finished >= position;
}

void synchronize(long position) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return position != kNever && finished >= position; });
    launches_at_last_wait = launches.load();
}

void hang() {
    std::lock_guard<std::mutex> guard(mutex);
    if (!hung) count("hung");
    hung = true;
    changed.notify_all();
}

bool is_hung() {
    std::lock_guard<std::mutex> guard(mutex);
    return hung;
}

}  // namespace queue

struct Event {
    long position = 0;
    bool is_captured = false;
    std::chrono::steady_clock::time_point time;
};

}  // namespace fake

using fake::Event;

// Counts a wait, unless a copy on the same stream has just waited.
static cudaError_t synchronize(const char* call, long position, bool is_counted = true) {
    if (is_counted) fake::count(std::string("sync ") + call);
    fake::queue::synchronize(position);
    return cudaSuccess;
}

API cudaError_t cudaDeviceSynchronize() {
    if (auto error = fake::capture::forbid("cudaDeviceSynchronize")) return error;
    return synchronize("cudaDeviceSynchronize", fake::queue::position());
}

API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (auto error = fake::capture::forbid_on(stream, "cudaStreamSynchronize")) return error;
    return synchronize("cudaStreamSynchronize", fake::queue::position(), !fake::copy_has_waited(stream));
}

API cudaError_t cudaStreamQuery(cudaStream_t stream) {
    if (auto error = fake::capture::forbid_on(stream, "cudaStreamQuery")) return error;
    return fake::queue::is_done(fake::queue::position()) ? cudaSuccess : cudaErrorNotReady;
}

API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
    *stream = static_cast<cudaStream_t>(fake::new_handle());
    return cudaSuccess;
}

API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

API cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }

API cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

API cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
    *priority = 0;
    return cudaSuccess;
}

API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    fake::count("cudaStreamWaitEvent");
    // The work before the event is part of a graph, so what follows it on this stream is, too.
    if (reinterpret_cast<Event*>(event)->is_captured) fake::capture::join(stream);
    return cudaSuccess;
}

API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = reinterpret_cast<cudaEvent_t>(new Event);
    return cudaSuccess;
}

API cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

API cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete reinterpret_cast<Event*>(event);
    return cudaSuccess;
}

API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
    fake::count("cudaEventRecord");
    bool is_captured = fake::capture::includes(stream);
    *reinterpret_cast<Event*>(event) = {fake::queue::position(), is_captured, std::chrono::steady_clock::now()};
    return cudaSuccess;
}

API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, 0);
}

API cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (auto error = fake::capture::forbid("cudaEventQuery")) return error;
    return fake::queue::is_done(reinterpret_cast<Event*>(event)->position) ? cudaSuccess : cudaErrorNotReady;
}

API cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (auto error = fake::capture::forbid("cudaEventSynchronize")) return error;
    return synchronize("cudaEventSynchronize", reinterpret_cast<Event*>(event)->position);
}

// Time of the host: the fake GPU has no other.
API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    auto elapsed = reinterpret_cast<Event*>(end)->time - reinterpret_cast<Event*>(start)->time;
    *milliseconds = std::chrono::duration<float, std::milli>(elapsed).count();
    return cudaSuccess;
}
