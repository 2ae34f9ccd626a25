// SPDX-License-Identifier: Apache-2.0
// Runs every kernel of csrc/mask_ops/ on small random masks in buffers of exactly their size, and compares
// with loops over pixels. Built by tests/test_sanitizers.py with the address and undefined-behaviour
// sanitizers.
#include "sohes/mask_ops.h"

#include <algorithm>
#include <cstdlib>
#include <random>
#include <vector>

#include "../../csrc/mask_ops/simd.h"
#include "tensors.h"

using sohes::TensorView;

namespace {

constexpr int64_t kMasks = 9;
constexpr int kThreads = 3;

// Noise of several densities, solid masks, and rectangles.
Bytes random_masks(int64_t height, int64_t width) {
  Bytes dense({kMasks, height, width});
  for (int64_t n = 0; n < kMasks; ++n) {
    uint8_t* mask = dense.data.data() + n * height * width;
    for (int64_t i = 0; i < height * width; ++i) {
      const int64_t y = i / width, x = i % width;
      const bool rectangle = y >= n && y < height - n && x > n / 2 && x < width - n;
      mask[i] = n < 4 ? below(4) < n : n == 4 ? 1 : rectangle;
    }
  }
  return dense;
}

std::vector<uint8_t> pixels(Ints& words, int64_t n, int64_t height, int64_t width) {
  std::vector<uint8_t> mask(static_cast<size_t>(height * width));
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const int64_t bit = x * height + y;
      const int64_t word = words.data[static_cast<size_t>(n * words.shape[1] + bit / 64)];
      mask[static_cast<size_t>(y * width + x)] = (word >> (bit % 64)) & 1;
    }
  }
  return mask;
}

void check_vectors() {
  for (const sohes::mask_ops::Simd* const* version = sohes::mask_ops::simd_versions(); *version; ++version) {
    for (int64_t count : {0, 1, 3, 4, 7, 8, 9, 16, 31, 64, 65, 200}) {
      std::vector<uint64_t> a(count), b(count), bits((count + 63) / 64, 7), signs((count + 63) / 64);
      std::vector<uint8_t> bytes(count), back(count);
      std::vector<float> left(count), right(count), blended(count);
      for (int64_t i = 0; i < count; ++i) {
        a[i] = (uint64_t{rng()} << 32) | rng();
        b[i] = (uint64_t{rng()} << 32) | rng();
        bytes[i] = below(3) == 0 ? below(256) : 0;
        left[i] = static_cast<float>(below(2001) - 1000) / 300;
        right[i] = static_cast<float>(below(2001) - 1000) / 300;
      }
      const auto& plain = **sohes::mask_ops::simd_versions();
      const auto& simd = **version;
      bool same = true;
      for (const int64_t rows : {1, 3}) {
        const int64_t width = count / rows, stride = (count - width) / std::max<int64_t>(rows - 1, 1);
        const auto shared = [&](const sohes::mask_ops::Simd& one) {
          return one.and_popcount(a.data(), stride, b.data(), width, width, rows);
        };
        same = same && shared(simd) == shared(plain);
      }
      same = same && simd.count_changes(a.data(), count) == plain.count_changes(a.data(), count);
      simd.bytes_to_bits(bytes.data(), 0, 1, count, bits.data(), 1, nullptr);
      simd.bits_to_bytes(bits.data(), 1, count, back.data());
      for (int64_t i = 0; i < count; ++i) same = same && back[i] == (bytes[i] != 0);
      if (count % 64) same = same && (bits.back() >> (count % 64)) == 0;
      simd.above(left.data(), 0.25f, count, signs.data());
      for (int64_t i = 0; i < count; ++i)
        same = same && ((signs[i / 64] >> (i % 64)) & 1) == (left[i] > 0.25f);
      simd.blend(left.data(), 0.3f, right.data(), 0.7f, count, blended.data(), signs.data());
      std::vector<float> expected(count);
      std::vector<uint64_t> expected_signs(signs.size());
      plain.blend(left.data(), 0.3f, right.data(), 0.7f, count, expected.data(), expected_signs.data());
      std::vector<uint64_t> moved(count, 7), gone = a, square(64), turned;
      simd.move_words(gone.data(), count, moved.data());
      same = same && moved == a && gone == std::vector<uint64_t>(count);
      simd.move_words(nullptr, count, moved.data());
      same = same && moved == gone;
      for (uint64_t& row : square) row = (uint64_t{rng()} << 32) | rng();
      turned = square;
      simd.transpose(turned.data());
      for (int64_t i = 0; i < 64 * 64; ++i) {
        same = same && (turned[i / 64] >> (i % 64) & 1) == (square[i % 64] >> (i / 64) & 1);
      }
      expect(same && blended == expected && signs == expected_signs, simd.name, 1, count);
    }
  }
}

