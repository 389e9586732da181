/* With the test double of the driver: what is loaded, what a launch passes to the machine code, and how failures are told. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>

#include "check.h"
#include "double.h"

int cuDevicePrimaryCtxRetain(void **context, int device);
int cuDevicePrimaryCtxRelease_v2(int device);
int cuStreamCreate(void **stream, unsigned int flags);
int cuStreamSynchronize(void *stream);
int cuStreamDestroy_v2(void *stream);

static const char *at(uint64_t address) { return (const char *)(uintptr_t)address; }

static int carries(int architecture) {
    ve_kernel kernel;
    CHECK(ve_kernel_info(0, &kernel) == VE_OK);
    for (int i = 0; i < kernel.architecture_count; i++)
        if (kernel.architectures[i] == architecture) return 1;
    return 0;
}

/* The launch passed every argument that the machine code takes, with these values, and NULL for the two scratch pointers. */
static void expect(const char *entry, unsigned int programs, int count, const uint64_t *values) {
    double_launch launch;
    double_last_launch(&launch);
    CHECK(strcmp(launch.entry, entry) == 0);
    CHECK(launch.grid[0] == programs && launch.grid[1] == 1 && launch.grid[2] == 1);
    CHECK(launch.parameter_count == count + 2);
    for (int i = 0; i < count; i++) CHECK(launch.values[i] == values[i]);
    for (int i = count; i < count + 2; i++) CHECK(launch.sizes[i] == 8 && launch.values[i] == 0);
}

static unsigned int programs_for(const char *kernel, int rows) {
    int rows_per_program = 0;
    CHECK(ve_kernel_constant(kernel, "ROWS", &rows_per_program) == VE_OK);
    CHECK(rows_per_program > 0);
    return (unsigned int)((rows + rows_per_program - 1) / rows_per_program);
}

static void launches_pass_what_the_machine_code_takes(void) {
    const char *mu = at(0x7000000000), *logvar = at(0x7000010000), *z = at(0x7000020000), *kl = at(0x7000030000);
    void *stream = NULL;
    double_set_current(DOUBLE_FIRST_DEVICE);
    CHECK(cuStreamCreate(&stream, 1) == 0);
    double_set_current(-1);
    const uint64_t seed = UINT64_C(0x123456789abcdef0), offset = (UINT64_C(1) << 40) + 4;
    CHECK(ve_launch_reparameterize_forward(mu, logvar, (void *)(uintptr_t)z, (float *)(uintptr_t)kl, 257, 32, seed, offset,
                                           VE_FLOAT32, stream) == VE_OK);
    const uint64_t forward[] = {0x7000000000, 0x7000010000, 0x7000020000, 0x7000030000, 257, 32, seed, offset};
    expect("reparameterize_forward", programs_for("reparameterize_forward_fp32_quads", 257), 8, forward);
    double_launch launch;
    double_last_launch(&launch);
    const int rows_per_program = 512 / (int)programs_for("reparameterize_forward_fp32_quads", 512);
    for (int rows = rows_per_program - 1; rows <= rows_per_program + 1; rows++) {
        CHECK(ve_launch_reparameterize_forward(mu, logvar, (void *)(uintptr_t)z, (float *)(uintptr_t)kl, rows, 32, seed,
                                               offset, VE_FLOAT32, stream) == VE_OK);
        double_last_launch(&launch);
        CHECK(launch.grid[0] == (rows > rows_per_program ? 2 : 1));
    }
    const int sizes[] = {8, 8, 8, 8, 4, 4, 8, 8};
    for (int i = 0; i < 8; i++) CHECK(launch.sizes[i] == sizes[i]);
    ve_kernel kernel;
    for (int i = 0; ve_kernel_info(i, &kernel) == VE_OK; i++)
        if (strcmp(kernel.name, "reparameterize_forward_fp32_quads") == 0) break;
    for (int i = 0; i < kernel.architecture_count; i++)
        if (kernel.architectures[i] == launch.architecture) {
            CHECK(launch.block[0] == 32u * (unsigned int)kernel.warps[i]);
            CHECK(launch.shared_bytes == (unsigned int)kernel.shared_bytes[i]);
        }
    CHECK(launch.stream == stream && launch.block[1] == 1 && launch.block[2] == 1);

    const uint64_t backward[] = {0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 1, 5, 9, 3};
    CHECK(ve_launch_reparameterize_backward(at(0x10), (const float *)(const void *)at(0x20), at(0x30), at(0x40),
                                            (void *)(uintptr_t)0x50, (void *)(uintptr_t)0x60, 1, 5, 9, 3, VE_BFLOAT16,
                                            NULL) == VE_OK);
    expect("reparameterize_backward", 1, 10, backward);
    CHECK(double_launch_count() == 5);
    double_set_current(DOUBLE_FIRST_DEVICE);
    CHECK(cuStreamSynchronize(stream) == 0 && cuStreamDestroy_v2(stream) == 0);
    double_set_current(-1);
}

