// Forward through the smoother's steps, with the cotangents of smoothed moments: the formulas of
// kernels/mp/kalman_smoother_adjoint.py.
#include "kalman_gain.h"
#include "kalman_pick.h"

namespace varax {
namespace VARAX_ISA {
namespace {

template <class X>
void smoother_adjoint(const KalmanSmootherAdjoint<typename X::T>& problem, int64_t group) {
  using E = typename X::E;
  using Row = typename X::Row;
  constexpr int N = X::N;
  const KalmanModel<typename X::T>& of = problem.model;
  const X x(group, of);
  const int n = x.n();
  const E two = X::broadcast(2);
  Filter<X> filter(x, of);
  const Row *A = filter.A, *Q = filter.Q;
  Gathered<X, Row, N> dA(problem.d_A), dQ(problem.d_Q);
  Gathered<X, Row, 1> db(problem.d_b);
  Row dm = X::zero(), D[N], mf = X::zero(), ms = X::zero(), Pf[N], Ps[N], more[N];  // dm, D: of smoothed moments
  for (int i = 0; i < N; ++i) D[i] = Pf[i] = Ps[i] = more[i] = X::zero();
  if (of.steps > 1) filter.load_transition(0, true);
  for (int64_t t = 0; t < of.steps; ++t) {
    if (problem.d_mean.data) {
      x.load_rows(problem.d_mean, t, 1, more);
      dm = dm + more[0];
    }
    if (problem.d_cov.data) {
      load_symmetric(x, problem.d_cov, t, more);
      x.each_row([&](int i) VARAX_LAMBDA { D[i] = D[i] + more[i]; });
    }
    if (t + 1 == of.steps) break;
    if (t > 0) filter.load_transition(t, false);
    x.load_rows(problem.mean, t, 1, &mf);
    x.load_rows(problem.cov, t, n, Pf);
    x.load_rows(problem.smoothed_mean, t + 1, 1, &ms);
    x.load_rows(problem.smoothed_cov, t + 1, n, Ps);

    Row AP[N], S[N], Gt[N], G[N], F[N];
    x.each_row([&](int i) VARAX_LAMBDA { AP[i] = Gt[i] = combine(x, A[i], Pf); });
    filter.moved(AP, S);
    const Factor<X> factor(S);
    factor.solve(Gt);
    transpose(x, Gt, G);
    x.each_row([&](int i) VARAX_LAMBDA {
      F[i] = -combine(x, G[i], A);
      X::set(F[i], i, X::get(F[i], i) + X::broadcast(1));
    });
    const Row r = ms - filter.moved(mf), dr = combine(x, dm, G);

    // P_s = F P F' + G M G', M = Q + P_s'.
    Row DF[N], DG[N], dF[N], dG[N], M[N], dM[N], dP[N];
    x.each_row([&](int i) VARAX_LAMBDA {
      DF[i] = combine(x, D[i], F);
      DG[i] = combine(x, D[i], G);
      M[i] = Q[i] + Ps[i];
    });
    symmetric_part(x, dM, [&](int i) VARAX_LAMBDA { return across(x, G, i, DG); });
    symmetric_part(x, dP, [&](int i) VARAX_LAMBDA { return across(x, F, i, DF); });
    x.each_row([&](int i) VARAX_LAMBDA {
      dF[i] = two * combine(x, DF[i], Pf);
      dG[i] = X::get(dm, i) * r + two * combine(x, DG[i], M) - filter.times_transposed(dF[i]);
    });

    // G = P A' S^-1, S = A P A' + Q.
    Row Y[N], W[N], dS[N], SA[N], dA_of[N];
    transpose(x, dG, Y);
    factor.solve(Y);
    transpose(x, Y, W);
    symmetric_part(x, dS, [&](int i) VARAX_LAMBDA { return -across(x, G, i, W); });
    x.each_row([&](int i) VARAX_LAMBDA { SA[i] = combine(x, dS[i], A); });
    Row of_gain[N];
    symmetric_part(x, of_gain, [&](int i) VARAX_LAMBDA { return combine(x, W[i], A) + across(x, A, i, SA); });
    x.each_row([&](int i) VARAX_LAMBDA {
      dP[i] = dP[i] + of_gain[i];
      dA_of[i] = combine(x, Y[i], Pf) + two * combine(x, dS[i], AP) - across(x, G, i, dF) - X::get(dr, i) * mf;
    });
    const Row dmf = dm - combine(x, dr, A);
    x.store_rows(problem.to_mean, t, 1, &dmf);
    x.store_rows(problem.to_cov, t, n, dP);
    for (int i = 0; i < n; ++i) {
      dA.add(i, dA_of[i]);
      dQ.add(i, dM[i] + dS[i]);
    }
    db.add(0, -dr);
    dA.done(x, t, n), dQ.done(x, t, n), db.done(x, t, 1);
    if ((t + 1) % kBlock == 0) dA.flush(n), dQ.flush(n), db.flush(1);
    dm = dr;
    for (int i = 0; i < N; ++i) D[i] = dM[i];
  }
  x.store_rows(problem.to_mean, of.steps - 1, 1, &dm);
  x.store_rows(problem.to_cov, of.steps - 1, n, D);
  dA.finish(x, n), dQ.finish(x, n), db.finish(x, 1);
}

}  // namespace

void kalman_smoother_adjoint_f32(const KalmanSmootherAdjoint<float>* problem, int64_t group) {
  pick(problem->model, [&](auto x) { smoother_adjoint<typename decltype(x)::X>(*problem, group); });
}
void kalman_smoother_adjoint_f64(const KalmanSmootherAdjoint<double>* problem, int64_t group) {
  pick(problem->model, [&](auto x) { smoother_adjoint<typename decltype(x)::X>(*problem, group); });
}

}  // namespace VARAX_ISA
}  // namespace varax
