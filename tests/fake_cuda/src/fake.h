// What the parts of the fake CUDA share: settings, counters, capture, and the work that a GPU has not finished.
#pragma once

#include <driver_types.h>

#include <cstddef>
#include <string>

// A function that torch calls: it takes the place of the function of that name in the real library.
#define API extern "C" __attribute__((visibility("default")))

namespace fake {

// Settings, from environment variables.
namespace settings {
int gpus();                    // FAKE_CUDA_GPUS: how many GPUs the machine has, 1 by default
int capability();              // FAKE_CUDA_CAPABILITY: 9.0 is 90
size_t memory_bytes();         // FAKE_CUDA_MEMORY_MB: the memory of each GPU
bool driver_is_too_old();      // FAKE_CUDA_OLD_DRIVER=1: NVML counts the GPUs, but CUDA cannot use them
bool emulates();               // FAKE_CUDA_EMULATE=1: each operator is computed on the CPU, by emulate.py
std::string name(int gpu);     // FAKE_CUDA_NAMES: comma-separated; the last name is that of all further GPUs
bool hangs(long launches, int gpu);  // FAKE_CUDA_HANG_AFTER_LAUNCHES or _SECONDS, only on FAKE_CUDA_HANG_GPU if set
}  // namespace settings

// Add to a counter. Counters are in memory that other processes can read, so that they survive a kill.
void count(const std::string& name, long by = 1);
void count_at_least(const std::string& name, long value);

// A new unique value for a handle that torch only passes back.
void* new_handle();

// The calling thread's GPU: its number on the machine, regardless of CUDA_VISIBLE_DEVICES.
int current_gpu();

// Record a kernel (or a copy, or the launch of a graph) that is put into a GPU's queue. Waits for collectives before it.
void launch(const std::string& name);

// Report an error as CUDA does: also to cudaGetLastError.
cudaError_t fail(cudaError_t error);

// Launch a kernel of a library or of torch itself. Fails if torch has none for this kind of GPU.
cudaError_t launch_kernel(const std::string& name, cudaStream_t stream);

// Work runs when it is launched; only collectives take time, since they wait for other processes. So each later piece of
// work waits for them; a hung GPU, however, accepts work that never ends.
namespace queue {
long start();                // a collective starts: its number
void finish(long number);    // it has ended, or was aborted
void wait_for_turn();        // until the work before this is done; returns at once on a hung GPU
long position();             // the end of the queue, for an event
bool is_done(long position);
void synchronize(long position);  // never returns on a hung GPU
void hang();
bool is_hung();
}  // namespace queue

// The capture of a graph. A captured launch does nothing.
namespace capture {
bool includes(cudaStream_t stream);
void join(cudaStream_t stream);            // work on this stream is now part of the graph
void add_node();
cudaError_t forbid(const char* call);      // an error, which also ends the capture, if this call is illegal during it
cudaError_t forbid_on(cudaStream_t stream, const char* call);
}  // namespace capture

// Whether this is host memory that CUDA knows; copies from and to other host memory wait.
bool is_pinned(const void* address);

// Whether this thread's last work was a copy on this stream that has waited, and been counted, already.
bool copy_has_waited(cudaStream_t stream);
void forget_copy();

}  // namespace fake
