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

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
