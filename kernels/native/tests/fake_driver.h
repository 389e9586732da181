/* A test double of the NVIDIA driver's ABI: it computes nothing, it reads the machine code it is given and records launches.
 *
 * It is built as libcuda.so.1 in a folder of its own, which tests put on the loader's path. From each machine code (ELF) it reads
 * the architecture and the parameters that the entry takes, and it copies exactly those from a launch: so a launch that passes
 * too few, too many or wrongly sized arguments shows. Environment: FAKE_CC (compute capability, 87), FAKE_DEVICES (how many),
 * FAKE_INIT_ERROR and FAKE_LAUNCH_ERROR (codes to return), FAKE_MULTIPROCESSORS (16), FAKE_ROOM (programs of a cooperative launch
 * that there is room for: one on each multiprocessor), FAKE_PARAMETERS (how many an entry must take: any number).
 */
#ifndef VE_FAKE_DRIVER_H
#define VE_FAKE_DRIVER_H

#include <stdint.h>

#define FAKE_MAX_PARAMETERS 40
#define FAKE_FIRST_HANDLE 40 /* device ordinal n has the handle n + 40, so that the two cannot be mistaken for each other */

typedef struct fake_launch {
    char entry[64];
    int architecture;  /* of the machine code */
    const void *image; /* the machine code itself */
    int device;       /* handle of the device of the context that was current */
    int cooperative; /* whether it was a cooperative launch */
    unsigned int grid[3], block[3], shared_bytes;
    void *stream;
    int parameter_count; /* as the machine code says */
    int sizes[FAKE_MAX_PARAMETERS];
    uint64_t values[FAKE_MAX_PARAMETERS];
} fake_launch;

/* What a launch does, if anything: it sees device pointers as pointers that it can follow. */
typedef void (*fake_kernel)(const fake_launch *launch);
void fake_run_with(fake_kernel kernel);

/* Allocations, streams and graphs that were not given back. FAKE_MEMORY: how many device allocations there are room for. */
int fake_resources_held(void);
int fake_graph_launch_count(void);

/* How many launches there were, and the last one. */
int fake_launch_count(void);
void fake_last_launch(fake_launch *launch);

/* Primary contexts that are retained, and libraries that are loaded, at this moment. */
int fake_contexts_retained(void);
int fake_libraries_loaded(void);

/* Make the context of a device current in this thread (NULL handle: -1), as a host program would. */
void fake_set_current(int device_handle);
int fake_current(void);

#endif
