// SPDX-License-Identifier: Apache-2.0
// Shared by the test programs of the mask operators: tensors, random numbers, reports of failures.
#pragma once

#include <cstdint>
#include <cstdio>
#include <random>
#include <utility>
#include <vector>

#include "dense_view.h"
#include "sohes/tensor_view.h"

namespace {

int failures = 0;

void expect(bool condition, const char* what, int64_t height, int64_t width) {
  if (condition) return;
  std::printf("%s is wrong for %lld x %lld\n", what, static_cast<long long>(height),
              static_cast<long long>(width));
  ++failures;
}

// Prints "clean" if nothing failed; returns the exit status of the program.
int finish() {
  if (failures == 0) std::printf("clean\n");
  return failures == 0 ? 0 : 1;
}

// A tensor that owns exactly its elements.
template <typename T, sohes::DType kType>
struct Tensor {
  std::vector<int64_t> shape;
  std::vector<T> data;

  explicit Tensor(std::vector<int64_t> sizes, T value = T()) : shape(std::move(sizes)) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    data.assign(static_cast<size_t>(count), value);
    data.shrink_to_fit();
  }

  sohes::TensorView view(int64_t first = 0) {  // from row `first` on
    sohes::TensorView view = dense_view(data.data(), shape, kType);
    view.data = data.data() + first * view.stride[0];
    view.shape[0] -= first;
    return view;
  }
};

using Bytes = Tensor<uint8_t, sohes::DType::kBool>;
using Ints = Tensor<int64_t, sohes::DType::kInt64>;
using Floats = Tensor<float, sohes::DType::kFloat32>;

std::mt19937 rng(0);
int64_t below(int64_t bound) { return static_cast<int64_t>(rng() % static_cast<uint64_t>(bound)); }

int64_t words_of(int64_t height, int64_t width) { return (height * width + 63) / 64; }

}  // namespace
