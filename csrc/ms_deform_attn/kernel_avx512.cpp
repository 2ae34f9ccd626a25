// SPDX-License-Identifier: Apache-2.0
// The CPU kernels for AVX-512 processors.
#ifdef __x86_64__
#define SOHES_ISA avx512
#define SOHES_TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma,f16c")))
#define SOHES_VECTOR_BYTES 64
#define SOHES_X86_VECTORS 1
#include "kernel_isa.h"
#endif
