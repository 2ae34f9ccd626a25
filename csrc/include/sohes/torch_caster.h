// SPDX-License-Identifier: Apache-2.0
// pybind11 type caster: torch.Tensor -> TensorView through the Python attributes of the tensor, so that the
// module does not link against torch and one binary works with every version. It also takes objects with the
// buffer protocol (a numpy array, bytes) as views of their memory; the caller keeps them alive.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
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

inline bool find_dtype(const Py_buffer& buffer, DType& dtype) {
  const char* format = buffer.format == nullptr ? "B" : buffer.format;
  if (format[0] == '\0' || format[1] != '\0') return false;  // several fields, or not native byte order
  switch (format[0]) {
    case '?':
      dtype = DType::kBool;
      return true;
    case 'B':
      dtype = DType::kUInt8;
      return true;
    case 'f':
      dtype = DType::kFloat32;
      return true;
    case 'd':
      dtype = DType::kFloat64;
      return true;
    case 'i':
    case 'l':
    case 'q':
      dtype = buffer.itemsize == 8 ? DType::kInt64 : DType::kInt32;
      return true;
    default:
      return false;
  }
}

inline bool load_buffer(PyObject* source, TensorView& value) {
  Py_buffer buffer;
  if (PyObject_GetBuffer(source, &buffer, PyBUF_STRIDED_RO | PyBUF_FORMAT) != 0) {
    PyErr_Clear();
    return false;
  }
  const bool fits = buffer.ndim <= kMaxDims && find_dtype(buffer, value.dtype);
  for (int i = 0; fits && i < buffer.ndim; ++i) {
    value.shape[i] = buffer.shape[i];
    value.stride[i] = buffer.strides[i] / buffer.itemsize;
  }
  value.data = buffer.buf;
  value.ndim = fits ? buffer.ndim : 0;
  value.device = kCpu;
  PyBuffer_Release(&buffer);
  return fits;
}

}  // namespace sohes::detail

namespace pybind11::detail {

template <>
struct type_caster<sohes::TensorView> {
  PYBIND11_TYPE_CASTER(sohes::TensorView, const_name("torch.Tensor"));

  bool load(handle source, bool /*convert*/) {
    if (PyObject_CheckBuffer(source.ptr()) != 0) return sohes::detail::load_buffer(source.ptr(), value);
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
    const bool is_cpu = source.attr("is_cpu").cast<bool>();
    if (!is_cpu && !source.attr("is_cuda").cast<bool>()) {  // "meta" has no memory, other devices are unknown
      throw type_error("sohes: expected a tensor on the CPU or on a CUDA device, got one on " +
                       str(source.attr("device")).cast<std::string>());
    }
    value.data = reinterpret_cast<void*>(source.attr("data_ptr")().cast<uintptr_t>());
    value.device = is_cpu ? sohes::kCpu : source.attr("get_device")().cast<int>();
    return true;
  }
};

}  // namespace pybind11::detail
