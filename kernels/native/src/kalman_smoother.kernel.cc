// The smoother's loop back through time: the formulas of kernels/mp/kalman_smoother.py.
#include "kalman_gain.h"
#include "kalman_pick.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class X>
void smooth(const KalmanSmoother<typename X::T>& problem, int64_t group) {
  using E = typename X::E;
  using Row = typename X::Row;
  constexpr int N = X::N;
  const KalmanModel<typename X::T>& of = problem.model;
  const X x(group, of);
  const int n = x.n();
  const E half = X::broadcast(typename X::T(0.5));
  Filter<X> filter(x, of);
  const Row *A = filter.A, *Q = filter.Q;
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
      Row G[N], predicted[N], F[N], V[N], FP[N];  // G' and F' = (I - G A)'
      x.each_row([&](int i) VARAX_LAMBDA { G[i] = combine(x, A[i], Pf); });
      filter.moved(G, predicted);
      Factor<X>(predicted).solve(G);
      const Row ahead = filter.moved(mf);
      m = combine(x, m - ahead, G) + mf;
      x.each_row([&](int i) VARAX_LAMBDA {
        F[i] = X::zero();
        X::set(F[i], i, X::broadcast(1));
        x.each([&](int k) VARAX_LAMBDA { F[i] = (-X::get(A[k], i)) * G[k] + F[i]; });
        V[i] = P[i] + Q[i];
      });
      x.each_row([&](int i) VARAX_LAMBDA { FP[i] = combine(x, Pf[i], F); });
      Row GV[N];
      x.each_row([&](int i) VARAX_LAMBDA { GV[i] = combine(x, V[i], G); });
      symmetric<true>(
          x, P,
          [&](int i, int j) VARAX_LAMBDA {
            E s = X::get(F[0], i) * X::get(FP[0], j) + X::get(G[0], i) * X::get(GV[0], j);
            for (int k = 1; k < N; ++k) {
              s += X::get(F[k], i) * X::get(FP[k], j);
              s += X::get(G[k], i) * X::get(GV[k], j);
            }
            return s;
          },
          [&](int i) VARAX_LAMBDA {
            Row s = X::zero();
            x.each([&](int k) VARAX_LAMBDA { s = X::get(G[k], i) * GV[k] + (X::get(F[k], i) * FP[k] + s); });
            return half * s;
          });
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
