// SPDX-License-Identifier: Apache-2.0
// Similarities of regions, and upper bounds of them that need no pass over the channels: lower bounds of
// angles.
//
// Angles add up (triangle inequality): when a region turns by theta, no neighbour comes nearer than its angle
// minus theta. Errors are a few 1e-8 rad here and 6e-8 in a similarity rounded to float32; every slack below
// is several times its error, and a slack only ever costs a dot product too many.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace sohes::merging {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr double kHalfTurn = 3.14159265358979323846;

// <a, b> / sqrt(<a, a> <b, b>); 0 beside a feature of zero length, -inf where it is not a finite number.
// Rounded to float32 it is the similarity.
inline double similarity_of(double dot, double norm_a, double norm_b) {
  const double square = norm_a * norm_b;
  if (square == 0) return 0.0;
  const double value = dot / std::sqrt(square);
  return std::isfinite(value) ? value : kNever;
}

// The angle of a cosine to 2e-8 (Abramowitz and Stegun, Handbook of Mathematical Functions, 4.4.46).
inline double angle_of(double cosine) {
  const double x = std::min(1.0, std::abs(cosine));
  const double low = 1.5707963050 + x * (-0.2145988016 + x * (0.0889789874 + x * -0.0501743046));
  const double high = 0.0308918810 + x * (-0.0170881256 + x * (0.0066700901 + x * -0.0012624911));
  const double angle = std::sqrt(1 - x) * (low + x * x * x * x * high);
  return cosine < 0 ? kHalfTurn - angle : angle;
}

// No pair of this similarity (-inf: of any) has a smaller angle.
inline double least_angle(double similarity) { return angle_of(similarity + 1e-12) - 5e-8; }

// No pair of at least this similarity, rounded to float32, has a larger angle.
inline double most_angle(float similarity) {
  return similarity < -1 + 1e-6f ? 4.0 : angle_of(similarity - 2e-7) + 5e-8;
}

// No pair of at least this angle has a higher similarity, rounded to float32.
inline float bound_of_angle(double angle) {
  return angle <= 0 ? 1.0f : static_cast<float>(std::min(1.0, std::cos(angle) + 2e-7));
}

// How a part turns when it becomes the whole, c = a + b: the angle between a and c, and |a| / |c|.
struct Turn {
  double angle, share;
  bool is_regular;  // not where a length is zero or not a number: a similarity is then no angle

  // Squared lengths of the part, the other part and the whole; dot product of the part and the whole.
  Turn(double part, double rest, double whole, double dot) {
    is_regular = part > 0 && rest > 0 && whole > 0 && std::isfinite(part) && std::isfinite(rest) &&
                 std::isfinite(whole);
    angle = is_regular ? angle_of(dot / std::sqrt(part * whole) - 1e-12) + 5e-8 : 0;
    share = is_regular ? std::sqrt(part / whole) : 0;
  }
};

// A neighbour n at these angles of both parts: <c, n> = <a, n> + <b, n>, up to the rounding of the sum.
inline double joined_angle(double angle_a, double angle_b, const Turn& a, const Turn& b) {
  if (!a.is_regular || !b.is_regular) return 0;
  const double added =
      bound_of_angle(angle_a) * a.share + bound_of_angle(angle_b) * b.share + 2.5e-7 * (a.share + b.share);
  const double turned = std::max(angle_a - a.angle, angle_b - b.angle);
  return added >= 1 ? turned : std::max(least_angle(added), turned);
}

}  // namespace sohes::merging
