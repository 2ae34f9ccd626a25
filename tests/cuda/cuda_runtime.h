// SPDX-License-Identifier: Apache-2.0
// A CUDA device in plain C++, as far as the mask kernels need one: their logic is tested where there is no
// GPU, under the sanitizers too. A block's threads are contexts that take turns, blocks run one after the
// other. Of the hardware it has nothing: neither its memory model nor its speed.
#pragma once

#define SOHES_EMULATE_CUDA 1

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SOHES_ASAN 1
#else
#define SOHES_ASAN 0
#endif

#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block at a time
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

struct Barrier {
  int arrived = 0, generation = 0;
};

struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  bool is_done = false;
};

constexpr size_t kStack = 1 << 16;
constexpr int kLanes = 32;

struct Block {
  std::vector<Thread> threads;
  std::vector<Barrier> warps;
  std::vector<int> alive_of_warp;
  std::vector<uint64_t> slots;  // what each thread hands to its warp, 8 numbers
  Barrier all;
  int alive = 0;
  unsigned current = 0;
  ucontext_t scheduler;
  const std::function<void()>* kernel = nullptr;
  const void* main_stack = nullptr;
  size_t main_size = 0;
};

inline Block block;

// To `target`; the stacks are announced to the address sanitizer.
inline void switch_to(ucontext_t& from, ucontext_t& target, [[maybe_unused]] const void* stack,
                      [[maybe_unused]] size_t size, [[maybe_unused]] bool is_last) {
#if SOHES_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(is_last ? nullptr : &fake, stack, size);
#endif
  swapcontext(&from, &target);
#if SOHES_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void yield(bool is_last = false) {
  Thread& own = block.threads[block.current];
  switch_to(own.context, block.scheduler, block.main_stack, block.main_size, is_last);
}

inline void run_thread() {
#if SOHES_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &block.main_stack, &block.main_size);
#endif
  (*block.kernel)();
  block.threads[block.current].is_done = true;
  --block.alive;
  --block.alive_of_warp[block.current / kLanes];
  yield(true);
}

inline void wait(Barrier& barrier, const int& alive) {
  const int generation = barrier.generation;
  ++barrier.arrived;
  while (barrier.generation == generation) {
    if (barrier.arrived >= alive) {
      barrier.arrived = 0;
      ++barrier.generation;
      return;
    }
    yield();
  }
}

inline void wait_warp() {
  wait(block.warps[block.current / kLanes], block.alive_of_warp[block.current / kLanes]);
}

// Hands `own` to the warp; then f(lane -> what that one handed over), before anyone goes on.
template <typename T, typename F>
auto exchange(const T& own, F&& f) {
  static_assert(sizeof(T) <= 64);
  std::memcpy(&block.slots[8 * block.current], &own, sizeof(T));
  wait_warp();
  const unsigned first = block.current / kLanes * kLanes;
  const auto result = f([first](int lane) {
    T other;
    std::memcpy(&other, &block.slots[8 * (first + static_cast<unsigned>(lane))], sizeof(T));
    return other;
  });
  wait_warp();
  return result;
}

}  // namespace emulation

inline void emulate(dim3 grid, dim3 size, const std::function<void()>& kernel) {
  using namespace emulation;
  gridDim = grid;
  blockDim = size;
  block.kernel = &kernel;
  const unsigned count = size.x;  // the kernels have blocks of one dimension
  for (unsigned b = 0; b < grid.x * grid.y * grid.z; ++b) {
    blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
    if (block.threads.size() < count) block.threads.resize(count);
    block.warps.assign((count + kLanes - 1) / kLanes, {});
    block.alive_of_warp.assign(block.warps.size(), 0);
    block.slots.assign(8 * kLanes * block.warps.size(), 0);
    block.all = {};
    block.alive = static_cast<int>(count);
    for (unsigned t = 0; t < count; ++t) {
      Thread& thread = block.threads[t];
      thread.is_done = false;
      thread.stack.resize(kStack);
      ++block.alive_of_warp[t / kLanes];
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.data();
      thread.context.uc_stack.ss_size = kStack;
      thread.context.uc_link = nullptr;
      makecontext(&thread.context, run_thread, 0);
    }
    while (block.alive > 0) {
      for (unsigned t = 0; t < count; ++t) {
        Thread& thread = block.threads[t];
        if (thread.is_done) continue;
        block.current = t;
        threadIdx = dim3(t, 0, 0);
        switch_to(block.scheduler, thread.context, thread.stack.data(), kStack, false);
      }
    }
  }
}

inline void __syncthreads() { emulation::wait(emulation::block.all, emulation::block.alive); }

inline unsigned __ballot_sync(unsigned, bool own) {
  return emulation::exchange(own, [](auto other) {
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= unsigned{other(lane)} << lane;
    return bits;
  });
}

inline unsigned __shfl_up_sync(unsigned, unsigned own, int step) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return emulation::exchange(own, [=](auto other) { return lane >= step ? other(lane - step) : own; });
}

inline unsigned __reduce_add_sync(unsigned, unsigned own) {
  return emulation::exchange(own, [](auto other) {
    unsigned sum = 0;
    for (int lane = 0; lane < 32; ++lane) sum += other(lane);
    return sum;
  });
}

inline unsigned __reduce_or_sync(unsigned, unsigned own) {
  return emulation::exchange(own, [](auto other) {
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= other(lane);
    return bits;
  });
}

// mma.m16n8k256 of single bits, with the fragments where the PTX manual says that they lie.
inline void emulate_mma(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  struct Fragments {
    unsigned a[4], b[2];
  };
  const Fragments own = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const int lane = static_cast<int>(threadIdx.x % 32);
  emulation::exchange(own, [&](auto other) {
    for (int k = 0; k < 4; ++k) {
      const int row = lane / 4 + k / 2 * 8, column = lane % 4 * 2 + k % 2;
      for (int bit = 0; bit < 256; bit += 32) {
        // Bits `bit` on: in the lane bit % 128 / 32 of the row's group; the second half in the later
        // registers.
        const Fragments of_a = other(row % 8 * 4 + bit % 128 / 32), of_b = other(column * 4 + bit % 128 / 32);
        c[k] += std::popcount(of_a.a[row / 8 + bit / 128 * 2] & of_b.b[bit / 128]);
      }
    }
    return 0;
  });
}

inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(unsigned x) { return x ? std::countr_zero(x) + 1 : 0; }
inline int __ffsll(unsigned long long x) { return x ? std::countr_zero(x) + 1 : 0; }
inline int __clz(unsigned x) { return std::countl_zero(x); }
inline int __clzll(unsigned long long x) { return std::countl_zero(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }

inline void atomicAdd(unsigned long long* at, unsigned long long value) { *at += value; }
inline void atomicOr(unsigned long long* at, unsigned long long value) { *at |= value; }
inline unsigned long long atomicMin(unsigned long long* at, unsigned long long value) {
  return std::exchange(*at, std::min(*at, value));
}
inline void atomicMax(unsigned long long* at, unsigned long long value) { *at = std::max(*at, value); }