// The pixels reachable from the marked ones through equal pixels, with 4 or 8 neighbours.
void flood(const std::vector<uint8_t>& mask, std::vector<uint8_t>& reached, int64_t height, int64_t width,
           bool corners) {
  for (bool grew = true; grew;) {
    grew = false;
    for (int64_t i = 0; i < height * width; ++i) {
      if (reached[i]) continue;
      for (int64_t dy = -1; dy <= 1; ++dy) {
        for (int64_t dx = -1; dx <= 1; ++dx) {
          const int64_t y = i / width + dy, x = i % width + dx;
          if ((dy && dx && !corners) || y < 0 || y >= height || x < 0 || x >= width) continue;
          if (reached[y * width + x] && mask[y * width + x] == mask[i] && !reached[i])
            reached[i] = grew = true;
        }
      }
    }
  }
}

// Pairs from the intersections of all, with room for one pair and for as many as there are.
void check_pairs(Ints& words, Ints& areas, Ints& boxes, const Ints& overlap, int64_t height, int64_t width) {
  Ints order({kMasks}), scratch({sohes::mask_pairs_scratch(kMasks)}), starts({kMasks + 1}), one({1, 3});
  for (int64_t i = 0; i < kMasks; ++i) order.data[i] = i;
  std::stable_sort(order.data.begin(), order.data.end(),
                   [&](int64_t i, int64_t j) { return areas.data[i] < areas.data[j]; });
  for (const double min_iou : {1e-9, 0.3, 0.7, 1.0}) {
    std::vector<int64_t> expected;
    for (int64_t i = 0; i < kMasks; ++i) {
      for (int64_t j = i + 1; j < kMasks; ++j) {
        const auto shared = static_cast<double>(overlap.data[i * kMasks + j]);
        const double both = static_cast<double>(areas.data[i] + areas.data[j]) - shared;
        if (shared > 0 && shared >= min_iou * both) expected.insert(expected.end(), {i, j});
      }
    }
    const auto find = [&](Ints& found) {
      return sohes::mask_find_pairs(words.view(), areas.view(), boxes.view(), order.view(), min_iou, height,
                                    scratch.view(), found.view(), kThreads);
    };
    const int64_t count = find(one);
    Ints found({count, 3}), pairs({count, 2});
    Floats iou({count});
    expect(find(found) == count, "number of pairs", height, width);
    sohes::mask_sort_pairs(found.view(), areas.view(), starts.view(), pairs.view(), iou.view(), kThreads);
    expect(pairs.data == expected, "pairs", height, width);
  }
}

