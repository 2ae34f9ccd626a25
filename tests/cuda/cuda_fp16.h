// SPDX-License-Identifier: Apache-2.0
// The half types of CUDA on the device of cuda_runtime.h: stored in 16 bits, converted as the C++ kernels do.
#pragma once

#include <cstdint>

#include "sohes/tensor_view.h"

namespace emulation::half_types {

using sohes::DType;

#define SOHES_INLINE inline
#include "../../csrc/ms_deform_attn/convert.h"
#undef SOHES_INLINE

}  // namespace emulation::half_types

using __half = emulation::half_types::Float16;
using __nv_bfloat16 = emulation::half_types::BFloat16;

inline float __half2float(__half x) { return emulation::half_types::from_float16(x.bits); }
inline __half __float2half_rn(float x) { return {emulation::half_types::to_float16(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) { return emulation::half_types::from_bfloat16(x.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {emulation::half_types::to_bfloat16(x)}; }
