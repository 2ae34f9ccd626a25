// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of one (batch, head), for each instruction set.
#pragma once

#include <cstdint>

#include "sohes/tensor_view.h"

namespace sohes::deform {

struct Problem {
  int64_t B, S, K, D, Q;
  int num_points;           // L*P
  int64_t padded_channels;  // D, rounded up so that every row of scratch is whole vectors
  int64_t padded_points;    // num_points, rounded up in the same way
  // Rows of value, output and grad_output are whole vectors of a type that vectors are loaded from.
  bool whole;
  // Whole rows of value are read where they lie. Otherwise a head is packed into scratch first, whose rows
  // lie together: those of one head in the tensor are K rows apart and crowd into few sets of the cache.
  bool direct;
  // grad_value is added to where it lies. Otherwise a head's gradient is summed in rows that lie together, in
  // the type computed in, which pays where positions are visited often.
  bool in_place;
  DType value_dtype, point_dtype;
  int64_t value_size, point_size;  // bytes of an element
  // Null, or [Q, 2] in the type computed in: `locations` are then offsets in pixels from it, and `weights`
  // logits of a softmax over all points.
  const void* reference;
  const void *value, *locations, *weights, *grad_output;
  void *output, *grad_value, *grad_locations, *grad_weights;
};

// Type of the integers beside T: as wide as T, so that both fill a vector with equal lanes.
template <typename T>
struct IndexOf;
template <>
struct IndexOf<float> {
  using type = int32_t;
};
template <>
struct IndexOf<double> {
  using type = int64_t;
};

// The level of each point: one array [padded_points] per field, shared by all threads.
template <typename T>
struct PointTable {
  using Int = typename IndexOf<T>::type;
  T *width, *height;
  Int *int_width, *int_height, *start;
};

// Scratch of one thread.
template <typename T>
struct Scratch {
  T* value_rows;  // [S, padded_channels], unless direct
  T* grad_rows;   // [S, padded_channels], backward unless in_place
  T* channels;    // [padded_channels], a row of output or grad_output
  T* points;      // [6, padded_points], locations (2) and weights (1) of a query, then their gradients
};

template <typename T>
struct Kernels {
  // One (batch, head) for the queries [first_query, end_query).
  void (*forward)(const Problem&, const PointTable<T>&, const Scratch<T>&, int64_t b, int64_t k,
                  int64_t first_query, int64_t end_query);
  // One (batch, head), all queries.
  void (*backward)(const Problem&, const PointTable<T>&, const Scratch<T>&, int64_t b, int64_t k);
};

// The kernels for the types and channels of a problem, computing in float or double.
namespace baseline {
template <typename T>
Kernels<T> kernels(const Problem& p);
}
#ifdef __x86_64__
namespace avx2 {
template <typename T>
Kernels<T> kernels(const Problem& p);
}
namespace avx512 {
template <typename T>
Kernels<T> kernels(const Problem& p);
}
#endif

}  // namespace sohes::deform
