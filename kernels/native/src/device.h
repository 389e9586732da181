/* The devices that were initialized, and their loaded kernels. */
#ifndef VE_DEVICE_H
#define VE_DEVICE_H

#include "driver.h"
#include "table.h"

/* A kernel on a device; `library` is NULL where the kernel has no machine code for it. */
typedef struct ve_loaded {
    const ve_code *code;
    unsigned int warps;
    unsigned int shared_bytes;
    CUlibrary library;
    CUkernel kernel;
} ve_loaded;

typedef struct ve_device {
    int ready;
    CUdevice handle;
    CUcontext context;
    ve_loaded *loaded; /* ve_table_count entries, in the table's order */
} ve_device;

/* Lock the devices for reading: until the unlock no other thread initializes or shuts down. */
void ve_devices_rdlock(void);
void ve_devices_unlock(void);

/* The driver and the device that a launch of this thread goes to. The lock is held. *push: the context must be pushed first. */
ve_status ve_current_device(const char *caller, const ve_driver **driver, const ve_device **device, int *push);

/* The driver, opened and started if it is not. It stays open while the library is loaded. */
ve_status ve_shared_driver(const char *caller, const ve_driver **used);

/* Whether machine code for one architecture runs on a device of another (87 is sm_87). */
int ve_runs_on(int code, int device);

/* The number of a kernel in the table, or -1 with the error set. */
int ve_find_kernel(const char *caller, const char *name);

#endif
