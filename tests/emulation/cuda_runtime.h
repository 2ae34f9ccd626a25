// SPDX-License-Identifier: Apache-2.0
// Enough of CUDA to run a kernel on a CPU, one block after the other: every thread of a block is a fiber that
// runs until it waits for its warp (shuffles) or for the block. It shows what a kernel computes, in one of
// two orders of threads, and where threads disagree about a barrier; it is no proof against races, and says
// nothing about time.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(threads)

using std::isfinite;
using std::max;
using std::min;
using std::sqrt;

struct float4 {
  float x, y, z, w;
};

namespace emulation {

enum class Waits { kNo, kForWarp, kForBlock, kForever };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  Waits waits;
  int shuffles;
};

struct Index {
  unsigned x;
};

inline Index thread, block;
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline uint64_t exchanged[2][1024];  // what the lanes of all warps gave to an even or odd shuffle
inline bool is_reversed = false;     // the last thread runs first
inline const std::function<void()>* body;

inline void fail(const char* what) {
  std::printf("emulation: %s\n", what);
  std::exit(1);
}

inline void yield(Waits waits) {
  Fiber& fiber = fibers[thread.x];
  fiber.waits = waits;
  swapcontext(&fiber.context, &scheduler);
}

inline void enter() {
  (*body)();
  yield(Waits::kForever);
}

inline void run_block(unsigned threads, const std::function<void()>& kernel) {
  body = &kernel;
  fibers.resize(threads);
  for (Fiber& fiber : fibers) {
    fiber.stack.resize(1 << 16);
    fiber.waits = Waits::kNo;
    fiber.shuffles = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  const auto all = [&](unsigned begin, unsigned end, Waits waits) {
    return std::all_of(fibers.begin() + begin, fibers.begin() + end,
                       [&](const Fiber& fiber) { return fiber.waits == waits; });
  };
  const auto release = [&](unsigned begin, unsigned end) {
    for (unsigned i = begin; i < end; ++i) fibers[i].waits = Waits::kNo;
  };
  while (!all(0, threads, Waits::kForever)) {
    bool has_run = false;
    for (unsigned k = 0; k < threads; ++k) {
      const unsigned i = is_reversed ? threads - 1 - k : k;
      if (fibers[i].waits != Waits::kNo) continue;
      has_run = true;
      thread.x = i;
      swapcontext(&scheduler, &fibers[i].context);
    }
    for (unsigned warp = 0; warp < threads; warp += 32) {
      if (!all(warp, warp + 32, Waits::kForWarp)) continue;
      release(warp, warp + 32);
      has_run = true;
    }
    if (has_run) continue;
    if (!all(0, threads, Waits::kForBlock)) fail("not all threads reach a barrier or shuffle");
    release(0, threads);
  }
}

template <typename T>
T exchange(T value, unsigned from) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t (&slots)[1024] = exchanged[fibers[thread.x].shuffles++ % 2];
  std::memcpy(&slots[thread.x], &value, sizeof(T));
  yield(Waits::kForWarp);
  std::memcpy(&value, &slots[thread.x / 32 * 32 + from], sizeof(T));
  return value;
}

template <typename Kernel, typename Arguments>
void launch(Kernel kernel, unsigned blocks, unsigned threads, int64_t, void*, const Arguments& args) {
  for (block.x = 0; block.x < blocks; ++block.x) run_block(threads, [&] { kernel(args); });
}

}  // namespace emulation

#define threadIdx emulation::thread
#define blockIdx emulation::block

inline void __syncthreads() { emulation::yield(emulation::Waits::kForBlock); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::exchange(value, (threadIdx.x % 32) ^ mask);
}

template <typename T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const int from = static_cast<int>(threadIdx.x % 32) - delta;
  return emulation::exchange(value, from < 0 ? threadIdx.x % 32 : from);
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

template <typename T>
T atomicAdd(T* at, T value) {
  return std::exchange(*at, *at + value);
}

template <typename T>
T atomicMax(T* at, T value) {
  return std::exchange(*at, std::max(*at, value));
}

template <typename T>
T atomicMin(T* at, T value) {
  return std::exchange(*at, std::min(*at, value));
}

template <typename T>
T atomicCAS(T* at, T expected, T value) {
  return std::exchange(*at, *at == expected ? value : *at);
}

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
constexpr int cudaDevAttrMaxSharedMemoryPerBlockOptin = 0, cudaFuncAttributeMaxDynamicSharedMemorySize = 0;

inline int emulated_shared_bytes = 1 << 16;
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = emulated_shared_bytes;
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}