static void the_generic_launch_refuses_what_is_not_aligned(void) {
    uint64_t pointer = 0x1000, odd = 0x1004, nothing = 0, big = 0;
    int rows = 3, columns = 8;
    const unsigned int grid[3] = {2, 1, 1};
    void *good[] = {&pointer, &pointer, &pointer, &pointer, &rows, &columns, &big, &big};
    CHECK(ve_launch("reparameterize_forward_fp16_quads", grid, good, 8, NULL) == VE_OK);
    void *unaligned[] = {&pointer, &odd, &pointer, &pointer, &rows, &columns, &big, &big};
    CHECK(ve_launch("reparameterize_forward_fp16", grid, unaligned, 8, NULL) == VE_OK);
    CHECK_FAILS(ve_launch("reparameterize_forward_fp16_quads", grid, unaligned, 8, NULL), VE_ERROR_INVALID_ARGUMENT,
                "argument 1 (logvar_ptr)");
    void *null_pointer[] = {&pointer, &pointer, &nothing, &pointer, &rows, &columns, &big, &big};
    CHECK_FAILS(ve_launch("reparameterize_forward_fp16", grid, null_pointer, 8, NULL), VE_ERROR_INVALID_ARGUMENT,
                "argument 2 (z_ptr)");
    void *missing[] = {&pointer, &pointer, &pointer, &pointer, NULL, &columns, &big, &big};
    CHECK_FAILS(ve_launch("reparameterize_forward_fp16", grid, missing, 8, NULL), VE_ERROR_INVALID_ARGUMENT,
                "argument 4 (rows)");
    int value;
    CHECK_FAILS(ve_kernel_constant("reparameterize_forward_fp16", "WIDTH", &value), VE_ERROR_INVALID_ARGUMENT, "'WIDTH'");
}

/* The machine code that a launch by name runs. */
static const void *image_of(const char *name) {
    uint64_t pointer = 0x1000, big = 0;
    int rows = 1, columns = 4;
    void *arguments[] = {&pointer, &pointer, &pointer, &pointer, &rows, &columns, &big, &big};
    double_launch launch;
    CHECK(ve_launch(name, (const unsigned int[3]){1, 1, 1}, arguments, 8, NULL) == VE_OK);
    double_last_launch(&launch);
    return launch.image;
}

