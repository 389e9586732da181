/* With the test double of the driver: many threads initialize, launch, fail and list at once. */
#include <pthread.h>

#include "check.h"
#include "double.h"

enum { THREADS = 8, ROUNDS = 200 };

static void *work(void *argument) {
    int number = *(const int *)argument;
    char mine[32];
    (void)snprintf(mine, sizeof mine, "got %d", -number - 100);
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(ve_initialize(0) == VE_OK);
        CHECK_FAILS(ve_kernel_info(-number - 100, &(ve_kernel){0}), VE_ERROR_UNKNOWN_KERNEL, mine);
        CHECK(ve_launch_reparameterize_forward((void *)16, (void *)32, (void *)48, (void *)64, number + 1, 4 * i + 4, 1, 0,
                                               VE_FLOAT32, NULL) == VE_OK);
        CHECK(strstr(ve_last_error(), mine) != NULL);
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    int numbers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        numbers[i] = i;
        CHECK(pthread_create(&threads[i], NULL, work, &numbers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(double_launch_count() == THREADS * ROUNDS);
    CHECK((int)double_count("contexts") == 1 && (int)double_count("libraries") == kernels_for(atoi(getenv("DOUBLE_CC"))));
    CHECK(ve_shutdown() == VE_OK);
    CHECK((int)double_count("contexts") == 0 && (int)double_count("libraries") == 0);
    return 0;
}
