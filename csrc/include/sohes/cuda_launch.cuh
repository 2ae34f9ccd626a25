// SPDX-License-Identifier: Apache-2.0
// Launches of CUDA kernels and checks of CUDA errors. Tests compile the same sources as C++ for an emulated
// device on the CPU (tests/cuda/cuda_runtime.h), which launches kernels in its own way.
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
// Declares the dynamic shared memory of a kernel; its size is given at the launch.
#define SOHES_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

namespace sohes {

inline void check_cuda(cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("sohes: CUDA: ") + cudaGetErrorString(status));
}

// Launches a kernel with `shared_bytes` bytes of dynamic shared memory on a stream.
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

// Launches a kernel without dynamic shared memory.
template <typename... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, uintptr_t stream,
            std::type_identity_t<Parameters>... arguments) {
  launch_with_shared(kernel, grid, block, 0, stream, arguments...);
}

}  // namespace sohes
