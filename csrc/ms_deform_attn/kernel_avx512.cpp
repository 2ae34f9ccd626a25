// SPDX-License-Identifier: Apache-2.0
// The CPU kernels for AVX-512 processors.
#ifdef __x86_64__
#define SOHES_ISA avx512
#define SOHES_TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma")))
#define SOHES_VECTOR_BYTES 64
#include "kernel_isa.h"
#endif
