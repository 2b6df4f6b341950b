// FFI handlers of the Kalman filter.
#include "kalman_reader.h"

namespace varax {
namespace {

template <class T>
ffi::Error value(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                 ffi::Span<const int64_t> sizes, ffi::Span<const int64_t> varies, ffi::Span<const int64_t> batched) {
  Reader read{args, rets, 0, {}};
  KalmanValue<T> problem{};
  problem.model = model<T>(read, sizes, varies, batched);
  if (!read.error.empty()) return ffi::Error::InvalidArgument(read.error);
  const int64_t n = problem.model.n, m = problem.model.m, steps = problem.model.steps;
  problem.log_likelihood = read.out<T>("log_likelihood", 1, 0, false).data;
  problem.mean = read.out<T>("means", n, steps, true, true);
  problem.cov = read.out<T>("covariances", n * n, steps, true, true);
  if (problem.model.lanes) {
    problem.checkpoint = read.out<T>("checkpoints", n + n * n, checkpoints(steps), true, true);
  } else {
    problem.gain = read.out<T>("gains", n * m, steps, true, true);
    problem.white = read.out<T>("white", m, steps, true, true);
    problem.precision = read.out<T>("precisions", m * m, steps, true, true);
  }
  if (read.bad_count()) return ffi::Error::InvalidArgument(read.error);
  if (problem.model.batch == 0) return ffi::Error::Success();
  if (!problem.mean.data != !problem.cov.data || !problem.gain.data != !problem.white.data ||
      !problem.gain.data != !problem.precision.data)
    return ffi::Error::InvalidArgument("kalman: some results of a step are wanted, others not");
  auto groups = VARAX_PICK_OF(T, kalman_groups);
  auto run = VARAX_PICK_OF(T, kalman_value);
  parallel(pool, groups(&problem.model), [&](int64_t g) { run(&problem, g); });
  return ffi::Error::Success();
}

template <class T>
ffi::Error adjoint(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                   ffi::Span<const int64_t> sizes, ffi::Span<const int64_t> varies, ffi::Span<const int64_t> batched) {
  Reader read{args, rets, 0, {}};
  KalmanAdjoint<T> problem{};
  problem.model = model<T>(read, sizes, varies, batched);
  if (!read.error.empty()) return ffi::Error::InvalidArgument(read.error);
  const int64_t n = problem.model.n, m = problem.model.m, steps = problem.model.steps;
  const int64_t moves = std::max<int64_t>(steps - 1, 0);
  if (problem.model.lanes) {
    problem.checkpoint = read.in<T>("checkpoints", n + n * n, checkpoints(steps), true, true);
    problem.mark = read.in<T>("marks", steps > 0, 0, false, true);
  } else {
    problem.mean = read.in<T>("means", n, steps, true, true);
    problem.cov = read.in<T>("covariances", n * n, steps, true, true);
    problem.gain = read.in<T>("gains", n * m, steps, true, true);
    problem.white = read.in<T>("white", m, steps, true, true);
    problem.precision = read.in<T>("precisions", m * m, steps, true, true);
    if (m == 1) problem.mark = problem.precision;
  }
  problem.d_log_likelihood = read.in<T>("the log-likelihood's cotangent", 1, 0, false, true, true);
  problem.d_mean = read.in<T>("the means' cotangents", n, steps, true, true, true);
  problem.d_cov = read.in<T>("the covariances' cotangents", n * n, steps, true, true, true);
  problem.sums = read.in<T>("the sums over series", n * m + 2 * m * m, steps, true, true, true);
  problem.d_y = read.out<T>("y", m, steps, true);
  problem.d_A = read.out<T>("A", n * n, moves, varies[kA]);
  problem.d_Q = read.out<T>("Q", n * n, moves, varies[kQ]);
  problem.d_H = read.out<T>("H", m * n, steps, varies[kH]);
  problem.d_R = read.out<T>("R", m * m, steps, varies[kR]);
  problem.d_m0 = read.out<T>("m0", n, 0, false);
  problem.d_P0 = read.out<T>("P0", n * n, 0, false);
  problem.d_b = read.out<T>("b", n, moves, varies[kB]);
  problem.d_d = read.out<T>("d", m, steps, varies[kD]);
  if (read.bad_count()) return ffi::Error::InvalidArgument(read.error);
  if (problem.model.batch == 0) return ffi::Error::Success();
  if (problem.mark.data && steps > 0)
    for (int64_t s = 0; s < problem.model.batch; ++s)
      if ((problem.mark.data[s * problem.mark.series] == T(-1)) != problem.model.lanes)
        return ffi::Error::InvalidArgument(
            "kalman: the derivative is mapped over series that were filtered one by one, or the other way around; "
            "take jax.vjp and call what it returns inside the same jax.vmap");
  auto groups = VARAX_PICK_OF(T, kalman_groups);
  auto run = VARAX_PICK_OF(T, kalman_adjoint);
  parallel(pool, groups(&problem.model), [&](int64_t g) { run(&problem, g); });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace varax

VARAX_HANDLER(varax_kalman_value_f32, varax::value<float>, varax::kalman_binding());
VARAX_HANDLER(varax_kalman_value_f64, varax::value<double>, varax::kalman_binding());
VARAX_HANDLER(varax_kalman_adjoint_f32, varax::adjoint<float>, varax::kalman_binding());
VARAX_HANDLER(varax_kalman_adjoint_f64, varax::adjoint<double>, varax::kalman_binding());
