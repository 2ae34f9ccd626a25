// SPDX-License-Identifier: Apache-2.0
// A view of a tensor for kernels: pointer, shape, strides, type and device. No torch, no ownership.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace sohes {

enum class DType : uint8_t { kBool, kUInt8, kInt32, kInt64, kFloat16, kBFloat16, kFloat32, kFloat64 };

constexpr int kMaxDims = 8;
constexpr int kCpu = -1;

struct TensorView {
  void* data = nullptr;
  int ndim = 0;
  int64_t shape[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};  // in elements
  DType dtype = DType::kFloat32;
  int device = kCpu;  // kCpu, or the index of a CUDA device

  int64_t numel() const {
    int64_t count = 1;
    for (int i = 0; i < ndim; ++i) count *= shape[i];
    return count;
  }

  bool is_contiguous() const {
    if (numel() == 0) return true;  // for any strides, as in torch
    int64_t expected = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (shape[i] != 1 && stride[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// Checks the arguments of a kernel. Python checks them before, with better messages.
inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("sohes: ") + message);
}

}  // namespace sohes
