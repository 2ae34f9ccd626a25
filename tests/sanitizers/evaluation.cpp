// SPDX-License-Identifier: Apache-2.0
// Runs every kernel of csrc/evaluation/ on small random masks and on damaged text, in buffers of exactly
// their size, and compares with loops over pixels. Built by tests/test_sanitizers.py with the address and
// undefined-behaviour sanitizers.
#include "sohes/evaluation.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "dense_view.h"

using sohes::DType;
using sohes::TensorView;

namespace {

int failures = 0;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("%s is wrong\n", what);
  ++failures;
}

// A tensor that owns exactly its elements.
template <typename T, DType kType>
struct Tensor {
  std::vector<int64_t> shape;
  std::unique_ptr<T[]> data;

  explicit Tensor(std::vector<int64_t> sizes) : shape(std::move(sizes)) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    data = std::make_unique<T[]>(static_cast<size_t>(count));
  }

  TensorView view() const { return dense_view(data.get(), shape, kType); }

  T& operator[](int64_t i) const { return data[static_cast<size_t>(i)]; }
};

using Bytes = Tensor<uint8_t, DType::kUInt8>;
using Bools = Tensor<bool, DType::kBool>;
using Ints = Tensor<int64_t, DType::kInt64>;
using Doubles = Tensor<double, DType::kFloat64>;
using Mask = std::vector<bool>;  // column-major

constexpr int64_t kHeight = 9, kWidth = 11, kPixels = kHeight * kWidth;

Bytes bytes_of(const std::string& text) {
  Bytes bytes({static_cast<int64_t>(text.size())});
  std::copy(text.begin(), text.end(), bytes.data.get());
  return bytes;
}

std::string rle_of(const Mask& mask) {
  std::vector<int64_t> runs{0};
  bool now = false;
  for (const bool pixel : mask) {
    if (pixel != now) runs.push_back(0);
    now = pixel;
    ++runs.back();
  }
  std::string text;
  for (size_t i = 0; i < runs.size(); ++i) {
    int64_t number = i > 2 ? runs[i] - runs[i - 2] : runs[i];
    bool more = true;
    while (more) {
      const int64_t group = number & 31;
      number >>= 5;
      more = (group & 16) ? number != -1 : number != 0;
      text += static_cast<char>(group + (more ? 32 : 0) + 48);
    }
  }
  return text;
}

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '\\') result += c;
    result += c;
  }
  return result;
}

Mask random_mask(std::mt19937& random) {
  Mask mask(kPixels);
  const int kind = static_cast<int>(random() % 4);
  const int64_t begin = static_cast<int64_t>(random() % kPixels),
                size = static_cast<int64_t>(random() % kPixels);
  for (int64_t i = 0; i < kPixels; ++i) {
    mask[static_cast<size_t>(i)] = kind == 0   ? random() % 2 == 0
                                   : kind == 1 ? i >= begin && i < begin + size
                                   : kind == 2 ? i / kHeight % 3 == 0 && i % kHeight > 3
                                               : random() % 30 == 0;
  }
  return mask;
}

struct Text {
  std::string all;
  Ints places;
};

Text join(const std::vector<Mask>& masks, bool as_json) {
  Text text{"", Ints({static_cast<int64_t>(masks.size()), 2})};
  for (size_t n = 0; n < masks.size(); ++n) {
    text.places[static_cast<int64_t>(2 * n)] = static_cast<int64_t>(text.all.size());
    text.all += as_json ? escaped(rle_of(masks[n])) : rle_of(masks[n]);
    text.places[static_cast<int64_t>(2 * n + 1)] = static_cast<int64_t>(text.all.size());
  }
  return text;
}

struct Runs {
  Ints starts, stops, bounds, areas, boxes;

  explicit Runs(const std::vector<Mask>& masks, const Text& text, bool as_json)
      : starts({static_cast<int64_t>(text.all.size()) / 2}),
        stops({static_cast<int64_t>(text.all.size()) / 2}),
        bounds({static_cast<int64_t>(masks.size()), 2}),
        areas({static_cast<int64_t>(masks.size())}),
        boxes({static_cast<int64_t>(masks.size()), 4}) {
    const Bytes bytes = bytes_of(text.all);
    const int64_t broken =
        sohes::rle_runs(bytes.view(), text.places.view(), as_json, kHeight, kWidth, starts.view(),
                        stops.view(), bounds.view(), areas.view(), boxes.view());
    expect(broken == -1, "rle_runs: status");
  }

