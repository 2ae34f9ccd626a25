// SPDX-License-Identifier: Apache-2.0
// A heap of adjacent pairs: cheapest first, then the lower ids. Four children per entry lie in one cache
// line.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace sohes::borders {

// A double as an integer of the same order; a number that is none comes last.
inline uint64_t ordered(double value) {
  if (value != value) return UINT64_MAX;
  const uint64_t bits = std::bit_cast<uint64_t>(value + 0.0);  // -0 becomes 0
  return bits ^ (bits >> 63 ? UINT64_MAX : uint64_t{1} << 63);
}

inline double unordered(uint64_t key) {
  return std::bit_cast<double>(key ^ (key >> 63 ? uint64_t{1} << 63 : UINT64_MAX));
}

struct Entry {
  uint64_t cost;  // `ordered`
  uint64_t ids;   // low id << 32 | high id

  int32_t low() const { return static_cast<int32_t>(ids >> 32); }
  int32_t high() const { return static_cast<int32_t>(ids & UINT32_MAX); }
};

inline uint64_t ids_of(int32_t low, int32_t high) {
  return static_cast<uint64_t>(low) << 32 | static_cast<uint32_t>(high);
}

// Without branches: which of two entries is first is hard to predict.
inline bool comes_before(const Entry& a, const Entry& b) {
  return static_cast<int>(a.cost < b.cost) |
         (static_cast<int>(a.cost == b.cost) & static_cast<int>(a.ids < b.ids));
}

class EntryHeap {
 public:
  explicit EntryHeap(int64_t capacity) { entries_.reserve(capacity); }

  bool empty() const { return entries_.empty(); }
  const Entry& top() const { return entries_[0]; }

  // Before build().
  void append(const Entry& entry) { entries_.push_back(entry); }
  void build() {
    if (entries_.size() < 2) return;
    for (size_t i = (entries_.size() - 2) / kChildren + 1; i-- > 0;) sink(i, entries_[i]);
  }

  void replace_top(const Entry& entry) { sink(0, entry); }
  void pop() {
    const Entry last = entries_.back();
    entries_.pop_back();
    if (!entries_.empty()) sink(0, last);
  }

 private:
  static constexpr size_t kChildren = 4;

  void sink(size_t i, const Entry moving) {
    Entry* entries = entries_.data();
    const size_t size = entries_.size();
    for (;;) {
      const size_t first = kChildren * i + 1;
      size_t best = first;
      if (first + kChildren <= size) {
        const size_t left = first + comes_before(entries[first + 1], entries[first]);
        const size_t right = first + 2 + comes_before(entries[first + 3], entries[first + 2]);
        best = comes_before(entries[right], entries[left]) ? right : left;
      } else if (first < size) {
        for (size_t child = first + 1; child < size; ++child)
          if (comes_before(entries[child], entries[best])) best = child;
      } else {
        break;
      }
      if (!comes_before(entries[best], moving)) break;
      entries[i] = entries[best];
      i = best;
    }
    entries[i] = moving;
  }

  std::vector<Entry> entries_;
};

}  // namespace sohes::borders