static void the_wide_kernel_is_chosen_only_where_it_may_run(void) {
    const struct {
        uint64_t kl;
        int columns;
        uint64_t offset;
        ve_dtype dtype;
        const char *name;
    } cases[] = {{64, 32, 0, VE_FLOAT32, "reparameterize_forward_fp32_quads"},
                 {64, 20, 4, VE_FLOAT16, "reparameterize_forward_fp16_quads"},
                 {64, 20, 4, VE_BFLOAT16, "reparameterize_forward_bf16_quads"},
                 {68, 32, 0, VE_FLOAT32, "reparameterize_forward_fp32"},
                 {64, 30, 0, VE_FLOAT32, "reparameterize_forward_fp32"},
                 {64, 32, 2, VE_FLOAT16, "reparameterize_forward_fp16"},
                 {64, 31, 4, VE_BFLOAT16, "reparameterize_forward_bf16"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const void *wanted = image_of(cases[i].name);
        double_launch launch;
        CHECK(ve_launch_reparameterize_forward(at(16), at(32), (void *)(uintptr_t)48, (float *)(uintptr_t)cases[i].kl, 5,
                                               cases[i].columns, 0, cases[i].offset, cases[i].dtype, NULL) == VE_OK);
        double_last_launch(&launch);
        CHECK(launch.image == wanted);
    }
}

static void a_launch_goes_to_the_device_of_the_thread(void) {
    double_launch launch;
    uint64_t pointer = 0x1000, big = 0;
    int rows = 1, columns = 4;
    const unsigned int grid[3] = {1, 1, 1};
    void *arguments[] = {&pointer, &pointer, &pointer, &pointer, &rows, &columns, &big, &big};
    CHECK(setenv("DOUBLE_DEVICES", "3", 1) == 0);
    CHECK(ve_initialize(1) == VE_OK);
    CHECK(double_current() == -1);
    CHECK(ve_launch("reparameterize_forward_fp32", grid, arguments, 8, NULL) == VE_OK);
    double_last_launch(&launch);
    CHECK(launch.device == DOUBLE_FIRST_DEVICE && double_current() == -1);
    double_set_current(DOUBLE_FIRST_DEVICE + 1);
    CHECK(ve_launch("reparameterize_forward_fp32", grid, arguments, 8, NULL) == VE_OK);
    double_last_launch(&launch);
    CHECK(launch.device == DOUBLE_FIRST_DEVICE + 1 && double_current() == DOUBLE_FIRST_DEVICE + 1);
    void *other = NULL; /* a context that the host program itself has */
    CHECK(cuDevicePrimaryCtxRetain(&other, DOUBLE_FIRST_DEVICE + 2) == 0);
    double_set_current(DOUBLE_FIRST_DEVICE + 2);
    CHECK_FAILS(ve_launch("reparameterize_forward_fp32", grid, arguments, 8, NULL), VE_ERROR_NOT_INITIALIZED,
                "not initialized");
    double_set_current(-1);
    CHECK(cuDevicePrimaryCtxRelease_v2(DOUBLE_FIRST_DEVICE + 2) == 0);
    CHECK_FAILS(ve_initialize(3), VE_ERROR_NO_DEVICE, "no CUDA device number 3");
}

static void failures_of_the_driver_are_told_in_its_words(void) {
    uint64_t pointer = 0x1000, big = 0;
    int rows = 1, columns = 4;
    void *arguments[] = {&pointer, &pointer, &pointer, &pointer, &rows, &columns, &big, &big};
    CHECK(double_fail("cuLaunchKernel", 1, 719) == 0);
    CHECK_FAILS(ve_launch("reparameterize_forward_fp32", (const unsigned int[3]){1, 1, 1}, arguments, 8, NULL),
                VE_ERROR_DRIVER, "error 719, unspecified launch failure");
    CHECK(double_current() == -1);
}

/* Each capability runs the machine code that suits it, or is refused; a refusal leaves nothing loaded. */
static void the_machine_code_suits_the_device(void) {
    const int desktop = carries(89) ? 89 : carries(86) ? 86 : carries(80) ? 80 : 0;
    const struct {
        int capability, code; /* code 0: refused */
    } cases[] = {{75, 0},
                 {80, carries(80) ? 80 : 0},
                 {87, carries(87) ? 87 : 0},
                 {88, carries(86) ? 86 : carries(80) ? 80 : 0},
                 {89, desktop},
                 {90, carries(90) ? 90 : 0},
                 {103, 0},
                 {110, carries(110) ? 110 : 0},
                 {120, carries(120) ? 120 : 0},
                 {121, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[16];
        (void)snprintf(text, sizeof text, "%d", cases[i].capability);
        CHECK(setenv("DOUBLE_CC", text, 1) == 0);
        if (cases[i].code == 0) {
            CHECK_FAILS(ve_initialize(0), VE_ERROR_UNSUPPORTED_DEVICE, "no machine code");
        } else {
            double_launch launch;
            CHECK(ve_initialize(0) == VE_OK);
            CHECK(ve_launch_reparameterize_forward(at(16), at(16), (void *)(uintptr_t)16, (float *)(uintptr_t)16, 1, 4, 0, 0,
                                                   VE_FLOAT32, NULL) == VE_OK);
            double_last_launch(&launch);
            CHECK(launch.architecture == cases[i].code);
            CHECK(ve_shutdown() == VE_OK);
        }
        CHECK((int)double_count("contexts") == 0 && (int)double_count("libraries") == 0);
    }
}

int main(int count, char **words) {
    CHECK(count == 2);
    CHECK(setenv("DOUBLE_CC", words[1], 1) == 0);
    CHECK(ve_initialize(0) == VE_OK);
    CHECK(ve_initialize(0) == VE_OK);
    CHECK((int)double_count("contexts") == 1 && (int)double_count("libraries") == kernels_for(atoi(words[1])) && double_current() == -1);
    launches_pass_what_the_machine_code_takes();
    the_generic_launch_refuses_what_is_not_aligned();
    the_wide_kernel_is_chosen_only_where_it_may_run();
    failures_of_the_driver_are_told_in_its_words();
    a_launch_goes_to_the_device_of_the_thread();
    CHECK(ve_shutdown() == VE_OK);
    CHECK((int)double_count("contexts") == 0 && (int)double_count("libraries") == 0);
    CHECK_FAILS(ve_launch_reparameterize_forward(at(16), at(16), (void *)(uintptr_t)16, (float *)(uintptr_t)16, 1, 4, 0, 0,
                                                 VE_FLOAT32, NULL),
                VE_ERROR_NOT_INITIALIZED, "call ve_initialize first");
    the_machine_code_suits_the_device();
    return 0;
}
