// SPDX-License-Identifier: Apache-2.0
// Rows of tensors, and fetching them ahead of use. Included once per instruction set, inside its namespace.

// Queries that rows are fetched ahead of use. Those of one head lie K rows apart, too far for the hardware to
// guess.
constexpr int64_t kAhead = 8;

// Rows of one head: position s is at data + s * stride.
template <typename Element>
struct Rows {
  Element* data;
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
