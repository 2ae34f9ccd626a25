// SPDX-License-Identifier: Apache-2.0
// How a CUDA kernel is started, and how its errors are told. Tests compile the same sources as C++, for a
// device made of the CPU (tests/cuda/cuda_runtime.h), which has a way of its own to start them.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#ifdef SOHES_EMULATE_CUDA
#define SOHES_DYNAMIC_SHARED(type, name) static type name[emulation::kDynamicBytes / sizeof(type)]
#else
// Declares in a kernel the array of shared memory whose size its launch says.
#define SOHES_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

namespace sohes {

inline void check_cuda(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("sohes: CUDA: ") + cudaGetErrorString(status));
}

// Starts a kernel with so many bytes of dynamic shared memory on the caller's stream.
template <typename... Parameters>
void launch_with_shared(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                        [[maybe_unused]] size_t shared_bytes, [[maybe_unused]] uintptr_t stream,
                        std::type_identity_t<Parameters>... arguments) {
#ifdef SOHES_EMULATE_CUDA
  emulation::run(grid, block, [=] { kernel(arguments...); });
#else
  void* pointers[] = {static_cast<void*>(&arguments)...};
  check_cuda(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, pointers, shared_bytes,
                              reinterpret_cast<cudaStream_t>(stream)));
#endif
}

// The same without any.
template <typename... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, uintptr_t stream,
            std::type_identity_t<Parameters>... arguments) {
  launch_with_shared(kernel, grid, block, 0, stream, arguments...);
}

}  // namespace sohes
