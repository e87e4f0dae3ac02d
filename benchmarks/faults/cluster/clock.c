/* A host's clock that can be set: preloaded into a process, it adds an offset to the time of day.
 *
 * The offset is an int64 of seconds in the file $CLOCK_OFFSET_FILE, which is mapped, so that a change counts at once,
 * except for waits that have begun: the kernel would wake those for a deadline that a clock set forward has passed.
 * Monotonic clocks, the times of files, and system calls without the C library do not change. Deadlines that were
 * computed from the changed time of day are changed back before the kernel gets them.
 *
 *     cc -shared -fPIC -O2 -o libclock.so clock.c
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Deadlines of monotonic clocks, which start at zero when the machine starts, are smaller. */
#define FIRST_TIME_OF_DAY 1000000000

static const int64_t none = 0;
static const volatile int64_t *offset = &none;

__attribute__((constructor)) static void map_offset(void) {
    const char *path = getenv("CLOCK_OFFSET_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED) offset = mapped;
    if (file >= 0) close(file);
}

/* The C library's function. Of those with several versions, dlsym finds the oldest. */
static void *find(const char *name) {
    void *found = dlvsym(RTLD_NEXT, name, "GLIBC_2.3.2");
    return found ? found : dlsym(RTLD_NEXT, name);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)find(#name)

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int result = real(clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(gettimeofday);
    int result = real(now, zone);
    if (!result && now) now->tv_sec += *offset;
    return result;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}

static const struct timespec *unshifted(const struct timespec *deadline, struct timespec *copy) {
    if (!deadline || deadline->tv_sec < FIRST_TIME_OF_DAY) return deadline;
    *copy = *deadline;
    copy->tv_sec -= *offset;
    return copy;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict deadline) {
    REAL(pthread_cond_timedwait);
    struct timespec copy;
    return real(condition, mutex, unshifted(deadline, &copy));
}

int pthread_cond_clockwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex, clockid_t clock,
                           const struct timespec *restrict deadline) {
    REAL(pthread_cond_clockwait);
    struct timespec copy;
    return real(condition, mutex, clock, unshifted(deadline, &copy));
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict deadline) {
    REAL(pthread_mutex_timedlock);
    struct timespec copy;
    return real(mutex, unshifted(deadline, &copy));
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict deadline) {
    REAL(sem_timedwait);
    struct timespec copy;
    return real(semaphore, unshifted(deadline, &copy));
}

int sem_clockwait(sem_t *restrict semaphore, clockid_t clock, const struct timespec *restrict deadline) {
    REAL(sem_clockwait);
    struct timespec copy;
    return real(semaphore, clock, unshifted(deadline, &copy));
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *request, struct timespec *remaining) {
    REAL(clock_nanosleep);
    struct timespec copy;
    return real(clock, flags, flags & TIMER_ABSTIME ? unshifted(request, &copy) : request, remaining);
}
