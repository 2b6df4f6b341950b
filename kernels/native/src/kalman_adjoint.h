// The way back through the filter: the formulas of kernels/mp/kalman_adjoint.py. Included by kernel files only.
#pragma once

#include "kalman_rows.h"

namespace varax {
namespace VARAX_ISA {
namespace {

// Cotangents of a parameter, as rows: written at every step, or summed over time in blocks.
template <class X, int Most>
struct Gathered {
  using Row = typename X::Row;
  Row now[Most], block[Most] = {}, total[Most] = {}, lost[Most] = {};
  VARAX_INLINE void done(const X& x, const Strided<typename X::T>& to, int64_t t, int rows) {
    if (to.step) {
      x.store_rows(to, t, rows, now);
    } else {
      for (int i = 0; i < rows; ++i) block[i] = block[i] + now[i];
    }
  }
  VARAX_NOINLINE void flush(int rows) {  // Neumaier's compensated sum of the blocks
    for (int i = 0; i < rows; ++i) {
      Row next = total[i] + block[i], back = next - total[i];
      lost[i] = lost[i] + ((total[i] - (next - back)) + (block[i] - back));
      total[i] = next;
      block[i] = X::zero();
    }
  }
  VARAX_INLINE void finish(const X& x, const Strided<typename X::T>& to, int rows) {
    if (to.step) return;
    flush(rows);
    for (int i = 0; i < rows; ++i) now[i] = total[i] + lost[i];
    x.store_rows(to, 0, rows, now);
  }
};

// The same of numbers.
template <class X, int Most>
struct GatheredNumbers {
  using E = typename X::E;
  E now[Most];
  Sum<E> sums[Most];
  VARAX_INLINE void clear() {
    for (auto& s : sums) s.clear();
  }
  VARAX_INLINE void done(const X& x, const Strided<typename X::T>& to, int64_t t, int size) {
    if (to.step) {
      x.scatter(to, t, 0, size, now);
    } else {
      for (int k = 0; k < size; ++k) sums[k].block += now[k];
    }
  }
  VARAX_NOINLINE void flush(int size) {
    for (int k = 0; k < size; ++k) sums[k].flush();
  }
  VARAX_INLINE void finish(const X& x, const Strided<typename X::T>& to, int size) {
    if (to.step) return;
    for (int k = 0; k < size; ++k) now[k] = sums[k].value();
    x.scatter(to, 0, 0, size, now);
  }
};

template <class X, int MX>
void adjoint(const KalmanAdjoint<typename X::T>& problem, int64_t group) {
  using T = typename X::T;
  using E = typename X::E;
  using Row = typename X::Row;
  struct Part {
    const Strided<const T>* array;
    int size;
  };
  constexpr int N = X::N, kFlush = 64;
  const KalmanModel<T>& of = problem.model;
  const X x(group, of.batch);
  const int M = MX == 1 ? 1 : int(of.m);
  const int64_t steps = of.steps;
  const E zero = E{}, half = X::broadcast(T(0.5)), two = X::broadcast(2);
  Row A[N] = {}, H[MX] = {}, Pf[N], D[N], mf = X::zero(), dm = X::zero();  // D, dm: cotangents of P, m
  for (int i = 0; i < N; ++i) D[i] = X::zero();
  Gathered<X, N> dA, dQ;
  Gathered<X, MX> dH;
  Gathered<X, 1> db;
  GatheredNumbers<X, MX * MX> dR;
  GatheredNumbers<X, MX> dd;
  dR.clear(), dd.clear();
  E l = problem.d_log_likelihood.data ? x.load(problem.d_log_likelihood, 0, 0) : zero;
  const E halfl = half * l;

  const int width = N + N * N + N * M + M + M * M;
  constexpr int kMost = N + N * N + N * MX + MX + MX * MX, kWindow = X::lanes == 1 ? 1 : window(kMost);
  E kept[kMost * kWindow], behind[X::lanes == 1 ? 1 : MX * kWindow];
  auto read = [&](int64_t first, int count) VARAX_LAMBDA {
    E* to = kept;
    const Part parts[] = {{&problem.mean, N},  {&problem.cov, N * N}, {&problem.gain, N * M},
                          {&problem.white, M}, {&problem.precision, M * M}};
    for (const Part& part : parts) {
      x.gather_steps(*part.array, first, count, part.size, to, width, -kWindow);
      to += part.size;
    }
  };

  for (int64_t t = steps - 1; t >= 0; --t) {
    if (X::lanes == 1) {
      read(t, 1);
    } else if (t + 1 == steps || t % kWindow == kWindow - 1) {
      read(t - t % kWindow, int(t % kWindow) + 1);
    }
    const E* row = kept + (X::lanes == 1 ? 0 : (t % kWindow) * width);
    const E *gain = row + N + N * N, *white = gain + N * M, *precision = white + M;
    X::each([&](int i) VARAX_LAMBDA {
      X::set(mf, i, row[i]);
      Row r = X::zero();
      X::each([&](int j) VARAX_LAMBDA { X::set(r, j, row[N + i * N + j]); });
      Pf[i] = r;
    });
    if (t + 1 < steps) {  // through the transition
      if (t + 2 == steps || of.A.step) x.load_rows(of.A, t, 0, N, A);
      Row B[N];
      X::each([&](int i) VARAX_LAMBDA {
        B[i] = combine<X>(D[i], A);
        Row BP = combine<X>(B[i], Pf);
        dA.now[i] = X::get(dm, i) * mf + (two * BP);
        dQ.now[i] = D[i];
      });
      db.now[0] = dm;
      dA.done(x, problem.d_A, t, N);
      dQ.done(x, problem.d_Q, t, N);
      db.done(x, problem.d_b, t, 1);
      dm = combine<X>(dm, A);
      X::each([&](int i) VARAX_LAMBDA {
        Row s = X::zero();
        X::each([&](int k) VARAX_LAMBDA { s = X::get(A[k], i) * B[k] + s; });
        D[i] = s;
      });
    }
    if (problem.d_mean.data) {
      Row more;
      x.load_rows(problem.d_mean, t, 0, 1, &more);
      dm = dm + more;
    }
    if (problem.d_cov.data) {
      Row more[N] = {};
      load_symmetric(x, problem.d_cov, t, more);
      for (int i = 0; i < N; ++i) D[i] = D[i] + more[i];
    }

    // Through the update.
    Row K[MX], g[MX], z[MX], a = dm, dmf = dm;
    E k[MX], u[MX], dy[MX], C[MX][MX], q[MX][MX];
    if (t + 1 == steps || of.H.step) x.load_rows(of.H, t, 0, M, H);
    for (int o = 0; o < M; ++o) {
      K[o] = X::zero();
      X::each([&](int i) VARAX_LAMBDA { X::set(K[o], i, gain[i * M + o]); });
      u[o] = white[o];
      k[o] = X::dot(K[o], dmf);
      g[o] = combine<X>(K[o], D);
      dy[o] = k[o] - l * u[o];
      a = (-k[o]) * H[o] + a;
      dm = (-dy[o]) * H[o] + dm;
      dd.now[o] = -dy[o];
    }
    if (X::lanes == 1) {
      x.scatter(problem.d_y, t, 0, M, dy);
    } else {
      for (int o = 0; o < M; ++o) behind[(t % kWindow) * M + o] = dy[o];
      int count = int(steps - t < kWindow ? steps - t : kWindow);
      if (t % kWindow == 0) x.scatter_steps(problem.d_y, t, count, M, behind, M, -kWindow);
    }
    for (int o = 0; o < M; ++o) {
      for (int p = 0; p < M; ++p) {
        C[o][p] = halfl * (u[o] * u[p] - precision[o * M + p]);
        q[o][p] = X::dot(K[o], g[p]);
        dR.now[o * M + p] = q[o][p] + C[o][p] - half * (k[o] * u[p] + u[o] * k[p]);
      }
      Row w = u[o] * dmf + (-two) * g[o];
      Row r = (l * u[o] - k[o]) * mf + (-l) * K[o] + combine<X>(w, Pf);
      dH.now[o] = r;
    }
    dd.done(x, problem.d_d, t, M);
    dR.done(x, problem.d_R, t, M * M);
    dH.done(x, problem.d_H, t, M);
    for (int o = 0; o < M; ++o) {
      z[o] = (half * u[o]) * a + (-X::broadcast(1)) * g[o];
      for (int p = 0; p < M; ++p) z[o] = (half * (q[o][p] + C[o][p])) * H[p] + z[o];
    }
    for (int o = 0; o < M; ++o)
      X::each([&](int i) VARAX_LAMBDA { D[i] = X::get(H[o], i) * z[o] + (X::get(z[o], i) * H[o] + D[i]); });
    if (t % kFlush == 0) {
      dA.flush(N), dQ.flush(N), dH.flush(M), dR.flush(M * M), db.flush(1), dd.flush(M);
    }
  }
  x.store_rows(problem.d_m0, 0, 1, &dm);
  x.store_rows(problem.d_P0, 0, N, D);
  dA.finish(x, problem.d_A, N), dQ.finish(x, problem.d_Q, N), dH.finish(x, problem.d_H, M);
  dR.finish(x, problem.d_R, M * M), db.finish(x, problem.d_b, 1), dd.finish(x, problem.d_d, M);
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
