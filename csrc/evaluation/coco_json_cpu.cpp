// SPDX-License-Identifier: Apache-2.0
// COCO annotations from the bytes of their JSON: the byte ranges of each image, and columns for one image.
#include <algorithm>

#include "json.h"
#include "sohes/evaluation.h"

namespace sohes {
namespace evaluation {
namespace {

// The fields of an annotation that assign it to an image.
struct Head {
  const uint8_t* id_begin = nullptr;
  const uint8_t* id_end = nullptr;
  bool has_annotator = false;
  bool has_region = false;
};

// Whether the segmentation is empty: null, [] or {}. Moves a copy of the cursor.
bool is_nothing(JsonCursor cursor) {
  switch (cursor.peek()) {
    case '[':
      return cursor.take('[') && cursor.take(']');
    case '{':
      return cursor.take('{') && cursor.take('}');
    default:
      return cursor.literal("null");
  }
}

bool read_head(JsonCursor& cursor, Head& head) {
  const bool whole = cursor.members([&](const JsonString& key) {
    if (key.has_other_escapes) return false;  // the key may be one of the names
    if (key.is("annotator")) head.has_annotator = true;
    if (key.is("segmentation")) head.has_region = !is_nothing(cursor);
    if (!key.is("image_id")) return cursor.skip();
    const uint8_t first = cursor.peek();
    head.id_begin = cursor.place();
    if (first != '"' && first != '-' && (first < '0' || first > '9')) return false;
    if (!cursor.skip()) return false;
    head.id_end = cursor.place();
    return true;
  });
  return whole && head.id_begin != nullptr;
}

class Record {
 public:
  Record(JsonCursor& cursor, int64_t* columns, double* numbers)
      : cursor_(cursor), columns_(columns), numbers_(numbers) {}

  bool read(const uint8_t* text) {
    std::fill_n(columns_, kCocoColumns, 0);
    std::fill_n(numbers_, kCocoNumbers, 0.0);
    return cursor_.members([&](const JsonString& key) {
      if (key.has_other_escapes) return false;
      if (key.is("segmentation")) return segmentation(text);
      if (key.is("score")) return real(kHasScore, kScore);
      if (key.is("bbox")) return box();
      if (key.is("id")) return integer(kHasId, kId);
      if (key.is("category_id")) return integer(kHasCategory, kCategory);
      if (key.is("area")) return real(kHasArea, kArea) && is_within(numbers_[kArea], 0);
      if (key.is("iscrowd")) return crowd();
      if (key.is("parent")) return parent();
      if (key.is("annotator")) return integer(kHasAnnotator, kAnnotator);
      if (key.is("level")) return level();
      return cursor_.skip();
    });
  }

 private:
  static constexpr double kMostPixels = 1e10;  // of an image, a mask or a box

  // False for a repeated key, which is left to Python.
  bool note(int bit) {
    const bool is_new = (columns_[kHas] & bit) == 0;
    columns_[kHas] |= bit;
    return is_new;
  }

  bool integer(int bit, int column) {
    JsonNumber number;
    return note(bit) && cursor_.number(number) && number.read(columns_[column]);
  }

  bool real(int bit, int column) {
    JsonNumber number;
    return note(bit) && cursor_.number(number) && number.read(numbers_[column]);
  }

  bool crowd() {
    if (!note(kHasCrowd)) return false;
    if (cursor_.literal("true")) {
      columns_[kCrowd] = 1;
      return true;
    }
    if (cursor_.literal("false") || cursor_.literal("null")) return true;
    JsonNumber number;
    return cursor_.number(number) && number.read(columns_[kCrowd]) && (columns_[kCrowd] & ~int64_t{1}) == 0;
  }

  bool parent() {
    if (!note(kHasParentKey)) return false;
    return cursor_.literal("null") || integer(kHasParent, kParent);
  }

  // Skipped, unless it is a number outside float64.
  bool level() {
    const uint8_t first = cursor_.peek();
    if (first != '-' && (first < '0' || first > '9')) return cursor_.skip();
    JsonNumber number;
    double value;
    return cursor_.number(number) && number.read(value);
  }

