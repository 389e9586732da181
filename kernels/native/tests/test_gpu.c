/* On a machine with a GPU: both kernels, launched through the library, against the C reference. Skipped where there is none. */
#include <dlfcn.h>
#include <math.h>

#include "check.h"
#include "reference.h"

static struct {
    int (*get_device)(int *device, int ordinal);
    int (*retain)(void **context, int device);
    int (*give_back)(int device);
    int (*set)(void *context);
    int (*allocate)(uint64_t *pointer, size_t bytes);
    int (*release)(uint64_t pointer);
    int (*to_device)(uint64_t target, const void *source, size_t bytes);
    int (*to_host)(void *target, uint64_t source, size_t bytes);
    int (*synchronize)(void);
} cuda;

static void open_driver(void) {
    const struct {
        void *function;
        const char *name;
    } wanted[] = {{&cuda.get_device, "cuDeviceGet"},
                  {&cuda.retain, "cuDevicePrimaryCtxRetain"},
                  {&cuda.give_back, "cuDevicePrimaryCtxRelease_v2"},
                  {&cuda.set, "cuCtxSetCurrent"},
                  {&cuda.allocate, "cuMemAlloc_v2"},
                  {&cuda.release, "cuMemFree_v2"},
                  {&cuda.to_device, "cuMemcpyHtoD_v2"},
                  {&cuda.to_host, "cuMemcpyDtoH_v2"},
                  {&cuda.synchronize, "cuCtxSynchronize"}};
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    CHECK(library != NULL);
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        void *symbol = dlsym(library, wanted[i].name);
        CHECK(symbol != NULL);
        memcpy(wanted[i].function, &symbol, sizeof symbol);
    }
}

static float noise(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / 8388608.0f - 1.0f;
}

static void *device(uint64_t pointer, size_t shift) { return (void *)(uintptr_t)(pointer + shift); }

static void compare(const char *what, const float *got, const float *wanted, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!(fabsf(got[i] - wanted[i]) <= 2e-5f * (1.0f + fabsf(wanted[i])))) {
            fprintf(stderr, "%s[%zu] is %g, expected %g\n", what, i, (double)got[i], (double)wanted[i]);
            exit(1);
        }
}

/* All six arrays of one size lie one after another in one allocation, `shift` bytes off alignment. */
static void one_size(int rows, int columns, uint64_t seed, uint64_t offset, size_t shift) {
    size_t count = (size_t)rows * (size_t)columns, stride = (count * sizeof(float) + 255) / 256 * 256;
    uint32_t state = 7;
    uint64_t memory;
    float *host = malloc(8 * count * sizeof(float)), *rows_host = malloc(3 * (size_t)rows * sizeof(float));
    CHECK(host != NULL && rows_host != NULL);
    float *mu = host, *logvar = host + count, *grad_z = host + 2 * count, *got = host + 3 * count;
    float *want_a = host + 4 * count, *want_b = host + 5 * count;
    float *grad_kl = rows_host, *kl = rows_host + rows, *want_kl = rows_host + 2 * rows;
    for (size_t i = 0; i < 3 * count; i++) host[i] = noise(&state);
    for (int i = 0; i < rows; i++) grad_kl[i] = noise(&state);
    CHECK(cuda.allocate(&memory, 8 * stride + 256) == 0);
    for (size_t i = 0; i < 3; i++)
        CHECK(cuda.to_device(memory + i * stride + shift, host + i * count, count * sizeof(float)) == 0);
    CHECK(cuda.to_device(memory + 3 * stride + shift, grad_kl, (size_t)rows * sizeof(float)) == 0);
    void *d_mu = device(memory, shift), *d_logvar = device(memory, stride + shift), *d_grad_z = device(memory, 2 * stride + shift);
    void *d_grad_kl = device(memory, 3 * stride + shift), *d_a = device(memory, 4 * stride + shift);
    void *d_b = device(memory, 5 * stride + shift);

    CHECK(ve_launch_reparameterize_forward(d_mu, d_logvar, d_a, d_b, rows, columns, seed, offset, VE_FLOAT32, NULL) == VE_OK);
    CHECK(cuda.synchronize() == 0);
    reference_forward(mu, logvar, want_a, want_kl, rows, columns, seed, offset);
    CHECK(cuda.to_host(got, memory + 4 * stride + shift, count * sizeof(float)) == 0);
    CHECK(cuda.to_host(kl, memory + 5 * stride + shift, (size_t)rows * sizeof(float)) == 0);
    compare("z", got, want_a, count);
    compare("kl", kl, want_kl, (size_t)rows);

    CHECK(ve_launch_reparameterize_backward(d_grad_z, d_grad_kl, d_mu, d_logvar, d_a, d_b, rows, columns, seed, offset,
                                            VE_FLOAT32, NULL) == VE_OK);
    CHECK(cuda.synchronize() == 0);
    reference_backward(grad_z, grad_kl, mu, logvar, want_a, want_b, rows, columns, seed, offset);
    CHECK(cuda.to_host(got, memory + 4 * stride + shift, count * sizeof(float)) == 0);
    compare("grad_mu", got, want_a, count);
    CHECK(cuda.to_host(got, memory + 5 * stride + shift, count * sizeof(float)) == 0);
    compare("grad_logvar", got, want_b, count);
    CHECK(cuda.release(memory) == 0);
    free(host);
    free(rows_host);
}

int main(void) {
    ve_status status = ve_initialize(0);
    if (status == VE_ERROR_NO_DRIVER || status == VE_ERROR_NO_DEVICE || status == VE_ERROR_UNSUPPORTED_DEVICE) {
        printf("skipped: %s\n", ve_last_error());
        return SKIPPED;
    }
    CHECK(status == VE_OK);
    void *context;
    int device_handle;
    open_driver();
    CHECK(cuda.get_device(&device_handle, 0) == 0 && cuda.retain(&context, device_handle) == 0 && cuda.set(context) == 0);
    one_size(1, 1, 0, 0, 0);
    one_size(17, 32, 42, 8, 0);
    one_size(257, 24, 1, (UINT64_C(1) << 40) + 3, 0);
    one_size(300, 37, UINT64_C(0x7fffffffffffffff), 5, 0);
    one_size(64, 128, 3, 16, 4);
    CHECK(cuda.set(NULL) == 0 && cuda.give_back(device_handle) == 0);
    CHECK(ve_shutdown() == VE_OK);
    return 0;
}
