// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of one (batch, head). A source file that defines SOHES_ISA (a namespace of kernel.h),
// SOHES_TARGET (its function attribute) and SOHES_VECTOR_BYTES includes this once; separate namespaces keep
// code compiled for one processor from being linked into the path of another.
//
//   x = location_x * width - 0.5, y = location_y * height - 0.5; corner weights (1-fx)(1-fy) .. fx*fy
//   out[q]              = sum over points and corners of  attention * corner weight * value[corner]
//   grad_value[corner] += attention * corner weight * grad_out[q]
//   dot[corner]         = <grad_out[q], value[corner]>, from which the gradients of location and weight
//   follow
//
// All points of a query are placed side by side (lanes are points), then each gathers its corners (lanes are
// channels). Forward reads 4*D elements of value a point, from cache; backward also reads and writes 4*D of
// grad_value.
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernel.h"
#ifdef SOHES_X86_VECTORS
#ifndef __clang__
// GCC 12 takes the deliberately undefined registers in its own header for mistakes.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#define SOHES_INLINE inline __attribute__((always_inline)) SOHES_TARGET
#define SOHES_LAMBDA __attribute__((always_inline)) SOHES_TARGET

namespace sohes::deform::SOHES_ISA {

#include "convert.h"
#include "rows.h"
#include "simd.h"
#include "softmax.h"

// T: the type computed in. Stored: that of value, output and grad_output where rows are read from the tensors
// themselves (Problem::direct); T where they are packed first.
template <typename T, int kBytes, typename Stored>
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

