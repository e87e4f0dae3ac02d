// Settings of the fake CUDA, from environment variables. fake.h describes them.
#include <chrono>
#include <cstdlib>
#include <sstream>

#include "fake.h"

namespace fake::settings {

static long number(const char* name, long otherwise) {
    const char* text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

int gpus() { return number("FAKE_CUDA_GPUS", 1); }

int capability() {
    const char* text = getenv("FAKE_CUDA_CAPABILITY");
    return text && *text ? static_cast<int>(atof(text) * 10 + 0.5) : 90;
}

size_t memory_bytes() { return static_cast<size_t>(number("FAKE_CUDA_MEMORY_MB", 80 * 1024)) << 20; }

bool driver_is_too_old() { return number("FAKE_CUDA_OLD_DRIVER", 0); }

bool emulates() {
    static const bool emulates = number("FAKE_CUDA_EMULATE", 0);
    return emulates;
}

std::string name(int gpu) {
    const char* names = getenv("FAKE_CUDA_NAMES");
    std::stringstream stream(names && *names ? names : "NVIDIA H100 (fake)");
    std::string name;
    for (int i = 0; i <= gpu && std::getline(stream, name, ','); i++) {
    }
    return name;
}

bool hangs(long launches, int gpu) {
    static const long after_launches = number("FAKE_CUDA_HANG_AFTER_LAUNCHES", -1);
    static const long after_seconds = number("FAKE_CUDA_HANG_AFTER_SECONDS", -1);
    static const long only = number("FAKE_CUDA_HANG_GPU", -1);
    static const auto first_launch = std::chrono::steady_clock::now();
    if (only >= 0 && only != gpu) return false;
    if (after_launches >= 0 && launches > after_launches) return true;
    return after_seconds >= 0 && std::chrono::steady_clock::now() - first_launch >= std::chrono::seconds(after_seconds);
}

}  // namespace fake::settings
