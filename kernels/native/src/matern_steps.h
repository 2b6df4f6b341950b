// Transitions of the Matern processes. Included by kernel files only.
//
// The state is (f, f' / lambda, f'' / lambda^2), so that a step of x = lambda dt has, with N = F + I nilpotent,
//   A = e^-x (I + N x + N^2 x^2 / 2),   P_infinity as below,   Q = P_infinity - A P_infinity A'.
// Q is written without cancellation: with z = 2 x, t_k = e^-z z^k / k! and the tail p = e^-z sum_{k >= K} z^k / k!,
// K = 2 order + 1, every entry is a multiple of p plus a few t_k.
#pragma once

#include <cmath>

#include "matern.h"
#include "vector_bits.h"

namespace varax {
namespace VARAX_ISA {
namespace {

constexpr int kSteps = kMaternSegment;  // transitions made at once

// e^-x for 0 <= x <= 700, within about an ulp; NaN stays.
inline double exp_minus(double x) {
  constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer in the low bits
  double shifted = -x * 1.4426950408889634 + magic, n = shifted - magic;
  double r = (-x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return p * number_of<double>(int64_t(uint64_t(bits_of(shifted) + 1023) << 52));
}

template <int O>
struct Matern {
  static constexpr int n = O + 1, packed = n * (n + 1) / 2, kept = n + packed;
  double a[n * n][kSteps], q[packed][kSteps], x[kSteps];

  static constexpr double rate() { return O == 0 ? 1.0 : O == 1 ? 1.7320508075688772 : 2.23606797749979; }
  static constexpr int at(int i, int j) { return i <= j ? i * n - i * (i - 1) / 2 + j - i : at(j, i); }
  // F and the stationary covariance at variance 1.
  static constexpr double F(int i, int j) {
    if (j == i + 1) return 1;
    if (i != O) return 0;
    return O == 0 ? -1 : O == 1 ? (j == 0 ? -1 : -2) : (j == 0 ? -1 : -3);
  }
  static constexpr double stationary(int i, int j) {
    if (O < 2) return i == j ? 1 : 0;
    if (i == j) return i == 1 ? 1.0 / 3 : 1;
    return i + j == 2 ? -1.0 / 3 : 0;
  }

  // The transitions from times[t - 1] to times[t], t = first .. first + count - 1; x holds lambda dt.
  void make(int count) {
    for (int i = count; i < kSteps; ++i) x[i] = 0;
    for (int i = 0; i < kSteps; ++i) {
      double s = x[i] > 700 ? 700 : x[i], e = exp_minus(s), z = 2 * s, ez = e * e;
      constexpr int K = 2 * O + 1;
      double sum = 1;
      for (int k = 16; k >= 1; --k) sum = 1 + sum * z * (1.0 / (K + k));
      double t1 = z * ez, t2 = t1 * z / 2, t3 = t2 * z / 3, t4 = t3 * z / 4;
      double low = O == 0 ? t1 : O == 1 ? t3 : t4 * z / 5;
      double high = 1 - ez - (O > 0 ? t1 + t2 : 0) - (O > 1 ? t3 + t4 : 0);
      double p = z < 1 ? low * sum : high;
      if constexpr (O == 0) {
        a[0][i] = e;
        q[0][i] = p;
      } else if constexpr (O == 1) {
        a[0][i] = e + e * s, a[1][i] = e * s;
        a[2][i] = -e * s, a[3][i] = e - e * s;
        q[0][i] = p, q[1][i] = t2, q[2][i] = p + 2 * t1;
      } else {
        double es = e * s, ess = es * s / 2;
        a[0][i] = e + es + ess, a[1][i] = es + 2 * ess, a[2][i] = ess;
        a[3][i] = -ess, a[4][i] = e + es - 2 * ess, a[5][i] = es - ess;
        a[6][i] = ess - es, a[7][i] = 2 * ess - 3 * es, a[8][i] = e - 2 * es + ess;
        q[0][i] = p, q[1][i] = t4, q[2][i] = -p / 3 + (2 * t3 - 4 * t4) / 3;
        q[3][i] = p / 3 + (4 * t3 - 2 * t4) / 3, q[4][i] = 4 * t2 / 3 - 2 * t3 + t4;
        q[5][i] = p + 8 * (t1 - t2) / 3 + 4 * t3;
      }
    }
  }
};

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
