/* test_no_driver STATUS WORDS: initializing fails with this status and a sentence with these words, twice, and nothing else breaks.
 * test_no_driver: whatever driver the machine has or lacks, initializing says so in a status; without one it is VE_ERROR_NO_DRIVER. */
#include <dlfcn.h>

#include "check.h"

int main(int count, char **words) {
    if (count == 3) {
        ve_status expected = (ve_status)atoi(words[1]);
        CHECK_FAILS(ve_initialize(0), expected, words[2]);
        CHECK_FAILS(ve_initialize(0), expected, words[2]);
    } else if (dlopen("libcuda.so.1", RTLD_NOW) == NULL) {
        CHECK_FAILS(ve_initialize(0), VE_ERROR_NO_DRIVER, "no NVIDIA driver on this machine");
    } else {
        ve_status status = ve_initialize(0);
        CHECK(status == VE_OK || strlen(ve_last_error()) > 0);
    }
    CHECK(ve_kernel_count() > 0);
    CHECK(ve_shutdown() == VE_OK);
    return 0;
}
