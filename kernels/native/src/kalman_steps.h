// One step of the filter: the update by an observation, and the prediction. Included by kernel files only.
#pragma once

#include "kalman_sums.h"

namespace varax {
namespace VARAX_ISA {
namespace {

// The inverse of the positive definite S by Gauss-Jordan steps; `product` takes the pivots.
template <class X, int MX>
VARAX_INLINE void invert(typename X::E (&S)[MX][MX], int M, LogProduct<X>& product) {
  using E = typename X::E;
#pragma GCC unroll 1
  for (int k = 0; k < M; ++k) {
    product.times(S[k][k]);
    E p = typename X::T(1) / S[k][k];
    for (int j = 0; j < M; ++j)
      if (j != k) S[k][j] *= p;
    for (int i = 0; i < M; ++i) {
      if (i == k) continue;
      E f = S[i][k];
      for (int j = 0; j < M; ++j)
        if (j != k) S[i][j] -= f * S[k][j];
      S[i][k] = -f * p;
    }
    S[k][k] = p;
  }
  product.split();
}

template <class X>
struct Filter {
  using T = typename X::T;
  using E = typename X::E;
  using Row = typename X::Row;
  using Mask = typename X::Mask;
  static constexpr int N = X::N, MX = X::MX;
  const X& x;
  const KalmanModel<T>& of;
  Row A[N], At[N], half_At[N], Q[N], half_Q[N], H[MX], b;
  E R[MX][MX], d[MX];
  Mask seen[MX];
  Row P[N], m;                          // moments of the state, before or after the update
  Row K[MX];                            // the gain, a row for each observation,
  E v[MX], u[MX], inverse[MX][MX];      // the residual, S^-1 v and S^-1 of the last update

  VARAX_INLINE Filter(const X& x, const KalmanModel<T>& of) : x(x), of(of) {
    for (int i = x.n(); i < N; ++i) A[i] = Q[i] = half_Q[i] = P[i] = X::zero();
  }

  VARAX_INLINE void load_initial() {
    x.load_rows(of.m0, 0, 1, &m);
    load_symmetric(x, of.P0, 0, P);
  }
  // What a time has of the model: `first` loads also what is the same at all times.
  VARAX_INLINE void load_observed(int64_t t, bool first) {
    const int M = x.m();
    if (first || of.H.step) x.load_rows(of.H, t, M, H);
    if (first || of.R.step)
      for (int o = 0; o < M; ++o)
        for (int p = 0; p < M; ++p)
          R[o][p] = T(0.5) * (x.load(of.R, t, o * M + p) + x.load(of.R, t, p * M + o));
    if (first || of.d.step)
      for (int o = 0; o < M; ++o) d[o] = x.load(of.d, t, o);
    if (first || of.mask.step)
      for (int o = 0; o < M; ++o) seen[o] = x.seen(of.mask, t, o);
  }
  VARAX_INLINE void load_transition(int64_t t, bool first) {
    if (first || of.A.step) {
      x.load_rows(of.A, t, x.n(), A);
      if constexpr (X::lanes == 1) {
        transpose(x, A, At);
        x.each_row([&](int i) VARAX_LAMBDA { half_At[i] = X::broadcast(T(0.5)) * At[i]; });
      }
    }
    if (first || of.Q.step) {
      load_symmetric(x, of.Q, t, Q);
      if constexpr (X::lanes == 1) x.each_row([&](int i) VARAX_LAMBDA { half_Q[i] = X::broadcast(T(0.5)) * Q[i]; });
    }
    if (first || of.b.step) x.load_rows(of.b, t, 1, &b);
  }

  VARAX_INLINE void update(const E* y, LogProduct<X>& det) {
    const E zero = E{}, one = X::broadcast(1);
    const int M = x.m();
    Row G[MX];
    for (int o = 0; o < M; ++o) {
      G[o] = (seen[o] ? one : zero) * combine(x, H[o], P);
      v[o] = y[o] - d[o] - x.dot(H[o], m);
      v[o] = seen[o] ? v[o] : zero;
    }
    if (M == 1) {
      one_number(G[0], det);
    } else if constexpr (MX > 1) {
      several(G, det);
    }
  }

  VARAX_INLINE void one_number(const Row& G, LogProduct<X>& det) {
    const E own = x.dot(H[0], G), S = seen[0] ? own + R[0][0] : X::broadcast(1);
    det.times(S);
    inverse[0][0] = T(1) / S;
    u[0] = inverse[0][0] * v[0];
    K[0] = inverse[0][0] * G;
    m = v[0] * K[0] + m;
    // P - K G' - (G - S K) K' is Joseph's form: G - S K is what rounding, also that of S, has left of zero.
    const Row left = (-R[0][0]) * K[0] + ((-own) * K[0] + G);
    symmetric<false>(
        x, P,
        [&](int i, int j) VARAX_LAMBDA {
          return X::get(P[i], j) - X::get(K[0], i) * X::get(G, j) - X::get(left, i) * X::get(K[0], j);
        },
        [&](int i) VARAX_LAMBDA { return (-X::get(left, i)) * K[0] + ((-X::get(K[0], i)) * G + P[i]); });
  }