  sohes::RunMasksView view() const {
    return {starts.view(), stops.view(), bounds.view(), areas.view(), boxes.view()};
  }
};

void check_runs(const std::vector<Mask>& masks, const Runs& runs) {
  for (size_t n = 0; n < masks.size(); ++n) {
    Mask drawn(kPixels);
    int64_t area = 0, x0 = kWidth, y0 = kHeight, x1 = 0, y1 = 0;
    const int64_t index = static_cast<int64_t>(n);
    for (int64_t r = runs.bounds[2 * index]; r < runs.bounds[2 * index + 1]; ++r) {
      for (int64_t i = runs.starts[r]; i < runs.stops[r]; ++i) drawn[static_cast<size_t>(i)] = true;
    }
    for (int64_t i = 0; i < kPixels; ++i) {
      if (!masks[n][static_cast<size_t>(i)]) continue;
      ++area;
      x0 = std::min(x0, i / kHeight);
      x1 = std::max(x1, i / kHeight + 1);
      y0 = std::min(y0, i % kHeight);
      y1 = std::max(y1, i % kHeight + 1);
    }
    if (area == 0) x0 = y0 = 0;
    const int64_t* box = &runs.boxes[4 * index];
    expect(drawn == masks[n] && runs.areas[index] == area, "rle_runs: masks and areas");
    expect(box[0] == x0 && box[1] == y0 && box[2] == x1 && box[3] == y1, "rle_runs: boxes");
  }
}

void check_pairs(std::mt19937& random, const std::vector<Mask>& preds, const std::vector<Mask>& gts) {
  const Text pred_text = join(preds, true), gt_text = join(gts, false);
  const Runs pred(preds, pred_text, true), gt(gts, gt_text, false);
  check_runs(preds, pred);
  check_runs(gts, gt);
  const int64_t num_pred = static_cast<int64_t>(preds.size()), num_gt = static_cast<int64_t>(gts.size());
  Bools crowd({num_gt});
  for (int64_t g = 0; g < num_gt; ++g) crowd[g] = random() % 4 == 0;
  Ints out_pred({num_pred * num_gt}), out_gt({num_pred * num_gt});
  Doubles iou({num_pred * num_gt});
  const double limit = 0.2;
  const auto check = [&](int64_t count, const char* what) {
    int64_t next = 0;
    for (int64_t p = 0; p < num_pred; ++p) {
      for (int64_t g = 0; g < num_gt; ++g) {
        int64_t shared = 0;
        for (size_t i = 0; i < kPixels; ++i) {
          shared += preds[static_cast<size_t>(p)][i] && gts[static_cast<size_t>(g)][i];
        }
        const int64_t all = crowd[g] ? pred.areas[p] : pred.areas[p] + gt.areas[g] - shared;
        const double ratio = static_cast<double>(shared) / static_cast<double>(std::max<int64_t>(all, 1));
        if (ratio < limit) continue;
        expect(next < count && out_pred[next] == p && out_gt[next] == g && iou[next] == ratio, what);
        ++next;
      }
    }
    expect(next == count, what);
  };
  check(sohes::run_pairs(pred.view(), gt.view(), crowd.view(), kHeight, limit, out_pred.view(), out_gt.view(),
                         iou.view()),
        "run_pairs");
  const Bytes bytes = bytes_of(pred_text.all);
  int64_t longest = 0;
  for (int64_t p = 0; p < num_pred; ++p) {
    longest = std::max(longest, pred_text.places[2 * p + 1] - pred_text.places[2 * p]);
  }
  Ints scratch({2, longest / 2}), areas({num_pred}), boxes({num_pred, 4});
  const auto [broken, count] = sohes::rle_pairs(bytes.view(), pred_text.places.view(), true, kHeight, kWidth,
                                                gt.view(), crowd.view(), limit, scratch.view(), areas.view(),
                                                boxes.view(), out_pred.view(), out_gt.view(), iou.view());
  expect(broken == -1 && std::equal(&areas[0], &areas[0] + num_pred, &pred.areas[0]), "rle_pairs: areas");
  check(count, "rle_pairs");

  Bools ignored({4, num_gt});
  for (int64_t i = 0; i < 4 * num_gt; ++i) ignored[i] = crowd[i % num_gt] || random() % 3 == 0;
  Doubles thresholds({10});
  for (int64_t t = 0; t < 10; ++t) thresholds[t] = 0.2 + 0.08 * static_cast<double>(t);
  Ints pair_pred({count}), pair_gt({count}), matched({count}), best({3, num_gt});
  Doubles pair_iou({count});
  std::copy_n(out_pred.data.get(), count, pair_pred.data.get());
  std::copy_n(out_gt.data.get(), count, pair_gt.data.get());
  std::copy_n(iou.data.get(), count, pair_iou.data.get());
  Bytes hit({count, 8}), spare({count, 8});
  const int64_t rows =
      sohes::match_lanes(pair_pred.view(), pair_gt.view(), pair_iou.view(), ignored.view(), crowd.view(),
                         thresholds.view(), best.view(), matched.view(), hit.view(), spare.view());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < 8; ++b)
      expect((hit[8 * r + b] & spare[8 * r + b]) == 0, "match_lanes: one match");
    expect(r == 0 || matched[r] > matched[r - 1], "match_lanes: order");
  }
}

