// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of one (batch, head). A source file that defines SOHES_ISA (a namespace of kernel.h),
// SOHES_TARGET (its function attribute) and SOHES_VECTOR_BYTES includes this once; separate namespaces keep
// code compiled for one processor from being linked into the path of another.
//
//   x = location_x * width - 0.5, y alike; the four pixels around (x, y) weigh (1-fx)(1-fy) .. fx*fy
//   out[q]              = sum over points and corners of  attention * corner weight * value[corner]
//   grad_value[corner] += attention * corner weight * grad_out[q]
//   dot[corner]         = <grad_out[q], value[corner]>, from which the gradients of location and weight
//   follow
//
// All points of a query are placed side by side (lanes are points), then each gathers its corners (lanes are
// channels). Forward reads 4*D elements of value a point, from cache; backward also reads and writes 4*D of
// grad_value.
#include <type_traits>
#include <utility>

#include "kernel.h"

#define SOHES_INLINE inline __attribute__((always_inline)) SOHES_TARGET

namespace sohes::deform::SOHES_ISA {

#include "convert.h"
#include "simd.h"

// Queries that rows are fetched ahead of use. Those of one head lie K rows apart, too far for the hardware to
// guess.
constexpr int64_t kAhead = 8;

// Rows of one head: position s is at data + s * stride.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
};

// Brings the row that is read or written kAhead queries later into the cache; harmless beyond the end of the
// tensor.
template <int kWrite>
SOHES_INLINE void fetch_row(const Problem& p, const void* tensor, int64_t query, int64_t bytes) {
  const char* row = static_cast<const char*>(tensor) + (query + kAhead * p.K) * bytes;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, kWrite);
}

template <int kWrite>
SOHES_INLINE void fetch_points(const Problem& p, const void* locations, const void* weights, int64_t query) {
  fetch_row<kWrite>(p, locations, query, 2 * p.num_points * p.point_size);
  fetch_row<kWrite>(p, weights, query, p.num_points * p.point_size);
}

template <typename T, int kBytes>
struct Kernel {
  using V = Simd<T, kBytes>;
  using Vec = typename V::Vec;
  using IntVec = typename V::IntVec;
  using Int = typename V::Int;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kMaxVectors = kBytes == 64 ? 4 : 2;  // four sums of so many vectors stay in registers
  static constexpr DType kNative = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;

  // One coordinate of kLanes points: the two pixels it lies between and their factors, zero beside the map.
  struct Axis {
    IntVec pixel0, pixel1;  // clamped into the map
    IntVec inside0, inside1;
    Vec factor0, factor1;
  };
  // kLanes points: where their corners lie and what they weigh. Corners are ordered (y, x): 00 01 10 11.
  struct Points {
    Int inside[kLanes];
    Int corner[4][kLanes];
    T weight[4][kLanes];  // attention times bilinear
  };

  static SOHES_INLINE Axis place(Vec location, Vec size, IntVec int_size) {
    const IntVec zero = {}, last = int_size - 1;
    Vec x = location * size - T(0.5);
    // Written so that NaN fails the test and lands outside; the bounds keep the conversion to integer
    // defined.
    x = V::select(x > V::fill(T(-2)), x, V::fill(T(-2)));
    x = V::select(x < size, x, size);
    IntVec low = __builtin_convertvector(x, IntVec);
    low += __builtin_convertvector(low, Vec) > x;  // truncation to floor: a true comparison is -1
    const Vec fraction = x - __builtin_convertvector(low, Vec);
    const IntVec high = low + 1;
    Axis axis;
    axis.inside0 = (low >= zero) & (low <= last);
    axis.inside1 = (high >= zero) & (high <= last);
    axis.factor0 = V::select(axis.inside0, T(1) - fraction, Vec{});
    axis.factor1 = V::select(axis.inside1, fraction, Vec{});
    axis.pixel0 = V::select(low < zero, zero, V::select(low > last, last, low));
    axis.pixel1 = V::select(high < zero, zero, V::select(high > last, last, high));
    return axis;
  }

  static SOHES_INLINE void place_both(const T* locations, const PointTable<T>& table, int first, Axis& x,
                                      Axis& y) {
    const Vec a = V::load(locations + 2 * first), b = V::load(locations + 2 * first + kLanes);
    x = place(V::template shuffle<typename V::template EveryOther<0>>(a, b), V::load(table.width + first),
              V::load(table.int_width + first));
    y = place(V::template shuffle<typename V::template EveryOther<1>>(a, b), V::load(table.height + first),
              V::load(table.int_height + first));
  }

