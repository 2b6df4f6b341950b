// The filter's loop over time. Included by kernel files only.
#pragma once

#include "kalman_rows.h"

namespace varax {
namespace VARAX_ISA {
namespace {

constexpr int kBlock = 64;  // steps between two flushes of the sums

// The inverse of the positive definite S by Gauss-Jordan steps; `product` takes the pivots.
template <class X, int MX>
VARAX_INLINE void invert(typename X::E (&S)[MX][MX], int M, LogProduct<X>& product) {
  using E = typename X::E;
  if constexpr (MX == 1) {
    product.times(S[0][0]);
    S[0][0] = typename X::T(1) / S[0][0];
  } else {
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
}

template <class X, int MX>
void value(const KalmanValue<typename X::T>& problem, int64_t group) {
  using T = typename X::T;
  using E = typename X::E;
  using Row = typename X::Row;
  using Mask = typename X::Mask;
  struct Part {
    const Strided<T>* array;
    int size;
  };
  constexpr int N = X::N;
  const KalmanModel<T>& of = problem.model;
  const X x(group, of.batch);
  const int M = MX == 1 ? 1 : int(of.m);
  const int64_t steps = of.steps;
  Row A[N] = {}, At[N] = {}, Q[N] = {}, P[N], H[MX] = {}, m, b = X::zero();
  E R[MX][MX] = {}, d[MX] = {};
  Mask seen[MX] = {};
  const E zero = E{}, one = X::broadcast(1);

  E square = zero, count = zero;
  LogProduct<X> det;
  det.clear();
  double sum[X::lanes] = {};
  constexpr double kLog2Pi = 1.8378770664093453;

  x.load_rows(of.m0, 0, 0, 1, &m);
  load_symmetric(x, of.P0, 0, P);
  const int width = N + N * N + N * M + M + M * M;
  constexpr int kMost = N + N * N + N * MX + MX + MX * MX, kWindow = X::lanes == 1 ? 1 : window(kMost);
  E kept[kMost * kWindow], ahead[X::lanes == 1 ? MX : MX * kWindow];
  auto write = [&](int64_t first, int count) VARAX_LAMBDA {
    const E* from = kept;
    const Part parts[] = {{&problem.mean, N},  {&problem.cov, N * N}, {&problem.gain, N * M},
                          {&problem.white, M}, {&problem.precision, M * M}};
    for (const Part& part : parts) {
      if (part.array->data) x.scatter_steps(*part.array, first, count, part.size, from, width, kWindow);
      from += part.size;
    }
  };

  for (int64_t t = 0; t < steps; ++t) {
    if (X::lanes == 1 || t % kWindow == 0) {
      int count = X::lanes == 1 ? 1 : int(steps - t < kWindow ? steps - t : kWindow);
      x.gather_steps(of.y, t, count, M, ahead, M, kWindow);
    }
    const E* y = ahead + (X::lanes == 1 ? 0 : (t % kWindow) * M);
    if (t == 0 || of.H.step)
      x.load_rows(of.H, t, 0, M, H);
    if (t == 0 || of.R.step)
      for (int o = 0; o < M; ++o)
        for (int p = 0; p < M; ++p)
          R[o][p] = T(0.5) * (x.load(of.R, t, o * M + p) + x.load(of.R, t, p * M + o));
    if (t == 0 || of.d.step)
      for (int o = 0; o < M; ++o) d[o] = x.load(of.d, t, o);
    if (t == 0 || of.mask.step)
      for (int o = 0; o < M; ++o) seen[o] = x.seen(of.mask, t, o);

    // The update.
    Row G[MX], K[MX];
    E S[MX][MX], v[MX], u[MX];
    for (int o = 0; o < M; ++o) {
      G[o] = (seen[o] ? one : zero) * combine<X>(H[o], P);
      v[o] = y[o] - d[o] - X::dot(H[o], m);
      v[o] = seen[o] ? v[o] : zero;
      count += seen[o] ? one : zero;
    }
    for (int o = 0; o < M; ++o)
      for (int p = 0; p < M; ++p) {
        E s = X::dot(H[o], G[p]) + R[o][p];
        S[o][p] = (seen[o] & seen[p]) ? s : o == p ? one : zero;
      }
    E inverse[MX][MX];
    for (int o = 0; o < M; ++o)
      for (int p = 0; p < M; ++p) inverse[o][p] = S[o][p];
    invert<X, MX>(inverse, M, det);
    for (int o = 0; o < M; ++o) {
      u[o] = inverse[o][0] * v[0];
      K[o] = inverse[o][0] * G[0];
      for (int p = 1; p < M; ++p) {
        u[o] += inverse[o][p] * v[p];
        K[o] = inverse[o][p] * G[p] + K[o];
      }
    }
    // G - K S is what rounding has left of zero.
    Row left[MX];
    auto rest = [&]() VARAX_LAMBDA {
      for (int o = 0; o < M; ++o) {
        left[o] = G[o];
        for (int p = 0; p < M; ++p) left[o] = (-S[p][o]) * K[p] + left[o];
      }
    };
    rest();
    if constexpr (MX > 1) {  // one step of refinement: an inverse loses digits that a factorisation keeps
      E short_of[MX];
      for (int o = 0; o < M; ++o) {
        short_of[o] = v[o];
        for (int p = 0; p < M; ++p) short_of[o] -= S[o][p] * u[p];
      }
      for (int o = 0; o < M; ++o)
        for (int p = 0; p < M; ++p) {
          u[o] += inverse[o][p] * short_of[p];
          K[o] = inverse[o][p] * left[p] + K[o];
        }
      rest();
    }
    for (int o = 0; o < M; ++o) {
      square += u[o] * v[o];
      m = v[o] * K[o] + m;
    }
    // P - K G' - (G - K S) K', which is Joseph's form: right to first order in an error of K.
    X::each([&](int i) VARAX_LAMBDA {
      for (int o = 0; o < M; ++o) {
        P[i] = (-X::get(K[o], i)) * G[o] + P[i];
        P[i] = (-X::get(left[o], i)) * K[o] + P[i];
      }
    });

    // What is kept of the step, in the order of `write`.
    if (problem.mean.data || problem.gain.data) {
      E* row = kept + (X::lanes == 1 ? 0 : (t % kWindow) * width);
      X::each([&](int i) VARAX_LAMBDA {
        row[i] = X::get(m, i);
        X::each([&](int j) VARAX_LAMBDA { row[N + i * N + j] = X::get(P[i], j); });
      });
      E* rest = row + N + N * N;
      if (problem.gain.data) {
        for (int o = 0; o < M; ++o) {
          X::each([&](int i) VARAX_LAMBDA { rest[i * M + o] = X::get(K[o], i); });
          rest[N * M + o] = u[o];
          for (int p = 0; p < M; ++p) rest[N * M + M + o * M + p] = (seen[o] & seen[p]) ? inverse[o][p] : zero;
        }
      }
      if (X::lanes == 1) {
        write(t, 1);
      } else if ((t + 1) % kWindow == 0 || t + 1 == steps) {
        write(t - t % kWindow, int(t % kWindow) + 1);
      }
    }
    if ((t + 1) % kBlock == 0 || t + 1 == steps) {
      for (int l = 0; l < X::lanes; ++l)
        sum[l] += double(X::lane(square, l)) + det.log_of(l) + kLog2Pi * double(X::lane(count, l));
      square = count = zero;
      det.clear();
    }
    if (t + 1 == steps) break;

    // The prediction.
    if (t == 0 || of.A.step) {
      x.load_rows(of.A, t, 0, N, A);
      transpose<X>(A, At);
    }
    if (t == 0 || of.Q.step) load_symmetric(x, of.Q, t, Q);
    if (t == 0 || of.b.step) x.load_rows(of.b, t, 0, 1, &b);
    Row AP[N];
    X::each([&](int i) VARAX_LAMBDA { AP[i] = combine<X>(A[i], P); });
    m = combine<X>(m, At) + b;
    X::each([&](int i) VARAX_LAMBDA { P[i] = combine<X>(AP[i], At) + Q[i]; });
  }
  Strided<T> out{problem.log_likelihood, 0, 1};
  E total = zero;
  if constexpr (X::lanes == 1) {
    total = T(-0.5 * sum[0]);
  } else {
    for (int l = 0; l < X::lanes; ++l) total[l] = T(-0.5 * sum[l]);
  }
  x.store(out, 0, 0, total);
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