std::string annotation(std::mt19937& random, int image, const Mask& mask) {
  std::string text =
      "{\"id\": " + std::to_string(random() % 1000) + ", \"image_id\": " + std::to_string(image);
  text += ", \"score\": 0." + std::to_string(random()) + "e-3, \"bbox\": [-1, 2.5, 3, 4e1], \"iscrowd\": 0";
  text += ", \"segmentation\": {\"size\": [9, 11], \"counts\": \"" + escaped(rle_of(mask)) + "\"}";
  return text + ", \"more\": [null, true, {\"a\": \"\\u00e9\\n\"}]}";
}

std::string spoiled_text(std::mt19937& random, const std::string& text) {
  std::string spoiled = text;
  const size_t place = random() % text.size();
  switch (random() % 4) {
    case 0:
      spoiled.resize(place);
      break;
    case 1:
      spoiled[place] = static_cast<char>(random() % 256);
      break;
    case 2:
      spoiled.erase(place, 1 + random() % 5);
      break;
    default:
      spoiled.insert(place, std::string(1 + random() % 80, "[{\"\\,"[random() % 5]));
  }
  return spoiled;
}

// The result for damaged text does not matter, only accesses outside of the buffers.
void spoil(std::mt19937& random, const std::string& text, int64_t count) {
  const std::string spoiled = spoiled_text(random, text);
  const Bytes bytes = bytes_of(spoiled);
  Ints groups({3, 5}), columns({count, sohes::kCocoColumns});
  Doubles numbers({count, sohes::kCocoNumbers});
  const auto [found, after, annotator, bare] = sohes::coco_groups(bytes.view(), 0, groups.view());
  expect(found <= 3 && after <= static_cast<int64_t>(spoiled.size()) && annotator == 0 && bare <= count,
         "coco_groups: spoiled");
  if (!sohes::coco_records(bytes.view(), columns.view(), numbers.view())) return;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t* column = &columns[n * sohes::kCocoColumns];
    if ((column[sohes::kHas] & sohes::kHasRle) == 0) continue;
    Ints place_of({1, 2}), areas({1}), bounds({1, 2}), boxes({1, 4});
    place_of[0] = column[sohes::kCounts];
    place_of[1] = column[sohes::kCountsEnd];
    Ints starts({(place_of[1] - place_of[0]) / 2}), stops({(place_of[1] - place_of[0]) / 2});
    sohes::rle_runs(bytes.view(), place_of.view(), true, kHeight, kWidth, starts.view(), stops.view(),
                    bounds.view(), areas.view(), boxes.view());
  }
}

void check_json(std::mt19937& random, const std::vector<Mask>& masks) {
  std::string text;
  for (size_t n = 0; n < masks.size(); ++n) {
    text += (n ? " ,\n" : "") + annotation(random, static_cast<int>(n / 2), masks[n]);
  }
  const int64_t count = static_cast<int64_t>(masks.size());
  const Bytes bytes = bytes_of(text);
  Ints groups({count, 5}), columns({count, sohes::kCocoColumns});
  Doubles numbers({count, sohes::kCocoNumbers});
  const auto [found, after, annotator, bare] = sohes::coco_groups(bytes.view(), 0, groups.view());
  expect(
      found == (count + 1) / 2 && after == static_cast<int64_t>(text.size()) && annotator == 0 && bare == 0,
      "coco_groups");
  expect(sohes::coco_records(bytes.view(), columns.view(), numbers.view()), "coco_records");
  for (int64_t n = 0; n < count; ++n) {
    const int64_t* column = &columns[n * sohes::kCocoColumns];
    const std::string counts =
        text.substr(static_cast<size_t>(column[sohes::kCounts]),
                    static_cast<size_t>(column[sohes::kCountsEnd] - column[sohes::kCounts]));
    expect(counts == escaped(rle_of(masks[static_cast<size_t>(n)])), "coco_records: counts");
    expect(numbers[n * sohes::kCocoNumbers + sohes::kBox + 3] == 40, "coco_records: numbers");
  }
  for (int turn = 0; turn < 40; ++turn) spoil(random, text, count);
}

