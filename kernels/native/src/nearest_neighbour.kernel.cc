// Fused nearest-neighbour weights: each lane of a vector gathers the neighbours of one point, makes their
// covariance, factors it and solves.
//
// With C the neighbours' covariance (noise included) and c theirs with the point: w = C^-1 c and
// s = variance + noise - c'w. From cotangents w' and s', with q = C^-1 w':
//   c' = q - 2 s' w,   C' = -(q w' + w q') / 2 + s' w w'  (symmetric),   variance' and noise' += s'.
#include "nearest_neighbour.h"

#include "gp_profile.h"
#include "small_lanes.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class T>
struct Lanes {
  typedef typename Vec<T>::type V;
  static constexpr int W = Vec<T>::width;
  int64_t m, d;
  T* at;        // [m + 1, d, W] coordinates, the point itself last
  T* there;     // [m + 1, W] 1 for a neighbour, 0 for none
  T* c;         // [m, W]
  T* factor;    // lower triangle of m
  T* k;         // lower triangle of m + 1: covariances at unit variance
  T* slope;     // ... twice their derivatives in u
  T* by_extra;  // ... and in the kind's parameter
  T* ct;        // [m, W]
  T* dx;        // [m + 1, d, W]
  T* scale;     // [d, W] sums over pairs of push * difference^2
  Lanes(T* work, int64_t m, int64_t d) : m(m), d(d) {
    at = work;
    there = at + (m + 1) * d * W;
    c = there + (m + 1) * W;
    ct = c + m * W;
    dx = ct + m * W;
    factor = dx + (m + 1) * d * W;
    k = factor + packed(m, 0) * W;
    slope = k + packed(m + 1, 0) * W;
    by_extra = slope + packed(m + 1, 0) * W;
    scale = by_extra + packed(m + 1, 0) * W;
  }
  static int64_t size(int64_t m, int64_t d) {
    return W * (2 * (m + 1) * d + d + 3 * (m + 1) + packed(m, 0) + 3 * packed(m + 1, 0));
  }

  void gather(const Neighbourhoods<T>& p, int64_t first, int64_t last) {
    for (int64_t l = 0; l < W; ++l) {
      const int64_t i = first + l < last ? first + l : last - 1;
      for (int64_t a = 0; a <= m; ++a) {
        const int64_t j = a < m ? p.neighbour[i * m + a] : i;
        const bool good = j >= 0 && j < p.n;
        there[a * W + l] = good ? T(1) : T(0);
        for (int64_t q = 0; q < d; ++q) at[(a * d + q) * W + l] = good ? p.x[j * d + q] : T(0);
      }
    }
  }

  V distance(int64_t a, int64_t b) const {
    V u{};
    for (int64_t q = 0; q < d; ++q) {
      V difference = load(at + (a * d + q) * W) - load(at + (b * d + q) * W);
      u += difference * difference;
    }
    return u;
  }

  // The factor and c, from covariances of pairs; c becomes l^-1 c. Returns the conditional variance.
  V condition(const Neighbourhoods<T>& p) {
    for (int64_t a = 0; a <= m; ++a)
      for (int64_t b = 0; b < a; ++b) {
        V both = load(there + a * W) * load(there + b * W);
        T* to = a < m ? factor + packed(a, b) * W : c + b * W;
        store(to, load(k + packed(a, b) * W) * p.variance * both);
      }
    for (int64_t a = 0; a < m; ++a) {
      V mine = load(there + a * W);
      store(factor + packed(a, a) * W, mine * (p.variance + p.noise - T(1)) + T(1));
    }
    VARAX_ISA::factor(factor, m);
    solve_forward(factor, c, m);
    return splat<T>(p.variance + p.noise) - rows_product(c, c, m);
  }
};

template <int kind, class T>
void weights(const Neighbourhoods<T>& p, int64_t first, int64_t last, T* out, T* variances, T* work) {
  typedef typename Vec<T>::type V;
  constexpr int W = Vec<T>::width;
  Lanes<T> lanes(work, p.m, p.d);
  for (int64_t i = first; i < last; i += W) {
    lanes.gather(p, i, last);
    for (int64_t a = 0; a <= p.m; ++a)
      for (int64_t b = 0; b < a; ++b)
        store(lanes.k + packed(a, b) * W, profile<kind>(lanes.distance(a, b), p.extra));
    V variance = lanes.condition(p);
    solve_backward(lanes.factor, lanes.c, p.m);
    for (int64_t l = 0; l < W && i + l < last; ++l) {
      variances[i + l] = variance[l];
      for (int64_t a = 0; a < p.m; ++a) out[(i + l) * p.m + a] = lanes.c[a * W + l];
    }
  }
}

