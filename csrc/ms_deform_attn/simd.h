// SPDX-License-Identifier: Apache-2.0
// Vectors of the compiler (GCC and clang), so that one source serves AVX-512, AVX2, SSE2 and NEON. A cast
// between vectors of one size keeps the bits.
// Included once per instruction set, inside its namespace; SOHES_INLINE carries the target, because GCC
// splits wide vectors by the target of the function that they are written in, before it inlines.

template <typename T, int kBytes>
struct Simd {
  // Comparisons of vectors yield integers of the same width, so indices use that type too.
  using Int = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef T Vec __attribute__((vector_size(kBytes)));
  typedef Int IntVec __attribute__((vector_size(kBytes)));
  using UInt = std::make_unsigned_t<Int>;
  typedef UInt UIntVec __attribute__((vector_size(kBytes)));
  using HalfInt = std::conditional_t<sizeof(T) == 4, uint16_t, uint32_t>;
  typedef HalfInt HalfBits __attribute__((vector_size(kBytes / 2)));  // as many lanes as Vec
  static constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));

  static SOHES_INLINE Vec load(const T* from) {
    Vec v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
  }
  static SOHES_INLINE IntVec load(const Int* from) {
    IntVec v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
  }
  static SOHES_INLINE Vec load(const BFloat16* from) {
    const HalfBits bits = load_bits(from);
#ifdef SOHES_X86_VECTORS  // one instruction, of which GCC 12 makes three
    if constexpr (kBytes == 64) return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)bits), 16);
    if constexpr (kBytes == 32) return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)bits), 16);
#endif
    const UIntVec wide = __builtin_convertvector(bits, UIntVec);
    return (Vec)(wide << 16);
  }
  static SOHES_INLINE void store(BFloat16* to, Vec v) {
    const UIntVec bits = (UIntVec)v;
    const UIntVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    const UIntVec nan = (UIntVec)(v != v);
    const UIntVec result = (nan & 0x7fc0u) | (~nan & rounded);
    const HalfBits low = __builtin_convertvector(result, HalfBits);
    store_bits(to, low);
  }
#ifdef SOHES_X86_VECTORS
  static SOHES_INLINE Vec load(const Float16* from) {
    if constexpr (kBytes == 64) {
      return (Vec)(_mm512_cvtph_ps((__m256i)(load_bits(from))));
    } else {
      return (Vec)(_mm256_cvtph_ps((__m128i)(load_bits(from))));
    }
  }
  static SOHES_INLINE void store(Float16* to, Vec v) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    if constexpr (kBytes == 64) {
      store_bits(to, (HalfBits)(_mm512_cvtps_ph((__m512)v, kNearest)));
    } else {
      store_bits(to, (HalfBits)(_mm256_cvtps_ph((__m256)v, kNearest)));
    }
  }
#endif
  static SOHES_INLINE void store(T* to, Vec v) { __builtin_memcpy(to, &v, sizeof(v)); }
  static SOHES_INLINE void store(Int* to, IntVec v) { __builtin_memcpy(to, &v, sizeof(v)); }
  static SOHES_INLINE Vec fill(T x) { return x - Vec{}; }
  static SOHES_INLINE Vec select(IntVec mask, Vec a, Vec b) { return mask ? a : b; }
  static SOHES_INLINE IntVec select(IntVec mask, IntVec a, IntVec b) { return mask ? a : b; }

  static SOHES_INLINE HalfBits load_bits(const void* from) {
    HalfBits v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
  }
  static SOHES_INLINE void store_bits(void* to, HalfBits v) { __builtin_memcpy(to, &v, sizeof(v)); }

  // exp of numbers not above 0, to 2 units in the last place; below -80 it is exp(-80), far from the
  // subnormal numbers. NaN stays NaN.
  static SOHES_INLINE Vec exp(Vec x) {
    if constexpr (sizeof(T) == 8) {
      for (int i = 0; i < kLanes; ++i) x[i] = std::exp(x[i]);
      return x;
    } else {
      // x = n ln 2 + r with whole n: the sum with 1.5 * 2^23 rounds, and holds n in its low bits. exp(r) is
      // the polynomial of Cephes.
      const Vec lowest = fill(T(-80));
      x = select(x < lowest, lowest, x);
      const Vec shifted = x * T(1.44269504088896341) + T(12582912);
      const Vec n = shifted - T(12582912);
      const Vec r = (x - n * T(0.693359375)) - n * T(-2.12194440e-4);
      Vec sum = fill(T(1.9875691500e-4));
      for (const double c :
           {1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1}) {
        sum = sum * r + T(c);
      }
      const Vec power = (Vec)(((IntVec)shifted << 23) + (Int{127} << 23));  // 2^n: n stays in the top bits
      return (sum * r * r + r + T(1)) * power;
    }
  }

  // Lanes of (a, b) picked by a constant function of the lane: an index below kLanes is of a, else of b.
  template <typename Pick, int... kLane>
  static SOHES_INLINE Vec shuffle(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, Pick::at(kLane)...);
