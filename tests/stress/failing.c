/* Operations on files below one folder that fail, or kill, at the chosen call: preloaded, and silent until it is armed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, WRITE, RENAME, FSYNC, MKDIR, ANY };

static char folder[4096];
static int kind, error;
static long at, room = -1;
static pid_t owner;
long stress_calls[ANY + 1];

/* The `call`-th operation of that kind gets the error `what`, or, below 0, the signal -what; writes end after `bytes`. */
void stress_arm(const char *where, int which, long call, int what, long bytes)
{
    memset(stress_calls, 0, sizeof stress_calls);
    kind = which, at = call, error = what, room = bytes, owner = getpid();
    strncpy(folder, where, sizeof folder - 1);
}

static int fails(int which, const char *path)
{
    size_t length = strlen(folder);
    if (!length || getpid() != owner || strncmp(path, folder, length) || (path[length] && path[length] != '/'))
        return 0;
    long of_kind = __atomic_add_fetch(&stress_calls[which], 1, __ATOMIC_SEQ_CST);
    long of_any = __atomic_add_fetch(&stress_calls[ANY], 1, __ATOMIC_SEQ_CST);
    if (kind == ANY ? of_any != at : kind != which || of_kind != at)
        return 0;
    if (error < 0)
        return kill(owner, -error), 0;
    return errno = error, 1;
}

static int file_fails(int which, int file, size_t bytes)
{
    char link[64], path[4096];
    if (!folder[0])
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    if (fails(which, path))
        return 1;
    if (which != WRITE || room < 0 || strncmp(path, folder, strlen(folder)) || getpid() != owner)
        return 0;
    if ((long)bytes > room)
        return room = 0, errno = ENOSPC, 1;
    return room -= bytes, 0;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define OPENS(name) \
    int name(const char *path, int flags, ...) \
    { \
        va_list rest; va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        REAL(int, #name, const char *, int, ...); \
        return fails(OPEN, path) ? -1 : real(path, flags, mode); \
    }
#define OPENS_AT(name) \
    int name(int at_folder, const char *path, int flags, ...) \
    { \
        va_list rest; va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        REAL(int, #name, int, const char *, int, ...); \
        return fails(OPEN, path) ? -1 : real(at_folder, path, flags, mode); \
    }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

ssize_t write(int file, const void *data, size_t bytes)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    return file_fails(WRITE, file, bytes) ? -1 : real(file, data, bytes);
}

ssize_t writev(int file, const struct iovec *parts, int count)
{
    size_t bytes = 0;
    for (int i = 0; i < count; i++)
        bytes += parts[i].iov_len;
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return file_fails(WRITE, file, bytes) ? -1 : real(file, parts, count);
}

int ftruncate64(int file, off64_t length)
{
    REAL(int, "ftruncate64", int, off64_t);
    return file_fails(WRITE, file, length) ? -1 : real(file, length);
}

int fsync(int file)
{
    REAL(int, "fsync", int);
    return file_fails(FSYNC, file, 0) ? -1 : real(file);
}

int rename(const char *from, const char *to)
{
    REAL(int, "rename", const char *, const char *);
    return fails(RENAME, to) ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, "mkdir", const char *, mode_t);
    return fails(MKDIR, path) ? -1 : real(path, mode);
}
