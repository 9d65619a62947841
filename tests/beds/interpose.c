/* Preloaded into a process under test: kills or stops it between two of its system calls, moves its wall clock, watches how
 * long its event loop is away from waiting, makes conntrack's ids collide, and shows another boot.
 *
 * KILL_AT: steps that must happen one after the other, separated by ';'; at the last one the process dies of SIGKILL.
 * A step is CALL:MOMENT:WHERE, WHERE being part of the file's path, or for a socket `events` or `requests` (netlink
 * with groups and without) or `inet`. The moment is `before` the call or `after` it, which must have succeeded, for
 * writev also `half`: half of the first buffer is written. The call `store` is an ordinary store into a mapped file:
 * its moment is the number of the page that must not be written any more from the step before on, and the process
 * dies of SIGSEGV at that instruction.
 *
 * STOP_AT: the same in place of KILL_AT, but at the last step the process stands still (SIGSTOP) until it is continued.
 *
 * CLOCK_OFFSET: a file of 8 bytes, seconds that CLOCK_REALTIME is ahead; it may be rewritten at any time.
 *
 * LOOP_LONGEST: a file of 24 bytes, the longest that the first thread was between two waits of its event loop, in
 * nanoseconds: by the clock; by the clock, less what the thread spent ready to run and without a processor (schedstat
 * of proc(5)); and of processor time. It may be set to zero at any time.
 *
 * ID_MASK: of the ids in messages of conntrack these bits are left.
 *
 * SHOWN_LATE: a file of 8 bytes. Each dump of conntrack's table begins with the flows of which the process received
 * the end before it asked for the dump: so a dump shows what the kernel has told the end of and not unlinked yet.
 * The file counts them.
 *
 * SLOW_DYING: a file of 8 bytes. Before each further datagram of a dump of dying flows the process waits for
 * 20 ms, in which the kernel may deliver events; the file counts the waits.
 *
 * BOOT_ID: the file that is opened in place of the kernel's boot_id. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { STEPS = 8, PATH = 4096 };

struct step {
	char *call, *moment, *where;
};

static struct step steps[STEPS];
static int step_count, step_next, last_signal = SIGKILL;
static volatile int64_t *clock_offset;
static volatile int64_t *loop_longest;
static uint32_t id_mask;
static const char *boot_id;
static volatile int64_t *shown_late, *slow_dying;
static int dying_datagrams; /* received of a dump of dying flows that runs; -1: none does */

static volatile int64_t *map_file(const char *path, size_t size)
{
	int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *mapped = file >= 0 ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
	if (file >= 0)
		close(file);
	return mapped == MAP_FAILED ? NULL : mapped;
}

__attribute__((constructor)) static void prepare(void)
{
	const char *text = getenv("KILL_AT");
	if (!text && (text = getenv("STOP_AT")))
		last_signal = SIGSTOP;
	char *position = NULL;
	for (char *step = text ? strtok_r(strdup(text), ";", &position) : NULL; step && step_count < STEPS;
	     step = strtok_r(NULL, ";", &position)) {
		struct step *next = &steps[step_count++];
		next->call = strsep(&step, ":");
		next->moment = strsep(&step, ":");
		next->where = step;
	}
	clock_offset = map_file(getenv("CLOCK_OFFSET"), sizeof *clock_offset);
	const char *mask = getenv("ID_MASK");
	id_mask = mask ? htonl((uint32_t)strtoul(mask, NULL, 0)) : 0;
	boot_id = getenv("BOOT_ID");
	loop_longest = map_file(getenv("LOOP_LONGEST"), 3 * sizeof *loop_longest);
	shown_late = map_file(getenv("SHOWN_LATE"), sizeof *shown_late);
	slow_dying = map_file(getenv("SLOW_DYING"), sizeof *slow_dying);
}

