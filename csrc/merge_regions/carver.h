// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace sohes::merging {

// Allocates arrays from one block of memory, each aligned to a cache line. With a null block it only counts
// bytes.
class Carver {
 public:
  explicit Carver(void* block) : base_(static_cast<char*>(block)) {}

  template <typename T>
  T* take(int64_t count) {
    T* here = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return here;
  }

  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace sohes::merging
