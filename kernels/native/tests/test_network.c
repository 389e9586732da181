/* Network files, against a test double of the driver: reading, refusing, the way of images and answers, giving back.
 * Arguments: a network file of two classes or more with machine code for the double's device, and a folder to write in. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "double.h"

#define MAX_IMAGES 200

int cuMemAlloc_v2(uint64_t *pointer, size_t bytes);
int cuMemFree_v2(uint64_t pointer);
int cuMemcpyAsync(uint64_t to, uint64_t from, size_t bytes, void *stream);
int cuStreamSynchronize(void *stream);

static int height, width, channels, classes;
static uint8_t images[MAX_IMAGES * 64 * 64 * 3];
static float probabilities[MAX_IMAGES * 64], angles[MAX_IMAGES], scores[MAX_IMAGES], uncertainty[MAX_IMAGES * 3];

/* Programs that work on one image, in a file that has machine code for that. */
#define MULTIPROCESSORS 16
static int ctas_per_image;

/* In the network's place: answers that say which image they belong to. */
static void answer(const double_launch *launch) {
    int room = getenv("DOUBLE_ROOM") == NULL ? MULTIPROCESSORS : atoi(getenv("DOUBLE_ROOM"));
    int multi_cta = launch->grid[0] * (unsigned int)ctas_per_image <= MULTIPROCESSORS && ctas_per_image > 1 && room >= MULTIPROCESSORS;
    CHECK(launch->parameter_count == 14 && launch->grid[2] == 1);
    CHECK(launch->cooperative == multi_cta && launch->grid[1] == (multi_cta ? (unsigned int)ctas_per_image : 1));
    CHECK(launch->sizes[11] == 4 && launch->values[11] == launch->grid[0] && launch->values[12] == 0 && launch->values[13] == 0);
    const int32_t *barrier = (const int32_t *)(uintptr_t)launch->values[6];
    for (unsigned int n = 0; n < launch->grid[0]; n++) CHECK(barrier[n] == 0);
    const uint8_t *image = (const uint8_t *)(uintptr_t)launch->values[0];
    float *first = (float *)(uintptr_t)launch->values[7], *angle = (float *)(uintptr_t)launch->values[8];
    float *score = (float *)(uintptr_t)launch->values[9], *uncertainty = (float *)(uintptr_t)launch->values[10];
    for (unsigned int n = 0; n < launch->grid[0]; n++) {
        float mark = image[(size_t)n * (size_t)(height * width * channels)];
        for (int k = 0; k < classes; k++) first[n * (unsigned int)classes + (unsigned int)k] = mark + (float)k / 1000.0f;
        angle[n] = -mark;
        score[n] = 1000.0f + mark;
        for (unsigned int i = 0; i < 3; i++) uncertainty[3 * n + i] = 2000.0f * (float)i + mark;
    }
}

static void check_answers(size_t n) {
    size_t k = (size_t)classes;
    for (size_t i = 0; i < n; i++) {
        float mark = (float)(i % 251);
        CHECK(probabilities[i * k] == mark && probabilities[i * k + k - 1] == mark + (float)(classes - 1) / 1000.0f);
        CHECK(angles[i] == -mark && scores[i] == 1000.0f + mark && uncertainty[3 * i + 2] == 4000.0f + mark);
    }
}

static void forget(void) {
    memset(probabilities, 0, sizeof probabilities);
    memset(angles, 0, sizeof angles);
    memset(scores, 0, sizeof scores);
    memset(uncertainty, 0, sizeof uncertainty);
}

/* A copy of the file with one byte changed, or its end cut off. */
static void write_damaged(const char *from, const char *to, long at, long length) {
    FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
    CHECK(in != NULL && out != NULL);
    int c;
    for (long i = 0; (c = fgetc(in)) != EOF && i < length; i++) CHECK(fputc(i == at ? c ^ 1 : c, out) != EOF);
    (void)fclose(in);
    (void)fclose(out);
}

/* Every launch fails with this code; 0: none does. */
static void fail_launches(int code) {
    CHECK(double_fail("cuLaunchKernel", 0, code) == 0 && double_fail("cuLaunchCooperativeKernel", 0, code) == 0);
}

