// SPDX-License-Identifier: Apache-2.0
// pybind11 type caster: torch.Tensor -> TensorView through the tensor's own Python attributes, so that the
// module links against no torch and one binary serves every version of it.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

#include "sohes/tensor_view.h"

namespace sohes::detail {

namespace py = pybind11;

// torch.dtype objects are singletons, so a pointer comparison identifies them.
inline const std::pair<PyObject*, DType>* dtype_table() {
  static const auto* table = [] {
    auto* rows = new std::pair<PyObject*, DType>[9];
    py::module_ torch = py::module_::import("torch");
    const std::pair<const char*, DType> names[] = {
        {"float32", DType::kFloat32}, {"float16", DType::kFloat16}, {"bfloat16", DType::kBFloat16},
        {"float64", DType::kFloat64}, {"int64", DType::kInt64},     {"int32", DType::kInt32},
        {"uint8", DType::kUInt8},     {"bool", DType::kBool}};
    int i = 0;
    for (const auto& [name, dtype] : names) {
      rows[i++] = {py::object(torch.attr(name)).release().ptr(), dtype};
    }
    rows[i] = {nullptr, DType::kFloat32};
    return rows;
  }();
  return table;
}

}  // namespace sohes::detail

namespace pybind11::detail {

template <>
struct type_caster<sohes::TensorView> {
  PYBIND11_TYPE_CASTER(sohes::TensorView, const_name("torch.Tensor"));

  bool load(handle source, bool /*convert*/) {
    if (source.is_none() || !hasattr(source, "data_ptr")) return false;
    const object dtype = source.attr("dtype");
    const auto* row = sohes::detail::dtype_table();
    while (row->first != nullptr && row->first != dtype.ptr()) ++row;
    if (row->first == nullptr) return false;
    value.dtype = row->second;
    const tuple shape = source.attr("shape");
    const tuple stride = source.attr("stride")();
    if (shape.size() > static_cast<size_t>(sohes::kMaxDims)) return false;
    value.ndim = static_cast<int>(shape.size());
    for (int i = 0; i < value.ndim; ++i) {
      value.shape[i] = shape[i].cast<int64_t>();
      value.stride[i] = stride[i].cast<int64_t>();
    }
    value.data = reinterpret_cast<void*>(source.attr("data_ptr")().cast<uintptr_t>());
    value.device = source.attr("is_cpu").cast<bool>() ? sohes::kCpu : source.attr("get_device")().cast<int>();
    return true;
  }
};

}  // namespace pybind11::detail