  static SOHES_INLINE void corners(const Axis& x, const Axis& y, Vec attention, const PointTable<T>& table,
                                   int first, Points& points) {
    const Vec top = attention * y.factor0, bottom = attention * y.factor1;
    V::store(points.weight[0], top * x.factor0);
    V::store(points.weight[1], top * x.factor1);
    V::store(points.weight[2], bottom * x.factor0);
    V::store(points.weight[3], bottom * x.factor1);
    const IntVec start = V::load(table.start + first), width = V::load(table.int_width + first);
    const IntVec row0 = start + y.pixel0 * width, row1 = start + y.pixel1 * width;
    V::store(points.corner[0], row0 + x.pixel0);
    V::store(points.corner[1], row0 + x.pixel1);
    V::store(points.corner[2], row1 + x.pixel0);
    V::store(points.corner[3], row1 + x.pixel1);
    V::store(points.inside, (x.inside0 | x.inside1) & (y.inside0 | y.inside1));
  }

  // to[0 .. kVectors*kLanes) = (add: +=) the weighted corners of `count` points.
  template <int kVectors>
  static SOHES_INLINE void gather(const Points& points, int count, Rows<const T> rows, bool add, T* to) {
    Vec sums[4][kVectors] = {};  // a chain of additions for each corner, to hide their latency
    for (int i = 0; i < count; ++i) {
      if (!points.inside[i]) continue;
      for (int c = 0; c < 4; ++c) {
        const T* row = rows.data + int64_t{points.corner[c][i]} * rows.stride;
        const Vec weight = V::fill(points.weight[c][i]);
        for (int v = 0; v < kVectors; ++v) sums[c][v] += weight * V::load(row + v * kLanes);
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      const Vec sum = (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]);
      V::store(to + v * kLanes, add ? sum + V::load(to + v * kLanes) : sum);
    }
  }

  // All channels, in slices of kSlice vectors, then of half as many.
  template <int kSlice>
  static SOHES_INLINE void gather_channels(const Points& points, int count, Rows<const T> rows, int vectors,
                                           bool add, T* to) {
    for (; vectors >= kSlice; vectors -= kSlice, rows.data += kSlice * kLanes, to += kSlice * kLanes) {
      gather<kSlice>(points, count, rows, add, to);
    }
    if constexpr (kSlice > 1) gather_channels<kSlice / 2>(points, count, rows, vectors, add, to);
  }

  // For `count` points: dots[corner][point] += <grad, value row>, and grad row += weight * grad.
  template <int kVectors>
  static SOHES_INLINE void scatter(const Points& points, int count, Rows<const T> rows, Rows<T> grad_rows,
                                   const T* grad, T (&dots)[4][kLanes]) {
    Vec grads[kVectors];
    for (int v = 0; v < kVectors; ++v) grads[v] = V::load(grad + v * kLanes);
    for (int i = 0; i < count; ++i) {
      if (!points.inside[i]) continue;
      Vec products[4] = {};
      for (int c = 0; c < 4; ++c) {
        const T* row = rows.data + int64_t{points.corner[c][i]} * rows.stride;
        T* grad_row = grad_rows.data + int64_t{points.corner[c][i]} * grad_rows.stride;
        const Vec weight = V::fill(points.weight[c][i]);
        for (int v = 0; v < kVectors; ++v) {
          products[c] += grads[v] * V::load(row + v * kLanes);
          V::store(grad_row + v * kLanes, V::load(grad_row + v * kLanes) + weight * grads[v]);
        }
      }
      V::add_lanes(products, &dots[0][i], kLanes);
    }
  }

  template <int kSlice>
  static SOHES_INLINE void scatter_channels(const Points& points, int count, Rows<const T> rows,
                                            Rows<T> grad_rows, const T* grad, int vectors,
                                            T (&dots)[4][kLanes]) {
    for (; vectors >= kSlice; vectors -= kSlice, grad += kSlice * kLanes) {
      scatter<kSlice>(points, count, rows, grad_rows, grad, dots);
      rows.data += kSlice * kLanes, grad_rows.data += kSlice * kLanes;
    }
    if constexpr (kSlice > 1)
      scatter_channels<kSlice / 2>(points, count, rows, grad_rows, grad, vectors, dots);
  }