static void protect(const struct step *step)
{
	char line[PATH];
	FILE *maps = fopen("/proc/self/maps", "re");
	while (maps && fgets(line, sizeof line, maps)) {
		uintptr_t start, end;
		if (strstr(line, step->where) && sscanf(line, "%" SCNxPTR "-%" SCNxPTR, &start, &end) == 2) {
			size_t page = (size_t)sysconf(_SC_PAGESIZE);
			mprotect((void *)(start + page * strtoul(step->moment, NULL, 10)), page, PROT_READ);
		}
	}
	fclose(maps);
}

static bool is_step(const char *call, const char *moment, const char *where)
{
	int number = __atomic_load_n(&step_next, __ATOMIC_SEQ_CST);
	return number < step_count && strcmp(steps[number].call, call) == 0 &&
	       strcmp(steps[number].moment, moment) == 0 && strstr(where, steps[number].where);
}

static void reach(const char *call, const char *moment, const char *where)
{
	if (!is_step(call, moment, where))
		return;
	int number = __atomic_add_fetch(&step_next, 1, __ATOMIC_SEQ_CST);
	if (number == step_count)
		kill(getpid(), last_signal);
	else if (strcmp(steps[number].call, "store") == 0)
		protect(&steps[number]);
}

static const char *name_of(int descriptor, char *name)
{
	int domain;
	socklen_t length = sizeof domain;
	if (getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0) {
		struct sockaddr_nl address = {0};
		length = sizeof address;
		if (domain != AF_NETLINK)
			return domain == AF_INET ? "inet" : "other";
		getsockname(descriptor, (struct sockaddr *)&address, &length);
		return address.nl_groups ? "events" : "requests";
	}
	char link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
	ssize_t size = readlink(link, name, PATH - 1);
	name[size < 0 ? 0 : size] = 0;
	return name;
}

#define ORIGINAL(name) \
	({ \
		static __typeof__(&name) found; \
		if (!found) \
			found = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
		found; \
	})

/* linux/netfilter/nfnetlink_conntrack.h, in messages that begin with struct nfgenmsg. */
static void mask_ids(uint8_t *bytes, size_t size)
{
	const size_t header = NLMSG_ALIGN(sizeof(struct nlmsghdr)), body = header + NLMSG_ALIGN(sizeof(struct nfgenmsg));
	for (size_t start = 0; start + body <= size;) {
		struct nlmsghdr *message = (struct nlmsghdr *)(bytes + start);
		size_t end = start + message->nlmsg_len;
		bool is_flow = message->nlmsg_type >> 8 == NFNL_SUBSYS_CTNETLINK && end <= size;
		for (size_t at = start + body; is_flow && at + sizeof(struct nlattr) <= end;) {
			struct nlattr *attribute = (struct nlattr *)(bytes + at);
			if ((attribute->nla_type & NLA_TYPE_MASK) == CTA_ID)
				*(uint32_t *)(attribute + 1) &= id_mask;
			at += (attribute->nla_len + 3U) & ~3U;
		}
		start += (message->nlmsg_len + 3U) & ~3U;
	}
}

/* Messages of conntrack that tell an end, one behind the other: those since the last dump, and those to show in the
 * one that runs. */
static struct {
	uint8_t bytes[1 << 20];
	size_t size;
} ended, late;
static pthread_mutex_t ended_lock = PTHREAD_MUTEX_INITIALIZER;