#else
    return __builtin_shuffle(a, b, IntVec{Pick::at(kLane)...});
#endif
  }
  template <typename Pick>
  static SOHES_INLINE Vec shuffle(Vec a, Vec b) {
    return shuffle<Pick>(a, b, std::make_integer_sequence<int, kLanes>());
  }

  // kFirst = 0 / 1: the even / odd lanes of (a, b); x0 y0 x1 y1 .. becomes the x / the y.
  template <int kFirst>
  struct EveryOther {
    static constexpr int at(int i) { return 2 * i + kFirst; }
  };
  // kHalf = 0 / 1: the first / second half of a and of b, lane by lane in turn; the inverse of EveryOther.
  template <int kHalf>
  struct Interleave {
    static constexpr int at(int i) { return kHalf * kLanes / 2 + i / 2 + (i % 2) * kLanes; }
  };
  // kHalf = 0 / 1: the first / second half of each run of kRun lanes, those of a, then those of b.
  template <int kRun, int kHalf>
  struct HalfRuns {
    static constexpr int at(int i) {
      constexpr int half = kRun / 2;
      return i / half * kRun + kHalf * half + i % half;
    }
  };
  template <int kRun>
  static SOHES_INLINE Vec fold(Vec a, Vec b) {
    return shuffle<HalfRuns<kRun, 0>>(a, b) + shuffle<HalfRuns<kRun, 1>>(a, b);
  }

  // Every lane becomes the largest, or the sum, of all lanes.
  template <int kReach>
  struct Across {
    static constexpr int at(int i) { return i ^ kReach; }
  };
  template <int kReach = kLanes / 2>
  static SOHES_INLINE Vec largest(Vec v) {
    const Vec other = shuffle<Across<kReach>>(v, v);
    v = select(v > other, v, other);
    if constexpr (kReach > 1) v = largest<kReach / 2>(v);
    return v;
  }
  template <int kReach = kLanes / 2>
  static SOHES_INLINE Vec total(Vec v) {
    v += shuffle<Across<kReach>>(v, v);
    if constexpr (kReach > 1) v = total<kReach / 2>(v);
    return v;
  }

  // Adds the sums over lanes of four vectors to `to[0], to[stride], to[2*stride], to[3*stride]`.
  static SOHES_INLINE void add_lanes(const Vec (&v)[4], T* to, int stride) {
    if constexpr (kLanes >= 4) {
      Vec sums = fold<kLanes / 2>(fold<kLanes>(v[0], v[1]), fold<kLanes>(v[2], v[3]));
      if constexpr (kLanes >= 8) sums = fold<kLanes / 4>(sums, sums);
      if constexpr (kLanes >= 16) sums = fold<kLanes / 8>(sums, sums);
      for (int i = 0; i < 4; ++i) to[i * stride] += sums[i];
    } else {
      for (int i = 0; i < 4; ++i) to[i * stride] += v[i][0] + v[i][1];
    }
  }
};
