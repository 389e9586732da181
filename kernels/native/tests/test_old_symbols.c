/* A program of the version before, compiled with that version's header: every function, kernel name and constant is still there.
 * Argument: a network file of that version, with machine code for sm_87. The driver is the test double. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include "double.h"

/* The header is the old one: the new one has no such declaration that is not deprecated. */
_Static_assert(VE_ABI_VERSION == 1, "the interface of before is version 1");

static void kernels_are_found_by_their_old_names(void) {
    static const char *const names[][2] = {
        {"turn_u8_fp16", "ELEMENTS"},
        {"turn_u8_fp16_window_aligned", "ELEMENTS"},
        {"turn_u8_i8", "ELEMENTS"},
        {"reparameterize_forward_fp32", "ROWS"},
        {"convolution_fp16_32", "ROWS"},
        {"convolution_first_fp16_32_aligned", "COLUMNS"},
        {"convolution_int8_i8_16", "DEPTH"},
        {"convolution_int8_first_i8_16_aligned", "ROWS"},
        {"means_fp16_16", "COLUMNS"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int value = 0;
        CHECK(ve_kernel_constant(names[i][0], names[i][1], &value) == VE_OK && value > 0);
    }
    CHECK_FAILS(ve_kernel_constant("turned_u8_fp16", "ELEMENTS", &(int){0}), VE_ERROR_UNKNOWN_KERNEL, "'turned_u8_fp16'");
    char longer[400] = "turn_";
    memset(longer + 5, 'x', sizeof longer - 6);
    CHECK_FAILS(ve_kernel_constant(longer, "ROWS", &(int){0}), VE_ERROR_UNKNOWN_KERNEL, "no kernel is named");
}

static void launches_take_the_old_arguments(void) {
    float x[4];
    ve_kernel kernel;
    CHECK(ve_kernel_count() > 0 && ve_kernel_info(0, &kernel) == VE_OK);
    CHECK_FAILS(ve_launch("nothing", (const unsigned int[3]){1, 1, 1}, NULL, 0, NULL), VE_ERROR_UNKNOWN_KERNEL, "'nothing'");
    CHECK(ve_launch_reparameterize_forward(x, x, x, x, 0, 4, 0, 0, VE_FLOAT32, NULL) == VE_OK);
    CHECK(ve_launch_reparameterize_backward(x, x, x, x, x, x, 0, 4, 0, 0, VE_BFLOAT16, NULL) == VE_OK);
}

static void a_file_of_before_is_opened_and_classifies(const char *path) {
    ve_network *network = NULL;
    ve_network_info info;
    static uint8_t images[2 * 28 * 28];
    float probabilities[2 * 3], angles[2], scores[2], doubts[2 * 3];
    CHECK(ve_open(path, 0, &network) == VE_OK);
    CHECK(ve_describe(network, &info) == VE_OK);
    CHECK(info.side == 28 && info.channels == 1 && info.classes == 3 && info.has_angle == 0 && info.threshold == 0.5f);
    CHECK(strcmp(info.class_names[1], "t=wo") == 0);
    CHECK(ve_classify(network, images, 2, probabilities, angles, scores) == VE_OK);
    CHECK(ve_classify_with_doubts(network, images, 2, probabilities, angles, scores, doubts) == VE_OK);
    CHECK_FAILS(ve_classify_with_doubts(NULL, images, 2, NULL, NULL, NULL, doubts), VE_ERROR_INVALID_ARGUMENT, "must not be NULL");
    CHECK(ve_close(network) == VE_OK);
}

int main(int count, char **values) {
    CHECK(count == 2);
    CHECK(strlen(ve_version()) > 0 && ve_abi_version() == VE_ABI_VERSION && strcmp(ve_last_error(), "") == 0);
    CHECK(ve_initialize(0) == VE_OK);
    kernels_are_found_by_their_old_names();
    launches_take_the_old_arguments();
    CHECK(ve_shutdown() == VE_OK);
    CHECK(setenv("DOUBLE_CC", "87", 1) == 0); /* what the file has code for */
    a_file_of_before_is_opened_and_classifies(values[1]);
    CHECK(double_held() == 0 && (int)double_count("contexts") == 0 && (int)double_count("libraries") == 0);
    return 0;
}
