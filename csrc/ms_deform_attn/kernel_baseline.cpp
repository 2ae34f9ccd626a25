// SPDX-License-Identifier: Apache-2.0
// The CPU kernels for any processor of the architecture that is compiled for: SSE2, NEON.
#define SOHES_ISA baseline
#define SOHES_TARGET
#define SOHES_VECTOR_BYTES 16
#include "kernel_isa.h"
