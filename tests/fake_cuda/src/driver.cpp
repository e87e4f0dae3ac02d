// libcuda.so.1, the driver: torch takes these functions from it, and all others from the runtime.
#include "fake.h"

API int cuInit(unsigned) { return 0; }

API int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* is_active) {
    *flags = 0;
    *is_active = 1;
    return 0;
}

// Threads have the same context as torch's own: the only one.
API int cuCtxGetCurrent(void** context) {
    *context = reinterpret_cast<void*>(0x10);
    return 0;
}
