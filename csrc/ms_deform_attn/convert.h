// SPDX-License-Identifier: Apache-2.0
// float16 and bfloat16 by hand (no torch, no compiler extension): storage types of rows that are computed in
// float. Included once per instruction set, inside its namespace; SOHES_INLINE carries the target.

// Elements of tensors that vectors are loaded from and stored to.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename To, typename From>
SOHES_INLINE To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, x);
}

SOHES_INLINE float from_bfloat16(uint16_t x) { return bit_cast<float>(static_cast<uint32_t>(x) << 16); }

SOHES_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  return static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

SOHES_INLINE float from_float16(uint16_t x) {
  const uint32_t magnitude = x & 0x7fffu;
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  const uint32_t rebias =
      magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u;  // inf and NaN keep a full exponent
  const uint32_t normal = (magnitude << 13) + rebias;
  const uint32_t bits = magnitude < 0x400u ? bit_cast<uint32_t>(subnormal) : normal;
  return bit_cast<float>(bits | (static_cast<uint32_t>(x & 0x8000u) << 16));
}

SOHES_INLINE uint16_t to_float16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Beside 0.5 one unit in the last place is 2^-24, the smallest float16: the addition itself rounds.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t rounded = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t normal = magnitude >= 0x477ff000u ? 0x7c00u : rounded;  // 65520 and above round to infinity
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t half = magnitude > 0x7f800000u ? 0x7e00u : finite;
  return static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
}

// `count` elements of a tensor from element `offset` on, to and from the type that is computed in.
template <typename T>
SOHES_INLINE void load_row(const void* tensor, DType dtype, int64_t offset, int64_t count, T* to) {
  if (dtype == DType::kBFloat16) {
    const uint16_t* from = static_cast<const uint16_t*>(tensor) + offset;
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(from_bfloat16(from[i]));
  } else if (dtype == DType::kFloat16) {
    const uint16_t* from = static_cast<const uint16_t*>(tensor) + offset;
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(from_float16(from[i]));
  } else {
    const T* from = static_cast<const T*>(tensor) + offset;
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  }
}

template <typename T>
SOHES_INLINE void store_row(void* tensor, DType dtype, int64_t offset, int64_t count, const T* from) {
  if (dtype == DType::kBFloat16) {
    uint16_t* to = static_cast<uint16_t*>(tensor) + offset;
    for (int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(static_cast<float>(from[i]));
  } else if (dtype == DType::kFloat16) {
    uint16_t* to = static_cast<uint16_t*>(tensor) + offset;
    for (int64_t i = 0; i < count; ++i) to[i] = to_float16(static_cast<float>(from[i]));
  } else {
    T* to = static_cast<T*>(tensor) + offset;
    for (int64_t i = 0; i < count; ++i) to[i] = from[i];
  }
}
