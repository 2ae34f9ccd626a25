// SPDX-License-Identifier: Apache-2.0
// Emulation of a CUDA device in C++, to test the logic of the kernels without a GPU and under the sanitizers.
// The threads of a block are contexts; each runs until it waits for its warp or its block. Blocks run one
// after the other. The emulation computes results in one of two orders of threads and finds barriers that not
// all threads reach. It has neither the memory model nor the speed of the hardware.
#pragma once

#define SOHES_EMULATE_CUDA 1

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>
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

using std::isfinite;
using std::max;
using std::min;
using std::sqrt;

struct float4 {
  float x, y, z, w;
};

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned kLanes = 32, kMostThreads = 1024;
constexpr size_t kStack = 1 << 16, kDynamicBytes = 1 << 16, kExchangedBytes = 64;

enum class Waits { kNo, kForWarp, kForBlock, kForever };

struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  Waits waits;
  int num_exchanges;
};

inline bool is_reversed = false;               // the last thread runs first
inline int shared_bytes = int{kDynamicBytes};  // shared memory per block that the device reports

inline std::vector<Thread> threads;
inline ucontext_t scheduler;
inline const std::function<void()>* kernel;
// Values that the threads passed to their warps, for even and odd exchanges: a thread may be one ahead.
inline char exchanged[2][kMostThreads][kExchangedBytes];
inline const void* main_stack;
inline size_t main_size;

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

inline void wait(Waits waits) {
  Thread& own = threads[threadIdx.x];
  own.waits = waits;
  switch_to(own.context, scheduler, main_stack, main_size, waits == Waits::kForever);
}

inline void run_thread() {
#if SOHES_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_size);
#endif
  (*kernel)();
  wait(Waits::kForever);
}

// Resumes threads begin..end-1 if all of them wait at the same kind of barrier; ended threads are ignored.
inline bool release(unsigned begin, unsigned end, Waits waits) {
  bool any = false;
  for (unsigned t = begin; t < end; ++t) {
    if (threads[t].waits == Waits::kForever) continue;
    if (threads[t].waits != waits) return false;
    any = true;
  }
  for (unsigned t = begin; t < end; ++t) {
    if (threads[t].waits == waits) threads[t].waits = Waits::kNo;
  }
  return any;
}

inline void run_block(unsigned count) {
  for (unsigned t = 0; t < count; ++t) {
    Thread& thread = threads[t];
    thread.stack.resize(kStack);
    thread.waits = Waits::kNo;
    thread.num_exchanges = 0;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, run_thread, 0);
  }
  while (true) {
    for (unsigned k = 0; k < count; ++k) {
      const unsigned t = is_reversed ? count - 1 - k : k;
      if (threads[t].waits != Waits::kNo) continue;
      threadIdx = dim3(t, 0, 0);
      switch_to(scheduler, threads[t].context, threads[t].stack.data(), kStack, false);
    }
    bool goes_on = false;
    for (unsigned first = 0; first < count; first += kLanes) {
      goes_on |= release(first, std::min(first + kLanes, count), Waits::kForWarp);
    }
    if (goes_on || release(0, count, Waits::kForBlock)) continue;
    const auto has_ended = [](const Thread& thread) { return thread.waits == Waits::kForever; };
    if (std::all_of(threads.begin(), threads.begin() + count, has_ended)) return;
    std::printf("emulation: not all threads reach a barrier, or an exchange within their warp\n");
    std::exit(1);
  }
}

inline void run(dim3 grid, dim3 size, const std::function<void()>& body) {
  gridDim = grid;
  blockDim = size;
  kernel = &body;
  const unsigned count = size.x;  // the kernels have blocks of one dimension
  if (count > kMostThreads || size.y * size.z != 1) {
    std::printf("emulation: a block of %u x %u x %u threads\n", size.x, size.y, size.z);
    std::exit(1);
  }
  if (threads.size() < count) threads.resize(count);
  for (unsigned b = 0; b < grid.x * grid.y * grid.z; ++b) {
    blockIdx = dim3(b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y);
    run_block(count);
  }
}

// Passes `own` to the warp; then calls f(lane -> value of that lane).
template <typename T, typename F>
auto exchange(const T& own, F&& f) {
  static_assert(sizeof(T) <= kExchangedBytes && std::is_trivially_copyable_v<T>);
  auto& slots = exchanged[threads[threadIdx.x].num_exchanges++ % 2];
  std::memcpy(slots[threadIdx.x], &own, sizeof(T));
  wait(Waits::kForWarp);
  const unsigned first = threadIdx.x / kLanes * kLanes;
  return f([&slots, first](int lane) {
    T other;
    std::memcpy(&other, slots[first + static_cast<unsigned>(lane)], sizeof(T));
    return other;
  });
}

inline int lane() { return static_cast<int>(threadIdx.x % kLanes); }

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::Waits::kForBlock); }
inline void __syncwarp() { emulation::wait(emulation::Waits::kForWarp); }

inline unsigned __ballot_sync(unsigned, bool own) {
  return emulation::exchange(own, [](auto other) {
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane) bits |= unsigned{other(lane)} << lane;
    return bits;
  });
}

template <typename T>
T __shfl_up_sync(unsigned, T own, int step) {
  const int lane = emulation::lane();
  return emulation::exchange(own, [=](auto other) { return lane >= step ? other(lane - step) : own; });
}

template <typename T>
T __shfl_sync(unsigned, T own, int lane) {
  return emulation::exchange(own, [=](auto other) { return other(lane); });
}

template <typename T>
T __shfl_xor_sync(unsigned, T own, int mask) {
  const int lane = emulation::lane();
  return emulation::exchange(own, [=](auto other) { return other(lane ^ mask); });
}

inline unsigned __reduce_add_sync(unsigned, unsigned own) {
  return emulation::exchange(own, [](auto other) {
    unsigned sum = 0;
    for (int lane = 0; lane < 32; ++lane) sum += other(lane);
    return sum;
  });
}

inline unsigned __reduce_max_sync(unsigned, unsigned own) {
  return emulation::exchange(own, [](auto other) {
    unsigned most = 0;
    for (int lane = 0; lane < 32; ++lane) most = std::max(most, other(lane));
    return most;
  });
}

inline unsigned __reduce_min_sync(unsigned, unsigned own) {
  return emulation::exchange(own, [](auto other) {
    unsigned least = ~0u;
    for (int lane = 0; lane < 32; ++lane) least = std::min(least, other(lane));
    return least;
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
  const int lane = emulation::lane();
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
inline long long __double2ll_rn(double x) { return std::llrint(x); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }

template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return std::exchange(*at, *at + value);
}

template <typename T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  return std::exchange(*at, *at | value);
}

template <typename T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  return std::exchange(*at, std::min(*at, value));
}

template <typename T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  return std::exchange(*at, std::max(*at, value));
}

template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return std::exchange(*at, *at == expected ? value : *at);
}

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
constexpr int cudaDevAttrMaxSharedMemoryPerBlockOptin = 0, cudaFuncAttributeMaxDynamicSharedMemorySize = 0;

inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = emulation::shared_bytes;
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
