/* Preloaded into a process with the embedded engine: kills it at the instant an insert's part is put in
 * place. KILL_AT says at which part, counted from 1; KILL_WHEN is "before" or "after" the renaming. chdb binds
 * the C library's functions first (RTLD_DEEPBIND), which is taken from it here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void *dlopen(const char *file, int flags)
{
    void *(*real_dlopen)(const char *, int) = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
    return real_dlopen(file, flags & ~RTLD_DEEPBIND);
}

int rename(const char *from, const char *to)
{
    static int parts;
    static int (*real_rename)(const char *, const char *);
    if (real_rename == NULL)
        real_rename = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    const char *at = getenv("KILL_AT");
    const char *when = getenv("KILL_WHEN");
    int hit = at != NULL && when != NULL && strstr(from, "tmp_insert") != NULL && ++parts == atoi(at);
    if (hit && strcmp(when, "before") == 0)
        kill(getpid(), SIGKILL);
    int result = real_rename(from, to);
    if (hit)
        kill(getpid(), SIGKILL);
    return result;
}
