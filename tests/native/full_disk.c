/* A disk that is full: loaded with LD_PRELOAD, it makes calls fail that would take room below one folder,
 * FULL_DISK_FOLDER, which is absolute and without symbolic links.
 *
 * A process says with full_disk_fail which call is the first that fails with ENOSPC, and asks with
 * full_disk_calls how many there were. Counted are writing, flushing, cutting, renaming, making folders, and
 * opening files that are not there yet. A write that fails leaves half of its bytes: room for no more was left.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t counting = PTHREAD_MUTEX_INITIALIZER;
static long calls, failing;
static int only;
static char folder[PATH_MAX];

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("FULL_DISK_FOLDER");
    if (where) snprintf(folder, sizeof folder, "%s", where);
}

/* Count anew. call: the number of the first that fails, from 1, and all after it unless `alone`; 0: none. */
void full_disk_fail(long call, int alone) {
    pthread_mutex_lock(&counting);
    calls = 0;
    failing = call;
    only = alone;
    pthread_mutex_unlock(&counting);
}

long full_disk_calls(void) { return calls; }

/* Whether an absolute path lies below the folder. */
static int below(const char *path) {
    size_t length = strlen(folder);
    return length && !strncmp(path, folder, length) && path[length] == '/';
}

/* The path of an open file or folder, "" where it has none. */
static void path_of(int handle, char *path) {
    char link[64];
    snprintf(link, sizeof link, handle == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
}

/* Whether a path, as the *at calls take it, lies below the folder. */
static int path_below(int start, const char *path) {
    char whole[2 * PATH_MAX + 1];
    if (path[0] == '/') return below(path);
    path_of(start, whole);
    strcat(whole, "/");
    strncat(whole, path, PATH_MAX - 1);
    return below(whole);
}

static int handle_below(int handle) {
    char path[PATH_MAX];
    path_of(handle, path);
    return below(path);
}

/* Count a call that would take room; whether it is to fail. */
static int full(int here) {
    if (!here) return 0;
    pthread_mutex_lock(&counting);
    long call = ++calls;
    int fails = failing && (only ? call == failing : call >= failing);
    pthread_mutex_unlock(&counting);
    if (fails) errno = ENOSPC;
    return fails;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int handle, const void *bytes, size_t count) {
    if (!full(handle_below(handle))) return REAL(write)(handle, bytes, count);
    REAL(write)(handle, bytes, count / 2);
    errno = ENOSPC;
    return -1;
}

ssize_t pwrite(int handle, const void *bytes, size_t count, off_t place) {
    if (!full(handle_below(handle))) return REAL(pwrite)(handle, bytes, count, place);
    REAL(pwrite)(handle, bytes, count / 2, place);
    errno = ENOSPC;
    return -1;
}

ssize_t pwrite64(int handle, const void *bytes, size_t count, off64_t place) {
    return pwrite(handle, bytes, count, place);
}

ssize_t writev(int handle, const struct iovec *parts, int count) {
    return full(handle_below(handle)) ? -1 : REAL(writev)(handle, parts, count);
}

ssize_t pwritev(int handle, const struct iovec *parts, int count, off_t place) {
    return full(handle_below(handle)) ? -1 : REAL(pwritev)(handle, parts, count, place);
}

ssize_t pwritev64(int handle, const struct iovec *parts, int count, off64_t place) {
    return pwritev(handle, parts, count, place);
}

int fsync(int handle) { return full(handle_below(handle)) ? -1 : REAL(fsync)(handle); }

int fdatasync(int handle) { return full(handle_below(handle)) ? -1 : REAL(fdatasync)(handle); }

int ftruncate(int handle, off_t length) {
    return full(handle_below(handle)) ? -1 : REAL(ftruncate)(handle, length);
}

int ftruncate64(int handle, off64_t length) { return ftruncate(handle, length); }

int renameat2(int old_start, const char *old, int new_start, const char *new, unsigned int flags) {
    if (full(path_below(old_start, old) || path_below(new_start, new))) return -1;
    return REAL(renameat2)(old_start, old, new_start, new, flags);
}

int renameat(int old_start, const char *old, int new_start, const char *new) {
    return renameat2(old_start, old, new_start, new, 0);
}

int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }

int mkdirat(int start, const char *path, mode_t mode) {
    return full(path_below(start, path)) ? -1 : REAL(mkdirat)(start, path, mode);
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int openat(int start, const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & (O_CREAT | __O_TMPFILE)) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    int made = flags & O_CREAT && path_below(start, path) && faccessat(start, path, F_OK, 0);
    return full(made) ? -1 : REAL(openat)(start, path, flags, mode);
}

/* all of these are openat; off_t has 64 bits where this is compiled */
#define MODE(flags) __extension__({ va_list rest; va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; va_end(rest); mode; })

int openat64(int start, const char *path, int flags, ...) { return openat(start, path, flags, MODE(flags)); }

int open(const char *path, int flags, ...) { return openat(AT_FDCWD, path, flags, MODE(flags)); }

int open64(const char *path, int flags, ...) { return openat(AT_FDCWD, path, flags, MODE(flags)); }

int creat(const char *path, mode_t mode) {
    return openat(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode) { return creat(path, mode); }
