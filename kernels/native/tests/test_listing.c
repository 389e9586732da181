/* Without any driver: the version, the listing, and what the functions refuse before they need a driver. */
#include <pthread.h>

#include "check.h"

static void the_listing_is_complete(void) {
    int backward = 0;
    CHECK(strcmp(ve_version(), EXPECTED_VERSION) == 0);
    CHECK(ve_kernel_count() >= 12);
    for (int i = 0; i < ve_kernel_count(); i++) {
        ve_kernel kernel;
        CHECK(ve_kernel_info(i, &kernel) == VE_OK);
        CHECK(strlen(kernel.name) > 0 && kernel.argument_count > 0 && kernel.architecture_count > 0);
        for (int j = 0; j < kernel.architecture_count; j++)
            CHECK(kernel.architectures[j] >= 80 && kernel.warps[j] >= 1 && kernel.shared_bytes[j] >= 0);
        int quads = strstr(kernel.name, "_quads") != NULL, aligned = strstr(kernel.name, "_aligned") != NULL;
        for (int j = 0; j < kernel.argument_count; j++) {
            CHECK(strstr(kernel.argument_names[j], "scratch") == NULL);
            int pointer = kernel.argument_types[j][0] == '*', alignment = kernel.argument_alignments[j];
            int sums = strncmp(kernel.name, "avg_pool_", 9) == 0 || strncmp(kernel.name, "reconstruction_", 15) == 0;
            CHECK(alignment == 1 || (alignment == 16 && (quads || aligned || sums)));
            if (quads) CHECK((alignment == 16) == pointer);
            if (aligned && strcmp(kernel.argument_names[j], "y_ptr") == 0) CHECK(alignment == 16);
        }
        if (strcmp(kernel.name, "reparameterize_backward_bf16") == 0) {
            backward = 1;
            CHECK(kernel.argument_count == 10);
            CHECK(strcmp(kernel.argument_names[1], "grad_kl_ptr") == 0);
            CHECK(strcmp(kernel.argument_types[0], "*bf16") == 0);
            CHECK(strcmp(kernel.argument_types[1], "*fp32") == 0);
            CHECK(strcmp(kernel.argument_types[9], "i64") == 0);
        }
    }
    CHECK(backward);
}

static void wrong_arguments_are_refused_with_a_sentence(void) {
    ve_kernel kernel;
    const unsigned int grid[3] = {1, 1, 1}, empty[3] = {1, 0, 1};
    float x[4];
    CHECK_FAILS(ve_kernel_info(-1, &kernel), VE_ERROR_UNKNOWN_KERNEL, "got -1");
    CHECK_FAILS(ve_kernel_info(ve_kernel_count(), &kernel), VE_ERROR_UNKNOWN_KERNEL, "index must be from 0 to");
    CHECK_FAILS(ve_kernel_info(0, NULL), VE_ERROR_INVALID_ARGUMENT, "NULL");
    CHECK_FAILS(ve_initialize(-1), VE_ERROR_INVALID_ARGUMENT, "device must be from 0");
    CHECK_FAILS(ve_launch(NULL, grid, NULL, 0, NULL), VE_ERROR_INVALID_ARGUMENT, "name is NULL");
    CHECK_FAILS(ve_launch("nothing", grid, NULL, 0, NULL), VE_ERROR_UNKNOWN_KERNEL, "'nothing'");
    CHECK_FAILS(ve_launch("reparameterize_forward_fp32", empty, NULL, 0, NULL), VE_ERROR_INVALID_ARGUMENT, "grid");
    CHECK_FAILS(ve_launch("reparameterize_forward_fp32", grid, NULL, 8, NULL), VE_ERROR_INVALID_ARGUMENT, "NULL array");
    CHECK_FAILS(ve_launch("reparameterize_forward_fp32", grid, (void *[]){x}, 1, NULL), VE_ERROR_INVALID_ARGUMENT,
                "takes 8 arguments; got 1");
    CHECK_FAILS(ve_launch_reparameterize_forward(x, x, x, x, -1, 4, 0, 0, VE_FLOAT32, NULL), VE_ERROR_INVALID_ARGUMENT,
                "got -1 and 4");
    CHECK_FAILS(ve_launch_reparameterize_forward(x, x, x, x, 1, 0, 0, 0, VE_FLOAT32, NULL), VE_ERROR_INVALID_ARGUMENT,
                "got 1 and 0");
    CHECK_FAILS(ve_launch_reparameterize_forward(x, x, x, x, 1, 4, UINT64_MAX, 0, VE_FLOAT32, NULL),
                VE_ERROR_INVALID_ARGUMENT, "seed must be below 2^63");
    CHECK_FAILS(ve_launch_reparameterize_backward(x, x, x, x, x, x, 1, 4, 0, UINT64_MAX, VE_FLOAT32, NULL),
                VE_ERROR_INVALID_ARGUMENT, "ve_launch_reparameterize_backward");
    CHECK_FAILS(ve_launch_reparameterize_forward(x, x, x, x, 1, 4, 0, 0, (ve_dtype)3, NULL), VE_ERROR_INVALID_ARGUMENT,
                "dtype");
    CHECK_FAILS(ve_launch_reparameterize_forward(x, NULL, x, x, 1, 4, 0, 0, VE_FLOAT16, NULL), VE_ERROR_INVALID_ARGUMENT,
                "pointer number 1 is NULL");
    CHECK(ve_launch_reparameterize_forward(x, x, x, x, 0, 4, 0, 0, VE_FLOAT32, NULL) == VE_OK);
    CHECK_FAILS(ve_launch_reparameterize_forward(x, x, x, x, 1, 4, 0, 0, VE_FLOAT32, NULL), VE_ERROR_NOT_INITIALIZED,
                "call ve_initialize first");
    int value;
    CHECK_FAILS(ve_kernel_constant("reparameterize_forward_fp32", NULL, &value), VE_ERROR_INVALID_ARGUMENT, "NULL");
    CHECK_FAILS(ve_kernel_constant("reparameterize_forward_fp32", "ROWS", &value), VE_ERROR_NOT_INITIALIZED, "ve_initialize");
    CHECK(ve_shutdown() == VE_OK);
}

static void *another_thread(void *unused) {
    (void)unused;
    CHECK(strcmp(ve_last_error(), "") == 0);
    CHECK_FAILS(ve_kernel_info(-7, &(ve_kernel){0}), VE_ERROR_UNKNOWN_KERNEL, "-7");
    return NULL;
}

static void the_last_error_belongs_to_the_thread(void) {
    pthread_t thread;
    CHECK_FAILS(ve_kernel_info(-3, &(ve_kernel){0}), VE_ERROR_UNKNOWN_KERNEL, "-3");
    CHECK(pthread_create(&thread, NULL, another_thread, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(strstr(ve_last_error(), "-3") != NULL);
}

int main(void) {
    CHECK(strcmp(ve_last_error(), "") == 0);
    the_listing_is_complete();
    wrong_arguments_are_refused_with_a_sentence();
    the_last_error_belongs_to_the_thread();
    return 0;
}
