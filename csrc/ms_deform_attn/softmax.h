// SPDX-License-Identifier: Apache-2.0
// The softmax over all points of a query and head, and its gradient. Included once per instruction set,
// inside its namespace.

template <typename T, int kBytes>
struct Softmax {
  using V = Simd<T, kBytes>;
  using Vec = typename V::Vec;
  using IntVec = typename V::IntVec;
  using Int = typename V::Int;
  static constexpr int kLanes = V::kLanes;

  // weights[0 .. count) from as many logits. Lanes up to a whole vector, whose `width` is 0, become 0.
  static SOHES_INLINE void forward(const T* logits, const Int* width, int count, T* weights) {
    const Vec lowest = V::fill(-std::numeric_limits<T>::infinity());
    Vec peaks = lowest, sums = {};
    for (int i = 0; i < count; i += kLanes) {
      const Vec x = V::select(V::load(width + i) > IntVec{}, V::load(logits + i), lowest);
      V::store(weights + i, x);
      peaks = V::select(x > peaks, x, peaks);
    }
    const Vec peak = V::largest(peaks);
    for (int i = 0; i < count; i += kLanes) {
      // exp never gives 0, and what is next to nothing becomes subnormal in products, which are slow.
      const Vec x = V::select(V::load(width + i) > IntVec{}, V::exp(V::load(weights + i) - peak), Vec{});
      V::store(weights + i, x);
      sums += x;
    }
    const Vec scale = T(1) / V::total(sums);
    for (int i = 0; i < count; i += kLanes) V::store(weights + i, V::load(weights + i) * scale);
  }

  // In place: the gradients of logits from those of the weights, which are 0 past the end.
  static SOHES_INLINE void backward(const T* weights, int count, T* grads) {
    Vec sums = {};
    for (int i = 0; i < count; i += kLanes) sums += V::load(weights + i) * V::load(grads + i);
    const Vec mean = V::total(sums);
    for (int i = 0; i < count; i += kLanes) {
      V::store(grads + i, V::load(weights + i) * (V::load(grads + i) - mean));
    }
  }
};