static void check_refusals(const char *path, const char *folder) {
    ve_network *network = NULL;
    char damaged[512];
    (void)snprintf(damaged, sizeof damaged, "%s/damaged-%ld.ve", folder, (long)getpid());
    CHECK_FAILS(ve_open(NULL, 0, &network), VE_ERROR_INVALID_ARGUMENT, "must not be NULL");
    CHECK_FAILS(ve_open(path, -1, &network), VE_ERROR_INVALID_ARGUMENT, "device is -1");
    CHECK_FAILS(ve_open(path, 7, &network), VE_ERROR_NO_DEVICE, "no CUDA device number 7");
    CHECK_FAILS(ve_open("/nowhere.ve", 0, &network), VE_ERROR_FILE, "/nowhere.ve cannot be opened");
    CHECK_FAILS(ve_open(folder, 0, &network), VE_ERROR_FILE, folder);
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0);
    long size = ftell(file);
    (void)fclose(file);
    write_damaged(path, damaged, size - 100, size);
    CHECK_FAILS(ve_open(damaged, 0, &network), VE_ERROR_FILE, "its SHA-256 is");
    write_damaged(path, damaged, 9, size);
    CHECK_FAILS(ve_open(damaged, 0, &network), VE_ERROR_FILE, "damaged");
    write_damaged(path, damaged, -1, size / 2);
    CHECK_FAILS(ve_open(damaged, 0, &network), VE_ERROR_FILE, "damaged");
    write_damaged(path, damaged, -1, 5);
    CHECK_FAILS(ve_open(damaged, 0, &network), VE_ERROR_FILE, "it has 5 bytes");
    write_damaged(path, damaged, 6, size);
    CHECK_FAILS(ve_open(damaged, 0, &network), VE_ERROR_FILE, "its header would have");
    char own[16];
    (void)snprintf(own, sizeof own, "%s", getenv("DOUBLE_CC"));
    CHECK(setenv("DOUBLE_CC", "75", 1) == 0);
    CHECK_FAILS(ve_open(path, 0, &network), VE_ERROR_UNSUPPORTED_DEVICE, "the device is sm_75");
    CHECK(setenv("DOUBLE_CC", own, 1) == 0);
    for (int room = 0; room < 8; room++) {
        CHECK(double_fail("cuMemAlloc_v2", room + 1, 2) == 0);
        CHECK_FAILS(ve_open(path, 0, &network), VE_ERROR_OUT_OF_MEMORY, "error 2");
    }
    fail_launches(209);
    CHECK_FAILS(ve_open(path, 0, &network), VE_ERROR_DRIVER, "no kernel image");
    fail_launches(0);
    (void)remove(damaged);
    CHECK(network == NULL && double_held() == 0 && (int)double_count("contexts") == 0 && (int)double_count("libraries") == 0);
}

/* Images and answers in device memory, each alone and all cooperative, for one piece and for several. */
static void check_device_pointers(ve_network *network) {
    const size_t batches[] = {2, 65, 200};
    double_set_current(DOUBLE_FIRST_DEVICE);
    uint64_t memory[5];
    const size_t sizes[5] = {sizeof probabilities, sizeof angles, sizeof scores, sizeof uncertainty, sizeof images};
    float *const host[4] = {probabilities, angles, scores, uncertainty};
    for (int i = 0; i < 5; i++) CHECK(cuMemAlloc_v2(&memory[i], sizes[i]) == 0);
    CHECK(cuMemcpyAsync(memory[4], (uint64_t)(uintptr_t)images, sizeof images, NULL) == 0);
    CHECK(cuStreamSynchronize(NULL) == 0);
    for (int which = 0; which < 6; which++)
        for (size_t b = 0; b < 3; b++) {
            void *fields[4];
            for (int i = 0; i < 4; i++) fields[i] = which == i || which == 5 ? (void *)(uintptr_t)memory[i] : (void *)host[i];
            const void *from = which >= 4 ? (const void *)(uintptr_t)memory[4] : (const void *)images;
            forget();
            CHECK(ve_classify_ex(network, from, batches[b], fields[0], fields[1], fields[2], fields[3]) == VE_OK);
            for (int i = 0; i < 4; i++)
                if (fields[i] != host[i])
                    CHECK(cuMemcpyAsync((uint64_t)(uintptr_t)host[i], memory[i], sizes[i], NULL) == 0);
            CHECK(cuStreamSynchronize(NULL) == 0);
            check_answers(batches[b]);
        }
    for (int i = 0; i < 5; i++) CHECK(cuMemFree_v2(memory[i]) == 0);
    double_set_current(-1);
}

/* Counts whose images, or whose answers, do not fit into memory, and what a number below 0 becomes. */
static void check_counts(ve_network *network) {
    const size_t each = (size_t)(height * width * channels);
    const size_t counts[] = {SIZE_MAX, (size_t)-1 - 62, (size_t)1 << 63, SIZE_MAX / each + 2, PTRDIFF_MAX / each + 1, PTRDIFF_MAX / 3};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        CHECK_FAILS(ve_classify(network, images, counts[i], NULL, NULL, scores), VE_ERROR_INVALID_ARGUMENT, "more than memory can hold");
}

