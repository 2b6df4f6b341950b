// The filter's loop over time. Included by kernel files only.
#pragma once

#include "kalman_steps.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class X>
void value(const KalmanValue<typename X::T>& problem, int64_t group) {
  using T = typename X::T;
  using E = typename X::E;
  constexpr int N = X::N, MX = X::MX, kWindow = X::lanes > 1 ? kKalmanSegment : 1;
  constexpr double kLog2Pi = 1.8378770664093453;
  const KalmanModel<T>& of = problem.model;
  const X x(group, of);
  const int n = x.n(), M = x.m(), moments = n + n * n, width = moments + n * M + M + M * M;
  const E zero = E{}, one = X::broadcast(1);
  Filter<X> filter(x, of);
  if (of.steps > 0) filter.load_observed(0, true);
  if (of.steps > 1) filter.load_transition(0, true);
  filter.load_initial();

  E square = zero, count = zero, ys[MX * kWindow], kept[kWindow * (N + N * N + N * MX + MX + MX * MX)];
  LogProduct<X> det;
  det.clear();
  double sum[X::lanes] = {};
  const bool all = problem.gain.data, means = problem.mean.data;
  for (int64_t t = 0; t < of.steps; ++t) {
    const int at = int(t % kWindow);
    if (t > 0) filter.load_observed(t, false);
    if (at == 0) x.gather_steps(of.y, t, int(of.steps - t < kWindow ? of.steps - t : kWindow), M, ys, M);
    filter.update(ys + at * M, det);
    for (int o = 0; o < M; ++o) {
      square += filter.u[o] * filter.v[o];
      count += filter.seen[o] ? one : zero;
    }
    if (means) {
      E* row = kept + at * width;
      filter.put(row);
      if (all) {
        E* rest = row + moments;
        for (int o = 0; o < M; ++o) {
          x.each_used([&](int i) VARAX_LAMBDA { rest[i * M + o] = X::get(filter.K[o], i); });
          rest[n * M + o] = filter.u[o];
          for (int p = 0; p < M; ++p)
            rest[n * M + M + o * M + p] = (filter.seen[o] & filter.seen[p]) ? filter.inverse[o][p] : zero;
        }
      }
      if (at == kWindow - 1 || t + 1 == of.steps) {
        const int64_t first = t - at;
        x.scatter_steps(problem.mean, first, at + 1, n, kept, width);
        x.scatter_steps(problem.cov, first, at + 1, n * n, kept + n, width);
        if (all) {
          x.scatter_steps(problem.gain, first, at + 1, n * M, kept + moments, width);
          x.scatter_steps(problem.white, first, at + 1, M, kept + moments + n * M, width);
          x.scatter_steps(problem.precision, first, at + 1, M * M, kept + moments + n * M + M, width);
        }
      }
    }
    if ((t + 1) % kBlock == 0 || t + 1 == of.steps) {
      for (int l = 0; l < X::lanes; ++l)
        sum[l] += double(X::lane(square, l)) + det.log_of(l) + kLog2Pi * double(X::lane(count, l));
      square = count = zero;
      det.clear();
    }
    if (t + 1 == of.steps) break;
    if (t > 0) filter.load_transition(t, false);
    filter.predict();
    if (problem.checkpoint.data && (t + 1) % kKalmanSegment == 0) {
      filter.put(kept);
      x.scatter(problem.checkpoint, (t + 1) / kKalmanSegment - 1, moments, kept);
    }
  }
  E total = zero;
  if constexpr (X::lanes == 1) {
    total = T(-0.5 * sum[0]);
  } else {
    for (int l = 0; l < X::lanes; ++l) total[l] = T(-0.5 * sum[l]);
  }
  x.scatter({problem.log_likelihood, 0, 1}, 0, 1, &total);
}

}  // namespace
}  // namespace VARAX_ISA
}  // namespace varax
