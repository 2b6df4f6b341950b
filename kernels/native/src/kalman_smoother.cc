// FFI handlers of what goes back through time: the Kalman smoother, its adjoint, and posterior draws.
#include "kalman_reader.h"

namespace varax {
namespace {

template <class T>
ffi::Error smoother(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                    ffi::Span<const int64_t> sizes, ffi::Span<const int64_t> varies,
                    ffi::Span<const int64_t> batched) {
  Reader read{args, rets, 0, {}};
  KalmanSmoother<T> problem{};
  problem.model = model<T>(read, sizes, varies, batched);
  if (!read.error.empty()) return ffi::Error::InvalidArgument(read.error);
  const int64_t n = problem.model.n, steps = problem.model.steps;
  problem.mean = read.in<T>("filtered means", n, steps, true, true);
  problem.cov = read.in<T>("filtered covariances", n * n, steps, true, true);
  problem.to_mean = read.out<T>("means", n, steps, true);
  problem.to_cov = read.out<T>("covariances", n * n, steps, true);
  if (read.bad_count()) return ffi::Error::InvalidArgument(read.error);
  if (problem.model.batch == 0 || steps == 0) return ffi::Error::Success();
  auto groups = VARAX_PICK_OF(T, kalman_groups);
  auto run = VARAX_PICK_OF(T, kalman_smoother);
  parallel(pool, groups(&problem.model), [&](int64_t g) { run(&problem, g); });
  return ffi::Error::Success();
}

template <class T>
ffi::Error smoother_adjoint(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                            ffi::Span<const int64_t> sizes, ffi::Span<const int64_t> varies,
                            ffi::Span<const int64_t> batched) {
  Reader read{args, rets, 0, {}};
  KalmanSmootherAdjoint<T> problem{};
  problem.model = model<T>(read, sizes, varies, batched);
  if (!read.error.empty()) return ffi::Error::InvalidArgument(read.error);
  const int64_t n = problem.model.n, steps = problem.model.steps, moves = std::max<int64_t>(steps - 1, 0);
  problem.mean = read.in<T>("filtered means", n, steps, true, true);
  problem.cov = read.in<T>("filtered covariances", n * n, steps, true, true);
  problem.smoothed_mean = read.in<T>("smoothed means", n, steps, true, true);
  problem.smoothed_cov = read.in<T>("smoothed covariances", n * n, steps, true, true);
  problem.d_mean = read.in<T>("the means' cotangents", n, steps, true, true, true);
  problem.d_cov = read.in<T>("the covariances' cotangents", n * n, steps, true, true, true);
  problem.to_mean = read.out<T>("filtered means' cotangents", n, steps, true);
  problem.to_cov = read.out<T>("filtered covariances' cotangents", n * n, steps, true);
  problem.d_A = read.out<T>("A", n * n, moves, varies[kA]);
  problem.d_Q = read.out<T>("Q", n * n, moves, varies[kQ]);
  problem.d_b = read.out<T>("b", n, moves, varies[kB]);
  if (read.bad_count()) return ffi::Error::InvalidArgument(read.error);
  if (steps == 0) return ffi::Error::InvalidArgument("kalman: no step to smooth");
  if (problem.model.batch == 0) return ffi::Error::Success();
  auto groups = VARAX_PICK_OF(T, kalman_groups);
  auto run = VARAX_PICK_OF(T, kalman_smoother_adjoint);
  parallel(pool, groups(&problem.model), [&](int64_t g) { run(&problem, g); });
  return ffi::Error::Success();
}

template <class T>
ffi::Error sample(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                  ffi::Span<const int64_t> sizes, ffi::Span<const int64_t> varies,
                  ffi::Span<const int64_t> batched) {
  Reader read{args, rets, 0, {}};
  KalmanSample<T> problem{};
  problem.model = model<T>(read, sizes, varies, batched);
  if (!read.error.empty()) return ffi::Error::InvalidArgument(read.error);
  const int64_t n = problem.model.n, steps = problem.model.steps, each = problem.model.batch * steps * n;
  problem.mean = read.in<T>("filtered means", n, steps, true, true);
  problem.cov = read.in<T>("filtered covariances", n * n, steps, true, true);
  const int64_t all = read.arg < args.size() ? args.get<ffi::AnyBuffer>(read.arg)->element_count() : 0;
  if (all == 0 || each == 0) return ffi::Error::Success();
  problem.draws = all / each;
  problem.noise = read.in<T>("noise", problem.draws * n, steps, true, true);
  problem.to = read.out<T>("draws", problem.draws * n, steps, true);
  if (read.bad_count()) return ffi::Error::InvalidArgument(read.error);
  problem.noise.step = problem.to.step = n;
  auto groups = VARAX_PICK_OF(T, kalman_groups);
  auto run = VARAX_PICK_OF(T, kalman_sample);
  parallel(pool, groups(&problem.model), [&](int64_t g) { run(&problem, g); });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace varax

VARAX_HANDLER(varax_kalman_smoother_f32, varax::smoother<float>, varax::kalman_binding());
VARAX_HANDLER(varax_kalman_smoother_f64, varax::smoother<double>, varax::kalman_binding());
VARAX_HANDLER(varax_kalman_smoother_adjoint_f32, varax::smoother_adjoint<float>, varax::kalman_binding());
VARAX_HANDLER(varax_kalman_smoother_adjoint_f64, varax::smoother_adjoint<double>, varax::kalman_binding());
VARAX_HANDLER(varax_kalman_sample_f32, varax::sample<float>, varax::kalman_binding());
VARAX_HANDLER(varax_kalman_sample_f64, varax::sample<double>, varax::kalman_binding());
