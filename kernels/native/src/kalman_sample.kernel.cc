// Posterior draws, back through time: the formulas of kernels/mp/kalman_backward.py, and the draws that share
// them side by side.
#include "kalman_gain.h"
#include "kalman_pick.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class X>
VARAX_INLINE typename X::E root(typename X::E x) {
  if constexpr (X::lanes == 1) {
    return __builtin_sqrt(x);
  } else {
    for (int l = 0; l < X::lanes; ++l) x[l] = __builtin_sqrt(x[l]);
    return x;
  }
}

// Columns of the factor L of V = L L', as rows; zero in directions without variance.
template <class X>
VARAX_INLINE void columns(const X& x, const typename X::Row* V, typename X::Row* to) {
  using E = typename X::E;
  const Factor<X> of(V);
  for (int k = 0; k < X::N; ++k) {
    const E size = root<X>(of.inverse[k] == E{} ? E{} : of.L[k][k]);
    to[k] = X::zero();
    X::set(to[k], k, size);
    for (int i = k + 1; i < X::N; ++i) X::set(to[k], i, of.L[i][k] * size);
  }
}

template <class X>
void sample(const KalmanSample<typename X::T>& problem, int64_t group) {
  using T = typename X::T;
  using Row = typename X::Row;
  constexpr int N = X::N;
  const KalmanModel<T>& of = problem.model;
  const X x(group, of);
  const int n = x.n();
  Filter<X> filter(x, of);
  Scratch<Row> state(problem.draws);
  Row m = X::zero(), P[N], V[N], G[N], L[N];  // G', and the columns of V's factor
  for (int i = 0; i < N; ++i) P[i] = X::zero();
  if (of.steps > 1) filter.load_transition(0, true);
  for (int64_t t = of.steps - 1; t >= 0; --t) {
    x.load_rows(problem.mean, t, 1, &m);
    x.load_rows(problem.cov, t, n, P);
    const bool last = t + 1 == of.steps;
    Row ahead = X::zero();
    if (last) {
      symmetric_part(x, V, [&](int i) VARAX_LAMBDA { return P[i]; });
      for (int i = n; i < N; ++i) V[i] = X::zero();
    } else {
      filter.load_transition(t, false);
      ahead = filter.moved(m);
      condition(x, filter, P, filter.Q, G, V);
    }
    columns(x, V, L);
    Strided<const T> noise = problem.noise;
    Strided<T> to = problem.to;
    for (int64_t d = 0; d < problem.draws; ++d, noise.data += of.steps * of.n, to.data += of.steps * of.n) {
      Row z = X::zero();
      x.load_rows(noise, t, 1, &z);
      Row drawn = combine(x, z, L) + m;
      if (!last) drawn = combine(x, state.at[d] - ahead, G) + drawn;
      state.at[d] = drawn;
      x.store_rows(to, t, 1, &drawn);
    }
  }
}

}  // namespace

void kalman_sample_f32(const KalmanSample<float>* problem, int64_t group) {
  pick(problem->model, [&](auto x) { sample<typename decltype(x)::X>(*problem, group); });
}
void kalman_sample_f64(const KalmanSample<double>* problem, int64_t group) {
  pick(problem->model, [&](auto x) { sample<typename decltype(x)::X>(*problem, group); });
}

}  // namespace VARAX_ISA
}  // namespace varax