/* What is there under the file's name and is no regular file; and a name that would write to a terminal. */
static void check_other_files(const char *folder) {
    ve_network *network = NULL;
    char name[512];
    CHECK_FAILS(ve_open(folder, 0, &network), VE_ERROR_FILE, "is a folder, not a regular file");
    CHECK_FAILS(ve_open("/dev/zero", 0, &network), VE_ERROR_FILE, "is a device, not a regular file");
    (void)snprintf(name, sizeof name, "%s/link-%ld", folder, (long)getpid());
    CHECK(symlink("/dev/zero", name) == 0);
    CHECK_FAILS(ve_open(name, 0, &network), VE_ERROR_FILE, "is a device, not a regular file");
    CHECK(remove(name) == 0 && mkfifo(name, 0600) == 0);
    CHECK_FAILS(ve_open(name, 0, &network), VE_ERROR_FILE, "is a named pipe, not a regular file");
    CHECK(remove(name) == 0);
    int large = open(name, O_WRONLY | O_CREAT, 0600);
    CHECK(large >= 0 && ftruncate(large, (off_t)VE_MAX_FILE_BYTES + 1) == 0 && close(large) == 0); /* a hole, not bytes */
    CHECK_FAILS(ve_open(name, 0, &network), VE_ERROR_FILE, "it has 268435457 bytes, where 8 to 268435456 are possible");
    CHECK(remove(name) == 0);
    CHECK_FAILS(ve_open("/no\x1b[31m\r\n\xff\xe2\x80\xae\xc2\x9b.ve", 0, &network), VE_ERROR_FILE,
                "ve_open: /no\\x1b[31m\\x0d\\x0a\\xff\\xe2\\x80\\xae\\xc2\\x9b.ve cannot be opened: No such file or directory.");
    CHECK_FAILS(ve_open("/dr\xc3\xbc\xe6\x97\xa5.ve", 0, &network), VE_ERROR_FILE, "/dr\xc3\xbc\xe6\x97\xa5.ve cannot");
}

int main(int count, char **values) {
    CHECK(count == 4 && getenv("DOUBLE_CC") != NULL);
    ctas_per_image = atoi(values[3]);
    check_refusals(values[1], values[2]);
    check_other_files(values[2]);
    ve_network *network = NULL;
    ve_network_info info;
    CHECK(ve_open(values[1], 0, &network) == VE_OK && network != NULL);
    CHECK(double_current() == -1); /* the thread's context is as it was */
    CHECK(ve_network_get_info(network, &info) == VE_OK);
    channels = info.channels, classes = info.classes;
    CHECK(ve_network_get_size(network, &height, &width) == VE_OK && info.side == (height == width ? height : 0));
    CHECK_FAILS(ve_network_get_size(network, &height, NULL), VE_ERROR_INVALID_ARGUMENT, "must not be NULL");
    CHECK(height == (ctas_per_image == 1 ? 28 : 40) && width == 28 && classes >= 2 && classes <= 64 && strlen(info.class_names[classes - 1]) > 0);
    size_t each = (size_t)(height * width * channels);
    for (int i = 0; i < MAX_IMAGES; i++) images[(size_t)i * each] = (uint8_t)(i % 251);
    double_run_with(answer);
    int held = double_held(), graphs = (int)double_count("cuGraphLaunch");
    const size_t batches[] = {1, 3, 1, 16, 17, 64, 65, 200, 3};
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        forget();
        CHECK(ve_classify_ex(network, images, batches[i], probabilities, angles, scores, uncertainty) == VE_OK);
        check_answers(batches[i]);
        if (batches[i] < MAX_IMAGES) CHECK(scores[batches[i]] == 0.0f); /* nothing behind the last */
    }
    CHECK(double_held() == held); /* classifying takes nothing */
    CHECK((int)double_count("cuGraphLaunch") == graphs + 7); /* 1, 3, 1, 16 and 3, and what is left of 65 and of 200 */
    check_device_pointers(network);
    forget();
    CHECK(ve_classify(network, images, 2, NULL, NULL, scores) == VE_OK && scores[1] == 1001.0f && angles[1] == 0.0f);
    CHECK(ve_classify(network, images, 0, NULL, NULL, NULL) == VE_OK);
    CHECK_FAILS(ve_classify(network, NULL, 1, NULL, NULL, NULL), VE_ERROR_INVALID_ARGUMENT, "must not be NULL");
    check_counts(network);
    fail_launches(209);
    CHECK_FAILS(ve_classify(network, images, 2 * MAX_IMAGES / 10, NULL, NULL, scores), VE_ERROR_DRIVER, "no kernel image");
    fail_launches(0);
    CHECK(ve_classify(network, images, 1, NULL, NULL, scores) == VE_OK);
    CHECK_FAILS(ve_network_get_info(network, NULL), VE_ERROR_INVALID_ARGUMENT, "must not be NULL");
    CHECK(ve_close(network) == VE_OK && ve_close(NULL) == VE_OK);
    CHECK(double_held() == 0 && (int)double_count("contexts") == 0 && (int)double_count("libraries") == 0 && double_current() == -1);
    return 0;
}