  // The gradients of kLanes locations (x and y in turn) and weights from the dots of their corners.
  static SOHES_INLINE void point_gradients(const Axis& x, const Axis& y, Vec attention, Vec width, Vec height,
                                           const T (&dots)[4][kLanes], T* grad_locations, T* grad_weights) {
    const Vec zero = {};
    // Beside the map lies zero: a clamped corner must not count.
    const Vec d00 = V::select(x.inside0 & y.inside0, V::load(dots[0]), zero);
    const Vec d01 = V::select(x.inside1 & y.inside0, V::load(dots[1]), zero);
    const Vec d10 = V::select(x.inside0 & y.inside1, V::load(dots[2]), zero);
    const Vec d11 = V::select(x.inside1 & y.inside1, V::load(dots[3]), zero);
    const Vec top = x.factor0 * d00 + x.factor1 * d01, bottom = x.factor0 * d10 + x.factor1 * d11;
    V::store(grad_weights, y.factor0 * top + y.factor1 * bottom);
    // The slope along one axis is the difference of its pixels, mixed along the other. Zero factors drop out.
    const Vec slope_x = attention * width * (y.factor0 * (d01 - d00) + y.factor1 * (d11 - d10));
    const Vec slope_y = attention * height * (x.factor0 * (d10 - d00) + x.factor1 * (d11 - d01));
    V::store(grad_locations, V::template shuffle<typename V::template Interleave<0>>(slope_x, slope_y));
    V::store(grad_locations + kLanes,
             V::template shuffle<typename V::template Interleave<1>>(slope_x, slope_y));
  }

  // A query's locations or weights as a readable run of padded length: in place where reading past the end of
  // the row stays inside the tensor, else copied.
  static SOHES_INLINE const T* point_row(const Problem& p, const void* tensor, int64_t query, int fields,
                                         T* buffer) {
    const int64_t offset = query * p.num_points * fields;
    const int64_t total = p.B * p.Q * p.K * p.num_points * fields;
    if (p.point_dtype == kNative && offset + p.padded_points * fields <= total) {
      const T* row = static_cast<const T*>(tensor) + offset;
      return row;
    }
    load_row(tensor, p.point_dtype, offset, p.num_points * fields, buffer);
    return buffer;
  }

  static SOHES_INLINE Rows<const T> value_rows(const Problem& p, int64_t b, int64_t k, T* packed) {
    const int64_t offset = (b * p.S * p.K + k) * p.D;
    if (p.in_place) return {static_cast<const T*>(p.value) + offset, p.K * p.D};
    for (int64_t s = 0; s < p.S; ++s) {
      fetch_row<0>(p, p.value, (b * p.S + s) * p.K + k, p.D * p.value_size);
      T* row = packed + s * p.padded_channels;
      load_row(p.value, p.value_dtype, offset + s * p.K * p.D, p.D, row);
      for (int64_t d = p.D; d < p.padded_channels; ++d) row[d] = T(0);
    }
    return {packed, p.padded_channels};
  }

  static SOHES_INLINE bool is_whole(const Problem& p) {
    return p.value_dtype == kNative && p.D % kLanes == 0;
  }

  SOHES_TARGET static void forward(const Problem& p, const PointTable<T>& table, const Scratch<T>& scratch,
                                   int64_t b, int64_t k, int64_t first_query, int64_t end_query) {
    const Rows<const T> rows = value_rows(p, b, k, scratch.value_rows);
    const int vectors = static_cast<int>((p.D + kLanes - 1) / kLanes);
    for (int64_t q = first_query; q < end_query; ++q) {
      const int64_t query = (b * p.Q + q) * p.K + k;
      fetch_points<0>(p, p.locations, p.weights, query);
      const T* locations = point_row(p, p.locations, query, 2, scratch.points);
      const T* weights = point_row(p, p.weights, query, 1, scratch.points + 2 * p.padded_points);
      fetch_row<1>(p, p.output, query, p.D * p.value_size);
      T* out = is_whole(p) ? static_cast<T*>(p.output) + query * p.D : scratch.channels;
      for (int first = 0; first < p.num_points; first += kLanes) {
        Axis x, y;
        Points points;
        place_both(locations, table, first, x, y);
        corners(x, y, V::load(weights + first), table, first, points);
        const int count = p.num_points - first < kLanes ? p.num_points - first : kLanes;
        gather_channels<kMaxVectors>(points, count, rows, vectors, first > 0, out);
      }
      if (!is_whole(p)) store_row(p.output, p.value_dtype, query * p.D, p.D, out);
    }
  }

