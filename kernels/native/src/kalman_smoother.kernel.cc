// The smoother's loop back through time: the formulas of kernels/mp/kalman_smoother.py.
#include "kalman_gain.h"
#include "kalman_pick.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class X>
void smooth(const KalmanSmoother<typename X::T>& problem, int64_t group) {
  using Row = typename X::Row;
  constexpr int N = X::N;
  const KalmanModel<typename X::T>& of = problem.model;
  const X x(group, of);
  const int n = x.n();
  Filter<X> filter(x, of);
  const Row* Q = filter.Q;
  Row m, mf = X::zero(), P[N], Pf[N];
  for (int i = 0; i < N; ++i) P[i] = Pf[i] = X::zero();
  if (of.steps > 1) filter.load_transition(0, true);
  for (int64_t t = of.steps - 1; t >= 0; --t) {
    x.load_rows(problem.mean, t, 1, &mf);
    x.load_rows(problem.cov, t, n, Pf);
    if (t + 1 == of.steps) {
      m = mf;
      for (int i = 0; i < N; ++i) P[i] = Pf[i];
    } else {
      filter.load_transition(t, false);
      Row G[N], W[N];
      x.each_row([&](int i) VARAX_LAMBDA { W[i] = P[i] + Q[i]; });
      condition(x, filter, Pf, W, G, P);
      m = combine(x, m - filter.moved(mf), G) + mf;
    }
    x.store_rows(problem.to_mean, t, 1, &m);
    x.store_rows(problem.to_cov, t, n, P);
  }
}

}  // namespace

void kalman_smoother_f32(const KalmanSmoother<float>* problem, int64_t group) {
  pick(problem->model, [&](auto x) { smooth<typename decltype(x)::X>(*problem, group); });
}
void kalman_smoother_f64(const KalmanSmoother<double>* problem, int64_t group) {
  pick(problem->model, [&](auto x) { smooth<typename decltype(x)::X>(*problem, group); });
}

}  // namespace VARAX_ISA
}  // namespace varax
