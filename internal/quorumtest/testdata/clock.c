// Preloaded into a program, this gives it a wall clock that can be stepped, and
// be twice as fast. The monotonic clock is not touched.
//
// The file that CLOCK_FILE names holds two numbers of 64 bits, each read at once:
// by how many ns the clock is ahead, and since what time, in ns since 1970, it is
// twice as fast; 0: it is not.

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *file;

__attribute__((constructor)) static void init(void)
{
	const char *path = getenv("CLOCK_FILE");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, 16, PROT_READ, MAP_SHARED, fd, 0);
	if (mapped == MAP_FAILED)
		_exit(99); // rather than the right time
	close(fd);
	file = mapped;
}

static int64_t now(void)
{
	struct timespec ts;
	syscall(SYS_clock_gettime, CLOCK_REALTIME, &ts);
	int64_t ns = ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec, doubled = file[1];
	return ns + file[0] + (doubled ? ns - doubled : 0);
}

int gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
	int64_t ns = now();
	(void)tz;
	tv->tv_sec = ns / 1000000000;
	tv->tv_usec = ns % 1000000000 / 1000;
	return 0;
}

int clock_gettime(clockid_t id, struct timespec *ts)
{
	if (id != CLOCK_REALTIME)
		return syscall(SYS_clock_gettime, id, ts);
	int64_t ns = now();
	ts->tv_sec = ns / 1000000000;
	ts->tv_nsec = ns % 1000000000;
	return 0;
}

time_t time(time_t *t)
{
	time_t s = now() / 1000000000;
	if (t)
		*t = s;
	return s;
}