void check_masks(int64_t height, int64_t width) {
  Bytes dense = random_masks(height, width);
  Ints words({kMasks, words_of(height, width)}), areas({kMasks}), boxes({kMasks, 4}), none({0});
  sohes::mask_pack(dense.view(), none.view(), words.view(), areas.view(), boxes.view(), kThreads);
  Ints used(words.shape, -1), row_of_each({kThreads, words.shape[1]});
  sohes::mask_pack(dense.view(), row_of_each.view(), used.view(), areas.view(), boxes.view(), kThreads);
  expect(used.data == words.data && std::count(row_of_each.data.begin(), row_of_each.data.end(), 0) ==
                                        static_cast<int64_t>(row_of_each.data.size()),
         "pack into used words", height, width);
  Bytes back({kMasks, height, width}, 7);
  sohes::mask_unpack(words.view(), back.view(), kThreads);
  expect(back.data == dense.data, "pack and unpack", height, width);

  // Columns first in memory, the masks one after the other.
  Bytes turned({kMasks, width, height});
  for (int64_t n = 0; n < kMasks; ++n) {
    const std::vector<uint8_t> mask = pixels(words, n, height, width);
    for (int64_t i = 0; i < height * width; ++i) {
      turned.data[n * height * width + (i % width) * height + i / width] = mask[i];
    }
  }
  TensorView columns_first = turned.view();
  std::swap(columns_first.shape[1], columns_first.shape[2]);
  std::swap(columns_first.stride[1], columns_first.stride[2]);
  Ints again({kMasks, words_of(height, width)}), areas_again({kMasks}), boxes_again({kMasks, 4});
  sohes::mask_pack(columns_first, none.view(), again.view(), areas_again.view(), boxes_again.view(),
                   kThreads);
  expect(again.data == words.data && areas_again.data == areas.data, "pack by columns", height, width);
  sohes::mask_stats(words.view(), height, width, areas_again.view(), boxes_again.view(), kThreads);
  expect(areas_again.data == areas.data && boxes_again.data == boxes.data, "stats", height, width);

  Ints turned_round({kMasks}), taken(words.shape);
  for (int64_t n = 0; n < kMasks; ++n) turned_round.data[n] = kMasks - 1 - n;
  sohes::mask_take(words.view(), boxes.view(), height, turned_round.view(), taken.view(), kThreads);
  for (int64_t n = 0; n < kMasks; ++n) {
    expect(pixels(taken, n, height, width) == pixels(words, kMasks - 1 - n, height, width), "take", height,
           width);
  }

  Ints overlap({kMasks, kMasks}, -1), crossed({kMasks, kMasks}, -1);
  Ints half({sohes::mask_overlap_scratch(words.view(), boxes.view(), words.view(), boxes.view(), height)});
  Ints whole(
      {sohes::mask_overlap_scratch(words.view(), boxes.view(), again.view(), boxes_again.view(), height)});
  sohes::mask_overlap(words.view(), boxes.view(), words.view(), boxes.view(), height, half.view(),
                      overlap.view(), kThreads);
  sohes::mask_overlap(words.view(), boxes.view(), again.view(), boxes_again.view(), height, whole.view(),
                      crossed.view(), kThreads);
  TensorView few_words = words.view(), few_boxes = boxes.view();  // the first masks, in the memory of all
  few_words.shape[0] = few_boxes.shape[0] = 2;
  Ints some({sohes::mask_overlap_scratch(few_words, few_boxes, words.view(), boxes.view(), height)});
  Ints beginning({2, kMasks}, -1);
  sohes::mask_overlap(few_words, few_boxes, words.view(), boxes.view(), height, some.view(), beginning.view(),
                      kThreads);
  expect(std::equal(beginning.data.begin(), beginning.data.end(), overlap.data.begin()),
         "overlap of the first masks", height, width);
  Ints order({kMasks}), kept({kMasks}), parents({kMasks});
  for (int64_t i = 0; i < kMasks; ++i) {
    order.data[i] = i;
    for (int64_t j = 0; j < kMasks; ++j) {
      int64_t shared = 0;
      for (int64_t p = 0; p < height * width; ++p) {
        shared += dense.data[i * height * width + p] && dense.data[j * height * width + p];
      }
      expect(overlap.data[i * kMasks + j] == shared && crossed.data[i * kMasks + j] == shared, "overlap",
             height, width);
    }
  }
  std::stable_sort(order.data.begin(), order.data.end(),
                   [&](int64_t i, int64_t j) { return areas.data[i] < areas.data[j]; });
  Bytes keep({kMasks});
  check_pairs(words, areas, boxes, overlap, height, width);
  sohes::mask_nms(words.view(), areas.view(), boxes.view(), order.view(), 0.5, height, kept.view(),
                  keep.view());
  sohes::mask_parents(words.view(), areas.view(), boxes.view(), order.view(), 0.5, height, parents.view(),
                      kThreads);
  expect(keep.data[order.data[0]] == 1 && parents.data[order.data[kMasks - 1]] == -1, "selection", height,
         width);

  Ints runs({kMasks}), runs_again({kMasks}), offsets({kMasks + 1}), lengths({kMasks});
  sohes::mask_num_runs(words.view(), height * width, none.view(), height, runs.view(), kThreads);
  sohes::mask_num_runs(words.view(), height * width, boxes.view(), height, runs_again.view(), kThreads);
  expect(runs.data == runs_again.data, "runs within boxes", height, width);
  for (int64_t n = 0; n < kMasks; ++n)
    offsets.data[n + 1] = offsets.data[n] + 8 * runs.data[n] + sohes::kRleSlack;
  Bytes text({offsets.data[kMasks]});
  sohes::rle_encode(words.view(), height * width, boxes.view(), height, offsets.view(), text.view(),
                    lengths.view(), kThreads);
  Bytes joined({0}), ok({kMasks});
  Ints stops({kMasks + 1});
  for (int64_t n = 0; n < kMasks; ++n) {
    const auto slot = text.data.begin() + offsets.data[n];
    joined.data.insert(joined.data.end(), slot, slot + lengths.data[n]);
    stops.data[n + 1] = stops.data[n] + lengths.data[n];
  }
  joined.data.shrink_to_fit();
  std::fill(again.data.begin(), again.data.end(), 0);
  sohes::rle_decode(joined.view(), stops.view(), height * width, again.view(), ok.view(), kThreads);
  expect(again.data == words.data && std::count(ok.data.begin(), ok.data.end(), 1) == kMasks, "RLE", height,
         width);
  for (int round = 0; round < 50; ++round) {  // damaged text is refused or decoded, never read past
    Bytes damaged({0});
    damaged.data = joined.data;
    for (int k = 0; k < 3 && !damaged.data.empty(); ++k)
      damaged.data[below(damaged.data.size())] = below(256);
    sohes::rle_decode(damaged.view(), stops.view(), height * width, again.view(), ok.view(), kThreads);
  }

  const int64_t most = *std::max_element(runs.data.begin(), runs.data.end());
  Ints scratch({kThreads, 4 * (most + width)}), counts({kMasks}), first({kMasks}),
      changed({kMasks, words.shape[1]});
  sohes::mask_count_components(words.view(), height, width, scratch.view(), counts.view(), kThreads);
  for (int64_t n = 1; n < kMasks; ++n) first.data[n] = first.data[n - 1] + counts.data[n - 1];
  Ints parts({first.data[kMasks - 1] + counts.data[kMasks - 1], words.shape[1]});
  sohes::mask_components(words.view(), height, width, scratch.view(), first.view(), parts.view(), kThreads);
  for (int64_t n = 0; n < kMasks; ++n) {
    const std::vector<uint8_t> mask = pixels(words, n, height, width);
    for (int64_t part = first.data[n]; part < first.data[n] + counts.data[n]; ++part) {
      const std::vector<uint8_t> own = pixels(parts, part, height, width);
      std::vector<uint8_t> reached(own.size());
      reached[std::find(own.begin(), own.end(), 1) - own.begin()] = 1;
      flood(mask, reached, height, width, true);
      expect(reached == own, "components", height, width);
    }
  }
  sohes::mask_largest_component(words.view(), height, width, scratch.view(), changed.view(), kThreads);
  sohes::mask_fill_holes(words.view(), height, width, scratch.view(), changed.view(), kThreads);
  for (int64_t n = 0; n < kMasks; ++n) {
    std::vector<uint8_t> mask = pixels(words, n, height, width), outside(mask.size());
    for (int64_t i = 0; i < height * width; ++i) {
      const int64_t y = i / width, x = i % width;
      outside[i] = !mask[i] && (y == 0 || x == 0 || y == height - 1 || x == width - 1);
    }
    flood(mask, outside, height, width, false);
    for (uint8_t& pixel : outside) pixel = !pixel;
    expect(pixels(changed, n, height, width) == outside, "fill_holes", height, width);
  }
  sohes::mask_boundary(words.view(), height, width, changed.view(), kThreads);

  constexpr int64_t kLeaves = 7;
  Ints leaves({width, height}), nodes({kMasks, 3}), trees({2, kLeaves});
  for (int64_t& leaf : leaves.data) leaf = below(kLeaves - 1);
  for (int64_t i = 0; i < kLeaves; ++i) {
    trees.data[i] = i;
    trees.data[kLeaves + i] = kLeaves - 1 - i;
  }
  for (int64_t n = 0; n < kMasks; ++n) {
    int64_t* node = &nodes.data[3 * n];
    node[0] = n % 2;
    node[1] = below(kLeaves + 1);
    node[2] = node[1] + below(kLeaves + 1 - node[1]);
  }
  Ints runs_of_leaves({2 * height * width + 5 * kLeaves + 1}), holes({kThreads, 2 * width * (height + 1)});
  Ints drawn({kMasks, words.shape[1]}), filled({kMasks, words.shape[1]});
  sohes::mask_from_nodes(leaves.view(), trees.view(), nodes.view(), false, runs_of_leaves.view(), none.view(),
                         drawn.view(), areas.view(), boxes.view(), kThreads);
  sohes::mask_stats(drawn.view(), height, width, areas_again.view(), boxes_again.view(), kThreads);
  expect(areas.data == areas_again.data && boxes.data == boxes_again.data, "stats of nodes", height, width);
  for (int64_t n = 0; n < kMasks; ++n) {
    const int64_t* node = &nodes.data[3 * n];
    const std::vector<uint8_t> mask = pixels(drawn, n, height, width);
    bool same = true;
    for (int64_t i = 0; i < height * width; ++i) {
      const int64_t leaf = leaves.data[(i % width) * height + i / width];
      const int64_t place = node[0] ? kLeaves - 1 - leaf : leaf;
      same = same && mask[i] == (place >= node[1] && place < node[2]);
    }
    expect(same, "nodes", height, width);
  }
  sohes::mask_from_nodes(leaves.view(), trees.view(), nodes.view(), true, runs_of_leaves.view(), holes.view(),
                         filled.view(), areas.view(), boxes.view(), kThreads);
  Ints room({kThreads, 2 * width * (height + 3)});
  sohes::mask_fill_holes(drawn.view(), height, width, room.view(), changed.view(), kThreads);
  sohes::mask_stats(changed.view(), height, width, areas_again.view(), boxes_again.view(), kThreads);
  expect(filled.data == changed.data && areas.data == areas_again.data && boxes.data == boxes_again.data,
         "filled nodes", height, width);

  Ints index({width, height});
  for (int64_t& mask : index.data) mask = below(kMasks + 1) - 1;
  std::fill(changed.data.begin(), changed.data.end(), 0);
  sohes::mask_from_index(index.view(), changed.view());
}

