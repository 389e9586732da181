#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"

static ve_status fails(const char *path, const char *what, int number) {
    char text[128] = "an error without words";
    (void)strerror_r(number, text, sizeof text);
    return ve_fail(VE_ERROR_FILE, "ve_open: %s cannot be %s: %s.", path, what, text);
}

static const char *kind_of(mode_t mode) {
    if (S_ISDIR(mode)) return "a folder";
    if (S_ISFIFO(mode)) return "a named pipe";
    if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
    return "something else";
}

/* `size` bytes from the start; a file that was cut meanwhile is refused. */
static ve_status read_all(int file, const char *path, unsigned char *to, size_t size) {
    size_t done = 0;
    while (done < size) {
        ssize_t more = read(file, to + done, size - done);
        if (more < 0 && errno == EINTR) continue;
        if (more < 0) return fails(path, "read", errno);
        if (more == 0)
            return ve_fail(VE_ERROR_FILE, "ve_open: %s ended after %zu of %zu bytes: it was changed while it was read.", path, done, size);
        done += (size_t)more;
    }
    return VE_OK;
}

static ve_status read_open(int file, const char *path, size_t min_size, size_t max_size, unsigned char **bytes, size_t *count) {
    struct stat about;
    if (fstat(file, &about) != 0) return fails(path, "read", errno);
    if (!S_ISREG(about.st_mode))
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is %s, not a regular file.", path, kind_of(about.st_mode));
    if (about.st_size < 0 || (uintmax_t)about.st_size < min_size || (uintmax_t)about.st_size > max_size)
        return ve_fail(VE_ERROR_FILE, "ve_open: %s is no network file: it has %lld bytes, where %zu to %zu are possible.", path,
                       (long long)about.st_size, min_size, max_size);
    size_t size = (size_t)about.st_size;
    *bytes = malloc(size);
    if (*bytes == NULL) return ve_fail(VE_ERROR_OUT_OF_MEMORY, "ve_open: no memory for the %zu bytes of %s.", size, path);
    ve_status status = read_all(file, path, *bytes, size);
    *count = size;
    if (status == VE_OK) return VE_OK;
    free(*bytes);
    *bytes = NULL;
    return status;
}

ve_status ve_file_read(const char *path, size_t min_size, size_t max_size, unsigned char **bytes, size_t *count) {
    *bytes = NULL;
    *count = 0;
    int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (file < 0) return fails(path, "opened", errno);
    ve_status status = read_open(file, path, min_size, max_size, bytes, count);
    (void)close(file);
    return status;
}
