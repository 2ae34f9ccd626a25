// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace sohes::merging {

// Cuts arrays out of one block of the caller's, each on a cache line of its own. Over a null block it only
// counts.
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
