/* Loaded before libc: what a mounted Google Drive refuses is refused in the folder $DRIVE. Hard and symbolic links, locks, and
   fsync of a folder; all else is the file system's own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int on_drive(const char *path) {
  const char *drive = getenv("DRIVE");
  char whole[2 * PATH_MAX], here[PATH_MAX];
  if (!drive || !path) return 0;
  if (path[0] == '/' || !getcwd(here, sizeof here)) snprintf(whole, sizeof whole, "%s", path);
  else snprintf(whole, sizeof whole, "%s/%s", here, path);
  return strncmp(whole, drive, strlen(drive)) == 0;
}

static int open_on_drive(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return on_drive(path);
}

static int refused(const char *what) {
  fprintf(stderr, "Drive refuses %s\n", what);
  errno = ENOTSUP;
  return -1;
}

int link(const char *from, const char *to) {
  static int (*real)(const char *, const char *);
  if (!real) real = dlsym(RTLD_NEXT, "link");
  return on_drive(to) ? refused("link") : real(from, to);
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
  static int (*real)(int, const char *, int, const char *, int);
  if (!real) real = dlsym(RTLD_NEXT, "linkat");
  return on_drive(to) ? refused("linkat") : real(a, from, b, to, flags);
}

int symlink(const char *from, const char *to) {
  static int (*real)(const char *, const char *);
  if (!real) real = dlsym(RTLD_NEXT, "symlink");
  return on_drive(to) ? refused("symlink") : real(from, to);
}

int symlinkat(const char *from, int folder, const char *to) {
  static int (*real)(const char *, int, const char *);
  if (!real) real = dlsym(RTLD_NEXT, "symlinkat");
  return on_drive(to) ? refused("symlinkat") : real(from, folder, to);
}

int flock(int fd, int how) {
  static int (*real)(int, int);
  if (!real) real = dlsym(RTLD_NEXT, "flock");
  return open_on_drive(fd) ? refused("flock") : real(fd, how);
}

static int locks(int command) {
  return command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;
}

int fcntl(int fd, int command, ...) {
  static int (*real)(int, int, ...);
  if (!real) real = dlsym(RTLD_NEXT, "fcntl");
  va_list rest;
  va_start(rest, command);
  void *argument = va_arg(rest, void *);
  va_end(rest);
  return locks(command) && open_on_drive(fd) ? refused("fcntl") : real(fd, command, argument);
}

int fcntl64(int fd, int command, ...) {
  static int (*real)(int, int, ...);
  if (!real) real = dlsym(RTLD_NEXT, "fcntl64");
  va_list rest;
  va_start(rest, command);
  void *argument = va_arg(rest, void *);
  va_end(rest);
  return locks(command) && open_on_drive(fd) ? refused("fcntl64") : real(fd, command, argument);
}

int fsync(int fd) {
  static int (*real)(int);
  struct stat found;
  if (!real) real = dlsym(RTLD_NEXT, "fsync");
  if (fstat(fd, &found) == 0 && S_ISDIR(found.st_mode) && open_on_drive(fd)) return refused("fsync of a folder");
  return real(fd);
}
