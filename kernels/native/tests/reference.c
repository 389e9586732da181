#include "reference.h"

#include <math.h>

void reference_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t words[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = UINT64_C(0xD2511F53) * c0, p1 = UINT64_C(0xCD9E8D57) * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

static float uniform(uint32_t word) {
    uint32_t folded = word >> 31 ? ~word : word;
    return (float)(int32_t)folded * 4.6566127342e-10f;
}

double reference_normal(uint64_t seed, uint64_t k) {
    uint64_t block = k / 4;
    const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), 0, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t words[4];
    reference_philox(counter, key, words);
    float u1 = uniform(words[k % 4 / 2 * 2]), u2 = uniform(words[k % 4 / 2 * 2 + 1]);
    double radius = sqrt(-2.0 * log(u1 < 1.0e-7f ? 1.0e-7f : u1));
    double turn = 6.283185307179586 * u2;
    return radius * (k % 2 ? sin(turn) : cos(turn));
}

void reference_forward(const float *mu, const float *logvar, float *z, float *kl, int rows, int columns, uint64_t seed,
                       uint64_t offset) {
    for (int row = 0; row < rows; row++) {
        double sum = 0.0;
        for (int column = 0; column < columns; column++) {
            uint64_t i = (uint64_t)row * (uint64_t)columns + (uint64_t)column;
            double m = mu[i], v = logvar[i];
            z[i] = (float)(m + exp(0.5 * v) * reference_normal(seed, offset + i));
            sum += 1.0 + v - m * m - exp(v);
        }
        kl[row] = (float)(-0.5 * sum);
    }
}

void reference_backward(const float *grad_z, const float *grad_kl, const float *mu, const float *logvar, float *grad_mu,
                        float *grad_logvar, int rows, int columns, uint64_t seed, uint64_t offset) {
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++) {
            uint64_t i = (uint64_t)row * (uint64_t)columns + (uint64_t)column;
            double noise = reference_normal(seed, offset + i) * exp(0.5 * logvar[i]);
            grad_mu[i] = (float)(grad_z[i] + (double)grad_kl[row] * mu[i]);
            grad_logvar[i] = (float)(0.5 * (grad_z[i] * noise + grad_kl[row] * (exp(logvar[i]) - 1.0)));
        }
}
