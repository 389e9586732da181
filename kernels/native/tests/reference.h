/* What the kernels compute, in plain C: written from the definition in vae_edge/ops/reparameterize.py. */
#ifndef VE_REFERENCE_H
#define VE_REFERENCE_H

#include <stdint.h>

/* Philox4x32-10: counter and key to four words. */
void reference_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t words[4]);

/* Number k of the seed's stream of standard normals, in double precision from the uniforms on. */
double reference_normal(uint64_t seed, uint64_t k);

void reference_forward(const float *mu, const float *logvar, float *z, float *kl, int rows, int columns, uint64_t seed,
                       uint64_t offset);
void reference_backward(const float *grad_z, const float *grad_kl, const float *mu, const float *logvar, float *grad_mu,
                        float *grad_logvar, int rows, int columns, uint64_t seed, uint64_t offset);

#endif