template <int kind, class T>
void adjoint(const Neighbourhoods<T>& p, int64_t first, int64_t last, const T* weights_ct,
             const T* variances_ct, T* dx, double* sums, T* work) {
  typedef typename Vec<T>::type V;
  constexpr int W = Vec<T>::width;
  const int64_t m = p.m, d = p.d;
  Lanes<T> lanes(work, m, d);
  for (int64_t i = first; i < last; i += W) {
    lanes.gather(p, i, last);
    for (int64_t a = 0; a <= m; ++a)
      for (int64_t b = 0; b < a; ++b) {
        V k, slope, by_extra;
        const int64_t at = packed(a, b) * W;
        profile_slopes<kind>(lanes.distance(a, b), p.extra, &k, &slope, &by_extra);
        store(lanes.k + at, k);
        store(lanes.slope + at, slope * T(2));
        if (kind == kRationalQuadratic) store(lanes.by_extra + at, by_extra);
      }
    lanes.condition(p);
    T* w = lanes.c;
    T* q = lanes.ct;
    V s_ct{};
    for (int64_t l = 0; l < W; ++l) {  // a lane without a point has no cotangent
      const bool real = i + l < last;
      s_ct[l] = real ? variances_ct[i + l] : T(0);
      for (int64_t a = 0; a < m; ++a) q[a * W + l] = real ? weights_ct[(i + l) * m + a] : T(0);
    }
    solve_backward(lanes.factor, w, m);
    solve_forward(lanes.factor, q, m);
    solve_backward(lanes.factor, q, m);

    V of_variance = s_ct, of_noise = s_ct, of_extra{};
    for (int64_t a = 0; a < m; ++a) {
      V wa = load(w + a * W);
      V diagonal = (s_ct * wa - load(q + a * W)) * wa * load(lanes.there + a * W);
      of_variance += diagonal;
      of_noise += diagonal;
    }
    for (int64_t r = 0; r < (m + 1) * d; ++r) store(lanes.dx + r * W, V{});
    for (int64_t e = 0; e < d; ++e) store(lanes.scale + e * W, V{});
    for (int64_t a = 0; a <= m; ++a)
      for (int64_t b = 0; b < a; ++b) {
        const int64_t at = packed(a, b) * W;
        V wb = load(w + b * W), qb = load(q + b * W), weight;
        if (a == m) {
          weight = qb - s_ct * wb * T(2);
        } else {
          V wa = load(w + a * W), qa = load(q + a * W);
          weight = s_ct * wa * wb * T(2) - qa * wb - qb * wa;
        }
        weight = weight * (load(lanes.there + a * W) * load(lanes.there + b * W));
        of_variance += weight * load(lanes.k + at);
        if (kind == kRationalQuadratic) of_extra += weight * load(lanes.by_extra + at);
        V push = weight * load(lanes.slope + at) * p.variance;
        for (int64_t e = 0; e < d; ++e) {
          T* of_a = lanes.dx + (a * d + e) * W;
          T* of_b = lanes.dx + (b * d + e) * W;
          V difference = load(lanes.at + (a * d + e) * W) - load(lanes.at + (b * d + e) * W);
          V along = push * difference;
          store(lanes.scale + e * W, load(lanes.scale + e * W) + along * difference);
          store(of_a, load(of_a) + along);
          store(of_b, load(of_b) - along);
        }
      }
    for (int64_t e = 0; e < d; ++e) sums[e] += lanes_sum<T>(load(lanes.scale + e * W));
    sums[d] += lanes_sum<T>(of_variance);
    sums[d + 1] += lanes_sum<T>(of_noise);
    sums[d + 2] += lanes_sum<T>(of_extra) * static_cast<double>(p.variance);
    for (int64_t l = 0; l < W && i + l < last; ++l)
      for (int64_t r = 0; r < (m + 1) * d; ++r) dx[(i + l - first) * (m + 1) * d + r] = lanes.dx[r * W + l];
  }
}

}  // namespace

int64_t neighbour_workspace(int64_t m, int64_t d) { return Lanes<float>::size(m, d); }

#define VARAX_NEIGHBOUR(T, suffix)                                                                          \
  void neighbour_weights_##suffix(const Neighbourhoods<T>& p, int64_t first, int64_t last, T* out,          \
                                  T* variances, T* work) {                                                  \
    VARAX_BY_KIND(p.kind, weights, p, first, last, out, variances, work)                                    \
  }                                                                                                         \
  void neighbour_adjoint_##suffix(const Neighbourhoods<T>& p, int64_t first, int64_t last,                  \
                                  const T* weights_ct, const T* variances_ct, T* dx, double* sums,          \
                                  T* work) {                                                                \
    VARAX_BY_KIND(p.kind, adjoint, p, first, last, weights_ct, variances_ct, dx, sums, work)                \
  }
VARAX_NEIGHBOUR(float, f32)
VARAX_NEIGHBOUR(double, f64)

}  // namespace VARAX_ISA
}  // namespace varax