  // The update by several observations, by S^-1 and one step of refinement: an inverse loses digits that a
  // factorisation keeps. Joseph's form: no covariance is subtracted from one that is nearly the same.
  VARAX_INLINE void several(const Row* G, LogProduct<X>& det) {
    const E zero = E{}, one = X::broadcast(1);
    const int M = x.m();
    E S[MX][MX], short_of[MX];
    Row left[MX], F[N], KR[MX];
    for (int o = 0; o < M; ++o)
      for (int p = 0; p < M; ++p) {
        E s = x.dot(H[o], G[p]) + R[o][p];
        S[o][p] = inverse[o][p] = (seen[o] & seen[p]) ? s : o == p ? one : zero;
      }
    invert<X, MX>(inverse, M, det);
    for (int o = 0; o < M; ++o) {
      u[o] = zero;
      K[o] = X::zero();
      for (int p = 0; p < M; ++p) {
        u[o] += inverse[o][p] * v[p];
        K[o] = inverse[o][p] * G[p] + K[o];
      }
    }
    for (int o = 0; o < M; ++o) {
      short_of[o] = v[o];
      left[o] = G[o];
      for (int p = 0; p < M; ++p) {
        short_of[o] -= S[o][p] * u[p];
        left[o] = (-S[p][o]) * K[p] + left[o];
      }
    }
    for (int o = 0; o < M; ++o)
      for (int p = 0; p < M; ++p) {
        u[o] += inverse[o][p] * short_of[p];
        K[o] = inverse[o][p] * left[p] + K[o];
      }
    for (int o = 0; o < M; ++o) {
      m = v[o] * K[o] + m;
      KR[o] = X::zero();
      for (int p = 0; p < M; ++p) KR[o] = ((seen[o] & seen[p]) ? R[o][p] : zero) * K[p] + KR[o];
    }
    Row Ft[N];
    x.each_row([&](int i) VARAX_LAMBDA {
      F[i] = X::zero();
      X::set(F[i], i, one);
      for (int o = 0; o < M; ++o) F[i] = (-X::get(K[o], i)) * H[o] + F[i];
    });
    transpose(x, F, Ft);
    Row FP[N];
    x.each_row([&](int i) VARAX_LAMBDA { FP[i] = combine(x, F[i], P); });
    x.each_row([&](int i) VARAX_LAMBDA {
      P[i] = combine(x, FP[i], Ft);
      for (int o = 0; o < M; ++o) P[i] = X::get(K[o], i) * KR[o] + P[i];
    });
  }

  // A m + b, and A P A' + Q of A P.
  VARAX_INLINE Row moved(const Row& m) const {
    if constexpr (X::lanes == 1) {
      return combine(x, m, At) + b;
    } else {
      Row next = b;
      x.each([&](int i) VARAX_LAMBDA { X::set(next, i, X::get(next, i) + x.dot(A[i], m)); });
      return next;
    }
  }
  // row A'.
  VARAX_INLINE Row times_transposed(const Row& row) const {
    if constexpr (X::lanes == 1) {
      return combine(x, row, At);
    } else {
      Row out;
      x.each([&](int j) VARAX_LAMBDA { X::set(out, j, x.dot(row, A[j])); });
      return out;
    }
  }
  VARAX_INLINE void moved(const Row* AP, Row* to) const {
    symmetric<true>(
        x, to, [&](int i, int j) VARAX_LAMBDA { return X::get(Q[i], j) + x.dot(AP[i], A[j]); },
        [&](int i) VARAX_LAMBDA { return combine(x, AP[i], half_At) + half_Q[i]; });
  }
  VARAX_INLINE void predict() {
    Row AP[N];
    x.each_row([&](int i) VARAX_LAMBDA { AP[i] = combine(x, A[i], P); });
    m = moved(m);
    moved(AP, P);
  }

  // What the way back wants of the last update, `rest` in the order of Segment's.
  VARAX_INLINE void put_update(E* rest) const {
    const int n = x.n(), M = x.m();
    for (int o = 0; o < M; ++o) {
      x.each_used([&](int j) VARAX_LAMBDA { rest[j * M + o] = X::get(K[o], j); });
      rest[n * M + o] = u[o];
      for (int p = 0; p < M; ++p)
        rest[n * M + M + o * M + p] = (seen[o] & seen[p]) ? inverse[o][p] : E{};
    }
  }
  // The moments of the state as numbers, m and P row after row, and back.
  VARAX_INLINE void put(E* to) const {
    const int n = x.n();
    x.each_used([&](int i) VARAX_LAMBDA {
      to[i] = X::get(m, i);
      x.each_used([&](int j) VARAX_LAMBDA { to[n + i * n + j] = X::get(P[i], j); });
    });
  }
  VARAX_INLINE void take(const E* from) {
    const int n = x.n();
    Row r = X::zero();
    x.each_used([&](int i) VARAX_LAMBDA { X::set(r, i, from[i]); });
    m = r;
    x.each_used([&](int i) VARAX_LAMBDA {
      Row r = X::zero();
      x.each_used([&](int j) VARAX_LAMBDA { X::set(r, j, from[n + i * n + j]); });
      P[i] = r;
    });
  }
};

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
