// The gain of a state on the one after it, S^-1 A P, S the predicted covariance. Included by kernel files only.
#pragma once

#include "kalman_steps.h"

namespace varax {
namespace VARAX_ISA {
namespace {

// S = L D L', positive semi-definite. A pivot that rounding has left at or below zero is a direction without
// variance: the inverse is that in the range of S.
template <class X>
struct Factor {
  using T = typename X::T;
  using E = typename X::E;
  static constexpr int N = X::N;
  E L[N][N], inverse[N];

  VARAX_INLINE explicit Factor(const typename X::Row* S) {
    const E tiny = X::broadcast(sizeof(T) == 4 ? T(1.1920929e-07 * N) : T(2.220446049250313e-16 * N));
    for (int i = 0; i < N; ++i)
      for (int j = 0; j <= i; ++j) L[i][j] = X::get(S[i], j);
    for (int k = 0; k < N; ++k) {
      const E pivot = L[k][k];
      inverse[k] = pivot <= tiny * X::get(S[k], k) ? E{} : X::broadcast(1) / pivot;  // NaN goes on
      for (int i = k + 1; i < N; ++i) {
        const E f = L[i][k] * inverse[k];
        for (int j = k + 1; j <= i; ++j) L[i][j] -= f * L[j][k];
      }
      for (int i = k + 1; i < N; ++i) L[i][k] *= inverse[k];
    }
  }
  // B becomes S^-1 B.
  VARAX_INLINE void solve(typename X::Row* B) const {
    for (int i = 1; i < N; ++i)
      for (int k = 0; k < i; ++k) B[i] = (-L[i][k]) * B[k] + B[i];
    for (int i = N - 1; i >= 0; --i) {
      B[i] = inverse[i] * B[i];
      for (int k = i + 1; k < N; ++k) B[i] = (-L[k][i]) * B[k] + B[i];
    }
  }
};

// to = (B + B') / 2, B[i] = row(i).
template <class X, class F>
VARAX_INLINE void symmetric_part(const X& x, typename X::Row* to, const F& row) {
  typename X::Row B[X::N], back[X::N];
  x.each_row([&](int i) VARAX_LAMBDA { B[i] = X::broadcast(typename X::T(0.5)) * row(i); });
  transpose(x, B, back);
  x.each_row([&](int i) VARAX_LAMBDA { to[i] = B[i] + back[i]; });
}

// sum_k A[k][i] B[k], row i of A' B.
template <class X>
VARAX_INLINE typename X::Row across(const X& x, const typename X::Row* A, int i, const typename X::Row* B) {
  typename X::Row s = X::zero();
  x.each([&](int k) VARAX_LAMBDA { s = X::get(A[k], i) * B[k] + s; });
  return s;
}

// Of a state given the one after it, G' = S^-1 A P and F P F' + G W G', F = I - G A; S is the predicted covariance.
// `to` may be W.
template <class X>
VARAX_INLINE void condition(const X& x, const Filter<X>& filter, const typename X::Row* P, const typename X::Row* W,
                            typename X::Row* G, typename X::Row* to) {
  using E = typename X::E;
  using Row = typename X::Row;
  constexpr int N = X::N;
  const E half = X::broadcast(typename X::T(0.5));
  const Row* A = filter.A;
  Row predicted[N], F[N], FP[N], GW[N];  // F'
  x.each_row([&](int i) VARAX_LAMBDA { G[i] = combine(x, A[i], P); });
  filter.moved(G, predicted);
  Factor<X>(predicted).solve(G);
  x.each_row([&](int i) VARAX_LAMBDA {
    F[i] = X::zero();
    X::set(F[i], i, X::broadcast(1));
    x.each([&](int k) VARAX_LAMBDA { F[i] = (-X::get(A[k], i)) * G[k] + F[i]; });
  });
  x.each_row([&](int i) VARAX_LAMBDA { FP[i] = combine(x, P[i], F); });
  x.each_row([&](int i) VARAX_LAMBDA { GW[i] = combine(x, W[i], G); });
  symmetric<true>(
      x, to,
      [&](int i, int j) VARAX_LAMBDA {
        E s = X::get(F[0], i) * X::get(FP[0], j) + X::get(G[0], i) * X::get(GW[0], j);
        for (int k = 1; k < N; ++k) {
          s += X::get(F[k], i) * X::get(FP[k], j);
          s += X::get(G[k], i) * X::get(GW[k], j);
        }
        return s;
      },
      [&](int i) VARAX_LAMBDA {
        Row s = X::zero();
        x.each([&](int k) VARAX_LAMBDA { s = X::get(G[k], i) * GW[k] + (X::get(F[k], i) * FP[k] + s); });
        return half * s;
      });
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
