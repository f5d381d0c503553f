/* A disk that fails under SQLite: preloaded, it counts the calls that concern the ledger's files, and refuses one of them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int armed, left, code, once, read_refused;

void arm(int calls, int error, int only_once) {
    left = calls;
    code = error;
    once = only_once;
    read_refused = 0;
    armed = 1;
}

int disarm(void) {
    armed = 0;
    return left;
}

/* SQLite takes a read that the disk refuses for damage. */
int was_read(void) {
    return read_refused;
}

static int is_ledger(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, "/ledger.db") != NULL;
}

static int refused(int fd) {
    if (!armed || !is_ledger(fd)) return 0;
    left--;
    if (left != -1 && (left >= 0 || once)) return 0;
    errno = code;
    return 1;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t pwrite64(int fd, const void *data, size_t count, off64_t offset) {
    REAL(pwrite64);
    if (!refused(fd)) return real(fd, data, count, offset);
    int failed = errno;
    real(fd, data, count / 2, offset); /* torn: half of it got there */
    errno = failed;
    return -1;
}

ssize_t pread64(int fd, void *data, size_t count, off64_t offset) {
    REAL(pread64);
    if (!refused(fd)) return real(fd, data, count, offset);
    read_refused = 1;
    return -1;
}

int fsync(int fd) {
    REAL(fsync);
    return refused(fd) ? -1 : real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return refused(fd) ? -1 : real(fd);
}

int ftruncate64(int fd, off64_t length) {
    REAL(ftruncate64);
    return refused(fd) ? -1 : real(fd, length);
}