static void note_ends(const uint8_t *bytes, size_t size)
{
	pthread_mutex_lock(&ended_lock);
	for (size_t at = 0; at + sizeof(struct nlmsghdr) <= size;) {
		const struct nlmsghdr *message = (const struct nlmsghdr *)(bytes + at);
		size_t space = NLMSG_ALIGN(message->nlmsg_len);
		if (message->nlmsg_type == ((NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_DELETE) &&
		    at + space <= size && ended.size + space <= sizeof ended.bytes) {
			memcpy(ended.bytes + ended.size, message, space);
			ended.size += space;
		}
		at += space;
	}
	pthread_mutex_unlock(&ended_lock);
}

static void begin_dump(const struct nlmsghdr *request)
{
	late.size = 0;
	if ((request->nlmsg_type & 0xff) != IPCTNL_MSG_CT_GET || !(request->nlmsg_flags & NLM_F_DUMP))
		return;
	pthread_mutex_lock(&ended_lock);
	memcpy(&late, &ended, sizeof late);
	ended.size = 0;
	pthread_mutex_unlock(&ended_lock);
	for (size_t at = 0; at < late.size;) {
		struct nlmsghdr *message = (struct nlmsghdr *)(late.bytes + at);
		message->nlmsg_type = (NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_NEW;
		message->nlmsg_flags = NLM_F_MULTI;
		message->nlmsg_seq = request->nlmsg_seq;
		at += NLMSG_ALIGN(message->nlmsg_len);
		++*shown_late;
	}
}

/* In place of the next datagram; 0 where nothing is left to show. */
static size_t show_late(uint8_t *bytes, size_t size)
{
	size_t shown = 0;
	while (shown < late.size) {
		size_t space = NLMSG_ALIGN(((struct nlmsghdr *)(late.bytes + shown))->nlmsg_len);
		if (shown + space > size)
			break;
		shown += space;
	}
	memcpy(bytes, late.bytes, shown);
	memmove(late.bytes, late.bytes + shown, late.size -= shown);
	return shown;
}

/* Calls on a descriptor. */
#define ON_DESCRIPTOR(type, name, call, declaration, arguments) \
	type name declaration \
	{ \
		char path[PATH]; \
		const char *where = step_next < step_count ? name_of(descriptor, path) : ""; \
		reach(call, "before", where); \
		type result = ORIGINAL(name) arguments; \
		if (result > 0) \
			reach(call, "after", where); \
		return result; \
	}

ON_DESCRIPTOR(ssize_t, write, "write", (int descriptor, const void *bytes, size_t size), (descriptor, bytes, size))
ON_DESCRIPTOR(ssize_t, send, "write", (int descriptor, const void *bytes, size_t size, int flags),
	      (descriptor, bytes, size, flags))
ON_DESCRIPTOR(ssize_t, sendmsg, "write", (int descriptor, const struct msghdr *message, int flags),
	      (descriptor, message, flags))
ON_DESCRIPTOR(ssize_t, pwrite, "pwrite", (int descriptor, const void *bytes, size_t size, off_t offset),
	      (descriptor, bytes, size, offset))
ON_DESCRIPTOR(ssize_t, pwrite64, "pwrite", (int descriptor, const void *bytes, size_t size, off64_t offset),
	      (descriptor, bytes, size, offset))
ON_DESCRIPTOR(ssize_t, recvmsg, "recv", (int descriptor, struct msghdr *message, int flags),
	      (descriptor, message, flags))

ssize_t sendto(int descriptor, const void *bytes, size_t size, int flags, const struct sockaddr *to, socklen_t length)
{
	char path[PATH];
	const char *where = step_next < step_count || shown_late || slow_dying ? name_of(descriptor, path) : "";
	reach("write", "before", where);
	if (shown_late && strcmp(where, "requests") == 0)
		begin_dump(bytes);
	if (slow_dying && strcmp(where, "requests") == 0)
		dying_datagrams = (((const struct nlmsghdr *)bytes)->nlmsg_type & 0xff) == IPCTNL_MSG_CT_GET_DYING ? 0 : -1;
	ssize_t result = ORIGINAL(sendto)(descriptor, bytes, size, flags, to, length);
	if (result > 0)
		reach("write", "after", where);
	return result;
}

ssize_t recv(int descriptor, void *bytes, size_t size, int flags)
{
	char path[PATH];
	bool looks = step_next < step_count || id_mask || shown_late || slow_dying;
	const char *where = looks ? name_of(descriptor, path) : "";
	reach("recv", "before", where);
	if (slow_dying && strcmp(where, "requests") == 0 && dying_datagrams >= 0 && dying_datagrams++ > 0) {
		usleep(20000);
		++*slow_dying;
	}
	ssize_t result = shown_late && strcmp(where, "requests") == 0 ? (ssize_t)show_late(bytes, size) : 0;
	if (result == 0)
		result = ORIGINAL(recv)(descriptor, bytes, size, flags);
	if (result > 0 && shown_late && strcmp(where, "events") == 0)
		note_ends(bytes, (size_t)result < size ? (size_t)result : size);
	if (result > 0 && id_mask && (strcmp(where, "events") == 0 || strcmp(where, "requests") == 0))
		mask_ids(bytes, (size_t)result < size ? (size_t)result : size);
	if (result > 0)
		reach("recv", "after", where);
	return result;
}

ssize_t writev(int descriptor, const struct iovec *parts, int count)
{
	char path[PATH];
	const char *where = step_next < step_count ? name_of(descriptor, path) : "";
	reach("writev", "before", where);
	if (is_step("writev", "half", where)) {
		(void)!ORIGINAL(write)(descriptor, parts->iov_base, parts->iov_len / 2);
		reach("writev", "half", where);
	}
	ssize_t result = ORIGINAL(writev)(descriptor, parts, count);
	if (result > 0) {
		reach("writev", "after", where);
		reach("write", "after", where);
	}
	return result;
}

int fallocate(int descriptor, int mode, off_t offset, off_t length)
{
	char path[PATH];
	const char *where = step_next < step_count ? name_of(descriptor, path) : "";
	reach("fallocate", "before", where);
	int result = ORIGINAL(fallocate)(descriptor, mode, offset, length);
	if (result == 0)
		reach("fallocate", "after", where);
	return result;
}

/* Calls on a path. */
#define ON_PATH(name, declaration, arguments) \
	int name declaration \
	{ \
		reach(#name, "before", path); \
		int result = ORIGINAL(name) arguments; \
		if (result >= 0) \
			reach(#name, "after", path); \
		return result; \
	}

ON_PATH(unlink, (const char *path), (path))
ON_PATH(rename, (const char *path, const char *to), (path, to))

int openat(int directory, const char *path, int flags, ...)
{
	va_list rest;
	va_start(rest, flags);
	mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
	va_end(rest);
	reach("openat", "before", path);
	int result = ORIGINAL(openat)(directory, path, flags, mode);
	if (result >= 0)
		reach("openat", "after", path);
	return result;
}

#define OPENS(name) \
	int name(const char *path, int flags, ...) \
	{ \
		va_list rest; \
		va_start(rest, flags); \
		mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
		va_end(rest); \
		bool other_boot = boot_id && strcmp(path, "/proc/sys/kernel/random/boot_id") == 0; \
		return ORIGINAL(name)(other_boot ? boot_id : path, flags, mode); \
	}

OPENS(open)
OPENS(open64)

int clock_gettime(clockid_t clock, struct timespec *time)
{
	int result = ORIGINAL(clock_gettime)(clock, time);
	if (result == 0 && clock == CLOCK_REALTIME && clock_offset)
		time->tv_sec += *clock_offset;
	return result;
}

enum { MEASURES = 3 };

static int64_t nanoseconds(clockid_t clock)
{
	struct timespec time;
	ORIGINAL(clock_gettime)(clock, &time);
	return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void look(int64_t moment[MEASURES])
{
	static int statistics = -1;
	if (statistics < 0)
		statistics = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
	char text[80] = "";
	int64_t waited = 0;
	if (pread(statistics, text, sizeof text - 1, 0) <= 0 || sscanf(text, "%*d %" SCNd64, &waited) != 1)
		abort();
	moment[0] = nanoseconds(CLOCK_MONOTONIC);
	moment[1] = moment[0] - waited;
	moment[2] = nanoseconds(CLOCK_THREAD_CPUTIME_ID);
}

int epoll_pwait(int descriptor, struct epoll_event *events, int most, int timeout, const sigset_t *mask)
{
	static int64_t woken[MEASURES];
	bool watched = loop_longest && gettid() == getpid();
	if (watched && woken[0]) {
		int64_t moment[MEASURES];
		look(moment);
		for (int i = 0; i < MEASURES; i++)
			if (moment[i] - woken[i] > loop_longest[i])
				loop_longest[i] = moment[i] - woken[i];
	}
	int result = ORIGINAL(epoll_pwait)(descriptor, events, most, timeout, mask);
	if (watched)
		look(woken);
	return result;
}
