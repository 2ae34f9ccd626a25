// SPDX-License-Identifier: Apache-2.0
// Shared by the test programs of deformable attention: tensors of any type, random numbers, sizes and types.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "dense_view.h"

namespace {

using sohes::DType;
using sohes::TensorView;

std::mt19937 rng(0);

double uniform(double low, double high) {
  return low + (high - low) * (static_cast<double>(rng()) / 4294967296.0);
}

int64_t element_size(DType dtype) {
  return dtype == DType::kUInt8 ? 1 : dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// A tensor that owns exactly its bytes.
struct Tensor {
  std::vector<int64_t> shape;
  DType dtype;
  std::vector<char> bytes;

  Tensor(std::vector<int64_t> sizes, DType type) : shape(std::move(sizes)), dtype(type) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    bytes.assign(static_cast<size_t>(count * element_size(dtype)), 0);
    bytes.shrink_to_fit();
  }

  int64_t numel() const { return static_cast<int64_t>(bytes.size()) / element_size(dtype); }

  // A number with few digits, which every type can store.
  void set(int64_t i, double x) {
    char* at = bytes.data() + i * element_size(dtype);
    const float single = static_cast<float>(x);
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    const uint16_t brain = static_cast<uint16_t>(bits >> 16);
    // A float16 has 5 bits of exponent and 10 of fraction; zero and what is too large or small become zero.
    const int exponent = static_cast<int>(bits >> 23 & 255) - 112;
    const uint16_t half =
        exponent <= 0 || exponent >= 31
            ? 0
            : static_cast<uint16_t>((bits >> 31 << 15) | (exponent << 10) | (bits >> 13 & 1023));
    if (dtype == DType::kFloat64) std::memcpy(at, &x, 8);
    if (dtype == DType::kFloat32) std::memcpy(at, &single, 4);
    if (dtype == DType::kBFloat16) std::memcpy(at, &brain, 2);
    if (dtype == DType::kFloat16) std::memcpy(at, &half, 2);
  }

  double get(int64_t i) const {
    const char* at = bytes.data() + i * element_size(dtype);
    if (dtype == DType::kFloat64) {
      double x;
      std::memcpy(&x, at, 8);
      return x;
    }
    uint32_t bits = 0;
    float single;
    if (dtype == DType::kFloat32) {
      std::memcpy(&single, at, 4);
      return single;
    }
    uint16_t low;
    std::memcpy(&low, at, 2);
    if (dtype == DType::kFloat16) {
      const double fraction = (low & 1023) / 1024.0;
      const int exponent = low >> 10 & 31;
      const double magnitude = exponent ? std::ldexp(1 + fraction, exponent - 15) : std::ldexp(fraction, -14);
      return low >> 15 ? -magnitude : magnitude;
    }
    bits = static_cast<uint32_t>(low) << 16;
    std::memcpy(&single, &bits, 4);
    return single;
  }

  // Multiples of 1/8, which all types hold.
  void fill(double low, double high) {
    for (int64_t i = 0; i < numel(); ++i) set(i, std::round(uniform(low, high) * 8) / 8);
  }

  TensorView view() { return dense_view(bytes.data(), shape, dtype); }
};

struct Sizes {
  int64_t B, Q, K, D, P;
  std::vector<int64_t> levels;  // height, width of each

  int64_t num_levels() const { return static_cast<int64_t>(levels.size() / 2); }

  int64_t num_positions() const {
    int64_t count = 0;
    for (size_t i = 0; i < levels.size(); i += 2) count += levels[i] * levels[i + 1];
    return count;
  }
};

// Of value, and of locations and weights.
constexpr DType kTypes[][2] = {{DType::kFloat32, DType::kFloat32},   {DType::kFloat64, DType::kFloat64},
                               {DType::kBFloat16, DType::kFloat32},  {DType::kFloat16, DType::kFloat32},
                               {DType::kBFloat16, DType::kBFloat16}, {DType::kFloat16, DType::kFloat16}};

}  // namespace