std::string annotations(std::mt19937& random, const std::vector<Mask>& masks) {
  std::string text;
  for (const Mask& mask : masks) text += (text.empty() ? "" : ", ") + annotation(random, 1, mask);
  return text;
}

// One image in one call; then its rows are counted, and the number of hits must be equal.
void check_image(std::mt19937& random, const std::vector<Mask>& preds, const std::vector<Mask>& gts) {
  const int64_t num_pred = static_cast<int64_t>(preds.size()), num_gt = static_cast<int64_t>(gts.size());
  const int64_t num_ranges = 4, num_thresholds = 10, num_lanes = 40, num_points = 5;
  Doubles limits({2, num_ranges}), thresholds({num_thresholds});
  for (int64_t a = 0; a < num_ranges; ++a) {
    limits[a] = static_cast<double>(random() % 40);
    limits[num_ranges + a] = limits[a] + static_cast<double>(random() % 80);
  }
  for (int64_t t = 0; t < num_thresholds; ++t) thresholds[t] = 0.2 + 0.08 * static_cast<double>(t);
  Ints steps({3}), found_gt({num_ranges});
  steps[0] = 1;
  steps[1] = 4;
  steps[2] = 100;
  const int64_t num_rows = std::min<int64_t>(num_pred, 7);
  Bytes rows({num_rows, 23});
  Tensor<int32_t, DType::kInt32> found({3, num_lanes});
  const auto score = [&](const std::string& gt_text, const std::string& pred_text) {
    const Bytes gt = bytes_of(gt_text), pred = bytes_of(pred_text);
    Bytes scratch({sohes::coco_image_scratch(gt.shape[0], pred.shape[0], num_gt, num_pred, num_ranges)});
    return sohes::coco_image(gt.view(), pred.view(), num_gt, num_pred, kHeight, kWidth, 0.2, limits.view(),
                             thresholds.view(), steps.view(), scratch.view(), found_gt.view(), found.view(),
                             rows.view());
  };
  const std::string gt_text = annotations(random, gts), pred_text = annotations(random, preds);
  for (int turn = 0; turn < 20; ++turn) score(spoiled_text(random, gt_text), pred_text);
  for (int turn = 0; turn < 20; ++turn) score(gt_text, spoiled_text(random, pred_text));
  expect(score(gt_text, pred_text), "coco_image");
  Ints needed({num_ranges, num_points}), inside({num_ranges}), hits({num_lanes}), change({num_lanes}),
      point({num_lanes});
  Doubles best({num_lanes, num_points});
  for (int64_t a = 0; a < num_ranges; ++a) {
    for (int64_t k = 0; k < num_points; ++k) needed[a * num_points + k] = 1 + k;
  }
  sohes::count_precision(rows.view(), 100, needed.view(), inside.view(), hits.view(), change.view(),
                         point.view(), best.view());
  for (int64_t lane = 0; lane < num_lanes; ++lane) {
    expect(hits[lane] == found[2 * num_lanes + lane], "count_precision: hits");
    expect(hits[lane] <= found_gt[lane / num_thresholds], "coco_image: more hits than masks");
    expect(found[lane] <= std::min(1, found[num_lanes + lane]), "coco_image: found among the best");
    for (int64_t k = 0; k < num_points; ++k) {
      const double value = best[lane * num_points + k];
      expect(value >= 0 && value <= 1 && (k < hits[lane] || value == 0), "count_precision: best");
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int turn = 0; turn < 60; ++turn) {
    std::vector<Mask> preds, gts;
    for (unsigned n = 1 + random() % 12; n > 0; --n) preds.push_back(random_mask(random));
    for (unsigned n = 1 + random() % 6; n > 0; --n) {
      gts.push_back(random() % 2 ? preds[random() % preds.size()] : random_mask(random));
    }
    check_pairs(random, preds, gts);
    check_json(random, preds);
    check_image(random, preds, gts);
  }
  std::printf(failures ? "%d failures\n" : "clean\n", failures);
  return failures ? 1 : 0;
}
