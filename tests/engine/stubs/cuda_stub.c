/* A stand-in for libcuda.so.1 with two GPUs, by which the ctypes calls of vae_edge/engine/cuda.py are tested where there is
 * no driver: the signatures are those of cuda.h. VAE_EDGE_STUB_CUDA: "empty" has no GPU, "broken" does not start,
 * "torn" starts but does not describe its second GPU. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef int CUdevice;

static int mode(const char *name) {
    const char *value = getenv("VAE_EDGE_STUB_CUDA");
    return value && strcmp(value, name) == 0;
}

CUresult cuInit(unsigned int flags) {
    if (flags != 0) return 1;
    return mode("broken") ? 999 : mode("empty") ? 100 : 0;
}
CUresult cuDriverGetVersion(int *version) { *version = 13020; return 0; }
CUresult cuDeviceGetCount(int *count) { *count = 2; return 0; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    if (mode("torn") && ordinal == 1) return 101;
    *device = ordinal + 40; /* a handle is not an ordinal: whoever mixes them up is found out */
    return ordinal < 2 ? 0 : 101;
}
CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    strncpy(name, device == 40 ? "Orin" : "NVIDIA RTX A2000", (size_t)length);
    return device == 40 || device == 41 ? 0 : 101;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    *bytes = device == 40 ? 7990607872ull : 12884901888ull; /* more than 32 bits hold */
    return 0;
}
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    int first = device == 40;
    switch (attribute) {
        case 16: *value = first ? 8 : 26; return 0; /* multiprocessors */
        case 18: *value = first ? 1 : 0; return 0;  /* integrated */
        case 75: *value = 8; return 0;              /* compute capability, major */
        case 76: *value = first ? 7 : 6; return 0;  /* and minor */
        default: return 1;
    }
}
CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == 999 ? "unknown error" : "invalid device ordinal";
    return 0;
}