  bool box() {
    if (!note(kHasBox)) return false;
    int count = 0;
    const bool whole = cursor_.elements([&] {
      JsonNumber number;
      return count < 4 && cursor_.number(number) && number.read(numbers_[kBox + count++]);
    });
    const double* box = numbers_ + kBox;
    return whole && count == 4 && is_within(box[0], -kMostPixels) && is_within(box[1], -kMostPixels) &&
           is_within(box[2], 0) && is_within(box[3], 0) && box[2] * box[3] <= kMostPixels;
  }

  // Refused here and by Python, which raises the error.
  static bool is_within(double number, double low) { return low <= number && number <= kMostPixels; }

  bool segmentation(const uint8_t* text) {
    if (columns_[kHas] & (kHasRle | kHasSegmentation)) return false;
    if (cursor_.peek() != '{') {
      columns_[kHas] |= kHasSegmentation;
      return cursor_.skip();
    }
    int sides = 0, strings = 0;
    const bool whole = cursor_.members([&](const JsonString& key) {
      if (key.has_other_escapes) return false;
      if (key.is("size")) {
        return cursor_.elements([&] {
          JsonNumber number;
          return sides < 2 && cursor_.number(number) && number.read(columns_[kHeight + sides++]);
        });
      }
      if (!key.is("counts") || cursor_.peek() != '"') return cursor_.skip();
      JsonString counts;
      if (++strings > 1 || !cursor_.string(counts) || counts.has_other_escapes) return false;
      columns_[kCounts] = counts.begin - text;
      columns_[kCountsEnd] = counts.end - text;
      return true;
    });
    columns_[kHas] |= sides == 2 && strings == 1 ? kHasRle : kHasSegmentation;
    return whole;
  }

  JsonCursor& cursor_;
  int64_t* columns_;
  double* numbers_;
};

}  // namespace
}  // namespace evaluation

using namespace evaluation;

std::array<int64_t, 4> coco_groups(const TensorView& text, int64_t begin, const TensorView& groups) {
  require(text.is_contiguous() && groups.is_contiguous() && groups.ndim == 2 && groups.shape[1] == 5,
          "coco_groups: expected contiguous tensors, groups [K, 5]");
  const uint8_t* base = text.as<uint8_t>();
  const uint8_t* end = base + text.shape[0];
  const uint8_t* done = base + begin;  // after the last object read
  int64_t count = 0;
  bool has_annotator = false;
  int64_t num_without_region = 0;
  Head last;
  JsonCursor cursor(done, end);
  while (cursor.peek() == '{') {
    const uint8_t* start = cursor.place();
    Head head;
    if (!read_head(cursor, head)) break;
    const bool same = count > 0 && head.id_end - head.id_begin == last.id_end - last.id_begin &&
                      std::equal(head.id_begin, head.id_end, last.id_begin);
    if (!same && count == groups.shape[0]) break;
    int64_t* group = groups.as<int64_t>() + 5 * (same ? count - 1 : count);
    if (!same) {
      ++count;
      last = head;
      group[0] = start - base;
      group[2] = head.id_begin - base;
      group[3] = head.id_end - base;
      group[4] = 0;
    }
    done = cursor.place();
    group[1] = done - base;
    group[4] += 1;
    has_annotator |= head.has_annotator;
    num_without_region += !head.has_region;
    if (!cursor.take(',')) break;
  }
  return {count, done - base, has_annotator, num_without_region};
}

bool coco_records(const TensorView& text, const TensorView& columns, const TensorView& numbers) {
  require(text.is_contiguous() && columns.is_contiguous() && numbers.is_contiguous() &&
              columns.shape[1] == kCocoColumns && numbers.shape[1] == kCocoNumbers &&
              columns.shape[0] == numbers.shape[0],
          "coco_records: expected contiguous tensors, columns [N, 10] and numbers [N, 6]");
  const uint8_t* base = text.as<uint8_t>();
  JsonCursor cursor(base, base + text.shape[0]);
  for (int64_t n = 0; n < columns.shape[0]; ++n) {
    if (n > 0 && !cursor.take(',')) return false;
    Record record(cursor, columns.as<int64_t>() + n * kCocoColumns, numbers.as<double>() + n * kCocoNumbers);
    if (!record.read(base)) return false;
  }
  return cursor.peek() == 0 && cursor.place() == base + text.shape[0];
}

}  // namespace sohes