  SOHES_TARGET static void backward(const Problem& p, const PointTable<T>& table, const Scratch<T>& scratch,
                                    int64_t b, int64_t k) {
    const Rows<const T> rows = value_rows(p, b, k, scratch.value_rows);
    const int64_t offset = (b * p.S * p.K + k) * p.D;
    const Rows<T> grad_rows = p.in_place ? Rows<T>{static_cast<T*>(p.grad_value) + offset, p.K * p.D}
                                         : Rows<T>{scratch.grad_rows, p.padded_channels};
    const int64_t width = p.in_place ? p.D : p.padded_channels;
    for (int64_t s = 0; s < p.S; ++s) {
      for (int64_t d = 0; d < width; ++d) grad_rows.data[s * grad_rows.stride + d] = T(0);
    }
    for (int64_t d = p.D; d < p.padded_channels; ++d) scratch.channels[d] = T(0);
    const int vectors = static_cast<int>((p.D + kLanes - 1) / kLanes);
    T* grad_locations = scratch.points + 3 * p.padded_points;
    T* grad_weights = scratch.points + 5 * p.padded_points;
    for (int64_t q = 0; q < p.Q; ++q) {
      const int64_t query = (b * p.Q + q) * p.K + k;
      fetch_points<0>(p, p.locations, p.weights, query);
      const T* locations = point_row(p, p.locations, query, 2, scratch.points);
      const T* weights = point_row(p, p.weights, query, 1, scratch.points + 2 * p.padded_points);
      fetch_row<0>(p, p.grad_output, query, p.D * p.value_size);
      fetch_points<1>(p, p.grad_locations, p.grad_weights, query);
      load_row(p.grad_output, p.value_dtype, query * p.D, p.D, scratch.channels);
      for (int first = 0; first < p.num_points; first += kLanes) {
        Axis x, y;
        Points points;
        T dots[4][kLanes] = {};
        const Vec attention = V::load(weights + first);
        place_both(locations, table, first, x, y);
        corners(x, y, attention, table, first, points);
        const int count = p.num_points - first < kLanes ? p.num_points - first : kLanes;
        scatter_channels<kMaxVectors>(points, count, rows, grad_rows, scratch.channels, vectors, dots);
        point_gradients(x, y, attention, V::load(table.width + first), V::load(table.height + first), dots,
                        grad_locations + 2 * first, grad_weights + first);
      }
      store_row(p.grad_locations, p.point_dtype, query * p.num_points * 2, p.num_points * 2, grad_locations);
      store_row(p.grad_weights, p.point_dtype, query * p.num_points, p.num_points, grad_weights);
    }
    if (p.in_place) return;
    for (int64_t s = 0; s < p.S; ++s) {
      fetch_row<1>(p, p.grad_value, (b * p.S + s) * p.K + k, p.D * p.value_size);
      store_row(p.grad_value, p.value_dtype, offset + s * p.K * p.D, p.D,
                grad_rows.data + s * grad_rows.stride);
    }
  }
};

// The kernels for rows of so many channels. A row of 32 bytes would leave half of a 64-byte vector idle.
template <typename T>
Kernels<T> kernels(int64_t channels) {
  constexpr int kNarrowBytes = SOHES_VECTOR_BYTES < 32 ? SOHES_VECTOR_BYTES : 32;
  if (channels * int64_t{sizeof(T)} <= kNarrowBytes) {
    return {Kernel<T, kNarrowBytes>::forward, Kernel<T, kNarrowBytes>::backward};
  }
  return {Kernel<T, SOHES_VECTOR_BYTES>::forward, Kernel<T, SOHES_VECTOR_BYTES>::backward};
}

template Kernels<float> kernels<float>(int64_t);
template Kernels<double> kernels<double>(int64_t);

}  // namespace sohes::deform::SOHES_ISA
