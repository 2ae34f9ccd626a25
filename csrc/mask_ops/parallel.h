// SPDX-License-Identifier: Apache-2.0
// A parallel for loop over std::thread, with dynamic scheduling of `grain` items at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace sohes::mask_ops {

// body(thread, begin, end) over [0, count) in pieces of at most `grain`; thread is in 0..num_threads - 1. The
// body must not throw. Threads are started only when there is more than one piece.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, int num_threads, Body&& body) {
  const int64_t pieces = (count + grain - 1) / grain;
  const int threads = static_cast<int>(std::min<int64_t>(std::max(num_threads, 1), pieces));
  std::atomic<int64_t> next{0};
  const auto work = [&](int thread) {
    for (int64_t begin = next.fetch_add(grain); begin < count; begin = next.fetch_add(grain)) {
      body(thread, begin, std::min(begin + grain, count));
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
}

}  // namespace sohes::mask_ops
