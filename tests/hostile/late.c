/* A file system on which an agent's node sees a result.json five seconds late.
 *
 * Loaded before the C library into all that the hostile run starts. Only in the keeper of external programs,
 * whose ranks may run on other nodes, is the file not there to be read before it has that age; what a process
 * writes on its own node it sees at once, here as on a real file system.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LATE_S 5

static int keeps_programs;

__attribute__((constructor)) static void look(void) {
    char words[65536];
    int fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC, 0);
    ssize_t size = fd < 0 ? 0 : read(fd, words, sizeof words - 1);
    if (fd >= 0) close(fd);
    if (size < 0) size = 0;
    for (ssize_t at = 0; at < size; at++) if (!words[at]) words[at] = ' ';
    words[size] = 0;
    keeps_programs = strstr(words, " -I -S -c ") && strstr(words, "nas_hpc.processes.keeper");
}

static int hidden(int directory, const char *path, int flags) {
    struct stat found;
    size_t length = path ? strlen(path) : 0;
    if (!keeps_programs || (flags & O_ACCMODE) != O_RDONLY || length < 12) return 0;
    if (strcmp(path + length - 12, "/result.json") || fstatat(directory, path, &found, 0)) return 0;
    if (time(NULL) - found.st_ctime >= LATE_S) return 0;
    errno = ENOENT;
    return 1;
}

#define OPEN(name)                                                          \
    int name(const char *path, int flags, ...) {                            \
        static int (*real)(const char *, int, mode_t);                      \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                       \
        if (!real) real = dlsym(RTLD_NEXT, #name);                          \
        return hidden(AT_FDCWD, path, flags) ? -1 : real(path, flags, mode); \
    }
#define OPENAT(name)                                                        \
    int name(int directory, const char *path, int flags, ...) {             \
        static int (*real)(int, const char *, int, mode_t);                 \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                       \
        if (!real) real = dlsym(RTLD_NEXT, #name);                          \
        return hidden(directory, path, flags) ? -1 : real(directory, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
