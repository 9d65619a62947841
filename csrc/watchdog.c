#define _GNU_SOURCE
#include "watchdog.h"

#include <errno.h>
#include <fcntl.h>
#include <libmnl/libmnl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"

/* Starts it with these descriptors (all of ours are closed by exec), none of our signals and a session of its own: who
 * stops our process group does not stop it. */
static int spawn(const char *program, const int descriptors[3], uint32_t patience_milliseconds, pid_t *process)
{
	char patience[16];
	char *arguments[] = {"kubenetmon-watchdog", patience, NULL}, *environment[] = {NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t all;
	snprintf(patience, sizeof patience, "%u", patience_milliseconds);
	sigfillset(&all);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &all);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
	posix_spawn_file_actions_init(&actions);
	for (int i = 0; i < 3; i++)
		posix_spawn_file_actions_adddup2(&actions, descriptors[i], i);
	int error = posix_spawn(process, program, &actions, &attributes, arguments, environment);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	return -error;
}

int watchdog_start(struct watchdog *watchdog, const char *program, const struct mnl_socket *events,
		   uint32_t patience_milliseconds, const char **step)
{
	int ends[2], memory = memfd_create("kubenetmon-watch", MFD_CLOEXEC);
	*watchdog = (struct watchdog){.pipe = -1};
	*step = "share memory with the watchdog";
	if (memory < 0)
		return -errno;
	struct watch *watch = MAP_FAILED;
	if (ftruncate(memory, sizeof *watch) == 0)
		watch = mmap(NULL, sizeof *watch, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	int error = watch == MAP_FAILED ? -errno : 0;
	if (!error) {
		watchdog->watch = watch;
		watchdog_feed(watchdog, nanoseconds(CLOCK_BOOTTIME));
		*step = "make the watchdog's pipe";
		error = pipe2(ends, O_CLOEXEC) < 0 ? -errno : 0;
	}
	if (!error) {
		const int descriptors[3] = {mnl_socket_get_fd(events), ends[0], memory};
		*step = "start the watchdog";
		error = spawn(program, descriptors, patience_milliseconds, &watchdog->process);
		watchdog->pipe = ends[1];
		close(ends[0]);
	}
	close(memory);
	return error;
}

void watchdog_feed(struct watchdog *watchdog, int64_t now)
{
	atomic_store_explicit(&watchdog->watch->alive, now, memory_order_relaxed);
}

/* A watchdog that was killed half-way will not get any further. */
static bool is_gone(struct watchdog *watchdog)
{
	if (watchdog->process > 0 && waitpid(watchdog->process, NULL, WNOHANG) != 0)
		watchdog->process = 0;
	return watchdog->process == 0;
}

bool watchdog_let_go(struct watchdog *watchdog, int64_t *since)
{
	int state = atomic_load(&watchdog->watch->state);
	*since = atomic_load(&watchdog->watch->let_go);
	return state == LET_GO || (state == LETTING_GO && is_gone(watchdog));
}

void watchdog_again(struct watchdog *watchdog, int64_t now)
{
	struct watch *watch = watchdog->watch;
	watch->saved_bytes = 0;
	(void)madvise(watch->saved, sizeof watch->saved, MADV_REMOVE);
	watchdog_feed(watchdog, now);
	atomic_store(&watch->state, WATCHING);
}

void watchdog_stop(struct watchdog *watchdog)
{
	if (!watchdog->watch)
		return;
	if (watchdog->pipe >= 0)
		close(watchdog->pipe);
	while (watchdog->process > 0 && waitpid(watchdog->process, NULL, 0) < 0 && errno == EINTR)
		;
	munmap(watchdog->watch, sizeof *watchdog->watch);
	*watchdog = (struct watchdog){0};
}