void check_resizing(int64_t height, int64_t width, int64_t new_height, int64_t new_width) {
  Floats logits({kMasks, height, width}), row_weight({new_height}), col_weight({new_width});
  for (float& logit : logits.data) logit = static_cast<float>(below(2001) - 1000) / 300;
  Ints row_start({height + 1}), columns({new_width}), areas({kMasks}), boxes({kMasks, 4});
  const auto source = [](int64_t at, int64_t from, int64_t to) { return (2 * at + 1) * from / (2 * to); };
  for (int64_t j = 0; j <= height; ++j) {
    while (row_start.data[j] < new_height && source(row_start.data[j], height, new_height) < j)
      ++row_start.data[j];
  }
  for (int64_t x = 0; x < new_width; ++x) columns.data[x] = source(x, width, new_width);
  for (float& weight : row_weight.data) weight = 0.25f;
  for (float& weight : col_weight.data) weight = 0.5f;
  Ints words({kMasks, words_of(new_height, new_width)});
  Ints scratch({kThreads, sohes::mask_pack_logits_scratch(height, width)});
  sohes::mask_pack_logits(logits.view(), 0.1f, row_start.view(), row_weight.view(), columns.view(),
                          col_weight.view(), scratch.view(), words.view(), areas.view(), boxes.view(),
                          kThreads);
  Ints areas_again({kMasks}), boxes_again({kMasks, 4});
  sohes::mask_stats(words.view(), new_height, new_width, areas_again.view(), boxes_again.view(), kThreads);
  expect(areas_again.data == areas.data && boxes_again.data == boxes.data, "logits", new_height, new_width);

  Bytes dense = random_masks(height, width);
  Ints small({kMasks, words_of(height, width)}), none({0});
  sohes::mask_pack(dense.view(), none.view(), small.view(), areas.view(), boxes.view(), kThreads);
  std::fill(words.data.begin(), words.data.end(), 0);
  sohes::mask_resize(small.view(), height, row_start.view(), columns.view(), new_height, words.view(),
                     kThreads);
  for (int64_t n = 0; n < kMasks; ++n) {
    const std::vector<uint8_t> mask = pixels(words, n, new_height, new_width);
    for (int64_t i = 0; i < new_height * new_width; ++i) {
      const int64_t y = source(i / new_width, height, new_height),
                    x = source(i % new_width, width, new_width);
      expect(mask[i] == dense.data[(n * height + y) * width + x], "resize", new_height, new_width);
    }
  }
}

}  // namespace

int main() {
  check_vectors();
  const int64_t sizes[][2] = {{0, 5}, {5, 0},  {1, 1},   {1, 70},  {70, 1},
                              {8, 8}, {13, 5}, {63, 65}, {64, 64}, {65, 66}};
  for (const auto& size : sizes) check_masks(size[0], size[1]);
  for (const auto& size : sizes) {
    if (size[0] * size[1] == 0) continue;
    for (const auto& other : sizes) check_resizing(size[0], size[1], other[0], other[1]);
  }
  return finish();
}
