/* Preloaded into a process, lets its disk fail: FAIL names a file that holds "write", "read" or nothing.
 *
 * While it says "write", pwrite() writes half of what it is asked for and then has no room; while it says "read",
 * pread() meets a bad sector.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

static int fails(const char* what) {
  const char* name = getenv("FAIL");
  FILE* file = name == NULL ? NULL : fopen(name, "r");
  if (file == NULL) return 0;
  char found[16] = "";
  if (fgets(found, sizeof found, file) == NULL) found[0] = 0;
  fclose(file);
  return strncmp(found, what, strlen(what)) == 0;
}

typedef ssize_t (*Write)(int, const void*, size_t, off_t);
typedef ssize_t (*Read)(int, void*, size_t, off_t);

static ssize_t failing_write(const char* name, int file, const void* data, size_t size, off_t place) {
  const Write next = (Write)dlsym(RTLD_NEXT, name);
  if (place < 4096 || !fails("write")) return next(file, data, size, place);
  if (size > 1) next(file, data, size / 2, place);
  errno = ENOSPC;
  return -1;
}

static ssize_t failing_read(const char* name, int file, void* data, size_t size, off_t place) {
  if (fails("read")) {
    errno = EIO;
    return -1;
  }
  return ((Read)dlsym(RTLD_NEXT, name))(file, data, size, place);
}

ssize_t pwrite(int file, const void* data, size_t size, off_t place) {
  return failing_write("pwrite", file, data, size, place);
}
ssize_t pwrite64(int file, const void* data, size_t size, off_t place) {
  return failing_write("pwrite64", file, data, size, place);
}
ssize_t pread(int file, void* data, size_t size, off_t place) {
  return failing_read("pread", file, data, size, place);
}
ssize_t pread64(int file, void* data, size_t size, off_t place) {
  return failing_read("pread64", file, data, size, place);
}
