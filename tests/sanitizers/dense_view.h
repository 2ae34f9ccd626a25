// SPDX-License-Identifier: Apache-2.0
// A view of a buffer as a contiguous tensor, for all test programs.
#pragma once

#include <cstdint>
#include <vector>

#include "sohes/tensor_view.h"

inline sohes::TensorView dense_view(void* data, const std::vector<int64_t>& shape, sohes::DType dtype) {
  sohes::TensorView view;
  view.data = data;
  view.ndim = static_cast<int>(shape.size());
  view.dtype = dtype;
  int64_t stride = 1;
  for (int i = view.ndim - 1; i >= 0; --i) {
    view.shape[i] = shape[static_cast<size_t>(i)];
    view.stride[i] = stride;
    stride *= view.shape[i];
  }
  return view;
}
