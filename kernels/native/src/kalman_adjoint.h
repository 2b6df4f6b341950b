// The way back through the filter: the formulas of kernels/mp/kalman_adjoint.py. Included by kernel files only.
#pragma once

#include "kalman_pick.h"
#include "kalman_steps.h"

namespace varax {
namespace VARAX_ISA {
namespace {

// What the way back wants of the steps of a segment: filtered moments, gains, S^-1 v and S^-1, each step in
// `width` numbers. `again` computes it from the moments predicted for the segment's first step, where only
// those were kept: in lanes, that is less work than to move everything through memory.
template <class X>
struct Segment {
  using T = typename X::T;
  using E = typename X::E;
  static constexpr int N = X::N, MX = X::MX, kMost = N + N * N + N * MX + MX + MX * MX;
  const KalmanAdjoint<T>& problem;
  const X& x;
  const int n, M, moments, width;
  E kept[kMost * kKalmanSegment], y[MX * kKalmanSegment];

  VARAX_INLINE Segment(const KalmanAdjoint<T>& problem, const X& x)
      : problem(problem), x(x), n(x.n()), M(x.m()), moments(n + n * n), width(moments + n * M + M + M * M) {}

  VARAX_INLINE void again(Filter<X>& filter, int64_t first, int count) {
    const KalmanModel<T>& of = problem.model;
    if (first == 0) {
      filter.load_initial();
    } else {
      x.gather(problem.checkpoint, first / kKalmanSegment - 1, moments, kept);
      filter.take(kept);
    }
    x.gather_steps(of.y, first, count, M, y, M);
    LogProduct<X> ignored;
    ignored.clear();
    for (int i = 0; i < count; ++i) {
      filter.load_observed(first + i, false);
      filter.update(y + i * M, ignored);
      filter.put(kept + i * width);
      filter.put_update(kept + i * width + moments);
      if (i + 1 == count) break;
      filter.load_transition(first + i, false);
      filter.predict();
    }
  }
  // The same, where everything was kept; moments are read as rows.
  VARAX_INLINE void read(int64_t t) {
    x.gather(problem.gain, t, n * M, kept + moments);
    x.gather(problem.white, t, M, kept + moments + n * M);
    x.gather(problem.precision, t, M * M, kept + moments + n * M + M);
  }
};

template <class X, bool anew>
void adjoint(const KalmanAdjoint<typename X::T>& problem, int64_t group) {
  using T = typename X::T;
  using E = typename X::E;
  using Row = typename X::Row;
  constexpr int N = X::N, MX = X::MX;
  const KalmanModel<T>& of = problem.model;
  const X x(group, of);
  const int n = x.n(), M = x.m();
  const int64_t steps = of.steps;
  const E zero = E{}, half = X::broadcast(T(0.5)), two = X::broadcast(2);
  Row read_P[N], D[N], mf = X::zero(), dm = X::zero();  // D, dm: cotangents of P, m
  for (int i = 0; i < N; ++i) D[i] = read_P[i] = X::zero();
  Gathered<X, Row, N> dA(problem.d_A), dQ(problem.d_Q);
  Gathered<X, Row, MX> dH(problem.d_H);
  Gathered<X, Row, 1> db(problem.d_b);
  Gathered<X, E, MX * MX> dR(problem.d_R);
  Gathered<X, E, MX> dd(problem.d_d);
  E l = problem.d_log_likelihood.data ? x.load(problem.d_log_likelihood, 0, 0) : zero;
  const E halfl = half * l;

  Filter<X> filter(x, of);
  Row *A = filter.A, *H = filter.H, half_A[X::lanes == 1 ? N : 1];
  if constexpr (anew) {
    if (steps > 0) filter.load_observed(0, true);
    if (steps > 1) filter.load_transition(0, true);
  } else {
    if (steps > 0) x.load_rows(of.H, 0, M, H);
    if (steps > 1) x.load_rows(of.A, 0, n, A);
  }
  Segment<X> segment(problem, x);
  E dys[MX * kKalmanSegment];
  int at = 0;

  for (int64_t t = steps - 1; t >= 0; --t) {
    if constexpr (anew) {
      if (t + 1 == steps || at == 0) {
        at = int(t % kKalmanSegment) + 1;
        segment.again(filter, t + 1 - at, at);
      }
      --at;
    } else {
      segment.read(t);
    }
    const E* row = segment.kept + at * segment.width;
    const E *gain = row + n + n * n, *white = gain + n * M, *precision = white + M;
    const Row* Pf = read_P;
    if constexpr (X::lanes > 1) {  // they lie there as rows
      mf = *reinterpret_cast<const Row*>(row);
      Pf = reinterpret_cast<const Row*>(row + N);
    } else if constexpr (anew) {
      x.each_used([&](int i) VARAX_LAMBDA {
        X::set(mf, i, row[i]);
        Row r = X::zero();
        x.each_used([&](int j) VARAX_LAMBDA { X::set(r, j, row[n + i * n + j]); });
        read_P[i] = r;
      });
    } else {
      x.load_rows(problem.mean, t, 1, &mf);
      x.load_rows(problem.cov, t, n, read_P);
    }
    if (t + 1 < steps) {  // through the transition
      if (of.A.step) x.load_rows(of.A, t, n, A);
      if constexpr (X::lanes == 1) {
        if (of.A.step || t + 2 == steps) x.each_row([&](int i) VARAX_LAMBDA { half_A[i] = half * A[i]; });
      }
      Row B[N];
      x.each_row([&](int i) VARAX_LAMBDA {
        B[i] = combine(x, D[i], A);
        dA.add(i, X::get(dm, i) * mf + two * combine(x, B[i], Pf));
        dQ.add(i, D[i]);
      });
      db.add(0, dm);
      dA.done(x, t, n), dQ.done(x, t, n), db.done(x, t, 1);
      dm = combine(x, dm, A);
      symmetric<true>(
          x, D,
          [&](int i, int j) VARAX_LAMBDA {
            E s = X::get(A[0], i) * X::get(B[0], j);
            for (int k = 1; k < N; ++k) s += X::get(A[k], i) * X::get(B[k], j);
            return s;
          },
          [&](int i) VARAX_LAMBDA {
            Row s = X::zero();
            x.each([&](int k) VARAX_LAMBDA { s = X::get(half_A[k], i) * B[k] + s; });
            return s;
          });
    }
    if (problem.d_mean.data) {
      Row more;
      x.load_rows(problem.d_mean, t, 1, &more);
      dm = dm + more;
    }
    if (problem.d_cov.data) {
      Row more[N];
      load_symmetric(x, problem.d_cov, t, more);
      x.each_row([&](int i) VARAX_LAMBDA { D[i] = D[i] + more[i]; });
    }

    // Through the update.
    Row K[MX], g[MX], z[MX], a = dm;
    const Row dmf = dm;
    E k[MX], u[MX], *dy = dys + at * M;
    if (of.H.step) x.load_rows(of.H, t, M, H);
    for (int o = 0; o < M; ++o) {
      K[o] = X::zero();
      x.each_used([&](int i) VARAX_LAMBDA { X::set(K[o], i, gain[i * M + o]); });
      u[o] = white[o];
      k[o] = x.dot(K[o], dmf);
      g[o] = combine(x, K[o], D);
      dy[o] = k[o] - l * u[o];
      a = (-k[o]) * H[o] + a;
      dm = (-dy[o]) * H[o] + dm;
      dd.add(o, -dy[o]);
    }
    const bool sums = !anew && problem.sums.data;  // then a, k and u are zero
    for (int o = 0; o < M; ++o) {
      z[o] = (half * u[o]) * a - g[o];
      Row w = u[o] * dmf + (-two) * g[o];
      if (sums) {
        Row ud = X::zero();
        x.each_used([&](int i) VARAX_LAMBDA { X::set(ud, i, x.load(problem.sums, t, o * n + i)); });
        z[o] = half * ud + z[o];
        w = w + ud;
      }
      for (int p = 0; p < M; ++p) {
        E C = halfl * (u[o] * u[p] - precision[o * M + p]), q = x.dot(K[o], g[p]);
        E ku = half * (k[o] * u[p] + u[o] * k[p]), uk = zero;
        if (sums) {
          const int64_t at_ku = n * M, at_uu = at_ku + M * M;
          uk = x.load(problem.sums, t, at_ku + p * M + o);
          ku = half * (x.load(problem.sums, t, at_ku + o * M + p) + uk);
          C += half * x.load(problem.sums, t, at_uu + o * M + p);
        }
        dR.add(o * M + p, q + C - ku);
        z[o] = (half * (q + C - uk)) * H[p] + z[o];
      }
      dH.add(o, (l * u[o] - k[o]) * mf + (-l) * K[o] + combine(x, w, Pf));
    }
    dd.done(x, t, M), dR.done(x, t, M * M), dH.done(x, t, M);
    for (int o = 0; o < M; ++o)
      symmetric<false>(
          x, D,
          [&](int i, int j) VARAX_LAMBDA {
            return X::get(D[i], j) + X::get(H[o], i) * X::get(z[o], j) + X::get(z[o], i) * X::get(H[o], j);
          },
          [&](int i) VARAX_LAMBDA { return X::get(H[o], i) * z[o] + (X::get(z[o], i) * H[o] + D[i]); });
    if constexpr (anew) {
      if (at == 0) {
        int64_t rest = steps - t;
        x.scatter_steps(problem.d_y, t, int(rest < kKalmanSegment ? rest : kKalmanSegment), M, dys, M);
      }
    } else {
      x.scatter(problem.d_y, t, M, dys);
    }
    if (t % kBlock == 0) {
      dA.flush(n), dQ.flush(n), dH.flush(M), dR.flush(M * M), db.flush(1), dd.flush(M);
    }
  }
  x.store_rows(problem.d_m0, 0, 1, &dm);
  x.store_rows(problem.d_P0, 0, n, D);
  dA.finish(x, n), dQ.finish(x, n), dH.finish(x, M);
  dR.finish(x, M * M), db.finish(x, 1), dd.finish(x, M);
}

// One group of series, by the loops of its size.
template <class T>
void adjoint_of(const KalmanAdjoint<T>& problem, int64_t group) {
  pick(problem.model, [&](auto x) {
    using X = typename decltype(x)::X;
    if constexpr (X::lanes > 1) {
      adjoint<X, true>(problem, group);
    } else if constexpr (kMostFixed == 0) {
      problem.model.lanes ? adjoint<X, true>(problem, group) : adjoint<X, false>(problem, group);
    } else {
      adjoint<X, false>(problem, group);
    }
  });
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
