// SPDX-License-Identifier: Apache-2.0
// The only pybind11 file: raw entries of the kernels over TensorView, and build_info().
// One section per operator, in the order of csrc/. Every entry releases the GIL while its kernel runs; arguments
// are validated by sohes/ops/<op>.py before they come here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "sohes/tensor_view.h"
#include "sohes/torch_caster.h"

namespace py = pybind11;
using sohes::TensorView;
using ReleaseGil = py::call_guard<py::gil_scoped_release>;

namespace {

py::dict build_info() {
  py::dict info;
  info["source_digest"] = SOHES_SOURCE_DIGEST;
#ifdef SOHES_WITH_CUDA
  info["cuda"] = true;
  info["cuda_version"] = SOHES_CUDA_VERSION;
  info["cuda_architectures"] = SOHES_CUDA_ARCHITECTURES;
#else
  info["cuda"] = false;
#endif
  info["compiler"] = __VERSION__;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of sohes. Use sohes.ops, which validates and dispatches.";
  m.def("build_info", &build_info);

  // --- merge_regions ---

  // --- mask_ops ---

  // --- ms_deform_attn ---
}
