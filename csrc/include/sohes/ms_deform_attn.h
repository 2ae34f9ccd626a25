// SPDX-License-Identifier: Apache-2.0
// Multi-scale deformable attention, forward and backward, defined by sohes/ops/reference/ms_deform_attn.py.
//
//   value [B, S, K, D]   sampling_locations [B, Q, K, L, P, 2]   attention_weights [B, Q, K, L, P]
//   output and grad_output [B, Q, K*D]
//   spatial_shapes: L pairs (height, width), their products sum to S
//
// All tensors are contiguous. value, output and grad_output have one type; locations and weights have the
// same type, or float32 with a half type. Sums and coordinates are float32 (float64 for float64).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "sohes/tensor_view.h"

namespace sohes {

// Bytes of scratch for the CPU kernels: value [B, S, K, D], weights [B, Q, K, L, P].
int64_t ms_deform_attn_workspace(const TensorView& value, const TensorView& attention_weights, bool backward,
                                 int num_threads);

// With reference_points [Q, 2] (float32, float64 for float64), here and in the backward: sampling_locations
// are offsets from them in pixels of their level, and attention_weights logits of a softmax over all points
// of a query and head.
void ms_deform_attn_cpu(const TensorView& value, const std::vector<int64_t>& spatial_shapes,
                        const TensorView& sampling_locations, const TensorView& attention_weights,
                        const std::optional<TensorView>& reference_points, const TensorView& output,
                        const TensorView& workspace, int num_threads);

// Deterministic for any number of threads: one thread computes the whole gradient of one (batch, head).
void ms_deform_attn_backward_cpu(const TensorView& grad_output, const TensorView& value,
                                 const std::vector<int64_t>& spatial_shapes,
                                 const TensorView& sampling_locations, const TensorView& attention_weights,
                                 const std::optional<TensorView>& reference_points,
                                 const TensorView& grad_value, const TensorView& grad_locations,
                                 const TensorView& grad_weights, const TensorView& workspace,
                                 int num_threads);

// On a CUDA stream of the current device.
void ms_deform_attn_cuda(const TensorView& value, const std::vector<int64_t>& spatial_shapes,
                         const TensorView& sampling_locations, const TensorView& attention_weights,
                         const TensorView& output, uintptr_t stream);

// grad_value is zeroed by the caller: float32 (float64 for float64), summed in any order; or, with `units` (a
// float64 number on the device), int64 in units of 1 / units, which is bitwise repeatable.
void ms_deform_attn_backward_cuda(const TensorView& grad_output, const TensorView& value,
                                  const std::vector<int64_t>& spatial_shapes,
                                  const TensorView& sampling_locations, const TensorView& attention_weights,
                                  const TensorView& grad_value, const std::optional<TensorView>& units,
                                  const TensorView& grad_locations, const TensorView& grad_weights,
                                  uintptr_t stream);

}  // namespace sohes
