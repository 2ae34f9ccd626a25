// SPDX-License-Identifier: Apache-2.0
// Similarities of regions, and upper bounds of them that need no pass over the channels.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace sohes::merging {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// <a, b> / sqrt(<a, a> <b, b>) in float32; 0 beside a feature of zero length, -inf where it is not a finite
// number.
inline float similarity_of(double dot, double norm_a, double norm_b) {
  const double square = norm_a * norm_b;
  if (square == 0) return 0.0f;
  const double value = dot / std::sqrt(square);
  return std::isfinite(value) ? static_cast<float>(value) : kNever;
}

// Similarities are rounded to float32 (6e-8 of 1), and so are sums; bounds allow for both several times over.
constexpr double kRounding = 2.5e-7;

// How a part turns when it becomes the whole, c = a + b: cosine and sine of the angle between a and c, and
// |a| / |c|.
struct Turn {
  double cosine, sine, share;
  bool is_regular;  // not where a length is zero or not a number: a similarity is then no angle

  // Squared lengths of the part, the other part and the whole; dot product of the part and the whole.
  Turn(double part, double rest, double whole, double dot) {
    is_regular = part > 0 && rest > 0 && whole > 0 && std::isfinite(part) && std::isfinite(rest) &&
                 std::isfinite(whole);
    cosine = dot / std::sqrt(part * whole) - 1e-12;
    sine = std::sqrt(std::max(0.0, 1 - cosine * cosine));
    share = std::sqrt(part / whole);
  }
};

// A neighbour at angle x of the part is at angle x - turn of the whole, at the least (triangle inequality).
inline float turned_bound(float bound, const Turn& turn) {
  if (!turn.is_regular || !(bound >= -1.0f)) return 1.0f;
  const double x = bound + kRounding;
  if (x >= turn.cosine) return 1.0f;
  const double y = std::sqrt(std::max(0.0, 1 - x * x));
  return static_cast<float>(std::min(1.0, x * turn.cosine + y * turn.sine + kRounding));
}

// A neighbour n of both parts: <c, n> = <a, n> + <b, n>, up to the rounding of the sum.
inline float added_bound(float bound_a, float bound_b, const Turn& a, const Turn& b) {
  if (!a.is_regular || !(bound_a >= -1.0f && bound_b >= -1.0f)) return 1.0f;
  const double value = bound_a * a.share + bound_b * b.share + kRounding * (a.share + b.share);
  return static_cast<float>(std::min(1.0, value));
}

}  // namespace sohes::merging
