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
  const int n = x.n(), M = x.m(), moments = n + n * n;
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
      if constexpr (X::lanes == 1) {
        x.store_rows(problem.mean, t, 1, &filter.m);
        x.store_rows(problem.cov, t, n, filter.P);
      } else {
        filter.put(kept + at * moments);
        if (at == kWindow - 1 || t + 1 == of.steps) {
          x.scatter_steps(problem.mean, t - at, at + 1, n, kept, moments);
          x.scatter_steps(problem.cov, t - at, at + 1, n * n, kept + n, moments);
        }
      }
      if (all) {  // of one series
        filter.put_update(kept);
        x.scatter(problem.gain, t, n * M, kept);
        x.scatter(problem.white, t, M, kept + n * M);
        x.scatter(problem.precision, t, M * M, kept + n * M + M);
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
