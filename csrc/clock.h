/* Time in one number. */
#ifndef KUBENETMON_CLOCK_H
#define KUBENETMON_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t nanoseconds(clockid_t clock)
{
	struct timespec time;
	clock_gettime(clock, &time);
	return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

#endif
