/* Included before everything else where the library is built for wheels: the symbols that glibc 2.33 and 2.34 gave new versions
 * are bound to those of old, so that the library loads on glibc 2.17 and later. Until 2.33 they were in libdl and libpthread. */
#ifndef VE_PORTABLE_H
#define VE_PORTABLE_H

#include <sys/stat.h>

#if defined(__x86_64__)
#define VE_OLDEST "GLIBC_2.2.5"
#define VE_STAT_VERSION 1
#elif defined(__aarch64__)
#define VE_OLDEST "GLIBC_2.17"
#define VE_STAT_VERSION 0
#else
#error "portable.h knows x86-64 and aarch64 alone"
#endif

__asm__(".symver dlclose,dlclose@" VE_OLDEST);
__asm__(".symver dlerror,dlerror@" VE_OLDEST);
__asm__(".symver dlopen,dlopen@" VE_OLDEST);
__asm__(".symver dlsym,dlsym@" VE_OLDEST);
__asm__(".symver pthread_rwlock_rdlock,pthread_rwlock_rdlock@" VE_OLDEST);
__asm__(".symver pthread_rwlock_unlock,pthread_rwlock_unlock@" VE_OLDEST);
__asm__(".symver pthread_rwlock_wrlock,pthread_rwlock_wrlock@" VE_OLDEST);

/* What `fstat` was, a macro over this one. */
extern int __fxstat(int version, int file, struct stat *about);
#define fstat(file, about) __fxstat(VE_STAT_VERSION, (file), (about))

#endif
