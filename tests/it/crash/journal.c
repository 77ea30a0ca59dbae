/* Kills the process at a step of writing its journal that the file `crash` in its data folder names.
 *
 * The file holds a word and a number: `torn 3` ends the process when half of the third write has been made, `before 3`
 * before the third sync, `after 3` after it, when nobody has been told of it yet. Preloaded into a node by a test. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Only the thread that writes the journal gets past the name of the file. */
static char step[16];
static int left = 0;

static int is_due(int file, const char *now) {
    char link[64], path[PATH_MAX], order[PATH_MAX + 8];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    char *journal = strstr(path, "/journal/");
    if (!journal) return 0;
    if (left == 0) {
        snprintf(order, sizeof order, "%.*s/crash", (int)(journal - path), path);
        FILE *crash = fopen(order, "r");
        if (!crash) return 0;
        int words = fscanf(crash, "%15s %d", step, &left);
        fclose(crash);
        if (words != 2) return left = 0;
    }
    return strcmp(step, now) == 0 && --left == 0;
}

static void crash(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

ssize_t write(int file, const void *bytes, size_t length) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (is_due(file, "torn")) {
        real(file, bytes, length / 2);
        crash();
    }
    return real(file, bytes, length);
}

int fdatasync(int file) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    if (is_due(file, "before")) crash();
    int result = real(file);
    if (is_due(file, "after")) crash();
    return result;
}
