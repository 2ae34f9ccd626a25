// SPDX-License-Identifier: Apache-2.0
// The CPU kernels for AVX2 processors.
#ifdef __x86_64__
#define SOHES_ISA avx2
#define SOHES_TARGET __attribute__((target("avx2,fma,f16c")))
#define SOHES_VECTOR_BYTES 32
#define SOHES_X86_VECTORS 1
#include "kernel_isa.h"
#endif