  // x: in pixels, 0 at the centre of the first.
  static SOHES_INLINE Axis place(Vec x, Vec size, IntVec int_size) {
    const IntVec zero = {}, last = int_size - 1;
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

  // reference: null, or the (x, y) from which `locations` are offsets in pixels.
  static SOHES_INLINE void place_both(const T* locations, const T* reference, const PointTable<T>& table,
                                      int first, Axis& x, Axis& y) {
    const Vec a = V::load(locations + 2 * first), b = V::load(locations + 2 * first + kLanes);
    const Vec width = V::load(table.width + first), height = V::load(table.height + first);
    Vec px = V::template shuffle<typename V::template EveryOther<0>>(a, b);
    Vec py = V::template shuffle<typename V::template EveryOther<1>>(a, b);
    px = (reference ? reference[0] * width + px : px * width) - T(0.5);
    py = (reference ? reference[1] * height + py : py * height) - T(0.5);
    x = place(px, width, V::load(table.int_width + first));
    y = place(py, height, V::load(table.int_height + first));
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
  static SOHES_INLINE void gather(const Points& points, int count, Rows<const Stored> rows, bool add, T* to) {
    Vec sums[4][kVectors] = {};  // a chain of additions for each corner, to hide their latency
    for (int i = 0; i < count; ++i) {
      if (!points.inside[i]) continue;
      for (int c = 0; c < 4; ++c) {
        const Stored* row = rows.data + int64_t{points.corner[c][i]} * rows.stride;
        const Vec weight = V::fill(points.weight[c][i]);
        for (int v = 0; v < kVectors; ++v) sums[c][v] += weight * V::load(row + v * kLanes);
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      const Vec sum = (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]);
      V::store(to + v * kLanes, add ? sum + V::load(to + v * kLanes) : sum);
    }
  }

  // For `count` points: dots[corner][point] += <grad, value row>, and grad row += weight * grad.
  template <int kVectors>
  static SOHES_INLINE void scatter(const Points& points, int count, const Stored* grad,
                                   Rows<const Stored> rows, Rows<T> grad_rows, T (&dots)[4][kLanes]) {
    Vec grads[kVectors];
    for (int v = 0; v < kVectors; ++v) grads[v] = V::load(grad + v * kLanes);
    for (int i = 0; i < count; ++i) {
      if (!points.inside[i]) continue;
      Vec products[4] = {};
      for (int c = 0; c < 4; ++c) {
        const Stored* row = rows.data + int64_t{points.corner[c][i]} * rows.stride;
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

  // Calls work(integral_constant<vectors>, first channel) for all channels, in slices of kSlice vectors, then
  // of half as many.
  template <int kSlice, typename Work>
  static SOHES_INLINE void slices(int vectors, int64_t first, const Work& work) {
    for (; vectors >= kSlice; vectors -= kSlice, first += kSlice * kLanes) {
      work(std::integral_constant<int, kSlice>(), first);
    }
    if constexpr (kSlice > 1) slices<kSlice / 2>(vectors, first, work);
  }

  // The gradients of kLanes locations (x and y in turn) and weights from the dots of their corners.
  // `scale_x` and `scale_y`: pixels that a unit of location moves a point.
  static SOHES_INLINE void point_gradients(const Axis& x, const Axis& y, Vec attention, Vec scale_x,
                                           Vec scale_y, const T (&dots)[4][kLanes], T* grad_locations,
                                           T* grad_weights) {
    const Vec zero = {};
    // Beside the map lies zero: a clamped corner must not count.
    const Vec d00 = V::select(x.inside0 & y.inside0, V::load(dots[0]), zero);
    const Vec d01 = V::select(x.inside1 & y.inside0, V::load(dots[1]), zero);
    const Vec d10 = V::select(x.inside0 & y.inside1, V::load(dots[2]), zero);
    const Vec d11 = V::select(x.inside1 & y.inside1, V::load(dots[3]), zero);
    const Vec top = x.factor0 * d00 + x.factor1 * d01, bottom = x.factor0 * d10 + x.factor1 * d11;
    V::store(grad_weights, y.factor0 * top + y.factor1 * bottom);
    // The slope along one axis is the difference of its pixels, mixed along the other. Zero factors drop out.
    const Vec slope_x = attention * scale_x * (y.factor0 * (d01 - d00) + y.factor1 * (d11 - d10));
    const Vec slope_y = attention * scale_y * (x.factor0 * (d10 - d00) + x.factor1 * (d11 - d01));
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

  // Copies the channels of one row between a tensor and T.
  static SOHES_INLINE void load_channels(const Problem& p, const void* tensor, int64_t row, T* to) {
    const int64_t offset = row * p.D;
    if constexpr (sizeof(T) == 4) {
      if (p.whole && p.value_dtype == DType::kBFloat16) {
        return copy(static_cast<const BFloat16*>(tensor) + offset, p.D, to);
      }
#ifdef SOHES_X86_VECTORS
      if (p.whole && p.value_dtype == DType::kFloat16) {
        return copy(static_cast<const Float16*>(tensor) + offset, p.D, to);
      }
#endif
    }
    load_row(tensor, p.value_dtype, offset, p.D, to);
  }
  static SOHES_INLINE void store_channels(const Problem& p, void* tensor, int64_t row, const T* from) {
    const int64_t offset = row * p.D;
    if constexpr (sizeof(T) == 4) {
      if (p.whole && p.value_dtype == DType::kBFloat16) {
        return copy(from, p.D, static_cast<BFloat16*>(tensor) + offset);
      }
#ifdef SOHES_X86_VECTORS
      if (p.whole && p.value_dtype == DType::kFloat16) {
        return copy(from, p.D, static_cast<Float16*>(tensor) + offset);
      }
#endif
    }
    store_row(tensor, p.value_dtype, offset, p.D, from);
  }
  template <typename From, typename To>
  static SOHES_INLINE void copy(const From* from, int64_t count, To* to) {
    for (int64_t i = 0; i < count; i += kLanes) V::store(to + i, V::load(from + i));
  }

  // The rows of value, packed into scratch first unless they are read where they lie.
  static SOHES_INLINE Rows<const Stored> value_rows(const Problem& p, int64_t b, int64_t k, T* packed) {
    const int64_t first_row = b * p.S * p.K + k;
    if constexpr (std::is_same_v<Stored, T>) {
      if (!p.direct) {
        for (int64_t s = 0; s < p.S; ++s) {
          fetch_row<0>(p, p.value, first_row + s * p.K, p.D * p.value_size);
          T* row = packed + s * p.padded_channels;
          load_channels(p, p.value, first_row + s * p.K, row);
          for (int64_t d = p.D; d < p.padded_channels; ++d) row[d] = T(0);
        }
        return {packed, p.padded_channels};
      }
    }
    return {static_cast<const Stored*>(p.value) + first_row * p.D, p.K * p.D};
  }

  // A query's row of grad_output, whole vectors long. `buffer` ends in zeros past the channels.
  static SOHES_INLINE const Stored* grad_row(const Problem& p, int64_t query, T* buffer) {
    if constexpr (std::is_same_v<Stored, T>) {
      if (!p.whole || p.value_dtype != kNative) {
        load_channels(p, p.grad_output, query, buffer);
        return buffer;
      }
    }
    return static_cast<const Stored*>(p.grad_output) + query * p.D;
  }

  // The points of one query, readable to the padded length.
  struct Query {
    const T *locations, *weights, *reference;

    SOHES_INLINE Query(const Problem& p, const PointTable<T>& table, const Scratch<T>& scratch, int64_t q,
                       int64_t query)
        : locations(point_row(p, p.locations, query, 2, scratch.points)), reference(nullptr) {
      T* buffer = scratch.points + 2 * p.padded_points;
      weights = point_row(p, p.weights, query, 1, buffer);
      if (p.reference == nullptr) return;
      reference = static_cast<const T*>(p.reference) + 2 * q;
      Softmax<T, kBytes>::forward(weights, table.int_width, p.num_points, buffer);
      weights = buffer;
    }
  };

  // The points [first, first + kLanes) of a query: their corners.
  struct Placed {
    Axis x, y;
    Points points;
    Vec attention;
    int count;

    SOHES_INLINE Placed(const Problem& p, const PointTable<T>& table, const Query& query, int first)
        : attention(V::load(query.weights + first)),
          count(p.num_points - first < kLanes ? p.num_points - first : kLanes) {
      place_both(query.locations, query.reference, table, first, x, y);
      corners(x, y, attention, table, first, points);
    }
  };

  SOHES_TARGET static void forward(const Problem& p, const PointTable<T>& table, const Scratch<T>& scratch,
                                   int64_t b, int64_t k, int64_t first_query, int64_t end_query) {
    const Rows<const Stored> rows = value_rows(p, b, k, scratch.value_rows);
    const int vectors = static_cast<int>((p.D + kLanes - 1) / kLanes);
    const bool is_output = p.whole && p.value_dtype == kNative;
    for (int64_t q = first_query; q < end_query; ++q) {
      const int64_t query = (b * p.Q + q) * p.K + k;
      fetch_points<0>(p, p.locations, p.weights, query);
      const Query points(p, table, scratch, q, query);
      fetch_row<1>(p, p.output, query, p.D * p.value_size);
      T* out = is_output ? static_cast<T*>(p.output) + query * p.D : scratch.channels;
      for (int first = 0; first < p.num_points; first += kLanes) {
        const Placed placed(p, table, points, first);
        slices<kMaxVectors>(vectors, 0, [&](auto count, int64_t d) SOHES_LAMBDA {
          gather<count>(placed.points, placed.count, {rows.data + d, rows.stride}, first > 0, out + d);
        });
      }
      if (!is_output) store_channels(p, p.output, query, out);
    }
  }

  SOHES_TARGET static void backward(const Problem& p, const PointTable<T>& table, const Scratch<T>& scratch,
                                    int64_t b, int64_t k) {
    const Rows<const Stored> rows = value_rows(p, b, k, scratch.value_rows);
    const int64_t first_row = b * p.S * p.K + k;
    const Rows<T> grad_rows = p.in_place ? Rows<T>{static_cast<T*>(p.grad_value) + first_row * p.D, p.K * p.D}
                                         : Rows<T>{scratch.grad_rows, p.padded_channels};
    for (int64_t s = 0; s < p.S; ++s) {
      for (int64_t d = 0; d < p.padded_channels; ++d) grad_rows.data[s * grad_rows.stride + d] = T(0);
    }
    for (int64_t d = p.D; d < p.padded_channels; ++d) scratch.channels[d] = T(0);
    const int vectors = static_cast<int>((p.D + kLanes - 1) / kLanes);
    T* grad_locations = scratch.points + 3 * p.padded_points;
    T* grad_weights = scratch.points + 5 * p.padded_points;
    for (int64_t q = 0; q < p.Q; ++q) {
      const int64_t query = (b * p.Q + q) * p.K + k;
      fetch_points<0>(p, p.locations, p.weights, query);
      const Query points(p, table, scratch, q, query);
      fetch_row<0>(p, p.grad_output, query, p.D * p.value_size);
      fetch_points<1>(p, p.grad_locations, p.grad_weights, query);
      const Stored* grad = grad_row(p, query, scratch.channels);
      for (int first = 0; first < p.num_points; first += kLanes) {
        const Placed placed(p, table, points, first);
        T dots[4][kLanes] = {};
        slices<kMaxVectors>(vectors, 0, [&](auto count, int64_t d) SOHES_LAMBDA {
          scatter<count>(placed.points, placed.count, grad + d, {rows.data + d, rows.stride},
                         {grad_rows.data + d, grad_rows.stride}, dots);
        });
        const Vec one = V::fill(T(1));
        point_gradients(placed.x, placed.y, placed.attention,
                        points.reference ? one : V::load(table.width + first),
                        points.reference ? one : V::load(table.height + first), dots,
                        grad_locations + 2 * first, grad_weights + first);
      }
      if (points.reference) Softmax<T, kBytes>::backward(points.weights, p.num_points, grad_weights);
      store_row(p.grad_locations, p.point_dtype, query * p.num_points * 2, p.num_points * 2, grad_locations);
      store_row(p.grad_weights, p.point_dtype, query * p.num_points, p.num_points, grad_weights);
    }
    if (p.in_place) return;
    for (int64_t s = 0; s < p.S; ++s) {
      fetch_row<1>(p, p.grad_value, first_row + s * p.K, p.D * p.value_size);
      store_channels(p, p.grad_value, first_row + s * p.K, grad_rows.data + s * grad_rows.stride);
    }
  }
};

template <typename T, int kBytes, typename Stored>
Kernels<T> kernels_of() {
  using K = Kernel<T, kBytes, Stored>;
  return {K::forward, K::backward};
}

template <typename T, int kBytes>
Kernels<T> kernels_for(const Problem& p) {
  if constexpr (sizeof(T) == 4) {
    if (p.direct && p.value_dtype == DType::kBFloat16) return kernels_of<T, kBytes, BFloat16>();
#ifdef SOHES_X86_VECTORS
    if (p.direct && p.value_dtype == DType::kFloat16) return kernels_of<T, kBytes, Float16>();
#endif
  }
  return kernels_of<T, kBytes, T>();
}

// A row of 32 bytes would leave half of a 64-byte vector idle.
template <typename T>
Kernels<T> kernels(const Problem& p) {
  constexpr int kNarrowBytes = SOHES_VECTOR_BYTES < 32 ? SOHES_VECTOR_BYTES : 32;
  if (p.D * int64_t{sizeof(T)} <= kNarrowBytes) return kernels_for<T, kNarrowBytes>(p);
  return kernels_for<T, SOHES_VECTOR_BYTES>(p);
}

template Kernels<float> kernels<float>(const Problem&);
template Kernels<double> kernels<double>(const Problem&);

}  // namespace sohes::deform::SOHES_ISA
