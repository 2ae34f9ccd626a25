// SPDX-License-Identifier: Apache-2.0
// Huge pages for large outputs. A page fault for every 4 KB of new memory takes longer than writing it
// (measured: 16 ms and 4 ms for 38 MB). The request for 2 MB pages is a hint; systems without them ignore it.
#pragma once

#include <cstdint>

#include "sohes/tensor_view.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sohes::mask_ops {

// `huge` or not, for whole pages of this memory.
inline void advise_pages([[maybe_unused]] const void* data, [[maybe_unused]] int64_t bytes,
                         [[maybe_unused]] bool huge) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096;
  if (bytes < int64_t{1} << 22) return;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const auto end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
  madvise(reinterpret_cast<void*>(begin), end - begin, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
}

// Call before the first write to memory of this many bytes.
inline void prefer_huge_pages(const void* data, int64_t bytes) { advise_pages(data, bytes, true); }

// The same for masks or counts, row by row. Of a mask of this many bytes most small pages are outside its box
// and never touched: small pages that nobody touches take no memory and no time.
constexpr int64_t kSparseRow = 1 << 17;

inline void choose_pages(const TensorView& rows) {
  const bool is_sparse = rows.ndim == 2 && 8 * rows.shape[1] >= kSparseRow;
  advise_pages(rows.data, 8 * rows.numel(), !is_sparse);
}

}  // namespace sohes::mask_ops
