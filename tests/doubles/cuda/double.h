/* A double of libcuda.so.1 for tests: the names and the ABI of cuda.h, over host memory.
 *
 * What a stream is given to do is done when somebody waits for it (stream, event, context, a blocking copy) or asks a second time
 * whether it is done (cuStreamQuery, cuEventQuery); never before. Device addresses carry a mark in their highest byte, so that no
 * host code can follow them; fresh memory holds 0xA5. A copy or a launched function that leaves its allocation fails with 700 when it
 * is done, and from then on every call of that context that works with the device returns 700, as on a device.
 *
 * From machine code (ELF) that it is given it reads the architecture and the parameters that the entry takes, and it copies exactly
 * those from a launch: a launch that passes too few, too many or wrongly sized arguments shows. It computes nothing by itself.
 *
 * Environment, read at each call. A comma separates devices; the last value holds for the rest:
 *   DOUBLE_DEVICES (1)             how many devices there are
 *   DOUBLE_CC (87)                 compute capability
 *   DOUBLE_NAME (Orin)             name
 *   DOUBLE_INTEGRATED (1 if the capability is 87 or 110)
 *   DOUBLE_MULTIPROCESSORS (16)
 *   DOUBLE_MEMORY_BYTES (8 GiB)    memory of the device, which limits all allocations together
 *   DOUBLE_DRIVER_VERSION (13020)  of the driver, not of a device
 *   DOUBLE_ROOM                    programs of a cooperative launch that there is room for (one on each multiprocessor)
 *   DOUBLE_PARAMETERS              how many an entry must take (any number)
 * and, read when the library is loaded and by double_reset:
 *   DOUBLE_FAIL="cuMemAlloc_v2:3:2,cuInit:0:999"   calls of double_fail: function, number of the call, code
 */
#ifndef VAE_EDGE_CUDA_DOUBLE_H
#define VAE_EDGE_CUDA_DOUBLE_H

#include <stddef.h>
#include <stdint.h>

#define DOUBLE_MAX_PARAMETERS 40
#define DOUBLE_FIRST_DEVICE 40 /* device ordinal n has the handle n + 40, so that the two cannot be mistaken for each other */

typedef struct double_launch {
    char entry[64];
    int architecture;  /* of the machine code */
    const void *image; /* the machine code itself */
    int device;        /* handle of the device of the context that was current */
    int cooperative;   /* whether it was a cooperative launch */
    unsigned int grid[3], block[3], shared_bytes;
    void *stream;
    int parameter_count; /* as the machine code says */
    int sizes[DOUBLE_MAX_PARAMETERS];
    uint64_t values[DOUBLE_MAX_PARAMETERS];
} double_launch;

/* ---- Kernels ---- */

/* What a launched kernel does, if anything: it sees device addresses as host pointers that it can follow. */
typedef void (*double_kernel)(const double_launch *launch);
void double_run_with(double_kernel kernel);

/* How many launches were accepted (one in a graph counts at each launch of the graph), and the last one. */
int double_launch_count(void);
void double_last_launch(double_launch *launch);

/* Enqueue a host function as if it were a kernel; a stream that is captured records it. It runs without a lock held. */
int double_launch_host(void *stream, void (*function)(void *), void *user);
void double_spend(void *microseconds); /* such a function, which takes so long, and does nothing */

/* Inside a function that a stream runs: the device fails with this code (700: an illegal address). */
void double_raise(int code);

/* Inside such a function: the memory behind an address that the device can reach, NULL unless `bytes` lie in one live allocation. */
void *double_host_address(uint64_t address, size_t bytes);

/* Live allocation n, in no order, of those that the device can reach; returns 0 where there are fewer, else 1. `address` is the host's
 * pointer, as a launched kernel sees it. `written` has a byte for each byte of the allocation: not 0 where a copy, or whoever asked
 * for its address by double_host_address, has written it. A kernel that keeps account of what it writes does so there. */
typedef struct double_memory {
    uint64_t address, bytes;
    unsigned char *written;
} double_memory;
int double_memory_at(int n, double_memory *found);

/* ---- What is held, and what was called ---- */

/* Allocations, streams, events, graphs and graph execs that were not given back; also those that a released context took along. */
int double_held(void);

/* By name: a function of the driver (how often it was called); "device_allocations", "host_allocations", "streams", "events",
 * "graphs", "execs", "libraries", "contexts" (held now); "device_bytes", "host_bytes" (held now); "pageable_copies" (asynchronous
 * copies from or to memory that the driver does not know); "default_synchronizations" (cuStreamSynchronize of a default stream);
 * "faults". -1 for another name. */
long long double_count(const char *name);

/* Misuse that no return code shows (written beyond a block's end, a stream destroyed with work left, ...): sentence n, or NULL. */
const char *double_fault(int n);

/* Add a sentence to these, as whoever stands in for a kernel does before double_raise. */
void double_add_fault(const char *sentence);

/* ---- Faults on demand ---- */

/* The n-th call of a function from now on (0: every call) returns this code and does nothing; code 0 takes that back. Returns 0, or
 * 1 for a function that the double does not have. */
int double_fail(const char *function, int nth_call, int code);

/* From now on every call that works with a device returns this code (719, 999), as after an Xid. */
void double_lose_device(int code);

/* As freshly loaded: everything is taken back, no counts, no faults. No other thread may be in a call. */
void double_reset(void);

/* ---- Contexts ---- */

/* Make the context of a device current in this thread (handle -1: none), as a host program would; and which one is (-1: none). */
void double_set_current(int device_handle);
int double_current(void);

/* With what every call of a context fails since its device failed; 0: it works, or is none. */
int double_error(const void *context);

#endif
