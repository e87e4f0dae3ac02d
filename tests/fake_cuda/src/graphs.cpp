// CUDA graphs: which streams are being captured, and which calls are illegal meanwhile. Captured work does nothing; when
// the graph is launched, emulate.py computes its operators.
#include <mutex>
#include <set>
#include <thread>

#include "fake.h"

namespace {

// The capture in progress; there is at most one.
struct Capture {
    bool is_active = false, is_invalid = false;
    unsigned long long id = 0;
    long nodes = 0;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id thread;
    std::set<cudaStream_t> streams;
};

std::mutex mutex;
Capture active;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

struct Graph {
    long nodes;
};

cudaError_t invalidate(const char* call) {
    active.is_invalid = true;
    fake::count(std::string("illegal during capture: ") + call);
    return fake::fail(cudaErrorStreamCaptureUnsupported);
}

}  // namespace

namespace fake::capture {

bool includes(cudaStream_t stream) {
    std::lock_guard<std::mutex> guard(mutex);
    return active.is_active && active.streams.count(stream);
}

void join(cudaStream_t stream) {
    std::lock_guard<std::mutex> guard(mutex);
    if (active.is_active) active.streams.insert(stream);
}

void add_node() {
    std::lock_guard<std::mutex> guard(mutex);
    active.nodes++;
}

// The rules of cudaThreadExchangeStreamCaptureMode for potentially unsafe calls.
cudaError_t forbid(const char* call) {
    std::lock_guard<std::mutex> guard(mutex);
    if (!active.is_active || thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    bool is_own = active.thread == std::this_thread::get_id();
    bool is_forbidden = is_own ? active.mode != cudaStreamCaptureModeRelaxed
                               : active.mode == cudaStreamCaptureModeGlobal && thread_mode == active.mode;
    return is_forbidden ? invalidate(call) : cudaSuccess;
}

// A stream that is being captured has no work to wait for.
cudaError_t forbid_on(cudaStream_t stream, const char* call) {
    {
        std::lock_guard<std::mutex> guard(mutex);
        if (active.is_active && active.streams.count(stream)) return invalidate(call);
    }
    return forbid(call);
}

}  // namespace fake::capture

API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    std::swap(*mode, thread_mode);
    return cudaSuccess;
}

API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    std::lock_guard<std::mutex> guard(mutex);
    if (active.is_active) return invalidate("cudaStreamBeginCapture");
    active = {true, false, active.id + 1, 0, mode, std::this_thread::get_id(), {stream}};
    return cudaSuccess;
}

API cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    std::lock_guard<std::mutex> guard(mutex);
    active.is_active = false;
    *graph = nullptr;
    if (active.is_invalid) return fake::fail(cudaErrorStreamCaptureInvalidated);
    *graph = reinterpret_cast<cudaGraph_t>(new Graph{active.nodes});
    fake::count("graph nodes", active.nodes);
    return cudaSuccess;
}

API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    *status = fake::capture::includes(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

API cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t*, const cudaGraphNode_t**,
    const cudaGraphEdgeData**, size_t* dependencies) {
    cudaStreamIsCapturing(stream, status);
    if (id) *id = active.id;
    if (dependencies) *dependencies = 0;
    return cudaSuccess;
}

API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* nodes) {
    *nodes = reinterpret_cast<Graph*>(graph)->nodes;
    return cudaSuccess;
}

API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t, unsigned long long) {
    *executable = static_cast<cudaGraphExec_t>(fake::new_handle());
    return cudaSuccess;
}

API cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t stream) {
    if (auto error = fake::capture::forbid_on(stream, "cudaGraphLaunch")) return error;
    fake::launch("graph");
    return cudaSuccess;
}

API cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete reinterpret_cast<Graph*>(graph);
    return cudaSuccess;
}

API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
